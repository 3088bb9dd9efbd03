"""The holder of each MQTT client id, so that no one can take over another's session."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, select, text

from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import clients, grants, mqtt_ids
from wardkey.db.scoped import bind_scope, in_bound_scope, in_scope
from wardkey.domain.errors import WardkeyError
from wardkey.domain.tenants import TenantScope

# A node of our broker and its number for a connection, which it never reuses; ("", 0) for a
# foreign broker, which sends neither.
ConnectionId = tuple[str, int]

# Built once: constructing a statement costs more than running it.
_IN_SCOPE = in_bound_scope(mqtt_ids)
_SELECT_ROWS = select(mqtt_ids).where(
    _IN_SCOPE, mqtt_ids.c.mqtt_id.in_(bindparam("mqtt_ids", expanding=True))
)
# Raw SQL that both databases accept; SQLAlchemy would need a construct for each.
_UPSERT = text(
    """INSERT INTO usage.mqtt_ids AS held
         (org_id, environment, mqtt_id, subject_id, rights, grant_kid, server, cid, seen_at,
          taken_at)
       VALUES (:of_org, :of_environment, :mqtt_id, :subject_id, :rights, :grant_kid, :server,
         :cid, :at, :at)
       ON CONFLICT (org_id, environment, mqtt_id) DO UPDATE SET
         taken_at = CASE WHEN held.subject_id = excluded.subject_id AND held.freed_at IS NULL
                    THEN coalesce(held.taken_at, held.seen_at) ELSE excluded.taken_at END,
         subject_id = excluded.subject_id, rights = excluded.rights,
         grant_kid = excluded.grant_kid, server = excluded.server, cid = excluded.cid,
         seen_at = excluded.seen_at, freed_at = NULL, leased_until = NULL"""
)


@dataclass(frozen=True, slots=True)
class IdClaim:
    """A login's request for an MQTT client id, with the rights of its session.

    `lease` is set if this process removed the previous holder's session.
    """

    scope: TenantScope
    mqtt_id: str
    subject_id: str
    rights: bytes
    connection: ConnectionId
    grant_kid: str | None = None
    lease: int | None = None

    @property
    def row(self) -> dict[str, object]:
        """The row's values, except the time."""
        return {
            **bind_scope(self.scope),
            "mqtt_id": self.mqtt_id,
            "subject_id": self.subject_id,
            "rights": self.rights,
            "grant_kid": self.grant_kid,
            "server": self.connection[0],
            "cid": self.connection[1],
        }


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a client id; times in epoch milliseconds.

    A freed client id has no holder, but the broker may still have its session.
    """

    subject_id: str
    seen_at: int
    freed_at: int | None = None
    leased_until: int | None = None

    def can_yield_to(self, claim: IdClaim) -> bool:
        """Return whether the claim can have the client id."""
        if self.freed_at is not None:
            return claim.lease is not None and claim.lease == self.leased_until
        return self.subject_id == claim.subject_id


@dataclass(slots=True)
class _PendingClaim:
    claim: IdClaim
    holder: Holder | None = None
    is_done: bool = False
    error: WardkeyError | None = None


@dataclass(slots=True)
class ClientIds:
    """Gives each MQTT client id to its first claimant; concurrent claims share a transaction."""

    database: Database
    _pending: list[_PendingClaim] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _write_lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, claim: IdClaim) -> Holder | None:
        """Give a client id to the claim's subject, or return the holder that keeps it.

        Raises storage errors.
        """
        own = _PendingClaim(claim)
        with self._lock:
            self._pending.append(own)
        with self._write_lock:
            if not own.is_done:
                with self._lock:
                    batch, self._pending = self._pending, []
                self._write_batch(batch)
        if own.error is not None:
            raise own.error
        return own.holder

    def _write_batch(self, batch: Sequence[_PendingClaim]) -> None:
        try:
            holders = self._write([pending.claim for pending in batch])
        except WardkeyError as error:
            # Each waiting thread raises it.
            for pending in batch:
                pending.error, pending.is_done = error, True
            return
        for pending, holder in zip(batch, holders, strict=True):
            pending.holder, pending.is_done = holder, True

    def _write(self, claims: Sequence[IdClaim]) -> list[Holder | None]:
        """Decide the claims in order and store the granted ones; return the conflicting holders."""
        now = self.database.clock()
        conflicts, granted = list[Holder | None](), dict[tuple[TenantScope, str], IdClaim]()
        with self.database.counting() as connection:
            holders = _find_holders(connection, claims)
            for claim in claims:
                name = claim.scope, claim.mqtt_id
                holder = holders.get(name)
                if holder is not None and not holder.can_yield_to(claim):
                    conflicts.append(holder)
                    continue
                conflicts.append(None)
                holders[name] = Holder(claim.subject_id, now)
                granted[name] = claim
            rows = [{**claim.row, "at": now} for claim in granted.values()]
            if rows:
                connection.execute(_UPSERT, rows)
        return conflicts


def _find_holders(
    connection: Connection, claims: Sequence[IdClaim]
) -> dict[tuple[TenantScope, str], Holder]:
    holders = {}
    by_scope: defaultdict[TenantScope, set[str]] = defaultdict(set)
    for claim in claims:
        by_scope[claim.scope].add(claim.mqtt_id)
    for scope, ids in by_scope.items():
        parameters = {**bind_scope(scope), "mqtt_ids": list(ids)}
        for row in connection.execute(_SELECT_ROWS, parameters):
            holders[scope, row.mqtt_id] = Holder(
                row.subject_id, row.seen_at, row.freed_at, row.leased_until
            )
    return holders


def holder_name(tx: Transaction, scope: TenantScope, subject_id: str) -> str:
    """Return the name and id of a client or user, or only the id if it no longer exists."""
    for table, column in ((clients, clients.c.id), (grants, grants.c.user_key)):
        name = tx.connection.execute(
            select(table.c.username).where(column == subject_id, in_scope(table, scope)).limit(1)
        ).scalar_one_or_none()
        if name is not None:
            return f"{name} ({subject_id})"
    return subject_id
