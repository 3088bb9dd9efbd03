"""A publisher over MQTT 3.1.1 (OASIS Standard, 2014): QoS 0 and 1, many messages at once."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from struct import pack

from wardkey.domain.errors import BrokerUnreachable, PublishUnconfirmed

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _PINGREQ, _PINGRESP = 0x10, 2, 0x30, 4, 0xC0, 13
_CLEAN_USER_PASSWORD = 0b11000010
_KEEP_ALIVE_S = 60
_PING_S = 30.0
_CONNECT_S = 5.0
_LAST_ID = 0xFFFF
_MOST_WAITING = 20_000
_QUIET_BYTES = 1_048_576


class Publisher:
    """One connection; `publish` returns once the broker has acknowledged, or at once for QoS 0."""

    def __init__(
        self, host: str, port: int, client_id: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._host, self._port, self._client_id, self._tls = host, port, client_id, tls
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._next_id = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_open(self) -> bool:
        """Tell whether messages can be sent."""
        return self._writer is not None and not self._writer.is_closing()

    async def open(self, username: str, password: str) -> None:
        """Connect and log in; raises `BrokerUnreachable`."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._tls
                )
                writer.write(_connect(self._client_id, username, password))
                kind, body = await _packet(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as fault:
            raise BrokerUnreachable from fault
        if kind != _CONNACK or body[1:2] != b"\0":
            writer.close()
            raise BrokerUnreachable
        self._writer = writer
        self._tasks = [
            asyncio.create_task(self._read(reader)),
            asyncio.create_task(self._ping(writer)),
        ]

    async def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Send a message.

        Raises `BrokerUnreachable` if it was not sent, `PublishUnconfirmed` if nobody can say.
        """
        writer = self._writer
        if writer is None or writer.is_closing() or len(self._waiting) >= _MOST_WAITING:
            raise BrokerUnreachable
        name = topic.encode()
        head = _PUBLISH | qos << 1 | retain
        if qos == 0:
            writer.write(_framed(head, pack(">H", len(name)), name, payload))
            if writer.transport.get_write_buffer_size() > _QUIET_BYTES:
                with suppress(OSError):
                    await writer.drain()
            return
        packet_id = self._take_id()
        done = asyncio.get_running_loop().create_future()
        self._waiting[packet_id] = done
        parts = (pack(">H", len(name)), name, pack(">H", packet_id), payload)
        writer.write(_framed(head, *parts))
        try:
            await done
        finally:
            self._waiting.pop(packet_id, None)

    async def close(self) -> None:
        """End the connection; what is not acknowledged is unconfirmed."""
        for task in self._tasks:
            task.cancel()
        self._end()

    def _take_id(self) -> int:
        while True:
            self._next_id = self._next_id % _LAST_ID + 1
            if self._next_id not in self._waiting:
                return self._next_id

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                kind, body = await _packet(reader)
                if kind == _PUBACK:
                    done = self._waiting.get(int.from_bytes(body[:2], "big"))
                    if done is not None and not done.done():
                        done.set_result(None)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._end()

    async def _ping(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            await asyncio.sleep(_PING_S)
            writer.write(bytes([_PINGREQ, 0]))

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(PublishUnconfirmed())


def _connect(client_id: str, username: str, password: str) -> bytes:
    fields = (b"MQTT", client_id.encode(), username.encode(), password.encode())
    protocol, *rest = (pack(">H", len(text)) + text for text in fields)
    flags = pack(">BBH", 4, _CLEAN_USER_PASSWORD, _KEEP_ALIVE_S)
    return _framed(_CONNECT, protocol, flags, *rest)


def _framed(head: int, *parts: bytes) -> bytes:
    left = sum(map(len, parts))
    length = bytearray()
    while True:
        left, digit = left >> 7, left & 0x7F
        length.append(digit | (0x80 if left else 0))
        if not left:
            return b"".join((bytes([head]), bytes(length), *parts))


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return a packet's type and body."""
    head = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        if not digit & 0x80:
            return head >> 4, await reader.readexactly(length)
        shift += 7
