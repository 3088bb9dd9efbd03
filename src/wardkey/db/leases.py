"""Who judges keys now: the row of each verifier process, and waiting until all know a change."""

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

# How long a verifier may answer from memory after it began to read the changes, and what is
# taken off here and added there for clocks that run at different speeds.
LEASE_NS = 2_000_000_000
MARGIN_NS = 100_000_000
# A row on SQLite whose process has not written it for this long stands for nobody.
_SILENT_MS = 3_000
_FORGOTTEN_MS = 3_600_000
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.01

_LIVE = select(
    verifiers.c.id,
    verifiers.c.lease_seq,
    verifiers.c.epoch,
    verifiers.c.applied_revision,
    verifiers.c.max_staleness_ms,
).where(verifiers.c.released_at.is_(None))
_SEEN = (
    update(verifiers)
    .where(verifiers.c.id == bindparam("mine"))
    .values(seen_at=bindparam("now"), metrics=bindparam("told"))
)
_COUNT = (
    select(func.count())
    .select_from(verifiers)
    .where(verifiers.c.released_at.is_(None), verifiers.c.seen_at > bindparam("since"))
)


def boottime() -> int:
    """Return ns on a clock that nobody sets and that counts suspends (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class VerifierIdentity:
    """This verifier process, as others know it."""

    id: str
    node: str
    pid: int
    max_staleness_ms: int = 0

    @classmethod
    def local_process(cls, now: int, max_staleness_ms: int = 0) -> VerifierIdentity:
        """Return a new verifier of this process."""
        return cls(new_id("ver", now), socket.gethostname()[:100], os.getpid(), max_staleness_ms)

    @property
    def values(self) -> dict[str, Any]:
        """The fields by their columns' names."""
        return {
            "id": self.id,
            "node": self.node,
            "pid": self.pid,
            "max_staleness_ms": self.max_staleness_ms,
        }


def register(database: Database, me: VerifierIdentity) -> None:
    """Write the row of a process on SQLite, and remove those that fell silent long ago."""
    now = database.clock()
    with storage_errors(), database.usage.begin() as connection:
        connection.execute(delete(verifiers).where(verifiers.c.seen_at < now - _FORGOTTEN_MS))
        connection.execute(
            insert(verifiers).values(
                **me.values,
                started_at=now,
                seen_at=now,
                lease_seq=0,
                epoch="",
                applied_revision=-1,
                metrics="",
            )
        )


def heartbeat(database: Database, me: VerifierIdentity, metrics: str) -> int:
    """Write that a process on SQLite goes on; return how many do."""
    now = database.clock()
    with storage_errors(), database.usage.begin() as connection:
        told = {"mine": me.id, "now": now, "told": metrics}
        present = connection.execute(_SEEN, told).rowcount
        count = connection.execute(_COUNT, {"since": now - _SILENT_MS}).scalar_one()
    if not present:
        register(database, me)
    return max(1, count)


def deregister(database: Database, me: VerifierIdentity) -> None:
    """Write that a process on SQLite ends."""
    with storage_errors(), database.usage.begin() as connection:
        connection.execute(
            update(verifiers).where(verifiers.c.id == me.id).values(released_at=database.clock())
        )


def prune_dead(database: Database) -> None:
    """Remove rows on PostgreSQL that ended or fell silent an hour ago by its own clock.

    A verifier that was only paused finds its row gone and enters anew before it answers.
    """
    hour_ago = text("(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 3600000")
    with storage_errors(), database.usage.begin() as connection:
        silent = verifiers.c.seen_at + verifiers.c.max_staleness_ms < hour_ago
        connection.execute(delete(verifiers).where(silent))


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A verifier whose lease ran out, by the `lease_seq` that it had at `since` (boottime)."""

    lease_seq: int
    since: int


@dataclass(slots=True)
class CommitBarrier:
    """Waits after a commit until no verifier can answer as if it had not happened."""

    database: Database
    dead: dict[str, ExpiredLease] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    observe: Callable[[str, float], None] | None = None

    def __call__(self, epoch: str, revision: int) -> Confirmation:
        """Return once every verifier has applied `revision` or cannot hold a lease any more.

        On SQLite each verdict looks for commits itself, so there is nothing to wait for.
        """
        began = boottime()
        if self.database.kind == "sqlite":
            return Confirmation(Reach.EVERYWHERE, self._count(), 0.0)
        pause, read_at = _FIRST_PAUSE_S, 0
        rows: Sequence[Row[*tuple[Any, ...]]] = ()
        first: dict[str, int] = {}
        while boottime() - began < LEASE_NS + MARGIN_NS:
            try:
                with self.database.reader.connect() as connection:
                    rows = connection.execute(_LIVE).all()
            except (DBAPIError, Unavailable):
                # Whoever cannot be asked is waited out as well.
                time.sleep(_LONGEST_PAUSE_S)
                continue
            if not first:
                first, read_at = {row.id: row.lease_seq for row in rows}, boottime()
            if not any(self._late(row, epoch, revision) for row in rows):
                break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if first and boottime() - read_at > LEASE_NS:
                self._bury(rows, first, read_at)
        took_ms = (boottime() - began) / 1e6
        if self.observe is not None:
            self.observe("confirm", took_ms / 1000)
        late = [row for row in rows if self._may_be_stale(row, epoch, revision)]
        staleness = max((row.max_staleness_ms for row in late), default=0)
        return Confirmation(
            Reach.BOUNDED if staleness else Reach.EVERYWHERE,
            len(rows),
            took_ms,
            staleness_s=staleness / 1000,
            late=len(late),
        )

    def _late(self, row: Row[*tuple[Any, ...]], epoch: str, revision: int) -> bool:
        if row.epoch == epoch and row.applied_revision >= revision:
            return False
        dead = self.dead.get(row.id)
        return dead is None or dead.lease_seq != row.lease_seq

    def _may_be_stale(self, row: Row[*tuple[Any, ...]], epoch: str, revision: int) -> bool:
        """Tell whether a verifier may still answer from what it knew before, by its setting."""
        if not row.max_staleness_ms or (row.epoch == epoch and row.applied_revision >= revision):
            return False
        dead = self.dead.get(row.id)
        if dead is None or dead.lease_seq != row.lease_seq:
            return True
        allowed = LEASE_NS + MARGIN_NS + row.max_staleness_ms * 1_000_000
        return bool(boottime() - dead.since < allowed)

    def _bury(
        self, rows: Sequence[Row[*tuple[Any, ...]]], first: Mapping[str, int], read_at: int
    ) -> None:
        """Note whose lease has run out: renewed no more since the first look, a lease ago."""
        with self.lock:
            before = self.dead
            self.dead = {}
            for row in rows:
                if first.get(row.id) == row.lease_seq:
                    known = before.get(row.id)
                    if known is None or known.lease_seq != row.lease_seq:
                        known = ExpiredLease(row.lease_seq, read_at)
                    self.dead[row.id] = known

    def _count(self) -> int:
        since = {"since": self.database.clock() - _SILENT_MS}
        try:
            with self.database.usage.connect() as connection:
                return int(connection.execute(_COUNT, since).scalar_one())
        except DBAPIError:
            # Usage may be gone or full; the promise does not hang on it.
            return 0


def told_metrics(database: Database, node: str) -> Mapping[str, str]:
    """Return what each live verifier of a node last told of itself, by its id."""
    newest = select(func.max(verifiers.c.seen_at)).scalar_subquery()
    statement = select(verifiers.c.id, verifiers.c.metrics).where(
        verifiers.c.node == node,
        verifiers.c.released_at.is_(None),
        verifiers.c.seen_at > newest - _SILENT_MS,
    )
    with storage_errors(), database.usage.connect() as connection:
        return {row.id: row.metrics for row in connection.execute(statement) if row.metrics}
