"""The bridge's MQTT connections to the broker, one for each account that publishes."""

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

# The user name of Wardkey's own connections.
BRIDGE = "wardkey-bridge"
_TOKEN_LIFETIME_S = 3_600
# A connection is replaced well before its token expires.
_REPLACE_AFTER_S = 3_000
_IDLE_S = 300
_DRAIN_TIMEOUT_S = 10.0
# Messages in flight still have to be written. On a full disk the broker acknowledges retained
# messages that it could not store.
_MIN_FREE_BYTES = 64 * 1_048_576


@dataclass(slots=True)
class _Connection:
    publisher: Publisher
    opened_at: float
    used_at: float

    def is_usable(self, now: float) -> bool:
        return self.publisher.is_open and now - self.opened_at < _REPLACE_AFTER_S


@dataclass(slots=True)
class Publishers:
    """Connections opened at first use and closed when idle."""

    link: BrokerLink
    # Of the nodes of one broker; any of them works.
    addresses: Sequence[tuple[str, int]]
    name: str
    # Returns the TLS settings; called for each connection.
    tls: Callable[[], ssl.SSLContext] | None = None
    # The storage folder of a broker on this machine.
    folder: Path | None = None
    _count: int = 0
    _node: int = 0
    _connections: dict[Account, _Connection] = field(default_factory=dict)
    _locks: defaultdict[Account, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    def is_ready(self, account: Account) -> bool:
        """Return whether a message would be sent at once, which `send` requires."""
        connection = self._connections.get(account)
        return (
            connection is not None
            and connection.publisher.takes_more
            and time.monotonic() - connection.opened_at < _REPLACE_AFTER_S
        )

    def send(
        self, account: Account, topic: str, payload: bytes, done: Done | None, *, retain: bool
    ) -> None:
        """Send over the account's open connection; with `done`, use QoS 1.

        Raises `BrokerUnreachable` or `BrokerFull` if nothing was sent.
        """
        self._check_disk_space()
        connection = self._connections[account]
        connection.used_at = time.monotonic()
        connection.publisher.send(topic, payload, done, retain=retain)

    async def publish(
        self, account: Account, topic: str, payload: bytes, qos: int, *, retain: bool
    ) -> None:
        """Publish a message for a tenant scope.

        Raises `BrokerUnreachable` or `BrokerFull` if nothing was sent, `PublishUnconfirmed` if
        that is unknown.
        """
        self._check_disk_space()
        publisher = await self._get(account)
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await publisher.drained()
        except TimeoutError:
            raise BrokerUnreachable from None
        if qos == 0:
            publisher.send(topic, payload, None, retain=retain)
            return
        result: asyncio.Future[WardkeyError | None] = asyncio.get_running_loop().create_future()

        def done(error: WardkeyError | None) -> None:
            if not result.done():
                result.set_result(error)

        publisher.send(topic, payload, done, retain=retain)
        error = await result
        if error is not None:
            raise error

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._connections.values():
            connection.publisher.close()
        self._connections.clear()

    def _check_disk_space(self) -> None:
        """Raise `BrokerFull` if the broker might acknowledge messages that it can't store."""
        if self.folder is None:
            return
        try:
            disk = os.statvfs(self.folder)
        except OSError as error:
            raise BrokerFull from error
        if disk.f_bavail * disk.f_frsize < _MIN_FREE_BYTES:
            raise BrokerFull

    async def _get(self, account: Account) -> Publisher:
        now = time.monotonic()
        connection = self._connections.get(account)
        if connection is not None and connection.is_usable(now):
            connection.used_at = now
            return connection.publisher
        async with self._locks[account]:
            connection = self._connections.get(account)
            if connection is None or not connection.is_usable(now):
                connection = await self._connect(account)
            connection.used_at = now
            return connection.publisher

    async def _connect(self, account: Account) -> _Connection:
        org_id, environment = account
        await self.link.put_account(org_id, environment)
        # A unique client id, or the broker would close the connection that this one replaces.
        self._count += 1
        name = f"{BRIDGE}-{self.name}-{self._count}"
        token = self.link.bridge_token(*account, BRIDGE, _TOKEN_LIFETIME_S)
        publisher = await self.connect(name, token)
        before = self._connections.get(account)
        now = time.monotonic()
        connection = self._connections[account] = _Connection(publisher, now, now)
        if before is not None:
            before.publisher.retire()
        self._close_once_idle(account, connection)
        return connection

    def _close_once_idle(self, account: Account, connection: _Connection) -> None:
        """Close a connection once it was idle for long enough; checks again until then."""
        if self._connections.get(account) is not connection:
            return
        left = connection.used_at + _IDLE_S - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._close_once_idle, account, connection)
            return
        del self._connections[account]
        connection.publisher.retire()

    async def connect(self, client_id: str, token: str) -> Publisher:
        """Connect to the first node that accepts; the node used last is tried first.

        Raises `BrokerUnreachable`.
        """
        for turn in range(len(self.addresses)):
            index = (self._node + turn) % len(self.addresses)
            publisher = Publisher(*self.addresses[index], client_id, self.tls and self.tls())
            try:
                await publisher.open(BRIDGE, token)
            except BrokerUnreachable:
                continue
            self._node = index
            return publisher
        raise BrokerUnreachable
