"""A small MQTT 3.1.1 client for loading a broker, many in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from struct import pack

from bench.load import BenchmarkError

_CONNECT, _CONNACK, _PUBLISH, _SUBSCRIBE, _SUBACK = 0x10, 0x20, 0x30, 0x82, 0x90
_CLEAN_USER_PASSWORD = 0b11000010
_QOS_0 = b"\0"


class MqttClient(asyncio.Protocol):
    """One connection without keep-alive; `on_message` gets each QoS 0 message's payload."""

    def __init__(self, on_message: Callable[[bytes], None] = lambda _: None) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[float] = loop.create_future()
        self._answer: asyncio.Future[bytes] = loop.create_future()
        self._on_message, self._rest = on_message, b""
        self._transport: asyncio.Transport | None = None

    async def connect(self, port: int, username: str, password: str, client_id: str) -> int:
        """Connect; return the broker's CONNACK code, 0 if accepted."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        fields = (b"MQTT", client_id.encode(), username.encode(), password.encode())
        protocol, *rest = (pack(">H", len(text)) + text for text in fields)
        flags = pack(">BBH", 4, _CLEAN_USER_PASSWORD, 0)
        return (await self._exchange(_CONNECT, protocol, flags, *rest))[1]

    async def subscribe(self, pattern: str) -> None:
        """Subscribe with QoS 0; raises `BenchmarkError` if it is refused."""
        name = pattern.encode()
        answer = await self._exchange(_SUBSCRIBE, pack(">HH", 1, len(name)), name, _QOS_0)
        if answer[2:] != _QOS_0:
            raise BenchmarkError(f"the subscription to {pattern} was refused")

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while len(data) > 1:
            length, place = data[1] & 0x7F, 2
            if data[1] & 0x80:
                if len(data) < 3:
                    break
                length, place = length | data[2] << 7, 3
            if len(data) < place + length:
                break
            kind, body, data = data[0], data[place : place + length], data[place + length :]
            if kind & 0xF0 == _PUBLISH:
                self._on_message(body[2 + (body[0] << 8 | body[1]) :])
            elif kind in (_CONNACK, _SUBACK) and not self._answer.done():
                self._answer.set_result(body)
        self._rest = data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self.ended.done():
            self.ended.set_result(time.perf_counter())
        if not self._answer.done():
            # A broker that closes the connection counts as "not authorized".
            self._answer.set_result(b"\0\5")

    async def _exchange(self, head: int, *parts: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        body = b"".join(parts)
        high, low = divmod(len(body), 128)
        self._transport.write(bytes((head, low | 0x80, high)) + body)
        return await self._answer
