"""The door of MQTT: what the broker asks of somebody who wants to log in is answered here."""

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

_LONGEST_CLIENT_ID = 256
# How long a login waits for a session to be removed, well within the broker's own bound on it.
_MOST_S, _LOOK_S = 1.2, 0.05
_MINUTE_S, _MOST_LOGGED = 60, 10_000
_REFUSALS = (WrongPassword, TooManyAttempts, Overloaded)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A login whose password has to be hashed."""

    login: Login
    begun: LoginAttempt


@dataclass(slots=True)
class MqttLogins:
    """Judges logins for one process; wrong passwords count against address and user name."""

    database: Database
    throttle: Throttle
    verified: VerifiedPasswords
    rights: RuleCache
    ids: ClientIds = field(init=False)
    # Learns of each session that a grant lets in at this product's broker.
    watch: Callable[[TenantScope, ConnectionId, str, int], None] | None = None
    remover: SessionRemover | None = None
    # Who connected since it was last written down.
    _connected: dict[str, KnownClient] = field(default_factory=dict)
    # Refused client ids of the last minute, so that each is logged once.
    _logged: dict[tuple[TenantScope, str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Begin with no client id asked for."""
        self.ids = ClientIds(self.database)

    async def judge(self, login: Login) -> Admitted | None:
        """Return who may log in and what they may do, or None.

        A login that waits for its password to be hashed holds no thread. One that is cut off is
        not counted, because its answer tells nothing. Raises `TooManyAttempts`, `Overloaded` and
        the storage's failure where the login can't be judged.
        """
        try:
            with self.throttle.attempt(*_counters_of(login)):
                begun = await run_sync(self._begin, login)
                if not isinstance(begun, _Attempt):
                    return begun
                check = self._check(begun, Line.LOGIN)
                fits = await asyncio.shield(asyncio.wrap_future(check))
                return await run_sync(partial(self._finish, begun, fits=fits))
        except WrongPassword:
            return None

    def judged(self, login: Login) -> Admitted | None:
        """Judge in this thread, for hooks; brokers that do not know the address leave it empty."""
        try:
            with self.throttle.attempt(*_counters_of(login)):
                begun = self._begin(login)
                if not isinstance(begun, _Attempt):
                    return begun
                fits = self._check(begun, Line.REQUEST).result()
                return self._finish(begun, fits=fits)
        except _REFUSALS:
            return None

    def _check(self, attempt: _Attempt, line: Line) -> Future[bool]:
        begun = attempt.begun
        verified, address = self.verified, attempt.login.address
        return verified.check(begun.password_hash, begun.password, address, line)

    def _begin(self, login: Login) -> Admitted | _Attempt | None:
        """Judge a login as far as that needs no hash: an attempt still needs its password hashed.

        Raises `WrongPassword`.
        """
        # Other protocols of the broker would go around the rules, which are made for MQTT.
        if not login.is_mqtt or not login.password:
            return None
        # The column of client ids takes no more, and one bad row fails those written with it.
        if not (0 < len(login.client_id) <= _LONGEST_CLIENT_ID and login.client_id.isprintable()):
            return None
        # Another with the bridge's client id would end the bridge's connection.
        if login.client_id.startswith(BRIDGE):
            return None
        database = self.database
        if is_grant_password(login.password, database.brand):
            found = find_grant(database, login.password, login.username, login.address)
            return self._settle(login, found)
        begun = begin_login(database, login.username, login.password)
        attempt = _Attempt(login, begun)
        return self._finish(attempt, fits=True) if begun.matches else attempt

    def _finish(self, attempt: _Attempt, *, fits: bool) -> Admitted | None:
        database, verified = self.database, self.verified
        known = finish_login(database, verified, attempt.begun) if fits else None
        return self._settle(attempt.login, known)

    def _settle(self, login: Login, known: KnownClient | KnownGrant | None) -> Admitted | None:
        database = self.database
        if known is None:
            raise WrongPassword
        scope = TenantScope(known.org_id, known.environment)
        with database.read() as tx:
            rights = self.rights.compile(tx, known.environment, known.actor(login.client_id))
        kid = known.kid if isinstance(known, KnownGrant) else None
        connection = login.server, login.cid
        claim = IdClaim(scope, login.client_id, known.id, mark_of(rights), connection, kid)
        if not self._take_id(claim, known.mqtt_username):
            return None
        if isinstance(known, KnownClient):
            with self._lock:
                self._connected[known.id] = known
        elif self.watch is not None and login.server:
            self.watch(scope, connection, known.kid, known.expires_at)
        return _admitted(known, rights)

    def _take_id(self, claim: IdClaim, username: str) -> bool:
        """Take a client id, whose former holder's session is removed first; or log the present one.

        Raises `BrokerUnreachable` if that session can't be removed in time.
        """
        database, end = self.database, time.monotonic() + _MOST_S
        while True:
            holder = self.ids.take(claim)
            if holder is None:
                return True
            if not freed_client_ids.free_if_abandoned(database, claim, holder):
                self._log_held(claim, username, holder)
                return False
            lease = freed_client_ids.lease(database, claim.scope, claim.mqtt_id)
            if lease is not None:
                if self.remover is not None:
                    self.remover.discard(claim.scope, claim.mqtt_id)
                claim = replace(claim, lease=lease)
            elif time.monotonic() > end:
                log.info("client id %s waits: its last session is being removed", claim.mqtt_id)
                raise BrokerUnreachable
            else:
                time.sleep(_LOOK_S)

    def _log_held(self, claim: IdClaim, username: str, holder: Holder) -> None:
        """Log why a right password was refused, once a minute for each who tries."""
        name, now = (claim.scope, claim.mqtt_id, claim.subject_id), time.monotonic()
        with self._lock:
            if now - self._logged.get(name, -_MINUTE_S) < _MINUTE_S:
                return
            if len(self._logged) >= _MOST_LOGGED:
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
        """Store who connected; what fails is kept for the next time."""
        with self._lock:
            taken, self._connected = self._connected, {}
        try:
            mark_connected(self.database, taken.values())
        except Exception:
            with self._lock:
                self._connected = taken | self._connected
            raise


def mark_of(rights: Subjects) -> bytes:
    """Return what tells two sets of rights apart."""
    return hashlib.sha256(repr(rights).encode()).digest()


def _counters_of(login: Login) -> list[Counter]:
    """Return what a wrong password counts against.

    The name at an address, so that nobody can lock out another's; and the address, behind which
    there may be many devices, where the broker names one.
    """
    counters = [
        Counter("login", f"{one.name} {login.username}", weight=one.weight)
        for one in by_address("login", login.address)
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
