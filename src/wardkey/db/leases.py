"""The rows of live verifier processes, and the wait until all of them have applied a change."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from wardkey.db.engine import Database, storage_errors
from wardkey.db.schema import verifiers
from wardkey.domain.errors import Unavailable
from wardkey.domain.ids import new_id
from wardkey.domain.receipts import Confirmation, Reach
from wardkey.domain.times import HOUR_MS

# How long a verifier may answer from memory after it began to read the changes. Verifiers
# subtract the margin and writers add it, in case their clocks run at different speeds.
LEASE_NS = 2_000_000_000
MARGIN_NS = 100_000_000
# On SQLite, a row without a heartbeat for this long belongs to a process that has ended.
_SILENT_MS = 3_000
_FORGOTTEN_MS = HOUR_MS
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01

_LIVE = select(
    verifiers.c.id,
    verifiers.c.lease_seq,
    verifiers.c.epoch,
    verifiers.c.applied_revision,
    verifiers.c.max_staleness_ms,
).where(verifiers.c.released_at.is_(None))
_HEARTBEAT = (
    update(verifiers)
    .where(verifiers.c.id == bindparam("verifier_id"))
    .values(seen_at=bindparam("now"), metrics=bindparam("snapshot"))
)
_COUNT = (
    select(func.count())
    .select_from(verifiers)
    .where(verifiers.c.released_at.is_(None), verifiers.c.seen_at > bindparam("since"))
)


def boottime() -> int:
    """Return ns on a clock that can't be set and that counts suspends (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class VerifierIdentity:
    """How one verifier process appears to the others."""

    id: str
    node: str
    pid: int
    max_staleness_ms: int = 0

    @classmethod
    def local_process(cls, now: int, max_staleness_ms: int = 0) -> VerifierIdentity:
        """Return a new identity for this process."""
        return cls(new_id("ver", now), socket.gethostname()[:100], os.getpid(), max_staleness_ms)

    @property
    def values(self) -> dict[str, Any]:
        """The fields by column name."""
        return {
            "id": self.id,
            "node": self.node,
            "pid": self.pid,
            "max_staleness_ms": self.max_staleness_ms,
        }


def register(database: Database, identity: VerifierIdentity) -> None:
    """Insert a process's row (SQLite only), and delete rows without a heartbeat for an hour."""
    now = database.clock()
    with storage_errors(), database.usage.begin() as connection:
        connection.execute(delete(verifiers).where(verifiers.c.seen_at < now - _FORGOTTEN_MS))
        connection.execute(
            insert(verifiers).values(
                **identity.values,
                started_at=now,
                seen_at=now,
                lease_seq=0,
                epoch="",
                applied_revision=-1,
                metrics="",
            )
        )


def heartbeat(database: Database, identity: VerifierIdentity, metrics: str) -> int:
    """Record a process's heartbeat (SQLite only); return the number of live verifiers."""
    now = database.clock()
    with storage_errors(), database.usage.begin() as connection:
        values = {"verifier_id": identity.id, "now": now, "snapshot": metrics}
        registered = connection.execute(_HEARTBEAT, values).rowcount
        count = connection.execute(_COUNT, {"since": now - _SILENT_MS}).scalar_one()
    if not registered:
        register(database, identity)
    return max(1, count)


def deregister(database: Database, identity: VerifierIdentity) -> None:
    """Record that a process ends (SQLite only)."""
    with storage_errors(), database.usage.begin() as connection:
        connection.execute(
            update(verifiers)
            .where(verifiers.c.id == identity.id)
            .values(released_at=database.clock())
        )


def prune_dead(database: Database) -> None:
    """Delete rows that ended or fell silent an hour ago (PostgreSQL only, by its clock).

    A verifier that was only paused finds its row missing and registers again before it answers.
    """
    hour_ago = text("(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 3600000")
    with storage_errors(), database.usage.begin() as connection:
        silent = verifiers.c.seen_at + verifiers.c.max_staleness_ms < hour_ago
        connection.execute(delete(verifiers).where(silent))


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A lease that ran out, identified by the `lease_seq` read at `since` (boottime ns)."""

    lease_seq: int
    since: int


@dataclass(slots=True)
class CommitBarrier:
    """Waits after a commit until no verifier can answer as if it had not happened."""

    database: Database
    expired: dict[str, ExpiredLease] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    observe: Callable[[str, float], None] | None = None

    def __call__(self, epoch: str, revision: int) -> Confirmation:
        """Return once each verifier has applied `revision` or its lease must have run out.

        On SQLite there is nothing to wait for, because each verdict checks for new commits.
        """
        started = boottime()
        if self.database.kind == "sqlite":
            return Confirmation(Reach.EVERYWHERE, self._count(), 0.0)
        pause, read_at = _FIRST_PAUSE_S, 0
        rows: Sequence[Row[*tuple[Any, ...]]] = ()
        first_seqs: dict[str, int] = {}
        while boottime() - started < LEASE_NS + MARGIN_NS:
            try:
                with self.database.reader.connect() as connection:
                    rows = connection.execute(_LIVE).all()
            except (DBAPIError, Unavailable):
                # If the database is unreachable, wait out the lease instead.
                time.sleep(_LONGEST_PAUSE_S)
                continue
            if not first_seqs:
                first_seqs, read_at = {row.id: row.lease_seq for row in rows}, boottime()
            if not any(self._is_behind(row, epoch, revision) for row in rows):
                break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if first_seqs and boottime() - read_at > LEASE_NS:
                self._mark_expired(rows, first_seqs, read_at)
        took_ms = (boottime() - started) / 1e6
        if self.observe is not None:
            self.observe("confirm", took_ms / 1000)
        behind = [row for row in rows if self._may_be_stale(row, epoch, revision)]
        staleness = max((row.max_staleness_ms for row in behind), default=0)
        return Confirmation(
            Reach.BOUNDED if staleness else Reach.EVERYWHERE,
            len(rows),
            took_ms,
            staleness_s=staleness / 1000,
            late=len(behind),
        )

    def _is_behind(self, row: Row[*tuple[Any, ...]], epoch: str, revision: int) -> bool:
        if row.epoch == epoch and row.applied_revision >= revision:
            return False
        lease = self.expired.get(row.id)
        return lease is None or lease.lease_seq != row.lease_seq

    def _may_be_stale(self, row: Row[*tuple[Any, ...]], epoch: str, revision: int) -> bool:
        """Return whether the verifier's `max_staleness_ms` still allows answers from old data."""
        if not row.max_staleness_ms or (row.epoch == epoch and row.applied_revision >= revision):
            return False
        lease = self.expired.get(row.id)
        if lease is None or lease.lease_seq != row.lease_seq:
            return True
        allowed = LEASE_NS + MARGIN_NS + row.max_staleness_ms * 1_000_000
        return bool(boottime() - lease.since < allowed)

    def _mark_expired(
        self, rows: Sequence[Row[*tuple[Any, ...]]], first_seqs: Mapping[str, int], read_at: int
    ) -> None:
        """Record the leases that were not renewed since the first read, a lease period ago."""
        with self.lock:
            previous = self.expired
            self.expired = {}
            for row in rows:
                if first_seqs.get(row.id) == row.lease_seq:
                    lease = previous.get(row.id)
                    if lease is None or lease.lease_seq != row.lease_seq:
                        lease = ExpiredLease(row.lease_seq, read_at)
                    self.expired[row.id] = lease

    def _count(self) -> int:
        values = {"since": self.database.clock() - _SILENT_MS}
        try:
            with self.database.usage.connect() as connection:
                return int(connection.execute(_COUNT, values).scalar_one())
        except DBAPIError:
            # The usage database may be missing or full; revocation does not depend on it.
            return 0


def node_metrics(database: Database, node: str) -> Mapping[str, str]:
    """Return the last metrics snapshot of each live verifier of a node, by verifier id."""
    newest = select(func.max(verifiers.c.seen_at)).scalar_subquery()
    statement = select(verifiers.c.id, verifiers.c.metrics).where(
        verifiers.c.node == node,
        verifiers.c.released_at.is_(None),
        verifiers.c.seen_at > newest - _SILENT_MS,
    )
    with storage_errors(), database.usage.connect() as connection:
        return {row.id: row.metrics for row in connection.execute(statement) if row.metrics}
