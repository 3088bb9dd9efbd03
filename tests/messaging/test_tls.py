"""One certificate serves the API, MQTT and MQTT over WebSocket; no traffic is unencrypted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.cli.test_tls import NOW, write_certificate, write_key
from tests.support.mqtt import MqttClient
from tests.support.ports import free_ports
from tests.support.server import Server, wait_until
from wardkey.adapters.broker import BrokerProcess, broker_program
from wardkey.adapters.mqtt import Publisher
from wardkey.domain.errors import BrokerUnreachable


def signed_pair(folder: Path) -> tuple[Path, Path, Path]:
    """Return a CA certificate, and a certificate for this machine signed by it with its key."""
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = write_certificate(folder / "root.pem", authority)
    issuer = x509.load_pem_x509_certificate(root.read_bytes())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(issuer.subject, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return root, folder / "cert.pem", write_key(folder / "key.pem", key)


def allow_all(up: Server) -> None:
    rule = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow", "filter": "#"}
    with up.owner() as owner:
        assert owner.post("/v2/acl/rules", json={"priority": 1, **rule}).status_code == 201
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200, 30)


def publish(up: Server, topic: str, payload: str) -> int:
    with up.client(up.first_key) as client:
        body = {"topic": topic, "payload": payload, "qos": 1}
        return client.post("/publish", json=body).status_code


def has_received(client: MqttClient, count: int) -> bool:
    return len(client.messages) == count


async def log_in_plainly(port: int, login: tuple[str, str]) -> None:
    await Publisher("127.0.0.1", port, "plain").open(*login)


def create(up: Server, username: str) -> tuple[str, str]:
    with up.owner() as owner:
        made = owner.post("/v2/clients", json={"username": username}).json()
    return made["client"]["mqtt_username"], made["password"]


def test_mqtt_and_websocket_use_the_certificate_and_refuse_plain_connections(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    root, cert, key = signed_pair(tmp_path)
    up = start(no_messaging=0, tls_cert=cert, tls_key=key)
    up.trust = ssl.create_default_context(cafile=str(root))
    assert f"wss://127.0.0.1:{up.websocket_port}/mqtt" in up.output
    allow_all(up)
    login = create(up, "secure")
    over_tcp = MqttClient(up.mqtt_port, *login, "tcp-1", trust=up.trust)
    over_websocket = MqttClient(up.websocket_port, *login, "ws-1", trust=up.trust, websocket=True)
    for client in (over_tcp, over_websocket):
        assert client.code == 0
        assert client.subscribe("agents/#") == 1
    over_tcp.publish("agents/x", "one")
    over_websocket.publish("agents/x", "two")
    assert publish(up, "agents/x", "three") == 200
    for client in (over_tcp, over_websocket):
        wait_until(partial(has_received, client, 3))
        assert {payload for _, payload in client.messages} == {b"one", b"two", b"three"}
        client.close()
    with pytest.raises(BrokerUnreachable):
        asyncio.run(log_in_plainly(up.mqtt_port, login))
    with socket.create_connection(("127.0.0.1", up.websocket_port), timeout=10) as connection:
        connection.sendall(b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
        assert b"101" not in connection.recv(1_024)


def served_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port)).strip()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_reaches_mqtt_clients_and_loses_no_stored_message(
    start: Callable[..., Server], tmp_path: Path, workers: int
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    _, cert, key = signed_pair(old)
    ports = free_ports(2)
    listening = {
        "mqtt_listen": f"127.0.0.1:{ports[0]}",
        "websocket_listen": f"127.0.0.1:{ports[1]}",
    }
    up = start(no_messaging=0, tls_cert=cert, tls_key=key, workers=workers, **listening)
    up.trust = ssl.create_default_context(cafile=str(old / "root.pem"))
    allow_all(up)
    login = create(up, "secure")
    first = MqttClient(up.mqtt_port, *login, "kept-1", clean=False, trust=up.trust)
    assert first.subscribe("agents/#") == 1
    first.publish("agents/kept", "retained", retain=True)
    wait_until(partial(has_received, first, 1))

    # The certificate is unchanged: no connection ends.
    broker = up.broker()
    assert up.cli("reload").returncode == 0
    assert up.broker() == broker
    assert publish(up, "agents/x", "one") == 200
    wait_until(partial(has_received, first, 2))
    assert not first.ended_at

    root, fresh_cert, fresh_key = signed_pair(new)
    before = served_certificate(up.mqtt_port)
    cert.write_bytes(fresh_cert.read_bytes())
    key.write_bytes(fresh_key.read_bytes())
    # Until the reload the bridge still trusts the broker's certificate.
    assert publish(up, "agents/x", "two") == 200
    done = up.cli("reload")
    assert done.returncode == 0, done.stderr
    for port in (up.mqtt_port, up.websocket_port):
        wait_until(partial(serves_certificate, port, cert), 30)
    assert before != served_certificate(up.mqtt_port)
    wait_until(lambda: first.ended_at)
    first.paho.loop_stop()

    up.trust = ssl.create_default_context(cafile=str(root))
    wait_until(lambda: publish(up, "agents/x", "three") == 200, 30)
    again = MqttClient(up.mqtt_port, *login, "kept-1", clean=False, trust=up.trust)
    assert again.code == 0
    # Queued for its session while it was disconnected.
    wait_until(lambda: ("agents/x", b"three") in again.messages)
    other = MqttClient(up.mqtt_port, *login, "kept-2", trust=up.trust)
    assert other.subscribe("agents/kept") == 1
    wait_until(lambda: ("agents/kept", b"retained") in other.messages)
    for client in (again, other):
        client.close()


def serves_certificate(port: int, cert: Path) -> bool:
    try:
        return served_certificate(port) == cert.read_text().strip()
    except OSError:
        return False


class Nodes(NamedTuple):
    """A deployment with its broker's nodes and their MQTT ports."""

    up: Server
    nodes: list[BrokerProcess]
    ports: list[int]
    trust: ssl.SSLContext


@contextmanager
def cluster(
    up: Server, folder: Path, ports: list[list[int]], tls: tuple[Path, Path, Path]
) -> Iterator[list[BrokerProcess]]:
    """Run three nodes with the settings that the command prints."""
    root, cert, key = tls
    nodes = []
    for number, (inside, mqtt, websocket, routing) in enumerate(ports):
        done = up.cli_here(
            "broker", "settings", f"--server-name=n{number}", f"--store-dir={folder / str(number)}",
            f"--listen=127.0.0.1:{inside}", f"--mqtt-listen=127.0.0.1:{mqtt}",
            f"--websocket-listen=127.0.0.1:{websocket}", f"--cluster-listen=127.0.0.1:{routing}",
            f"--routes={','.join(f'127.0.0.1:{each[3]}' for each in ports)}",
            f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-ca={root}",
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert "\nSU" not in done.stdout
        nodes.append(BrokerProcess(broker_program(""), done.stdout, folder / str(number)))
    try:
        yield nodes
    finally:
        for node in nodes:
            node.stop()


@pytest.fixture
def three_nodes(start: Callable[..., Server], tmp_path: Path) -> Iterator[Nodes]:
    """Run a deployment with an external broker cluster, where everyone may do anything."""
    tls = signed_pair(tmp_path)
    taken = free_ports(12)
    ports = [taken[n : n + 4] for n in (0, 4, 8)]
    up = start(
        no_messaging=0,
        broker="tls://" + ",".join(f"127.0.0.1:{each[0]}" for each in ports),
        broker_mqtt="mqtts://" + ",".join(f"127.0.0.1:{each[1]}" for each in ports),
        broker_ca=tls[0],
    )
    trust = ssl.create_default_context(cafile=str(tls[0]))
    with cluster(up, tmp_path, ports, tls) as nodes:
        allow_all(up)
        wait_until(lambda: publish(up, "a", "x") == 200, 60)
        yield Nodes(up, nodes, [each[1] for each in ports], trust)


def test_a_deleted_clients_session_is_removed_before_another_client_gets_its_id_at_another_node(
    three_nodes: Nodes,
) -> None:
    up, ports, trust = three_nodes.up, three_nodes.ports, three_nodes.trust
    logins = [create(up, name) for name in ("first", "second")]
    live, away = (
        MqttClient(port, *logins[0], f"device-{number}", clean=False, trust=trust)
        for number, port in enumerate(ports[:2])
    )
    for client in (live, away):
        assert client.code == 0
        assert client.subscribe("agents/#") == 1
    away.close()
    assert publish(up, "agents/x", "not for the second") == 200
    with up.owner() as owner:
        (first,) = owner.get("/v2/clients?search=first").json()["clients"]
        assert owner.delete(f"/v2/clients/{first['id']}").is_success
    for number in (0, 1):
        # The broker delays a login within a second of another one with the same client id.
        taken = wait_until(partial(take_over, three_nodes, logins[1], f"device-{number}"), 20)
        assert taken is not None
        assert taken.messages == []
        assert taken.subscribe("agents/#") == 1
        assert publish(up, "agents/x", "for the second") == 200
        wait_until(partial(has_received, taken, 1))
        assert taken.messages == [("agents/x", b"for the second")]
        taken.close()
    live.close()


def take_over(nodes: Nodes, login: tuple[str, str], mqtt_id: str) -> MqttClient | None:
    """Log in at the third node; the session must be a new one."""
    client = MqttClient(nodes.ports[2], *login, mqtt_id, clean=False, trust=nodes.trust)
    if client.code == 0:
        assert not client.present
        return client
    client.close()
    return None


def test_an_external_cluster_carries_messages_and_kicks_and_survives_a_dead_node(
    three_nodes: Nodes,
) -> None:
    up, nodes, ports, trust = three_nodes
    names = [create(up, f"on-{number}") for number in range(3)]
    clients = [
        MqttClient(port, *login, f"on-{number}", trust=trust)
        for number, (port, login) in enumerate(zip(ports, names, strict=True))
    ]
    for client in clients:
        assert client.code == 0
        assert client.subscribe("agents/#") == 1
    clients[0].publish("agents/x", "from a client")
    assert publish(up, "agents/x", "from the bridge") == 200
    for client in clients:
        wait_until(partial(has_received, client, 2))
    # The bridge is connected to one node, so at least two of these are on other nodes.
    with up.owner() as owner:
        # A node that has just joined is counted by the next look at the cluster.
        wait_until(lambda: owner.get("/v2/sessions").json()["total"] == 3)
        for row in owner.get("/v2/clients").json()["clients"][1:]:
            done = owner.patch(f"/v2/clients/{row['id']}", json={"enabled": False})
            assert done.is_success
    wait_until(lambda: sum(1 for client in clients if client.ended_at) == 2)
    (left,) = (number for number, client in enumerate(clients) if not client.ended_at)
    dead = (left + 1) % 3
    nodes[dead].kill()
    wait_until(lambda: publish(up, "agents/x", "one is dead") == 200, 60)
    wait_until(lambda: clients[left].messages[-1] == ("agents/x", b"one is dead"))
    # Until another node is elected leader, logins wait and fail.
    wait_until(lambda: can_log_in(ports[(left + 2) % 3], names[left], trust), 40)
    for client in clients:
        client.close()


def can_log_in(port: int, login: tuple[str, str], trust: ssl.SSLContext) -> bool:
    client = MqttClient(port, *login, f"again-{time.monotonic_ns()}", trust=trust)
    client.close()
    return client.code == 0
