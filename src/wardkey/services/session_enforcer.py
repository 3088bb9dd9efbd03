"""Live MQTT sessions follow every change: who may no longer, or may something else, is cut off."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, TypeVar

from anyio.to_thread import run_sync

from wardkey.actions.grants.logins import KnownGrant, expired_grants, live_grants
from wardkey.actions.messaging import session_receipts
from wardkey.actions.messaging.client_ids import ConnectionId
from wardkey.actions.messaging.rule_cache import RuleCache
from wardkey.actions.messaging.session_receipts import SessionToClose
from wardkey.actions.messaging.sessions import (
    ConnectedClient,
    Owner,
    changes_since,
    feed_state,
    find_owners,
    stopped_organizations,
)
from wardkey.adapters.broker_link import BrokerLink, Session
from wardkey.adapters.publishers import BRIDGE
from wardkey.db.engine import Database, Transaction
from wardkey.domain.errors import BrokerUnreachable, WardkeyError
from wardkey.domain.receipts import EndedSessions, SessionImpact
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope
from wardkey.domain.times import parse_iso
from wardkey.services.mqtt_login import mark_of
from wardkey.services.session_removal import SessionRemover
from wardkey.verify.verifier import Verifier

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.03
_EXPIRY_S = 0.1
# The broker's own bound on a login, and a little: one in flight is there by then or never.
AGAIN_S = 2.05
# How long a call waits for the broker before it says that nobody could ask it.
_MOST_S = 1.0


@dataclass(slots=True)
class SessionEnforcer:
    """Follows the change feed; every process does, so that one of them always lives to do it.

    What a call of this process changed is cut before that call returns, and not once more then.
    """

    database: Database
    verifier: Verifier
    link: BrokerLink
    rights: RuleCache
    loop: asyncio.AbstractEventLoop
    # Told of rooms where a client or a user may be gone for good.
    freeing: SessionRemover | None = None
    _again: set[asyncio.Task[None]] = field(default_factory=set)
    _held: set[int] = field(default_factory=set)
    # Rooms that a call could not cut, or that are to be looked at now.
    _owed: set[TenantScope] = field(default_factory=set)
    # Sessions that grants let in, and when to look whether those are over.
    _watched: dict[ConnectionId, tuple[TenantScope, str, int]] = field(default_factory=dict)
    _expiries: list[tuple[int, ConnectionId]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def disconnect_affected(self, concern: SessionImpact) -> EndedSessions:
        """Cut, from a thread that is not the loop's, what a committed change concerns."""
        scope, began = concern.scope, self.loop.time()
        self._held.add(concern.revision)
        end, reached = time.monotonic() + _MOST_S, False
        try:
            if not self.link.is_connected:
                raise BrokerUnreachable
            sessions = self._wait(self.link.sessions(*scope, subscribed=False), end)
            epoch, revision, wrong = self._judged(scope, sessions)
            self._wait(self._kick(wrong), end)
            self._note(scope, epoch, revision, wrong)
            reached = True
        except (WardkeyError, TimeoutError):
            self._owed.add(scope)
        self.loop.call_soon_threadsafe(
            self._look_again, scope, concern.epoch, concern.revision, began
        )
        if self.freeing is not None:
            self.freeing.look(scope, concern.subjects)
        try:
            return session_receipts.issue(self.database, concern, reached=reached)
        except WardkeyError as failure:
            log.warning("no session receipt could be kept: %s", failure.code)
            return EndedSessions(ended=None, pending=True)

    async def follow(self) -> None:
        """Cut what changes, for ever; what fails is done at the next look."""
        # Sessions may have outlived the process that would have cut them.
        seen, stopped = -1, frozenset[str]()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                known = self.verifier.directory.revision()
                if not self.link.is_connected or (known == seen and not self._owed):
                    continue
                began, held, owed = self.loop.time(), frozenset(self._held), self._take_owed()
                try:
                    change = await run_sync(changes_since, self.database, seen, held)
                    if change.organizations:
                        stopped = await self._stop_organizations(stopped)
                    await asyncio.gather(*(self.enforce(scope) for scope in change.scopes | owed))
                except BaseException:
                    self._owed |= owed
                    raise
                for scope in change.scopes | owed:
                    self._look_again(scope, change.epoch, change.revision, began)
                seen = change.revision
                self._held -= {revision for revision in held if revision <= seen}
            except BrokerUnreachable:
                continue
            except Exception:  # sessions must be followed for as long as this process lives
                log.exception("live sessions could not be cut")
                await asyncio.sleep(1)

    async def enforce(self, scope: TenantScope, *, patient: bool = False) -> None:
        """End the sessions of a room that would not be let in as they are."""
        sessions = await self.link.sessions(*scope, patient=patient, subscribed=False)
        epoch, revision, wrong = await run_sync(self._judged, scope, sessions)
        await asyncio.gather(self._kick(wrong), run_sync(self._note, scope, epoch, revision, wrong))

    def _take_owed(self) -> frozenset[TenantScope]:
        owed = frozenset(self._owed)
        self._owed -= owed
        return owed

    def _wait(self, asked: Coroutine[Any, Any, T], end: float) -> T:
        told = asyncio.run_coroutine_threadsafe(asked, self.loop)
        try:
            return told.result(max(0.0, end - time.monotonic()))
        finally:
            told.cancel()

    def _look_again(self, scope: TenantScope, epoch: str, revision: int, began: float) -> None:
        """Cut a room once more when no login can be in flight since `began`, and settle."""
        task = self.loop.create_task(self._cut_again(scope, epoch, revision, began))
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _cut_again(self, scope: TenantScope, epoch: str, revision: int, began: float) -> None:
        await asyncio.sleep(began + AGAIN_S - self.loop.time())
        try:
            await self.enforce(scope)
            # Nodes that joined since they were counted take a quarter of a second more.
            await self.enforce(scope, patient=True)
            if scope not in self._owed:
                await run_sync(session_receipts.settle, self.database, scope, epoch, revision)
        except BrokerUnreachable:
            self._owed.add(scope)
        except Exception:  # as above
            self._owed.add(scope)
            log.exception("live sessions could not be cut")

    async def _stop_organizations(self, before: frozenset[str]) -> frozenset[str]:
        stopped = await run_sync(stopped_organizations, self.database)
        for org_id in stopped ^ before:
            for environment in Environment:
                await self.link.put_account(org_id, environment, suspended=org_id in stopped)
        return stopped

    async def _kick(self, wrong: list[SessionToClose]) -> None:
        await asyncio.gather(*(self.link.kick(one.server, one.cid) for one in wrong))

    def _note(
        self, scope: TenantScope, epoch: str, revision: int, wrong: list[SessionToClose]
    ) -> None:
        """Keep what is being ended, to be counted; without that it is ended all the same."""
        if not wrong:
            return
        try:
            session_receipts.note_ended(self.database, scope, epoch, revision, wrong)
        except WardkeyError as failure:
            log.warning("ended sessions could not be counted: %s", failure.code)

    def _judged(
        self, scope: TenantScope, sessions: list[Session]
    ) -> tuple[str, int, list[SessionToClose]]:
        """Return the state of the feed, and what may not stay by it."""
        by_id: defaultdict[str, list[Session]] = defaultdict(list)
        for one in sessions:
            # Ours may have any client id, for as long as it removes the session of one.
            if one.username != BRIDGE:
                by_id[one.client_id].append(one)
        wrong = []
        with self.database.read() as tx:
            epoch, revision = feed_state(tx)
            owners = find_owners(tx, scope, list(by_id))
            kids = {owner.grant_kid for owner in owners.values() if owner.grant_kid}
            grants = live_grants(tx, scope, kids)
            expired = expired_grants(tx, scope, kids - grants.keys())
            for mqtt_id, found in by_id.items():
                owner = owners.get(mqtt_id)
                if owner is None:
                    # Nobody can say whose it is, so whoever it is logs in anew.
                    ending = found
                else:
                    ending = [one for one in found if not self._may_stay(tx, owner, one, grants)]
                    if owner.grant_kid in expired:
                        # No change ended it, so none counts it.
                        self.watch(scope, owner.connection, owner.grant_kid, 0)
                        ending = [o for o in ending if (o.server, o.cid) != owner.connection]
                subject_id = "" if owner is None else owner.subject_id
                wrong += [SessionToClose(one.server, one.cid, subject_id) for one in ending]
                known = grants.get(owner.grant_kid or "") if owner is not None else None
                if owner is not None and known is not None:
                    self.watch(scope, owner.connection, owner.grant_kid or "", known.expires_at)
        return epoch, revision, wrong

    def _may_stay(
        self, tx: Transaction, owner: Owner, session: Session, grants: Mapping[str, KnownGrant]
    ) -> bool:
        if owner.connection != (session.server, session.cid):
            # Another login with its client id was judged since, and may have come to nothing; what
            # this one was let in with nobody knows any more, so whoever it is logs in anew.
            return False
        known = grants.get(owner.grant_kid) if owner.grant_kid else owner.client
        if known is None or known.id != owner.subject_id:
            return False
        if isinstance(known, ConnectedClient) and (
            known.password_set_at > parse_iso(session.started_at)
        ):
            return False
        now = self.rights.compile(tx, known.environment, known.actor(session.client_id))
        return mark_of(now) == owner.rights

    def watch(
        self, scope: TenantScope, connection: ConnectionId, kid: str, expires_at: int
    ) -> None:
        """End a session that a grant let in once it expires, unless it was refreshed by then.

        From any thread; `expires_at` is in epoch milliseconds.
        """
        with self._lock:
            before = self._watched.get(connection)
            # A refresh postpones the end, which is found out when the first one comes.
            if before is None or before[1] != kid or expires_at < before[2]:
                self._watched[connection] = scope, kid, expires_at
                heappush(self._expiries, (expires_at, connection))

    async def end_expired(self) -> None:
        """End sessions whose grants have expired, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRY_S)
            due = self._take_due(self.database.clock())
            if not due:
                continue
            try:
                over = await run_sync(self._over, due)
                await asyncio.gather(*(self.link.kick(*connection) for connection in over))
            except BrokerUnreachable:
                # Its sessions ended with it, or are looked at when it is back.
                continue
            except Exception as error:  # as above
                if isinstance(error, WardkeyError):
                    log.warning("expired sessions could not be looked for: %s", error.code)
                else:
                    log.exception("expired sessions could not be ended")
                for connection, (scope, kid) in due.items():
                    self.watch(scope, connection, kid, 0)
                await asyncio.sleep(1)

    def _take_due(self, now: int) -> dict[ConnectionId, tuple[TenantScope, str]]:
        due = {}
        with self._lock:
            while self._expiries and self._expiries[0][0] <= now:
                _, connection = heappop(self._expiries)
                watched = self._watched.pop(connection, None)
                if watched is not None:
                    due[connection] = watched[:2]
        return due

    def _over(self, due: Mapping[ConnectionId, tuple[TenantScope, str]]) -> list[ConnectionId]:
        """Return whose grants are over, and watch for the end of the others."""
        by_scope: defaultdict[TenantScope, set[str]] = defaultdict(set)
        for scope, kid in due.values():
            by_scope[scope].add(kid)
        with self.database.read() as tx:
            live = {scope: live_grants(tx, scope, kids) for scope, kids in by_scope.items()}
        over = []
        for connection, (scope, kid) in due.items():
            known = live[scope].get(kid)
            if known is None:
                over.append(connection)
            else:
                self.watch(scope, connection, kid, known.expires_at)
        return over
