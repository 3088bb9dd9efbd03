"""Frees client ids of clients and users that are gone, with their sessions at the broker."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from anyio.to_thread import run_sync

from wardkey.actions.messaging import freed_client_ids
from wardkey.actions.messaging.freed_client_ids import FreedId
from wardkey.adapters.broker_sessions import discarding
from wardkey.adapters.publishers import BRIDGE, Publishers
from wardkey.db.engine import Database
from wardkey.domain.errors import BrokerUnreachable, WardkeyError
from wardkey.domain.receipts import ALL_SUBJECTS
from wardkey.domain.tenants import TenantScope

log = logging.getLogger(__name__)

# What a process that was killed left is found by then.
_LOOK_S = 30.0
_SWEEP_S = 300.0
_AGAIN_S = 1.0
# How long a login or a call waits until a session is removed.
_MOST_S = 1.2
_AT_ONCE, _MOST = 8, 500


@dataclass(slots=True)
class SessionRemover:
    """Removes the sessions of freed client ids; every process does, and none twice at a time.

    What is freed stands in the database, so what one process leaves undone another does.
    """

    database: Database
    publishers: Publishers
    loop: asyncio.AbstractEventLoop
    # Whom changes concerned; `ALL_SUBJECTS` stands for all of a tenant scope.
    _concerned: defaultdict[TenantScope, set[str]] = field(default_factory=lambda: defaultdict(set))
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def look(self, scope: TenantScope, subjects: frozenset[str]) -> None:
        """Free, soon, what those of these clients and users left who are gone; from any thread."""
        self.loop.call_soon_threadsafe(self._wake, scope, subjects)

    def discard(self, scope: TenantScope, mqtt_id: str) -> None:
        """Remove a session, from a thread that has the lease; raises `BrokerUnreachable`."""
        asked = asyncio.run_coroutine_threadsafe(self._discard(scope, mqtt_id), self.loop)
        try:
            asked.result(_MOST_S)
        except TimeoutError:
            asked.cancel()
            raise BrokerUnreachable from None

    def clear(self, scope: TenantScope, mqtt_id: str) -> None:
        """Remove the session of a client id that was just freed, now if that is possible."""
        until = freed_client_ids.lease(self.database, scope, mqtt_id)
        if until is not None:
            try:
                self.discard(scope, mqtt_id)
            except BrokerUnreachable:
                log.info("the session of a freed client id is removed once the broker answers")
            else:
                freed_client_ids.end_lease(self.database, scope, mqtt_id, until, forget=False)
        self.look(scope, frozenset())

    async def run(self) -> None:
        """Remove what is freed, for as long as this process lives; what fails is tried again."""
        swept, pause = -_SWEEP_S, 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()
            concerned, pause = dict(self._concerned), _AGAIN_S
            if not self.publishers.link.is_connected:
                continue
            self._concerned.clear()
            try:
                for scope, subjects in concerned.items():
                    some = None if ALL_SUBJECTS in subjects else subjects
                    await run_sync(freed_client_ids.free_orphaned, self.database, scope, some)
                if self.loop.time() - swept >= _SWEEP_S:
                    await self._sweep()
                    swept = self.loop.time()
                pause = await self._remove_freed()
            except WardkeyError as failure:
                self._keep(concerned)
                log.info("client ids could not be freed: %s", failure.code)
            except Exception:  # client ids must be freed for as long as this process lives
                self._keep(concerned)
                log.exception("client ids could not be freed")

    def _wake(self, scope: TenantScope, subjects: frozenset[str]) -> None:
        self._keep({scope: subjects})
        self._woken.set()

    def _keep(self, concerned: Mapping[TenantScope, Iterable[str]]) -> None:
        for scope, subjects in concerned.items():
            self._concerned[scope].update(subjects)

    async def _sweep(self) -> None:
        """Free what no call freed: grants that ran out, client ids that are not used any more."""
        link = self.publishers.link
        for scope in await run_sync(freed_client_ids.scopes_to_scan, self.database):
            live = [
                (one.client_id, (one.server, one.cid))
                for one in await link.sessions(*scope, subscribed=False)
                if one.username != BRIDGE
            ]
            await run_sync(freed_client_ids.mark_live, self.database, scope, live)
        await run_sync(freed_client_ids.free_unused, self.database)
        await run_sync(freed_client_ids.free_orphaned, self.database)

    async def _remove_freed(self) -> float:
        """Remove sessions of freed client ids; return after how many seconds to look again."""
        now = self.database.clock()
        found = await run_sync(freed_client_ids.list_freed, self.database, _MOST)
        by_scope: defaultdict[TenantScope, list[FreedId]] = defaultdict(list)
        for one in found:
            if one.due_at <= now:
                by_scope[one.scope].append(one)
        for scope, some in by_scope.items():
            # An account that is suspended takes no connection, and must not hold up others.
            with suppress(BrokerUnreachable):
                async with discarding(self.publishers, scope) as discard:
                    await asyncio.gather(*(self._remove(one, discard) for one in some))
        if len(found) == _MOST and by_scope:
            return 0.0
        left = [(one.due_at - now) / 1000 for one in found if one.due_at > now]
        return max(0.05, min(left, default=_LOOK_S))

    async def _remove(self, one: FreedId, discard: Callable[[str], Awaitable[None]]) -> None:
        """Remove a session and then its row, with which the client id is forgotten."""
        async with self._places:
            until = await run_sync(freed_client_ids.lease, self.database, one.scope, one.mqtt_id)
            if until is not None:
                await discard(one.mqtt_id)
                end = partial(freed_client_ids.end_lease, forget=True)
                await run_sync(end, self.database, one.scope, one.mqtt_id, until)

    async def _discard(self, scope: TenantScope, mqtt_id: str) -> None:
        async with discarding(self.publishers, scope) as discard:
            await discard(mqtt_id)
