"""The broker's limits, as in the guide under "What the broker does differently"."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from struct import pack

import pytest

from tests.messaging.test_interoperability import Login, made
from tests.support.mqtt import connected
from tests.support.mqtt_wire import (
    CONNECT,
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    Packet,
    Wire,
    framed,
    text,
    wired,
)
from tests.support.server import Server, running, wait_until

MIB = 1_048_576
# The header that the broker adds to each stored message.
OWN = 25
# The same for QoS 2, to which the topic's length is added.
OWN_2 = 42
# Characters in a topic that make the broker close the connection, as wildcards do.
CLOSING = "\0\t\n\f\r \x7f"
CONNACK_1 = bytes([0x82, 4, 0x20, 2, 0, 1])
UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
)
VERSIONS = {
    "MQTT 5": framed(CONNECT, text("MQTT") + pack(">BBH", 5, 2, 60) + b"\0" + text("five")),
    "MQTT 3.1": framed(CONNECT, text("MQIsdp") + pack(">BBH", 3, 2, 60) + text("three")),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("limits") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            rule = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}
            everything = {**rule, "priority": 10, "filter": "#"}
            assert owner.post("/v2/acl/rules", json=everything).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def one(broker: Server) -> Login:
    return made(broker)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("topic", ["a", "levels/of/a/topic"])
def test_the_largest_payload_is_a_little_less_than_a_mebibyte(
    broker: Server, one: Login, topic: str, qos: int
) -> None:
    largest = MIB - (OWN_2 + len(topic) if qos == 2 else OWN)

    def is_taken(size: int) -> bool:
        with wired(broker) as wire:
            assert wire.login(*one, "") == (0, False)
            try:
                wire.publish(topic, b"x" * size, qos)
                return wire.is_alive()
            except ConnectionError:
                return False

    assert is_taken(largest)
    assert not is_taken(largest + 1)


@pytest.mark.parametrize("code", [*range(0x21), 0x7F, 0x80, 0x85, 0xA0, 0x2028])
def test_a_topic_with_one_of_seven_characters_ends_the_connection(
    broker: Server, one: Login, code: int
) -> None:
    letter = chr(code)
    with wired(broker) as wire, connected(broker, *made(broker), "") as listener:
        assert listener.subscribe("#") == 1
        assert wire.login(*one, "") == (0, False)
        wire.publish(f"a{letter}b", b"x")
        assert wire.is_alive() is (letter not in CLOSING)
        listener.publish("end", "end")
        wait_until(lambda: ("end", b"end") in listener.messages)
        arrived = {topic for topic, _ in listener.messages} - {"end"}
        assert arrived == (set() if letter in CLOSING else {f"a{letter}b"})


def test_no_will_is_sent_when_a_session_is_taken_over(broker: Server, one: Login) -> None:
    with connected(broker, *made(broker), "") as watcher, wired(broker) as first:
        watcher.subscribe("wills/#")
        assert first.login(*one, "same", will=("wills/taken", "gone")) == (0, False)
        with wired(broker) as second, wired(broker) as third:
            assert second.login(*one, "same") == (0, False)
            assert first.read() is None
            # A will sent for the takeover would arrive before this one.
            assert third.login(*one, "other", will=("wills/vanished", "gone")) == (0, False)
            third.socket.close()
            wait_until(lambda: watcher.messages)
        assert watcher.messages == [("wills/vanished", b"gone")]


def test_a_will_is_sent_when_a_session_is_ended_by_hand(broker: Server, one: Login) -> None:
    with connected(broker, *made(broker), "") as watcher, wired(broker) as ended:
        watcher.subscribe("wills/#")
        assert ended.login(*one, "by-hand", will=("wills/ended", "gone")) == (0, False)
        with broker.owner() as owner:
            sessions = owner.get("/v2/sessions", params={"search": "by-hand"}).json()["sessions"]
            assert owner.delete(f"/v2/sessions/{sessions[0]['id']}").status_code == 204
        wait_until(lambda: watcher.messages)
        assert watcher.messages == [("wills/ended", b"gone")]


def expect_packet(wire: Wire, kind: int) -> None:
    packet = wire.read()
    assert packet is not None
    assert packet.kind == kind


def test_a_qos_2_message_is_delivered_once_when_it_is_released(broker: Server, one: Login) -> None:
    with connected(broker, *made(broker), "") as listener:
        listener.subscribe("exactly", 2)
        with wired(broker) as wire:
            assert wire.login(*one, "exactly", clean=False) == (0, False)
            wire.publish("exactly", b"once", 2)
            expect_packet(wire, PUBREC)
            wire.send(PUBLISH, text("exactly") + b"\0\7once", 0b1100)
            expect_packet(wire, PUBREC)
        with wired(broker) as wire:
            assert wire.login(*one, "exactly", clean=False) == (0, True)
            assert listener.messages == []
            for _ in range(2):
                wire.send(PUBREL, b"\0\7", 2)
                expect_packet(wire, PUBCOMP)
            wire.publish("exactly", b"end", 1)
            expect_packet(wire, PUBACK)
        wait_until(lambda: len(listener.arrived) == 2)
        # Paho delivers a QoS 2 message once the broker has released it.
        assert sorted(listener.messages) == [("exactly", b"end"), ("exactly", b"once")]


def test_a_clean_session_keeps_an_unreleased_qos_2_message(broker: Server, one: Login) -> None:
    with connected(broker, *made(broker), "") as listener:
        listener.subscribe("forgets", 2)
        with wired(broker) as wire:
            assert wire.login(*one, "forgets") == (0, False)
            wire.publish("forgets", b"old", 2)
            expect_packet(wire, PUBREC)
            wire.send(DISCONNECT)
        with wired(broker) as wire:
            assert wire.login(*one, "forgets") == (0, False)
            # With the same packet id.
            wire.publish("forgets", b"new", 2)
            expect_packet(wire, PUBREC)
            wire.send(PUBREL, b"\0\7", 2)
            expect_packet(wire, PUBCOMP)
        wait_until(lambda: listener.messages)
        assert listener.messages == [("forgets", b"old")]


def send_over_websocket(server: Server, packet: bytes) -> bytes:
    """Return everything received until the broker closes the connection."""
    with socket.create_connection(("127.0.0.1", server.websocket_port), 10) as connection:
        connection.sendall(UPGRADE)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(4096)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(packet))
        connection.sendall(bytes([0x82, 0x80 | len(packet)]) + mask + masked)
        received = received.partition(b"\r\n\r\n")[2]
        while part := connection.recv(4096):
            received += part
    return received


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unsupported_version_over_websocket_is_closed_at_once(
    broker: Server, version: str
) -> None:
    began = time.monotonic()
    # The broker often closes before it has sent its answer; see decision 36.
    answers = {b"", CONNACK_1} if version == "MQTT 5" else {b""}
    for _ in range(20):
        assert send_over_websocket(broker, VERSIONS[version]) in answers
    assert time.monotonic() - began < 5


def test_mqtt_5_gets_an_error_code_over_tcp_and_mqtt_3_1_is_closed(broker: Server) -> None:
    for version, answer in (("MQTT 5", Packet(2, 0, b"\0\1")), ("MQTT 3.1", None)):
        for _ in range(20):
            with wired(broker) as wire:
                wire.socket.sendall(VERSIONS[version])
                assert wire.read() == answer
