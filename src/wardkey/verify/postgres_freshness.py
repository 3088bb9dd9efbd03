"""Freshness on several machines: a lease on PostgreSQL's change feed (Gray and Cheriton, 1989)."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row

from wardkey.db.deadlines import BoundedConnection, connect_bounded
from wardkey.db.engine import CHANNEL, Database
from wardkey.db.leases import LEASE_NS, MARGIN_NS, VerifierIdentity, boottime
from wardkey.domain.errors import StorageUnreachable
from wardkey.verify import queries
from wardkey.verify.memory import Change, Memory
from wardkey.verify.primary import Primary

log = logging.getLogger(__name__)

RENEW_S = 0.5
_STEP_S = 1.0

# Times are the server's, so that all nodes agree on who was seen when.
_REGISTER = """
  INSERT INTO usage.verifiers (id, node, pid, started_at, seen_at, released_at, lease_seq, epoch,
    applied_revision, max_staleness_ms, metrics)
  SELECT %(id)s, %(node)s, %(pid)s, now, now, NULL, 1, '', -1, %(max_staleness_ms)s, ''
  FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now) AS clock
  ON CONFLICT (id) DO UPDATE SET released_at = NULL, epoch = '', applied_revision = -1,
    lease_seq = usage.verifiers.lease_seq + 1, seen_at = excluded.seen_at,
    max_staleness_ms = excluded.max_staleness_ms
"""
_RENEW = """
  UPDATE usage.verifiers SET lease_seq = lease_seq + 1, metrics = %(metrics)s,
    seen_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint
  WHERE id = %(id)s AND released_at IS NULL AND max_staleness_ms = %(max_staleness_ms)s
"""
_APPLIED = """
  UPDATE usage.verifiers SET epoch = %(epoch)s, applied_revision = %(revision)s WHERE id = %(id)s
"""
_RELEASE = """
  UPDATE usage.verifiers SET released_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint
  WHERE id = %(id)s
"""
_COUNT = """
  SELECT count(*) AS live FROM usage.verifiers WHERE released_at IS NULL
    AND seen_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint - 3000
"""
_FEED = "SELECT epoch, revision, pg_is_in_recovery() AS standby FROM feed"
_KIDS = "SELECT key_id, kid FROM secrets WHERE key_id = ANY(%(keys)s)"


class PostgresFreshness:
    """Memory may serve while this process holds a lease; a thread of its own renews it.

    The order of each renewal is the promise: note the time, commit `lease_seq`, and only then
    read the changes. A revocation whose commit that reading missed finds the new `lease_seq`
    and waits; one that it saw is applied.
    """

    def __init__(
        self, database: Database, memory: Memory, lock: threading.Lock, me: VerifierIdentity
    ) -> None:
        self._database, self._memory, self._lock, self._me = database, memory, lock, me
        self._primary = Primary(database)
        self._until = self._synced = 0
        self._stale_ns = me.max_staleness_ms * 1_000_000
        self._stopped = threading.Event()
        self.live = 1
        self.metrics: Callable[[], str] = str
        self._thread = threading.Thread(target=self._run, name="wardkey-lease", daemon=True)
        self._thread.start()

    def is_fresh(self) -> bool:
        """Tell, without any lock, that the lease holds."""
        return boottime() < self._until

    def serves(self, memory: Memory) -> bool:  # noqa: ARG002 - the thread brings it up to date
        """Tell whether memory may answer now."""
        return boottime() < self._until + self._stale_ns

    def stale_ms(self) -> int:
        """Tell how old what was just answered may be, in ms.

        0 within the lease; and where memory may serve no more, what was read from the primary.
        """
        late = boottime() - self._until
        return self.age_ms() if 0 <= late < self._stale_ns else 0

    def age_ms(self) -> int:
        """Return the time since the start of the last renewal."""
        return (boottime() - self._synced) // 1_000_000

    def rows(self, statement: str, one: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` on the primary, in time; raises `StorageUnreachable`."""
        return self._primary.rows(statement, one)

    def close(self) -> None:
        """Give the lease back and end the thread."""
        self._until = 0
        self._stale_ns = 0
        self._stopped.set()
        self._thread.join(2 * _STEP_S)
        self._primary.close()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            connection = None
            try:
                connection = connect_bounded(self._database.url, _STEP_S)
                connection.row_factory = dict_row
                self._begin(connection)
                pause = 0.05
                while not self._stopped.is_set():
                    self._renew(connection)
                    self._listen(connection)
                connection.within(_STEP_S)
                connection.execute(_RELEASE, self._me.values)
            except (psycopg.Error, OSError, StorageUnreachable) as error:
                log.warning("the lease cannot be renewed: %s", str(error).partition("\n")[0])
                self._stopped.wait(pause)
                pause = min(2 * pause, RENEW_S)
            finally:
                if connection is not None:
                    with suppress(psycopg.Error):
                        connection.pgconn.finish()

    def _begin(self, connection: BoundedConnection) -> None:
        connection.within(_STEP_S)
        connection.execute("SET synchronous_commit = on")
        connection.execute(f"LISTEN {CHANNEL}")
        connection.execute(_REGISTER, self._me.values)

    def _renew(self, connection: BoundedConnection) -> None:
        began = boottime()
        connection.within(_STEP_S)
        values = self._me.values | {"metrics": self.metrics()}
        if connection.execute(_RENEW, values).rowcount == 0:
            # Somebody removed or altered the row: what it promised to others is void.
            self._until = 0
            connection.execute(_REGISTER, self._me.values)
            return
        self._catch_up(connection)
        self._synced = began
        self._until = began + LEASE_NS - MARGIN_NS
        # As soon as another verifier may count on a share of the limits, this one shrinks its own.
        found = connection.execute(_COUNT).fetchone()
        self.live = max(1, found["live"]) if found else 1

    def _listen(self, connection: BoundedConnection) -> None:
        """Apply changes as they are told, until the lease is to be renewed."""
        end = time.monotonic() + RENEW_S
        while not self._stopped.is_set() and (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([connection.fileno()], [], [], left)
            if not ready:
                return
            connection.pgconn.consume_input()
            told = False
            while connection.pgconn.notifies() is not None:
                told = True
            if told:
                connection.within(_STEP_S)
                self._catch_up(connection)

    def _catch_up(self, connection: BoundedConnection) -> None:
        feed = connection.execute(_FEED).fetchone()
        if feed is None or feed["standby"]:
            self._until = 0
            raise StorageUnreachable
        memory = self._memory
        rows: list[dict[str, Any]] = []
        if feed["epoch"] == memory.epoch:
            statement = queries.CHANGES.replace(":one", "%(one)s")
            rows = connection.execute(statement, {"one": memory.revision}).fetchall()
        kids: dict[str, tuple[str, ...]] = {}
        keys = [row["subject_id"] for row in rows if row["subject"] == "key"]
        if keys:
            for row in connection.execute(_KIDS, {"keys": keys}).fetchall():
                kids[row["key_id"]] = (*kids.get(row["key_id"], ()), row["kid"])
        # Read last, so that a clean-up between the reads is noticed.
        oldest = connection.execute(queries.OLDEST).fetchone()
        told = [
            Change(r["subject"], r["subject_id"], r["org_id"], kids.get(r["subject_id"], ()))
            for r in rows
        ]
        with self._lock:
            memory.catch_up(
                feed["epoch"], feed["revision"], oldest["oldest"] if oldest else None, told
            )
        # Losing this in a crash of the server costs a revocation its wait, nothing else.
        connection.execute("SET synchronous_commit = off")
        connection.execute(_APPLIED, {"id": self._me.id, **feed})
        connection.execute("SET synchronous_commit = on")
