"""`wardkey broker`: prints nats-server settings for a broker that runs elsewhere."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click

from wardkey.adapters.broker import BrokerKeys, Cluster, Node, Tls, broker_settings
from wardkey.cli.terminal import STORAGE, Subgroup, as_json, print_output, settings
from wardkey.config import Config
from wardkey.deployment import open_existing
from wardkey.domain.errors import InvalidSetting, UnsafeListen


@click.group(cls=Subgroup)
def broker() -> None:
    """Print settings for a broker that runs elsewhere; `wardkey up --broker` connects to it."""


@broker.command("settings")
@click.option("--server-name", required=True, help="The node's name, unique in the cluster.")
@click.option("--listen", required=True, help="Address and port for Wardkey only.")
@click.option("--mqtt-listen", required=True, help="Address and port for MQTT.")
@click.option("--websocket-listen", required=True, help="Address and port for MQTT over WebSocket.")
@click.option("--store-dir", required=True, help="The node's storage folder.")
@click.option("--cluster-name", default="wardkey", show_default=True, help="The cluster's name.")
@click.option("--cluster-listen", default="", help="Address and port for the other nodes.")
@click.option("--routes", default="", help="host:port of every node's --cluster-listen, by comma.")
@click.option("--tls-cert", default="", help="Certificate file on the node (PEM).")
@click.option("--tls-key", default="", help="Private key file on the node (PEM).")
@click.option("--tls-ca", default="", help="File on the node: CA of the nodes' certificates (PEM).")
@click.option("--sync-always", is_flag=True, help="Sync to disk before acknowledging.")
@as_json
@settings(*STORAGE)
def print_settings(
    config: Config,
    *,
    server_name: str,
    listen: str,
    mqtt_listen: str,
    websocket_listen: str,
    store_dir: str,
    cluster_name: str,
    cluster_listen: str,
    routes: str,
    tls_cert: str,
    tls_key: str,
    tls_ca: str,
    sync_always: bool,
    as_json: bool,
) -> None:
    """Print a node's nats-server settings; they contain no secret of this deployment."""
    addresses = {"listen": listen, "mqtt_listen": mqtt_listen, "websocket_listen": websocket_listen}
    if bool(cluster_listen) != bool(routes):
        raise InvalidSetting(
            "A cluster needs both --cluster-listen and --routes.",
            field="routes" if cluster_listen else "cluster_listen",
        )
    if bool(tls_cert) != bool(tls_key):
        raise InvalidSetting(
            "TLS needs both --tls-cert and --tls-key.", field="tls_key" if tls_cert else "tls_cert"
        )
    if cluster_listen:
        addresses["cluster_listen"] = cluster_listen
        if tls_cert and not tls_ca:
            raise InvalidSetting(
                "The nodes of a cluster verify each other's certificates; name their CA's file "
                "with --tls-ca.",
                field="tls_ca",
            )
    for name, address in addresses.items():
        _check_address(name, address, tls=bool(tls_cert))
    node = Node(
        listen,
        mqtt_listen,
        websocket_listen,
        Path(store_dir),
        server_name,
        Tls(tls_cert, tls_key, tls_ca) if tls_cert else None,
        tls_inside=bool(tls_cert),
        cluster=Cluster(cluster_name, cluster_listen, tuple(routes.split(","))) if routes else None,
        sync_always=sync_always,
    )
    with open_existing(config) as runner:
        keys = BrokerKeys(runner.database.vault.broker_root)
        text = broker_settings(keys, node, runner.database.clock() // 1000)
    print_output({"settings": text}, as_json=as_json, text=text)


def _check_address(name: str, text: str, *, tls: bool) -> None:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        raise InvalidSetting(
            f"{text!r} is not an address to listen on; give HOST:PORT.", field=name
        )
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not tls:
        raise UnsafeListen(
            f"{text} is not a loopback address, so passwords would be sent in the clear. Give "
            "--tls-cert and --tls-key.",
            field=name,
        )
