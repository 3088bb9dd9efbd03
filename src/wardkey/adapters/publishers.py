"""The bridge's connections to the broker, one for each account that publishes."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wardkey.adapters.broker_link import BrokerLink
from wardkey.adapters.mqtt import Done, Publisher
from wardkey.domain.errors import BrokerFull, BrokerUnreachable, WardkeyError

Account = tuple[str, str]

# The user name of the connections that are ours.
BRIDGE = "wardkey-bridge"
_LASTS_S = 3_600
# Another connection takes over long before the broker ends this one.
_TAKE_OVER_S = 3_000
_IDLE_S = 300
_ROOM_S = 10.0
# What is on its way may still be written; without any room the broker acknowledges retained
# messages that it could not store.
_LEAST_ROOM = 64 * 1_048_576


@dataclass(slots=True)
class _Open:
    publisher: Publisher
    since: float
    used: float


@dataclass(slots=True)
class Publishers:
    """Connections opened when they are first needed, and closed when nobody publishes."""

    link: BrokerLink
    # Of the nodes of one broker; any will do.
    addresses: Sequence[tuple[str, int]]
    name: str
    # Whom to trust, asked for each connection.
    tls: Callable[[], ssl.SSLContext] | None = None
    # The folder in which a broker on this machine keeps what it stores.
    folder: Path | None = None
    _count: int = 0
    _node: int = 0
    _open: dict[Account, _Open] = field(default_factory=dict)
    _locks: defaultdict[Account, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    def is_ready(self, account: Account) -> bool:
        """Tell whether a message would be sent at once, so that `send` may be called."""
        held = self._open.get(account)
        return (
            held is not None
            and held.publisher.takes_more
            and time.monotonic() - held.since < _TAKE_OVER_S
        )

    def send(
        self, account: Account, topic: str, payload: bytes, done: Done | None, *, retain: bool
    ) -> None:
        """Send over the account's open connection, with QoS 1 if `done` is to be told.

        Raises `BrokerUnreachable` or `BrokerFull` if nothing was sent.
        """
        self._check_room()
        held = self._open[account]
        held.used = time.monotonic()
        held.publisher.send(topic, payload, done, retain=retain)

    async def publish(
        self, account: Account, topic: str, payload: bytes, qos: int, *, retain: bool
    ) -> None:
        """Publish for an organization's environment.

        Raises `BrokerUnreachable` or `BrokerFull` if nothing was sent, `PublishUnconfirmed` if
        nobody can say.
        """
        self._check_room()
        publisher = await self._take(account)
        try:
            async with asyncio.timeout(_ROOM_S):
                await publisher.drained()
        except TimeoutError:
            raise BrokerUnreachable from None
        if qos == 0:
            publisher.send(topic, payload, None, retain=retain)
            return
        confirmed: asyncio.Future[WardkeyError | None] = asyncio.get_running_loop().create_future()

        def done(failure: WardkeyError | None) -> None:
            if not confirmed.done():
                confirmed.set_result(failure)

        publisher.send(topic, payload, done, retain=retain)
        failure = await confirmed
        if failure is not None:
            raise failure

    async def close(self) -> None:
        """End every connection."""
        for held in self._open.values():
            held.publisher.close()
        self._open.clear()

    def _check_room(self) -> None:
        """Raise `BrokerFull` where the broker might no longer store what it acknowledges."""
        if self.folder is None:
            return
        try:
            disk = os.statvfs(self.folder)
        except OSError as error:
            raise BrokerFull from error
        if disk.f_bavail * disk.f_frsize < _LEAST_ROOM:
            raise BrokerFull

    async def _take(self, account: Account) -> Publisher:
        now = time.monotonic()
        held = self._open.get(account)
        if held is not None and held.publisher.is_open and now - held.since < _TAKE_OVER_S:
            held.used = now
            return held.publisher
        async with self._locks[account]:
            held = self._open.get(account)
            if held is None or not held.publisher.is_open or now - held.since >= _TAKE_OVER_S:
                held = await self._connect(account)
            held.used = now
            return held.publisher

    async def _connect(self, account: Account) -> _Open:
        org_id, environment = account
        await self.link.put_account(org_id, environment)
        # A name of its own, or the broker would end the connection that this one takes over from.
        self._count += 1
        name = f"{BRIDGE}-{self.name}-{self._count}"
        token = self.link.bridge_token(*account, BRIDGE, _LASTS_S)
        publisher = await self.connect(name, token)
        before = self._open.get(account)
        now = time.monotonic()
        opened = self._open[account] = _Open(publisher, now, now)
        if before is not None:
            before.publisher.retire()
        self._close_once_idle(account, opened)
        return opened

    def _close_once_idle(self, account: Account, held: _Open) -> None:
        """Look when it may be idle for long enough, and again as long as it is not."""
        if self._open.get(account) is not held:
            return
        left = held.used + _IDLE_S - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._close_once_idle, account, held)
            return
        del self._open[account]
        held.publisher.retire()

    async def connect(self, client_id: str, token: str) -> Publisher:
        """Return a connection to the first node that takes one, the last one's node first.

        Raises `BrokerUnreachable`.
        """
        for turn in range(len(self.addresses)):
            at = (self._node + turn) % len(self.addresses)
            publisher = Publisher(*self.addresses[at], client_id, self.tls and self.tls())
            try:
                await publisher.open(BRIDGE, token)
            except BrokerUnreachable:
                continue
            self._node = at
            return publisher
        raise BrokerUnreachable
