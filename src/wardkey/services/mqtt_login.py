"""MQTT logins: decides whether a client may connect, and with which rights."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from anyio.to_thread import run_sync

from wardkey.actions.core.hashing import Line
from wardkey.actions.grants.logins import KnownGrant, find_grant, is_grant_password
from wardkey.actions.messaging import freed_client_ids
from wardkey.actions.messaging.client_ids import (
    ClientIds,
    ConnectionId,
    Holder,
    IdClaim,
    holder_name,
)
from wardkey.actions.messaging.client_logins import (
    KnownClient,
    LoginAttempt,
    VerifiedPasswords,
    begin_login,
    finish_login,
    mark_connected,
)
from wardkey.actions.messaging.rule_cache import RuleCache
from wardkey.adapters.broker_link import Admitted, Login
from wardkey.adapters.publishers import BRIDGE
from wardkey.db.engine import Database
from wardkey.domain.broker_acl import Subjects
from wardkey.domain.errors import BrokerUnreachable, Overloaded, TooManyAttempts, WrongPassword
from wardkey.domain.tenants import TenantScope
from wardkey.services.session_removal import SessionRemover
from wardkey.services.throttle import Counter, Limit, Throttle, by_address

log = logging.getLogger(__name__)

_MAX_CLIENT_ID = 256
# How long a login waits until a session is removed, well within the broker's own time limit.
_MAX_WAIT_S, _POLL_S = 1.2, 0.05
_MINUTE_S, _MAX_LOGGED = 60, 10_000
_REFUSALS = (WrongPassword, TooManyAttempts, Overloaded)


@dataclass(frozen=True, slots=True)
class _UnhashedLogin:
    """A login whose password must still be hashed."""

    login: Login
    attempt: LoginAttempt


@dataclass(slots=True)
class MqttLogins:
    """Judges logins for one process; wrong passwords count against the address and user name."""

    database: Database
    throttle: Throttle
    verified: VerifiedPasswords
    rights: RuleCache
    ids: ClientIds = field(init=False)
    # Called for each session that logs in with a grant at Wardkey's own broker.
    watch: Callable[[TenantScope, ConnectionId, str, int], None] | None = None
    remover: SessionRemover | None = None
    # Clients that connected since the last write, by id.
    _connected: dict[str, KnownClient] = field(default_factory=dict)
    # Refused client ids of the last minute, so each is logged once.
    _logged: dict[tuple[TenantScope, str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Create the queue of client id claims."""
        self.ids = ClientIds(self.database)

    async def judge(self, login: Login) -> Admitted | None:
        """Return the identity and rights of an admitted client, or None if it is refused.

        A login that waits for its password to be hashed doesn't occupy a thread; if it is
        cancelled, it isn't counted, because it learns nothing. Raises `TooManyAttempts`,
        `Overloaded`, or the storage's error if the login can't be judged.
        """
        try:
            with self.throttle.attempt(*_counters_of(login)):
                result = await run_sync(self._judge_unhashed, login)
                if not isinstance(result, _UnhashedLogin):
                    return result
                check = self._check_password(result, Line.LOGIN)
                is_correct = await asyncio.shield(asyncio.wrap_future(check))
                return await run_sync(partial(self._finish, result, is_correct=is_correct))
        except WrongPassword:
            return None

    def judge_in_thread(self, login: Login) -> Admitted | None:
        """Judge in the calling thread, for hooks; the address is empty if the broker omits it."""
        try:
            with self.throttle.attempt(*_counters_of(login)):
                result = self._judge_unhashed(login)
                if not isinstance(result, _UnhashedLogin):
                    return result
                is_correct = self._check_password(result, Line.REQUEST).result()
                return self._finish(result, is_correct=is_correct)
        except _REFUSALS:
            return None

    def _check_password(self, unhashed: _UnhashedLogin, line: Line) -> Future[bool]:
        attempt, address = unhashed.attempt, unhashed.login.address
        return self.verified.check(attempt.password_hash, attempt.password, address, line)

    def _judge_unhashed(self, login: Login) -> Admitted | _UnhashedLogin | None:
        """Judge a login without hashing; return an `_UnhashedLogin` if that is not enough.

        Raises `WrongPassword`.
        """
        # The broker's other protocols would bypass the rules, which are for MQTT.
        if not login.is_mqtt or not login.password:
            return None
        # Longer ids don't fit the column, and one bad row fails all that are written with it.
        if not (0 < len(login.client_id) <= _MAX_CLIENT_ID and login.client_id.isprintable()):
            return None
        # A second session with the bridge's client id would end the bridge's connection.
        if login.client_id.startswith(BRIDGE):
            return None
        database = self.database
        if is_grant_password(login.password, database.brand):
            grant = find_grant(database, login.password, login.username, login.address)
            return self._admit(login, grant)
        attempt = begin_login(database, login.username, login.password)
        unhashed = _UnhashedLogin(login, attempt)
        return self._finish(unhashed, is_correct=True) if attempt.matches else unhashed

    def _finish(self, unhashed: _UnhashedLogin, *, is_correct: bool) -> Admitted | None:
        database, verified = self.database, self.verified
        known = finish_login(database, verified, unhashed.attempt) if is_correct else None
        return self._admit(unhashed.login, known)

    def _admit(self, login: Login, known: KnownClient | KnownGrant | None) -> Admitted | None:
        database = self.database
        if known is None:
            raise WrongPassword
        scope = TenantScope(known.org_id, known.environment)
        with database.read() as tx:
            rights = self.rights.compile(tx, known.environment, known.actor(login.client_id))
        kid = known.kid if isinstance(known, KnownGrant) else None
        connection = login.server, login.cid
        claim = IdClaim(scope, login.client_id, known.id, rights_digest(rights), connection, kid)
        if not self._take_id(claim, known.mqtt_username):
            return None
        if isinstance(known, KnownClient):
            with self._lock:
                self._connected[known.id] = known
        elif self.watch is not None and login.server:
            self.watch(scope, connection, known.kid, known.expires_at)
        return _admitted(known, rights)

    def _take_id(self, claim: IdClaim, username: str) -> bool:
        """Take a client id, after removing its former holder's session; return whether it worked.

        Logs the holder of an id that can't be taken. Raises `BrokerUnreachable` if the session
        can't be removed in time.
        """
        database, end = self.database, time.monotonic() + _MAX_WAIT_S
        while True:
            holder = self.ids.take(claim)
            if holder is None:
                return True
            if not freed_client_ids.free_if_abandoned(database, claim, holder):
                self._log_refused_id(claim, username, holder)
                return False
            lease = freed_client_ids.lease(database, claim.scope, claim.mqtt_id)
            if lease is not None:
                if self.remover is not None:
                    self.remover.discard(claim.scope, claim.mqtt_id)
                claim = replace(claim, lease=lease)
            elif time.monotonic() > end:
                log.info(
                    "client id %s is not free yet: its last session is being removed", claim.mqtt_id
                )
                raise BrokerUnreachable
            else:
                time.sleep(_POLL_S)

    def _log_refused_id(self, claim: IdClaim, username: str, holder: Holder) -> None:
        """Log why a login with a correct password was refused, once a minute for each subject."""
        name, now = (claim.scope, claim.mqtt_id, claim.subject_id), time.monotonic()
        with self._lock:
            if now - self._logged.get(name, -_MINUTE_S) < _MINUTE_S:
                return
            if len(self._logged) >= _MAX_LOGGED:
                self._logged.clear()
            self._logged[name] = now
        with self.database.read() as tx:
            held_by = holder_name(tx, claim.scope, holder.subject_id)
        log.warning(
            "a login of %s was refused: client id %s is held by %s; use another client id, or "
            "free this one with DELETE /v2/client-ids",
            username,
            claim.mqtt_id,
            held_by,
        )

    def write_connected(self) -> None:
        """Store which clients connected; if this fails, they are kept for the next call."""
        with self._lock:
            connected, self._connected = self._connected, {}
        try:
            mark_connected(self.database, connected.values())
        except Exception:
            with self._lock:
                self._connected = connected | self._connected
            raise


def rights_digest(rights: Subjects) -> bytes:
    """Return a digest of the rights, to compare them."""
    return hashlib.sha256(repr(rights).encode()).digest()


def _counters_of(login: Login) -> list[Counter]:
    """Return the counters for a wrong password.

    They count the user name at this address, so other addresses can't lock it out, and the address
    itself, if the broker sends it. Many devices may share the address.
    """
    counters = [
        Counter("login", f"{counter.name} {login.username}", weight=counter.weight)
        for counter in by_address("login", login.address)
    ]
    if login.address:
        counters += by_address("logins", login.address, Limit.SHARED)
    return counters


def _admitted(known: KnownClient | KnownGrant, rights: Subjects) -> Admitted:
    return Admitted(
        known.org_id,
        known.environment,
        known.mqtt_username,
        rights.publish_allow,
        rights.publish_deny,
        rights.subscribe_allow,
        rights.subscribe_deny,
        *((known.expires_at, known.session_until) if isinstance(known, KnownGrant) else ()),
    )
