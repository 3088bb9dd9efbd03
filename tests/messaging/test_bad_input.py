"""Malformed and hostile input ends its own MQTT connection alone, and is reported over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest

from tests.support.mqtt import MqttClient, connected
from tests.support.mqtt_wire import (
    CONNACK,
    CONNECT,
    PINGREQ,
    PUBLISH,
    SUBSCRIBE,
    framed,
    text,
    wired,
)
from tests.support.server import Server, running, wait_until

LEVEL = pack(">BBH", 4, 2, 60)
JSON = {"content-type": "application/json"}
# So many wrong logins come from this address that some are closed without an answer.
REFUSED = ((5, False), None)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("bad") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            rule = {
                "subject": {"kind": "everyone"},
                "action": "both",
                "effect": "allow",
                "priority": 10,
                "filter": "#",
            }
            assert owner.post("/v2/acl/rules", json=rule).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def login(broker: Server) -> tuple[str, str]:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "fuzzer"}).json()
    return made["client"]["mqtt_username"], made["password"]


@pytest.fixture(scope="module")
def bystander(broker: Server) -> Iterator[MqttClient]:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "bystander"}).json()
    with connected(broker, made["client"]["mqtt_username"], made["password"], "by") as client:
        assert client.subscribe("#") == 1
        yield client


def received_nothing(client: MqttClient) -> bool:
    """Return whether a client subscribed to all topics is still connected and received nothing."""
    client.publish("end", "end")
    wait_until(lambda: client.messages)
    seen, client.messages[:] = list(client.messages), []
    return seen == [("end", b"end")] and not client.ended_at


@pytest.mark.parametrize(
    "sent",
    [
        framed(PUBLISH, text("a") + b"\0\1x", 0b110),
        framed(PUBLISH, b"\xff\xffab"),
        framed(CONNECT, text("MQTT") + LEVEL + text("twice")),
        framed(CONNACK, b"\0\0"),
        framed(SUBSCRIBE, b"\0\1" + text("a") + b"\1", 0),
        framed(SUBSCRIBE, b"\0\1" + text("a") + b"\3", 2),
        framed(SUBSCRIBE, b"\0\0" + text("a") + b"\1", 2),
        framed(SUBSCRIBE, b"\0\1", 2),
        framed(0),
        framed(15),
        b"\x30\xff\xff\xff\xff\x01",
        b"\x30\xff\xff\xff\x7f",
    ],
    ids=[
        "QoS 3",
        "a string longer than its packet",
        "CONNECT twice",
        "CONNACK from a client",
        "SUBSCRIBE without its flags",
        "SUBSCRIBE for QoS 3",
        "packet id 0",
        "SUBSCRIBE to nothing",
        "type 0",
        "type 15",
        "a length of five bytes",
        "256 MiB announced",
    ],
)
def test_a_malformed_packet_ends_only_the_connection_that_sent_it(
    broker: Server, login: tuple[str, str], bystander: MqttClient, sent: bytes
) -> None:
    with wired(broker) as wire:
        assert wire.login(*login, "") == (0, False)
        wire.socket.sendall(sent)
        assert wire.read() is None
    assert received_nothing(bystander)


@pytest.mark.parametrize(
    "sent",
    [
        framed(PUBLISH, text("a") + b"x"),
        framed(PINGREQ),
        framed(CONNECT, text("MQTT") + pack(">BBH", 4, 3, 60) + text("reserved")),
        framed(CONNECT, text("MQIsdp") + pack(">BBH", 3, 2, 60) + text("old")),
        framed(CONNECT, text("HTTP") + LEVEL + text("other")),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
    ],
    ids=["PUBLISH", "PINGREQ", "reserved flag", "MQTT 3.1", "not MQTT", "HTTP", "TLS"],
)
def test_a_connection_that_does_not_begin_with_connect_is_closed(
    broker: Server, bystander: MqttClient, sent: bytes
) -> None:
    with wired(broker) as wire:
        wire.socket.sendall(sent)
        assert wire.read() is None
    assert received_nothing(bystander)


@pytest.mark.parametrize(
    "topic", ["", "a/+", "a/#", "a b", "a\tb", "a\nb", "a\0", "a\x7f", b"\xff\xfe"]
)
def test_publishing_to_an_invalid_topic_ends_the_connection(
    broker: Server, login: tuple[str, str], bystander: MqttClient, topic: str | bytes
) -> None:
    with wired(broker) as wire:
        assert wire.login(*login, "") == (0, False)
        wire.publish(topic, b"x")
        assert not wire.is_alive()
    assert received_nothing(bystander)


def test_the_longest_topic_of_mqtt_arrives_whole(
    broker: Server, login: tuple[str, str], bystander: MqttClient
) -> None:
    with wired(broker) as wire:
        assert wire.login(*login, "") == (0, False)
        wire.publish("x" * 65_535, b"x")
        wait_until(lambda: bystander.messages)
        assert wire.subscribe("x" * 65_535) == 1
    assert bystander.messages == [("x" * 65_535, b"x")]
    bystander.messages.clear()


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        ("a b", 128),
        ("a/#/b", 128),
        ("$SYS/#", 128),
        ("", None),
        ("a\0", None),
        (b"\xff", None),
    ],
)
def test_subscribing_to_an_invalid_filter_is_refused(
    broker: Server, login: tuple[str, str], pattern: str | bytes, answer: int | None
) -> None:
    with wired(broker) as wire:
        assert wire.login(*login, "") == (0, False)
        assert wire.subscribe(pattern) == answer


def test_a_payload_over_the_brokers_limit_ends_the_connection(
    broker: Server, login: tuple[str, str], bystander: MqttClient
) -> None:
    with wired(broker) as wire:
        assert wire.login(*login, "") == (0, False)
        try:
            wire.publish("a", b"x" * 1_100_000)
            assert wire.read() is None
        except ConnectionError:
            pass
    assert received_nothing(bystander)


@pytest.mark.parametrize("name", ["a@b", "a+b", "a#", "a*", "a>", "a b", "a\0", "a/b", "", "é"])
def test_400_a_username_with_reserved_characters(broker: Server, name: str) -> None:
    with broker.owner() as owner:
        response = owner.post("/v2/clients", json={"username": name})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_username")


@pytest.mark.parametrize("username", ["*@{org}", "fuzzer@*", "fuzzer@{org}>", "x@fuzzer@{org}"])
def test_a_login_with_reserved_characters_in_its_username_is_refused(
    broker: Server, login: tuple[str, str], username: str
) -> None:
    organization = login[0].partition("@")[2]
    with wired(broker) as wire:
        assert wire.login(username.format(org=organization), login[1], "") in REFUSED


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"topic": "a", "payload": "\\u00e9", "payload_encoding": "base64"}', "invalid_payload"),
        (b'{"topic": "a", "payload": "YQ", "payload_encoding": "base64"}', "invalid_payload"),
        (b'{"topic": "a", "payload": "Y Q==", "payload_encoding": "base64"}', "invalid_payload"),
        (b'{"topic": "a", "payload": "YQ=\\n=", "payload_encoding": "base64"}', "invalid_payload"),
        (b'{"topic": "a", "payload": null, "payload_encoding": "base64"}', "invalid_payload"),
        (b'{"topic": "a", "payload": 1, "payload_encoding": "hex"}', "invalid_request"),
        (b'{"topic": "a\\ud800", "payload": 1}', "malformed_json"),
        (b'{"topic": "a", "payload": "\\ud800"}', "malformed_json"),
        (b'{"topic": "a", "payload": "\xff"}', "malformed_json"),
        (b'{"topic": "a", "payload": {"b": "\xff"}}', "malformed_json"),
        (b'{"topic": "a", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_json"),
        (b"[" * 100_000, "invalid_request"),
        (b'{"topic": "a", "payload": NaN}', "malformed_json"),
        (b'{"topic": 1, "payload": 1}', "invalid_request"),
        (b'{"topic": "a", "payload": 1, "qos": -1}', "invalid_request"),
        (b'{"topic": "a", "payload": 1, "qos": 1.5}', "invalid_request"),
        (b'{"topic": "a", "payload": 1, "qos": "1"}', "invalid_request"),
        (b'{"topic": "a", "payload": 1, "retain": "yes"}', "invalid_request"),
        (b"[[]]", "invalid_request"),
        (b"null", "invalid_request"),
        (b"", "malformed_json"),
    ],
    ids=lambda value: str(value[:60]),
)
def test_400_a_message_that_cannot_be_published(
    broker: Server, bystander: MqttClient, body: bytes, code: str
) -> None:
    with broker.client(broker.first_key) as client:
        response = client.post("/publish", content=body, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert received_nothing(bystander)


@pytest.mark.parametrize("mqtt_id", ["i" * 257, "i" * 65_535, "a\x01b", "a\u2028b"])
def test_a_login_with_an_overlong_or_unprintable_client_id_is_refused(
    broker: Server, login: tuple[str, str], mqtt_id: str
) -> None:
    with wired(broker) as client:
        assert client.login(*login, mqtt_id) in {(5, False), (2, False), None}
    with wired(broker) as client:
        assert client.login(*login, "i" * 256) == (0, False)


def test_400_an_environment_that_does_not_exist(broker: Server) -> None:
    with broker.owner(**{"Wardkey-Environment": "staging"}) as owner:
        response = owner.post("/publish", json={"topic": "a", "payload": 1})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert "live or test" in response.json()["detail"]


def test_no_password_is_logged_or_stored_in_plain_text(
    broker: Server, bystander: MqttClient
) -> None:
    chosen, wrong = "a-chosen-password-4711", "a-wrong-password-4712"
    with broker.owner() as owner:
        with_chosen = owner.post(
            "/v2/clients", json={"username": "chosen", "password": chosen}
        ).json()
        with_generated = owner.post("/v2/clients", json={"username": "generated"}).json()
    names = [created["client"]["mqtt_username"] for created in (with_chosen, with_generated)]
    generated = with_generated["password"]
    with connected(broker, names[0], chosen, "chosen-1") as first:
        assert first.code == 0
    with connected(broker, names[1], generated, "generated-1") as second:
        assert second.code == 0
    for name in (names[0], names[1] + ".test", "nobody"):
        with wired(broker) as wire:
            assert wire.login(name, wrong, "w") in REFUSED
    # The broker also logs broken connections.
    with wired(broker) as wire:
        assert wire.login(names[0], chosen, "w", level=5) == (1, False)
    with wired(broker) as wire:
        wire.login(names[0], chosen, "chosen-1")
        wire.socket.sendall(framed(15))
        assert wire.read() is None
    assert received_nothing(bystander)
    data = [file for file in broker.data_dir.rglob("*") if file.is_file()]
    assert any("nats" in file.name for file in data)
    for secret in (chosen, wrong, generated):
        for encoded in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")):
            assert encoded not in broker.log.read_bytes()
            assert [file for file in data if encoded in _bytes_of(file)] == []


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # the broker deletes its files at any time
        return b""
