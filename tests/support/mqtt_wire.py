"""Hand-made MQTT 3.1.1 packets, for requests that regular clients never send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack
from typing import NamedTuple

from tests.support.server import Server

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = range(8, 15)


class Packet(NamedTuple):
    """A received packet; `flags` are the lower four bits of its first byte."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """A parsed PUBLISH packet."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    packet_id: int


def text(value: str | bytes) -> bytes:
    """Return a string or bytes prefixed with the length."""
    raw = value if isinstance(value, bytes) else value.encode()
    return pack(">H", len(raw)) + raw


def framed(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Return a complete packet."""
    left, length = len(body), bytearray()
    while True:
        left, digit = left >> 7, left & 0x7F
        length.append(digit | (0x80 if left else 0))
        if not left:
            return bytes([kind << 4 | flags, *length]) + body


class Wire:
    """A connection that sends raw packets and reads packet by packet."""

    def __init__(self, server: Server, source: str = "127.0.0.1") -> None:
        """Connect from an address of this machine."""
        self.socket = socket.create_connection(("127.0.0.1", server.mqtt_port), 10, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: int, body: bytes = b"", flags: int = 0) -> None:
        self.socket.sendall(framed(kind, body, flags))

    def read(self) -> Packet | None:
        """Return the next packet, or None once the connection is closed."""
        head = self._exactly(1)
        if not head:
            return None
        length = shift = 0
        while True:
            digit = self._exactly(1)
            if not digit:
                return None
            length |= (digit[0] & 0x7F) << shift
            shift += 7
            if not digit[0] & 0x80:
                return Packet(head[0] >> 4, head[0] & 15, self._exactly(length))

    def login(
        self,
        username: str,
        password: str,
        mqtt_id: str,
        *,
        clean: bool = True,
        keep_alive: int = 60,
        will: tuple[str, str] | None = None,
        level: int = 4,
    ) -> tuple[int, bool] | None:
        """Return CONNACK's code and session flag, or None if the connection was closed."""
        flags = 0b11000000 | (0b10 if clean else 0) | (0b1100 if will else 0)
        fields = [mqtt_id, *(will or ()), username, password]
        head = text("MQTT") + pack(">BBH", level, flags, keep_alive)
        # MQTT 5 has properties here: none.
        head += b"\0" if level > 4 else b""
        self.send(CONNECT, head + b"".join(map(text, fields)))
        answer = self.read()
        if answer is None:
            return None
        assert answer.kind == CONNACK, answer
        return answer.body[1], bool(answer.body[0] & 1)

    def subscribe(self, pattern: str | bytes, qos: int = 1) -> int | None:
        """Return the granted QoS, or None if the connection was closed."""
        self.send(SUBSCRIBE, b"\0\1" + text(pattern) + bytes([qos]), 2)
        answer = self.read()
        return answer.body[2] if answer else None

    def publish(self, topic: str | bytes, payload: bytes, qos: int = 0) -> None:
        """Send a PUBLISH without awaiting an acknowledgement or, for QoS 2, sending the release."""
        packet_id = b"\0\7" if qos else b""
        self.send(PUBLISH, text(topic) + packet_id + payload, qos << 1)

    def is_alive(self) -> bool:
        """Return whether the broker still answers after it has read everything sent."""
        try:
            self.send(PINGREQ)
            while (packet := self.read()) is not None:
                if packet.kind == PINGRESP:
                    return True
        except ConnectionError:
            return False
        return False

    def message(self, within_s: float = 10) -> Message | None:
        """Return the next message unacknowledged, or None if the connection was closed."""
        self.socket.settimeout(within_s)
        while (packet := self.read()) is not None:
            if packet.kind == PUBLISH:
                return _message(packet)
        return None

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                part = self.socket.recv(length - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                return b""
            data += part
        return data


def _message(packet: Packet) -> Message:
    length = int.from_bytes(packet.body[:2], "big")
    topic, rest = packet.body[2 : 2 + length].decode(), packet.body[2 + length :]
    qos, packet_id = packet.flags >> 1 & 3, 0
    if qos:
        packet_id, rest = int.from_bytes(rest[:2], "big"), rest[2:]
    return Message(topic, rest, qos, bool(packet.flags & 1), bool(packet.flags & 8), packet_id)


@contextmanager
def wired(server: Server, source: str = "127.0.0.1") -> Iterator[Wire]:
    """Connect until the block ends, without logging in."""
    wire = Wire(server, source)
    try:
        yield wire
    finally:
        wire.socket.close()
