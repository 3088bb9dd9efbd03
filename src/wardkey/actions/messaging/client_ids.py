"""MQTT client ids: whose each one is, for another's session must not be taken over."""

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

# The broker's node and its number for a connection, which no other ever has; a foreign broker
# tells neither, and no session of ours is called so.
Connected = tuple[str, int]

# Built once: constructing a statement costs more than running it.
_IN_SCOPE = in_bound_scope(mqtt_ids)
_OWNERS = select(mqtt_ids).where(
    _IN_SCOPE, mqtt_ids.c.mqtt_id.in_(bindparam("wanted", expanding=True))
)
# Both storages read these words; SQLAlchemy has a construct of its own for each.
_KEEP = text(
    """INSERT INTO usage.mqtt_ids AS held
         (org_id, environment, mqtt_id, subject_id, rights, grant_kid, server, cid, seen_at,
          taken_at)
       VALUES (:of_org, :of_environment, :wanted, :subject, :may, :grant, :server, :cid, :at, :at)
       ON CONFLICT (org_id, environment, mqtt_id) DO UPDATE SET
         taken_at = CASE WHEN held.subject_id = excluded.subject_id AND held.freed_at IS NULL
                    THEN coalesce(held.taken_at, held.seen_at) ELSE excluded.taken_at END,
         subject_id = excluded.subject_id, rights = excluded.rights,
         grant_kid = excluded.grant_kid, server = excluded.server, cid = excluded.cid,
         seen_at = excluded.seen_at, freed_at = NULL, leased_until = NULL"""
)


@dataclass(frozen=True, slots=True)
class IdClaim:
    """A session that a login asks for under an MQTT client id, and what it may do.

    `lease` is of the process that removed the former holder's session.
    """

    scope: TenantScope
    mqtt_id: str
    subject_id: str
    rights: bytes
    connection: Connected
    grant_kid: str | None = None
    lease: int | None = None

    @property
    def row(self) -> dict[str, object]:
        """The columns of its row, the time apart."""
        return {
            **bind_scope(self.scope),
            "wanted": self.mqtt_id,
            "subject": self.subject_id,
            "may": self.rights,
            "grant": self.grant_kid,
            "server": self.connection[0],
            "cid": self.connection[1],
        }


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a client id is, times in epoch milliseconds.

    Once freed it has no holder, but the broker may still have a session under it.
    """

    subject_id: str
    seen_at: int
    freed_at: int | None = None
    leased_until: int | None = None

    def gives_way(self, claim: IdClaim) -> bool:
        """Tell whether the claim may have the client id."""
        if self.freed_at is not None:
            return claim.lease is not None and claim.lease == self.leased_until
        return self.subject_id == claim.subject_id


@dataclass(slots=True)
class _Turn:
    claim: IdClaim
    holder: Holder | None = None
    is_over: bool = False
    fault: WardkeyError | None = None


@dataclass(slots=True)
class ClientIds:
    """Gives MQTT client ids to the first that asks; what is asked at once shares a transaction."""

    database: Database
    _asked: list[_Turn] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def take(self, claim: IdClaim) -> Holder | None:
        """Give a client id to the subject that asks, or return the holder that keeps it.

        Raises the storage's failure.
        """
        turn = _Turn(claim)
        with self._lock:
            self._asked.append(turn)
        with self._writing:
            if not turn.is_over:
                with self._lock:
                    turns, self._asked = self._asked, []
                self._write_all(turns)
        if turn.fault is not None:
            raise turn.fault
        return turn.holder

    def _write_all(self, turns: Sequence[_Turn]) -> None:
        try:
            holders = self._write([turn.claim for turn in turns])
        except WardkeyError as error:
            # Each who asked raises it.
            for turn in turns:
                turn.fault, turn.is_over = error, True
            return
        for turn, holder in zip(turns, holders, strict=True):
            turn.holder, turn.is_over = holder, True

    def _write(self, claims: Sequence[IdClaim]) -> list[Holder | None]:
        """Decide in the order in which they were asked, and write what is to be kept."""
        now = self.database.clock()
        answers, kept = list[Holder | None](), dict[tuple[TenantScope, str], IdClaim]()
        with self.database.counting() as connection:
            found = _find_rows(connection, claims)
            for claim in claims:
                name = claim.scope, claim.mqtt_id
                holder = found.get(name)
                if holder is not None and not holder.gives_way(claim):
                    answers.append(holder)
                    continue
                answers.append(None)
                found[name] = Holder(claim.subject_id, now)
                kept[name] = claim
            rows = [{**claim.row, "at": now} for claim in kept.values()]
            if rows:
                connection.execute(_KEEP, rows)
        return answers


def _find_rows(
    connection: Connection, claims: Sequence[IdClaim]
) -> dict[tuple[TenantScope, str], Holder]:
    found = {}
    by_scope: defaultdict[TenantScope, set[str]] = defaultdict(set)
    for claim in claims:
        by_scope[claim.scope].add(claim.mqtt_id)
    for scope, ids in by_scope.items():
        asked = {**bind_scope(scope), "wanted": list(ids)}
        for row in connection.execute(_OWNERS, asked):
            found[scope, row.mqtt_id] = Holder(
                row.subject_id, row.seen_at, row.freed_at, row.leased_until
            )
    return found


def holder_name(tx: Transaction, scope: TenantScope, subject_id: str) -> str:
    """Return the name of a client or user and its id, or the id alone of one that is gone."""
    for table, column in ((clients, clients.c.id), (grants, grants.c.user_key)):
        name = tx.connection.execute(
            select(table.c.username).where(column == subject_id, in_scope(table, scope)).limit(1)
        ).scalar_one_or_none()
        if name is not None:
            return f"{name} ({subject_id})"
    return subject_id
