"""An MQTT 3.1.1 publisher (OASIS Standard, 2014): QoS 0 and 1, many messages in flight."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from struct import pack
from typing import Any

from wardkey.domain.errors import BrokerUnreachable, PublishUnconfirmed, WardkeyError

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _PINGREQ = 0x10, 0x20, 0x30, 0x40, 0xC0
_QOS_1 = 0x02
_CLEAN_USER_PASSWORD = 0b11000010
_KEEP_ALIVE_S = 60
_CONNECT_S = 5.0
_MAX_PACKET_ID = 0xFFFF
_MAX_UNCONFIRMED = 20_000
_WRITE_BUFFER_BYTES = 1_048_576
_TICK_S = 1.0
# In ticks.
_PING_TICKS = 30
_CONFIRM_TICKS = 10

# Called once: with None if the broker acknowledged the message, else with the error.
Done = Callable[[WardkeyError | None], None]


class Publisher(asyncio.Protocol):
    """One connection; messages sent in one turn of the event loop go out in one write."""

    def __init__(
        self, host: str, port: int, client_id: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._host, self._port, self._client_id, self._tls = host, port, client_id, tls
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[int] = self._loop.create_future()
        # Oldest first, with the tick in which each was sent.
        self._unconfirmed: dict[int, tuple[Done, int]] = {}
        self._last_id = self._ticks = 0
        self._unsent: list[bytes] = []
        self._rest = b""
        self._paused: asyncio.Future[None] | None = None
        self._is_retired = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Return whether messages can be sent."""
        transport = self._transport
        return transport is not None and not self._is_retired and not transport.is_closing()

    @property
    def takes_more(self) -> bool:
        """Return whether the broker keeps up, so a message is sent without waiting."""
        return self._paused is None and self.is_open

    async def open(self, username: str, password: str) -> None:
        """Connect and log in; raises `BrokerUnreachable`."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(
                    lambda: self, self._host, self._port, ssl=self._tls
                )
                assert self._transport is not None  # noqa: S101 - connection_made was called
                self._transport.write(_connect(self._client_id, username, password))
                code = await self._connack
        except (OSError, TimeoutError) as error:
            self.close()
            raise BrokerUnreachable from error
        except asyncio.CancelledError:
            self.close()
            raise
        if code:
            self.close()
            raise BrokerUnreachable
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def send(self, topic: str, payload: bytes, done: Done | None, *, retain: bool) -> None:
        """Send a message; with `done`, use QoS 1 and call it with the result.

        Raises `BrokerUnreachable` if nothing was sent.
        """
        if not self.is_open or len(self._unconfirmed) >= _MAX_UNCONFIRMED:
            raise BrokerUnreachable
        name = topic.encode()
        if done is None:
            packet = _packet(_PUBLISH | retain, pack(">H", len(name)), name, payload)
        else:
            packet_id = self._next_packet_id()
            self._unconfirmed[packet_id] = done, self._ticks
            packet = _packet(
                _PUBLISH | _QOS_1 | retain,
                pack(">H", len(name)), name, pack(">H", packet_id), payload,
            )  # fmt: skip
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packet)

    async def drained(self) -> None:
        """Wait until the broker keeps up again."""
        while self._paused is not None:
            await asyncio.shield(self._paused)

    def retire(self) -> None:
        """Send nothing more; the connection ends once no acknowledgement is pending."""
        self._is_retired = True

    def close(self) -> None:
        """Close the connection; messages not acknowledged are unconfirmed."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._end()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Store the transport."""
        self._transport = transport
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Read acknowledgements; every packet that a publisher receives is below 128 bytes."""
        data = self._rest + data
        start, length = 0, len(data)
        while length - start > 1:
            kind, end = data[start], start + 2 + data[start + 1]
            if end > length:
                break
            if kind == _PUBACK:
                entry = self._unconfirmed.pop(data[start + 2] << 8 | data[start + 3], None)
                if entry is not None:
                    entry[0](None)
            elif kind == _CONNACK and not self._connack.done():
                self._connack.set_result(data[start + 3])
            start = end
        self._rest = data[start:]

    def pause_writing(self) -> None:
        """Record that the broker does not keep up."""
        self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        """Record that the broker keeps up again."""
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Report pending messages as unconfirmed."""
        self._end()

    def _next_packet_id(self) -> int:
        while True:
            self._last_id = self._last_id % _MAX_PACKET_ID + 1
            if self._last_id not in self._unconfirmed:
                return self._last_id

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self._transport.write(b"".join(unsent))

    def _tick(self) -> None:
        """Give up on messages that wait too long.

        Their packet ids may still be in use at the broker, so this connection sends no more.
        """
        self._ticks += 1
        if self._ticks % _PING_TICKS == 0 and self._transport is not None:
            self._transport.write(bytes([_PINGREQ, 0]))
        for packet_id, (done, since) in list(self._unconfirmed.items()):
            if self._ticks - since <= _CONFIRM_TICKS:
                break
            self._is_retired = True
            del self._unconfirmed[packet_id]
            done(PublishUnconfirmed())
        if self._is_retired and not self._unconfirmed:
            if self._paused is not None and self._transport is not None:
                # A broker that reads nothing would not read the rest either.
                self._transport.abort()
            self.close()
        if self._transport is not None:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _end(self) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if not self._connack.done():
            self._connack.set_exception(ConnectionResetError())
            # Mark it as retrieved: the task that awaited it may have been cancelled.
            self._connack.exception()
        self.resume_writing()
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for done, _ in unconfirmed.values():
            done(PublishUnconfirmed())


def _connect(client_id: str, username: str, password: str) -> bytes:
    fields = (b"MQTT", client_id.encode(), username.encode(), password.encode())
    protocol, *rest = (pack(">H", len(text)) + text for text in fields)
    flags = pack(">BBH", 4, _CLEAN_USER_PASSWORD, _KEEP_ALIVE_S)
    return _packet(_CONNECT, protocol, flags, *rest)


def _packet(first_byte: int, *parts: bytes) -> bytes:
    length = sum(map(len, parts))
    if length < 0x80:  # noqa: PLR2004 - a length of one byte
        return b"".join((bytes((first_byte, length)), *parts))
    header = bytearray((first_byte,))
    while True:
        length, digit = length >> 7, length & 0x7F
        header.append(digit | (0x80 if length else 0))
        if not length:
            return b"".join((header, *parts))
