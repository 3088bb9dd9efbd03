"""A publisher over MQTT 3.1.1 (OASIS Standard, 2014): QoS 0 and 1, many messages at once."""

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
_LAST_ID = 0xFFFF
_MOST_WAITING = 20_000
_QUIET_BYTES = 1_048_576
_LOOK_S = 1.0
# In looks.
_PING_EACH = 30
_CONFIRM_WITHIN = 10

# Called once: with None when the broker acknowledged, else with why nobody can say.
Done = Callable[[WardkeyError | None], None]


class Publisher(asyncio.Protocol):
    """One connection. What is sent in one turn of the event loop goes out in one write."""

    def __init__(
        self, host: str, port: int, client_id: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._host, self._port, self._client_id, self._tls = host, port, client_id, tls
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[int] = self._loop.create_future()
        # Oldest first; with the look in which each was sent.
        self._waiting: dict[int, tuple[Done, int]] = {}
        self._next_id = self._looks = 0
        self._unsent: list[bytes] = []
        self._rest = b""
        self._paused: asyncio.Future[None] | None = None
        self._is_retired = False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether messages can be sent."""
        transport = self._transport
        return transport is not None and not self._is_retired and not transport.is_closing()

    @property
    def takes_more(self) -> bool:
        """Tell whether the broker keeps up, so that a message need not wait to be sent."""
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
                code = await self._welcome
        except (OSError, TimeoutError) as error:
            self.close()
            raise BrokerUnreachable from error
        except asyncio.CancelledError:
            self.close()
            raise
        if code:
            self.close()
            raise BrokerUnreachable
        self._looking = self._loop.call_later(_LOOK_S, self._look)

    def send(self, topic: str, payload: bytes, done: Done | None, *, retain: bool) -> None:
        """Send a message, with QoS 1 if somebody wants to be told when it is `done`.

        Raises `BrokerUnreachable` if nothing was sent.
        """
        if not self.is_open or len(self._waiting) >= _MOST_WAITING:
            raise BrokerUnreachable
        name = topic.encode()
        if done is None:
            message = _framed(_PUBLISH | retain, pack(">H", len(name)), name, payload)
        else:
            number = self._take_id()
            self._waiting[number] = done, self._looks
            message = _framed(
                _PUBLISH | _QOS_1 | retain,
                pack(">H", len(name)), name, pack(">H", number), payload,
            )  # fmt: skip
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    async def drained(self) -> None:
        """Wait until the broker has taken what was sent."""
        while self._paused is not None:
            await asyncio.shield(self._paused)

    def retire(self) -> None:
        """Send nothing more; the connection ends when it waits for nothing."""
        self._is_retired = True

    def close(self) -> None:
        """End the connection; what is not acknowledged is unconfirmed."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._end()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Take the connection."""
        self._transport = transport
        transport.set_write_buffer_limits(_QUIET_BYTES)

    def data_received(self, data: bytes) -> None:
        """Read acknowledgements; nothing else that comes to a publisher is as long as 128 bytes."""
        data = self._rest + data
        place, end = 0, len(data)
        while end - place > 1:
            kind, stop = data[place], place + 2 + data[place + 1]
            if stop > end:
                break
            if kind == _PUBACK:
                waiting = self._waiting.pop(data[place + 2] << 8 | data[place + 3], None)
                if waiting is not None:
                    waiting[0](None)
            elif kind == _CONNACK and not self._welcome.done():
                self._welcome.set_result(data[place + 3])
            place = stop
        self._rest = data[place:]

    def pause_writing(self) -> None:
        """Note that the broker does not keep up."""
        self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        """Note that the broker keeps up again."""
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell everybody who waits."""
        self._end()

    def _take_id(self) -> int:
        while True:
            self._next_id = self._next_id % _LAST_ID + 1
            if self._next_id not in self._waiting:
                return self._next_id

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self._transport.write(b"".join(unsent))

    def _look(self) -> None:
        """Give up what waits too long. Its number is not free then, so that this sends no more."""
        self._looks += 1
        if self._looks % _PING_EACH == 0 and self._transport is not None:
            self._transport.write(bytes([_PINGREQ, 0]))
        for number, (done, since) in list(self._waiting.items()):
            if self._looks - since <= _CONFIRM_WITHIN:
                break
            self._is_retired = True
            del self._waiting[number]
            done(PublishUnconfirmed())
        if self._is_retired and not self._waiting:
            if self._paused is not None and self._transport is not None:
                # Whoever takes nothing would not take what is left either.
                self._transport.abort()
            self.close()
        if self._transport is not None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def _end(self) -> None:
        self._transport = None
        if self._looking is not None:
            self._looking.cancel()
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionResetError())
            # Whoever would have asked may be gone.
            self._welcome.exception()
        self.resume_writing()
        waiting, self._waiting = self._waiting, {}
        for done, _ in waiting.values():
            done(PublishUnconfirmed())


def _connect(client_id: str, username: str, password: str) -> bytes:
    fields = (b"MQTT", client_id.encode(), username.encode(), password.encode())
    protocol, *rest = (pack(">H", len(text)) + text for text in fields)
    flags = pack(">BBH", 4, _CLEAN_USER_PASSWORD, _KEEP_ALIVE_S)
    return _framed(_CONNECT, protocol, flags, *rest)


def _framed(head: int, *parts: bytes) -> bytes:
    left = sum(map(len, parts))
    if left < 0x80:  # noqa: PLR2004 - a length of one byte
        return b"".join((bytes((head, left)), *parts))
    length = bytearray((head,))
    while True:
        left, digit = left >> 7, left & 0x7F
        length.append(digit | (0x80 if left else 0))
        if not left:
            return b"".join((length, *parts))
