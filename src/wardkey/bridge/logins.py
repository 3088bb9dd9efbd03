"""The door of MQTT: what the broker asks of somebody who wants to log in is answered here."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from wardkey.actions.grant_logins import KnownGrant, find_grant, is_grant_password
from wardkey.actions.hashing import Line
from wardkey.actions.logins import (
    KnownClient,
    LoginAttempt,
    begin_login,
    finish_login,
    mark_connected,
)
from wardkey.actions.rights import Rights
from wardkey.actions.sessions import ClientIds, IdClaim
from wardkey.domain.addresses import network_of
from wardkey.domain.broker_acl import Subjects
from wardkey.domain.errors import Overloaded, TooManyAttempts, WrongPassword
from wardkey.domain.rate import RateLimit
from wardkey.outside.broker_link import Admitted, Login
from wardkey.outside.publishers import BRIDGE
from wardkey.web.context import Context
from wardkey.web.throttle import Counter, Throttle, counters_of_address

# A hundred attempts at once, then one a second; not divided by workers, because some ninety
# logins of devices behind one address may be judged at once.
_ADDRESS_LIMIT = RateLimit(limit=60, period_ms=60_000, burst=100)
_LONGEST_CLIENT_ID = 256


@dataclass(slots=True)
class Logins:
    """Judges logins for one process; wrong passwords count against address and user name."""

    here: Context
    rights: Rights
    # For a name at an address, so that nobody can lock out another's; and for an address, behind
    # which there may be many devices.
    names: Throttle = field(default_factory=Throttle)
    addresses: Throttle = field(default_factory=lambda: Throttle(_ADDRESS_LIMIT))
    ids: ClientIds = field(init=False)
    # Who connected since it was last written down.
    _connected: dict[str, KnownClient] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Begin with no client id asked for."""
        self.ids = ClientIds(self.here.runner.database)

    async def judge(self, login: Login) -> Admitted | None:
        """Return who may log in and what they may do, or None.

        A login that waits for its password to be hashed holds no thread.
        """
        if not _is_acceptable(login):
            return None
        try:
            with self._attempt(login):
                begun = await run_in_threadpool(self._begin, login)
                if not isinstance(begun, LoginAttempt):
                    return begun
                check = self._check(login, begun, Line.LOGIN)
                fits = await asyncio.shield(asyncio.wrap_future(check))
                return await run_in_threadpool(self._finish, login, begun, fits=fits)
        except (Overloaded, TooManyAttempts, WrongPassword):
            return None

    def judged(self, login: Login) -> Admitted | None:
        """Judge in this thread, for hooks; brokers that do not know the address leave it empty."""
        if not _is_acceptable(login):
            return None
        try:
            with self._attempt(login):
                begun = self._begin(login)
                if not isinstance(begun, LoginAttempt):
                    return begun
                fits = self._check(login, begun, Line.REQUEST).result()
                return self._finish(login, begun, fits=fits)
        except (Overloaded, TooManyAttempts, WrongPassword):
            return None

    @contextmanager
    def _attempt(self, login: Login) -> Iterator[None]:
        """Reserve an attempt at the name and the address; only `WrongPassword` counts it.

        Devices with one name and password may all come back at once, which is one guess.
        """
        now = self.here.runner.database.clock()
        name = Counter(f"{network_of(login.address)} {login.username[:200]}")
        guess = hashlib.sha256(login.password.encode("utf-8", "replace")).digest()
        with self.names.attempt(now, name, wrong=(WrongPassword,), guess=guess):
            if not login.address:
                yield
                return
            counters = counters_of_address("address", login.address)
            with self.addresses.attempt(now, *counters, wrong=(WrongPassword,)):
                yield

    def _check(self, login: Login, begun: LoginAttempt, line: Line) -> Future[bool]:
        verified = self.here.verified
        return verified.check(begun.password_hash, begun.password, login.address, line)

    def _begin(self, login: Login) -> Admitted | LoginAttempt | None:
        """Judge a login as far as that needs no hash: an attempt still needs its password hashed.

        Raises `WrongPassword`.
        """
        database = self.here.runner.database
        if is_grant_password(login.password, database.brand):
            return self._settle(login, find_grant(database, login.password, login.username))
        begun = begin_login(database, login.username, login.password)
        return self._finish(login, begun, fits=True) if begun.fits else begun

    def _finish(self, login: Login, begun: LoginAttempt, *, fits: bool) -> Admitted | None:
        database, verified = self.here.runner.database, self.here.verified
        return self._settle(login, finish_login(database, verified, begun) if fits else None)

    def _settle(self, login: Login, known: KnownClient | KnownGrant | None) -> Admitted | None:
        if known is None:
            raise WrongPassword
        room = (known.org_id, known.environment)
        with self.here.runner.database.read() as tx:
            rights = self.rights.of(tx, known.environment, known.actor(login.client_id))
        kid = known.kid if isinstance(known, KnownGrant) else None
        connection = login.server, login.cid
        claim = IdClaim(room, login.client_id, known.id, mark_of(rights), connection, kid)
        if not self.ids.take(claim):
            return None
        if isinstance(known, KnownClient):
            with self._lock:
                self._connected[known.id] = known
        return _admitted(known, rights)

    def write_connected(self) -> None:
        """Store who connected; what fails is kept for the next time."""
        with self._lock:
            taken, self._connected = self._connected, {}
        try:
            mark_connected(self.here.runner.database, taken.values())
        except Exception:
            with self._lock:
                self._connected = taken | self._connected
            raise


def mark_of(rights: Subjects) -> bytes:
    """Return what tells two sets of rights apart."""
    return hashlib.sha256(repr(rights).encode()).digest()


def _is_acceptable(login: Login) -> bool:
    # Other protocols of the broker would go around the rules, which are made for MQTT.
    if not login.is_mqtt or not login.password:
        return False
    # The column of client ids takes no more, and one bad row fails those written with it.
    if not (0 < len(login.client_id) <= _LONGEST_CLIENT_ID and login.client_id.isprintable()):
        return False
    # Another with the bridge's client id would end the bridge's connection.
    return not login.client_id.startswith(BRIDGE)


def _admitted(known: KnownClient | KnownGrant, rights: Subjects) -> Admitted:
    return Admitted(
        known.org_id,
        known.environment,
        known.mqtt_username,
        rights.publish_allow,
        rights.publish_deny,
        rights.subscribe_allow,
        rights.subscribe_deny,
        known.expires_at if isinstance(known, KnownGrant) else None,
    )
