"""Enforces changes on live MQTT sessions: disconnects those whose access ended or changed."""

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
from wardkey.services.mqtt_login import rights_digest
from wardkey.services.session_removal import SessionRemover
from wardkey.verify.verifier import Verifier

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S = 0.03
_EXPIRY_POLL_S = 0.1
# Slightly more than the broker's time limit for a login, so no login from before is in flight.
_RECHECK_S = 2.05
# How long a call waits for the broker before it reports the ended sessions as unknown.
_MAX_WAIT_S = 1.0


@dataclass(slots=True)
class SessionEnforcer:
    """Follows the change feed and disconnects affected sessions.

    Every process does so, in case others die. A change by a call of this process is enforced
    before that call returns, and is then skipped in the feed.
    """

    database: Database
    verifier: Verifier
    link: BrokerLink
    rights: RuleCache
    loop: asyncio.AbstractEventLoop
    # Frees the client ids of clients and users that a change may have deleted.
    remover: SessionRemover | None = None
    _rechecks: set[asyncio.Task[None]] = field(default_factory=set)
    # Revisions that a call of this process enforces.
    _own_revisions: set[int] = field(default_factory=set)
    # Scopes that could not be enforced yet.
    _pending: set[TenantScope] = field(default_factory=set)
    # Sessions that logged in with a grant, and when to check whether it has expired.
    _watched: dict[ConnectionId, tuple[TenantScope, str, int]] = field(default_factory=dict)
    _expiries: list[tuple[int, ConnectionId]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def disconnect_affected(self, impact: SessionImpact) -> EndedSessions:
        """Disconnect the sessions that a committed change affects, from a thread off the loop."""
        scope, began = impact.scope, self.loop.time()
        self._own_revisions.add(impact.revision)
        end, reached = time.monotonic() + _MAX_WAIT_S, False
        try:
            if not self.link.is_connected:
                raise BrokerUnreachable
            sessions = self._wait(self.link.sessions(*scope, subscribed=False), end)
            epoch, revision, closing = self._find_sessions_to_close(scope, sessions)
            self._wait(self._kick(closing), end)
            self._record_ended(scope, epoch, revision, closing)
            reached = True
        except (WardkeyError, TimeoutError):
            self._pending.add(scope)
        self.loop.call_soon_threadsafe(
            self._schedule_recheck, scope, impact.epoch, impact.revision, began
        )
        if self.remover is not None:
            self.remover.free_deleted(scope, impact.subjects)
        try:
            return session_receipts.issue(self.database, impact, reached=reached)
        except WardkeyError as error:
            log.warning("a session receipt could not be stored: %s", error.code)
            return EndedSessions(ended=None, pending=True)

    async def follow(self) -> None:
        """Enforce changes until cancelled; what fails is retried at the next poll."""
        # -1 checks all scopes: the process that should have ended a session may have died.
        seen, stopped = -1, frozenset[str]()
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                latest = self.verifier.directory.revision()
                if not self.link.is_connected or (latest == seen and not self._pending):
                    continue
                began, own = self.loop.time(), frozenset(self._own_revisions)
                pending = self._take_pending()
                try:
                    change = await run_sync(changes_since, self.database, seen, own)
                    if change.organizations:
                        stopped = await self._stop_organizations(stopped)
                    scopes = change.scopes | pending
                    await asyncio.gather(*(self.enforce(scope) for scope in scopes))
                except BaseException:
                    self._pending |= pending
                    raise
                for scope in scopes:
                    self._schedule_recheck(scope, change.epoch, change.revision, began)
                seen = change.revision
                self._own_revisions -= {revision for revision in own if revision <= seen}
            except BrokerUnreachable:
                continue
            except Exception:  # this task must survive as long as the process
                log.exception("changes could not be enforced on live sessions")
                await asyncio.sleep(1)

    async def enforce(self, scope: TenantScope, *, patient: bool = False) -> None:
        """End the sessions of a scope that could not log in again with the same rights."""
        sessions = await self.link.sessions(*scope, patient=patient, subscribed=False)
        epoch, revision, closing = await run_sync(self._find_sessions_to_close, scope, sessions)
        await asyncio.gather(
            self._kick(closing), run_sync(self._record_ended, scope, epoch, revision, closing)
        )

    def _take_pending(self) -> frozenset[TenantScope]:
        pending = frozenset(self._pending)
        self._pending -= pending
        return pending

    def _wait(self, coroutine: Coroutine[Any, Any, T], end: float) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(max(0.0, end - time.monotonic()))
        finally:
            future.cancel()

    def _schedule_recheck(
        self, scope: TenantScope, epoch: str, revision: int, began: float
    ) -> None:
        """Enforce a scope again once logins in flight at `began` are done, then settle receipts."""
        task = self.loop.create_task(self._recheck(scope, epoch, revision, began))
        self._rechecks.add(task)
        task.add_done_callback(self._rechecks.discard)

    async def _recheck(self, scope: TenantScope, epoch: str, revision: int, began: float) -> None:
        await asyncio.sleep(began + _RECHECK_S - self.loop.time())
        try:
            await self.enforce(scope)
            # Waits a quarter of a second longer, for nodes that joined since they were counted.
            await self.enforce(scope, patient=True)
            if scope not in self._pending:
                await run_sync(session_receipts.settle, self.database, scope, epoch, revision)
        except BrokerUnreachable:
            self._pending.add(scope)
        except Exception:  # as above
            self._pending.add(scope)
            log.exception("changes could not be enforced on live sessions")

    async def _stop_organizations(self, before: frozenset[str]) -> frozenset[str]:
        stopped = await run_sync(stopped_organizations, self.database)
        for org_id in stopped ^ before:
            for environment in Environment:
                await self.link.put_account(org_id, environment, suspended=org_id in stopped)
        return stopped

    async def _kick(self, closing: list[SessionToClose]) -> None:
        await asyncio.gather(*(self.link.kick(session.server, session.cid) for session in closing))

    def _record_ended(
        self, scope: TenantScope, epoch: str, revision: int, closing: list[SessionToClose]
    ) -> None:
        """Record ended sessions for the receipts; if this fails, they are ended all the same."""
        if not closing:
            return
        try:
            session_receipts.note_ended(self.database, scope, epoch, revision, closing)
        except WardkeyError as error:
            log.warning("ended sessions could not be counted: %s", error.code)

    def _find_sessions_to_close(
        self, scope: TenantScope, sessions: list[Session]
    ) -> tuple[str, int, list[SessionToClose]]:
        """Return the feed's epoch and revision, and the sessions that must end as of these."""
        by_id: defaultdict[str, list[Session]] = defaultdict(list)
        for session in sessions:
            # To remove a session, the bridge connects with that session's client id.
            if session.username != BRIDGE:
                by_id[session.client_id].append(session)
        closing = []
        with self.database.read() as tx:
            epoch, revision = feed_state(tx)
            owners = find_owners(tx, scope, list(by_id))
            kids = {owner.grant_kid for owner in owners.values() if owner.grant_kid}
            grants = live_grants(tx, scope, kids)
            expired = expired_grants(tx, scope, kids - grants.keys())
            for mqtt_id, connected in by_id.items():
                owner = owners.get(mqtt_id)
                if owner is None:
                    # Its owner is unknown, so the client has to log in again.
                    ending = connected
                else:
                    ending = [s for s in connected if not self._may_stay(tx, owner, s, grants)]
                    if owner.grant_kid in expired:
                        # It ended by expiry, which must not count as ended by a change.
                        self.watch(scope, owner.connection, owner.grant_kid, 0)
                        ending = [s for s in ending if (s.server, s.cid) != owner.connection]
                subject_id = "" if owner is None else owner.subject_id
                closing += [SessionToClose(s.server, s.cid, subject_id) for s in ending]
                known = grants.get(owner.grant_kid or "") if owner is not None else None
                if owner is not None and known is not None:
                    self.watch(scope, owner.connection, owner.grant_kid or "", known.expires_at)
        return epoch, revision, closing

    def _may_stay(
        self, tx: Transaction, owner: Owner, session: Session, grants: Mapping[str, KnownGrant]
    ) -> bool:
        if owner.connection != (session.server, session.cid):
            # A later login with this client id, even one that failed, overwrote the rights of
            # this session, so the client has to log in again.
            return False
        known = grants.get(owner.grant_kid) if owner.grant_kid else owner.client
        if known is None or known.id != owner.subject_id:
            return False
        if isinstance(known, ConnectedClient) and (
            known.password_set_at > parse_iso(session.started_at)
        ):
            return False
        rights = self.rights.compile(tx, known.environment, known.actor(session.client_id))
        return rights_digest(rights) == owner.rights

    def watch(
        self, scope: TenantScope, connection: ConnectionId, kid: str, expires_at: int
    ) -> None:
        """End a session once its grant expires, unless the grant is refreshed before.

        Can be called from any thread; `expires_at` is in epoch milliseconds.
        """
        with self._lock:
            watched = self._watched.get(connection)
            # A later expiry, after a refresh, is noticed when the earlier one is due.
            if watched is None or watched[1] != kid or expires_at < watched[2]:
                self._watched[connection] = scope, kid, expires_at
                heappush(self._expiries, (expires_at, connection))

    async def end_expired(self) -> None:
        """End sessions whose grants have expired, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRY_POLL_S)
            due = self._take_due(self.database.clock())
            if not due:
                continue
            try:
                expired = await run_sync(self._find_expired, due)
                await asyncio.gather(*(self.link.kick(*connection) for connection in expired))
            except BrokerUnreachable:
                # The sessions ended with the broker, or are checked when it is back.
                continue
            except Exception as error:  # as above
                if isinstance(error, WardkeyError):
                    log.warning("expired sessions could not be found: %s", error.code)
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

    def _find_expired(
        self, due: Mapping[ConnectionId, tuple[TenantScope, str]]
    ) -> list[ConnectionId]:
        """Return the connections whose grants have expired; keep watching the others."""
        by_scope: defaultdict[TenantScope, set[str]] = defaultdict(set)
        for scope, kid in due.values():
            by_scope[scope].add(kid)
        with self.database.read() as tx:
            live = {scope: live_grants(tx, scope, kids) for scope, kids in by_scope.items()}
        expired = []
        for connection, (scope, kid) in due.items():
            known = live[scope].get(kid)
            if known is None:
                expired.append(connection)
            else:
                self.watch(scope, connection, kid, known.expires_at)
        return expired
