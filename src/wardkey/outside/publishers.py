"""The bridge's connections to the broker, one for each account that publishes."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from dataclasses import dataclass, field

from wardkey.domain.errors import PublishUnconfirmed
from wardkey.outside.broker_link import BrokerLink
from wardkey.outside.mqtt import Publisher

Account = tuple[str, str]

# The user name of the connections that are ours.
BRIDGE = "wardkey-bridge"
_LASTS_S = 3_600
# Another connection takes over long before the broker ends this one.
_TAKE_OVER_S = 3_000
_IDLE_S = 300
_CONFIRM_S = 10.0


@dataclass(slots=True)
class _Open:
    publisher: Publisher
    since: float
    used: float


@dataclass(slots=True)
class Publishers:
    """Connections opened when they are first needed, and closed when nobody publishes."""

    link: BrokerLink
    host: str
    port: int
    name: str
    tls: ssl.SSLContext | None = None
    _open: dict[Account, _Open] = field(default_factory=dict)
    _locks: defaultdict[Account, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    async def publish(
        self, account: Account, topic: str, payload: bytes, qos: int, *, retain: bool
    ) -> None:
        """Publish for an organization's environment.

        Raises `BrokerUnreachable` if nothing was sent, `PublishUnconfirmed` if nobody can say.
        """
        publisher = await self._take(account)
        try:
            async with asyncio.timeout(_CONFIRM_S):
                await publisher.publish(topic, payload, qos, retain=retain)
        except TimeoutError:
            raise PublishUnconfirmed from None

    async def close(self) -> None:
        """End every connection."""
        for held in self._open.values():
            await held.publisher.close()
        self._open.clear()

    async def close_idle(self) -> None:
        """End connections over which nothing went for five minutes."""
        now = time.monotonic()
        for account, held in list(self._open.items()):
            if now - held.used > _IDLE_S:
                del self._open[account]
                await held.publisher.close()

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
        publisher = Publisher(self.host, self.port, f"{BRIDGE}-{self.name}", self.tls)
        token = self.link.bridge_token(org_id, environment, BRIDGE, _LASTS_S)
        await publisher.open(BRIDGE, token)
        before = self._open.get(account)
        now = time.monotonic()
        opened = self._open[account] = _Open(publisher, now, now)
        if before is not None and before.publisher.is_open:
            # What it still waits for was sent; the broker answers within moments.
            asyncio.get_running_loop().call_later(
                _CONFIRM_S, lambda: asyncio.ensure_future(before.publisher.close())
            )
        return opened
