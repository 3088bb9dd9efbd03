"""Frees the client ids of deleted clients and users, and removes their sessions at the broker."""

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

# How often to look for work that a killed process left behind.
_POLL_S = 30.0
_SWEEP_S = 300.0
_RETRY_S = 1.0
# How long a login or a call waits until a session is removed.
_MAX_WAIT_S = 1.2
_PARALLEL, _BATCH = 8, 500


@dataclass(slots=True)
class SessionRemover:
    """Removes the sessions of freed client ids, in every process; a lease prevents duplicate work.

    Freed ids are stored in the database, so another process finishes what one leaves undone.
    """

    database: Database
    publishers: Publishers
    loop: asyncio.AbstractEventLoop
    # The subjects of changes, to check whether they still exist; may contain `ALL_SUBJECTS`.
    _changed: defaultdict[TenantScope, set[str]] = field(default_factory=lambda: defaultdict(set))
    _wake_up: asyncio.Event = field(default_factory=asyncio.Event)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARALLEL))

    def free_deleted(self, scope: TenantScope, subjects: frozenset[str]) -> None:
        """Schedule freeing the client ids of deleted subjects among these; from any thread."""
        self.loop.call_soon_threadsafe(self._wake, scope, subjects)

    def discard(self, scope: TenantScope, mqtt_id: str) -> None:
        """Remove a session, from a thread that has the lease; raises `BrokerUnreachable`."""
        future = asyncio.run_coroutine_threadsafe(self._discard(scope, mqtt_id), self.loop)
        try:
            future.result(_MAX_WAIT_S)
        except TimeoutError:
            future.cancel()
            raise BrokerUnreachable from None

    def clear(self, scope: TenantScope, mqtt_id: str) -> None:
        """Remove the session of a client id that was just freed, immediately if possible."""
        until = freed_client_ids.lease(self.database, scope, mqtt_id)
        if until is not None:
            try:
                self.discard(scope, mqtt_id)
            except BrokerUnreachable:
                log.info("a freed client id's session will be removed once the broker responds")
            else:
                freed_client_ids.end_lease(self.database, scope, mqtt_id, until, forget=False)
        self.free_deleted(scope, frozenset())

    async def run(self) -> None:
        """Remove sessions of freed client ids until cancelled; what fails is retried."""
        swept, pause = -_SWEEP_S, 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake_up.wait(), pause)
            self._wake_up.clear()
            changed, pause = dict(self._changed), _RETRY_S
            if not self.publishers.link.is_connected:
                continue
            self._changed.clear()
            try:
                for scope, subjects in changed.items():
                    subset = None if ALL_SUBJECTS in subjects else subjects
                    await run_sync(freed_client_ids.free_orphaned, self.database, scope, subset)
                if self.loop.time() - swept >= _SWEEP_S:
                    await self._sweep()
                    swept = self.loop.time()
                pause = await self._remove_freed()
            except WardkeyError as error:
                self._remember(changed)
                log.info("client ids could not be freed: %s", error.code)
            except Exception:  # this task must survive as long as the process
                self._remember(changed)
                log.exception("client ids could not be freed")

    def _wake(self, scope: TenantScope, subjects: frozenset[str]) -> None:
        self._remember({scope: subjects})
        self._wake_up.set()

    def _remember(self, changed: Mapping[TenantScope, Iterable[str]]) -> None:
        for scope, subjects in changed.items():
            self._changed[scope].update(subjects)

    async def _sweep(self) -> None:
        """Free client ids that no call frees: of expired grants, or no longer used."""
        link = self.publishers.link
        for scope in await run_sync(freed_client_ids.scopes_to_scan, self.database):
            live = [
                (session.client_id, (session.server, session.cid))
                for session in await link.sessions(*scope, subscribed=False)
                if session.username != BRIDGE
            ]
            await run_sync(freed_client_ids.mark_live, self.database, scope, live)
        await run_sync(freed_client_ids.free_unused, self.database)
        await run_sync(freed_client_ids.free_orphaned, self.database)

    async def _remove_freed(self) -> float:
        """Remove sessions of freed client ids; return the seconds until the next check."""
        now = self.database.clock()
        freed_ids = await run_sync(freed_client_ids.list_freed, self.database, _BATCH)
        by_scope: defaultdict[TenantScope, list[FreedId]] = defaultdict(list)
        for freed in freed_ids:
            if freed.due_at <= now:
                by_scope[freed.scope].append(freed)
        for scope, due in by_scope.items():
            # A suspended account refuses connections, which must not block other scopes.
            with suppress(BrokerUnreachable):
                async with discarding(self.publishers, scope) as discard:
                    await asyncio.gather(*(self._remove(freed, discard) for freed in due))
        if len(freed_ids) == _BATCH and by_scope:
            return 0.0
        waits = [(freed.due_at - now) / 1000 for freed in freed_ids if freed.due_at > now]
        return max(0.05, min(waits, default=_POLL_S))

    async def _remove(self, freed: FreedId, discard: Callable[[str], Awaitable[None]]) -> None:
        """Remove a session, then the row of its client id."""
        async with self._slots:
            scope, mqtt_id = freed.scope, freed.mqtt_id
            until = await run_sync(freed_client_ids.lease, self.database, scope, mqtt_id)
            if until is not None:
                await discard(mqtt_id)
                end = partial(freed_client_ids.end_lease, forget=True)
                await run_sync(end, self.database, scope, mqtt_id, until)

    async def _discard(self, scope: TenantScope, mqtt_id: str) -> None:
        async with discarding(self.publishers, scope) as discard:
            await discard(mqtt_id)
