"""Freshness on several machines: a lease on PostgreSQL's change feed (Gray and Cheriton 1989)."""

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

# Times come from the server's clock, so all nodes agree on them.
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
_KIDS = "SELECT key_id, kid FROM secrets WHERE key_id = ANY(%(key_ids)s)"


class PostgresFreshness:
    """Lets memory answer while this process holds a lease, which a thread of its own renews.

    The guarantee depends on the order of each renewal: take the time, commit `lease_seq`, and
    only then read the changes. A revocation that this read missed sees the new `lease_seq` and
    waits; one that it saw is applied.
    """

    def __init__(
        self, database: Database, memory: Memory, lock: threading.Lock, identity: VerifierIdentity
    ) -> None:
        self._database, self._memory, self._lock, self._identity = database, memory, lock, identity
        self._primary = Primary(database)
        self._until = self._synced = 0
        self._stale_ns = identity.max_staleness_ms * 1_000_000
        self._stopped = threading.Event()
        self.live = 1
        self.metrics: Callable[[], str] = str
        self._thread = threading.Thread(target=self._run, name="wardkey-lease", daemon=True)
        self._thread.start()

    def is_fresh(self) -> bool:
        """Return, without any lock, whether the lease is valid."""
        return boottime() < self._until

    def refresh(self, memory: Memory) -> bool:  # noqa: ARG002 - the thread updates it
        """Return whether memory may answer now."""
        return boottime() < self._until + self._stale_ns

    def stale_ms(self) -> int:
        """Return the possible age, in ms, of the data in the last answer.

        It is 0 within the lease, and also once memory may not answer, as the primary is read then.
        """
        overdue = boottime() - self._until
        return self.age_ms() if 0 <= overdue < self._stale_ns else 0

    def age_ms(self) -> int:
        """Return the time since the start of the last renewal."""
        return (boottime() - self._synced) // 1_000_000

    def fetch_rows(self, statement: str, value: object = None) -> list[dict[str, Any]]:
        """Run one of `queries` on the primary within 250 ms; raises `StorageUnreachable`."""
        return self._primary.fetch_rows(statement, value)

    def close(self) -> None:
        """Release the lease and stop the thread."""
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
                self._register(connection)
                pause = 0.05
                while not self._stopped.is_set():
                    self._renew(connection)
                    self._listen(connection)
                connection.within(_STEP_S)
                connection.execute(_RELEASE, self._identity.values)
            except (psycopg.Error, OSError, StorageUnreachable) as error:
                log.warning(
                    "the verifier lease can't be renewed: %s", str(error).partition("\n")[0]
                )
                self._stopped.wait(pause)
                pause = min(2 * pause, RENEW_S)
            finally:
                if connection is not None:
                    with suppress(psycopg.Error):
                        connection.pgconn.finish()

    def _register(self, connection: BoundedConnection) -> None:
        connection.within(_STEP_S)
        connection.execute("SET synchronous_commit = on")
        connection.execute(f"LISTEN {CHANNEL}")
        connection.execute(_REGISTER, self._identity.values)

    def _renew(self, connection: BoundedConnection) -> None:
        started = boottime()
        connection.within(_STEP_S)
        values = self._identity.values | {"metrics": self.metrics()}
        if connection.execute(_RENEW, values).rowcount == 0:
            # The row was deleted or changed, so writers no longer wait for this lease.
            self._until = 0
            connection.execute(_REGISTER, self._identity.values)
            return
        self._catch_up(connection)
        self._synced = started
        self._until = started + LEASE_NS - MARGIN_NS
        # Read at each renewal, so this verifier reduces its share of the rate limits at once when
        # another one starts.
        row = connection.execute(_COUNT).fetchone()
        self.live = max(1, row["live"]) if row else 1

    def _listen(self, connection: BoundedConnection) -> None:
        """Apply changes as notifications arrive, until the next renewal is due."""
        end = time.monotonic() + RENEW_S
        while not self._stopped.is_set() and (remaining := end - time.monotonic()) > 0:
            ready, _, _ = select.select([connection.fileno()], [], [], remaining)
            if not ready:
                return
            connection.pgconn.consume_input()
            notified = False
            while connection.pgconn.notifies() is not None:
                notified = True
            if notified:
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
            statement = queries.CHANGES.replace(":value", "%(value)s")
            rows = connection.execute(statement, {"value": memory.revision}).fetchall()
        kids: dict[str, tuple[str, ...]] = {}
        key_ids = [row["subject_id"] for row in rows if row["subject"] == "key"]
        if key_ids:
            for row in connection.execute(_KIDS, {"key_ids": key_ids}).fetchall():
                kids[row["key_id"]] = (*kids.get(row["key_id"], ()), row["kid"])
        # Read last, so a cleanup between the reads is detected.
        oldest = connection.execute(queries.OLDEST).fetchone()
        changes = [
            Change(
                row["subject"], row["subject_id"], row["org_id"], kids.get(row["subject_id"], ())
            )
            for row in rows
        ]
        with self._lock:
            memory.catch_up(
                feed["epoch"], feed["revision"], oldest["oldest"] if oldest else None, changes
            )
        # If a server crash loses this write, a revocation only waits longer.
        connection.execute("SET synchronous_commit = off")
        connection.execute(_APPLIED, {"id": self._identity.id, **feed})
        connection.execute("SET synchronous_commit = on")
