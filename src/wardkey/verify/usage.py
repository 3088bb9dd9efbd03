"""Counts the uses of secrets and the rejected unknown ones, in memory; each flush is one row."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import select, text

from wardkey.db.engine import Database, storage_errors, storage_failure
from wardkey.db.schema import import_prefixes
from wardkey.domain.callers import (
    MOST_ADDRESS,
    MOST_AGENT,
    product_of,
    storable,
    storable_route,
)
from wardkey.domain.errors import StorageBusy, WardkeyError
from wardkey.domain.times import HOUR_MS
from wardkey.verify.pending import merge_pending

log = logging.getLogger(__name__)

_MOST_PENDING = 100_000
_MOST_ROWS = 10_000
_BATCH_SIZE = 1_000
_COUNT, _FIRST_AT, _LAST_AT, _KEY_ID = range(4)


# Kid, code, address, user agent, route and start of the hour: the group of a count. A plain tuple,
# because creating an object with named fields would take longer than counting.
Use: TypeAlias = tuple[str, str, str, str, str, int]


# Count, first and last time, key id. A list, because each verdict changes it in place.
Tally: TypeAlias = list[Any]


class Usage:
    """Counts of this process; `flush` writes them to the usage database, where they are merged.

    Counts that can't be written are kept for the next flush, up to a limit; `lost` is the number
    of uses dropped beyond it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._verdicts: deque[tuple[str, str, str, str, str, str, int]] = deque()
        self._uses: dict[Use, Tally] = {}
        self.lost = 0
        self._rejections: Counter[tuple[int, str]] = Counter()
        # Import prefixes as of the last flush, so texts are masked before they are truncated.
        self._prefixes: tuple[str, ...] = ()
        self._has_prefixes = False

    def note(  # noqa: PLR0917 - called for each verdict, and names take longer
        self, kid: str, key_id: str, code: str, at: int, address: str, user_agent: str, route: str
    ) -> None:
        """Count a verdict on a secret whose hash matched, in memory only."""
        # Appending needs no lock; taking one would cost more than everything else here.
        self._verdicts.append((kid, code, address, user_agent, route, key_id, at))
        if len(self._verdicts) >= _BATCH_SIZE:
            self._fold()

    def note_unknown(self, at: int, code: str) -> None:
        """Count a rejected credential that no key has."""
        with self._lock:
            self._rejections[at // HOUR_MS, code] += 1

    def flush(self) -> None:
        """Write all counts; on failure, raise the storage's error and keep them for later."""
        try:
            self._read_prefixes()
        except Exception as error:
            raise storage_failure(error) or error from error
        self._fold()
        with self._lock:
            uses, self._uses = self._uses, {}
            rejections, self._rejections = self._rejections, Counter()
        if not uses and not rejections:
            return
        try:
            self._append(uses, rejections)
        except Exception as error:
            self._put_back(uses, rejections)
            raise storage_failure(error) or error from error

    def catch_up(self) -> None:
        """Merge pending usage before it is read; log a failure, so the read still happens."""
        try:
            merge_pending(self._database)
        except WardkeyError as error:
            log.warning("%s: %s", error.code, error.detail)
        except Exception:
            log.exception("pending usage can't be merged")

    def _fold(self) -> None:
        """Count the verdicts queued at the start; others may be queued meanwhile."""
        hour_at = hour_end = 0
        with self._lock:
            verdicts, uses = self._verdicts, self._uses
            for _ in range(len(verdicts)):
                kid, code, address, user_agent, route, key_id, at = verdicts.popleft()
                if not hour_at <= at < hour_end:
                    hour_at = at - at % HOUR_MS
                    hour_end = hour_at + HOUR_MS
                use = (kid, code, address, user_agent, route, hour_at)
                tally = uses.get(use)
                if tally is None:
                    tally = self._start_tally(use, key_id, at)
                    if tally is None:
                        self.lost += 1
                        continue
                tally[_COUNT] += 1
                # Threads may queue verdicts in a different order than they read the clock.
                tally[_LAST_AT] = max(tally[_LAST_AT], at)

    def _start_tally(self, use: Use, key_id: str, at: int) -> Tally | None:
        """Return the tally of a use in its stored form, or None if the limit is reached.

        A use whose text is changed for storage comes here each time, so the common case needs no
        check.
        """
        kid, code, address, user_agent, route, hour_at = use
        stored = (
            kid,
            str(code),
            storable(address, MOST_ADDRESS, self._database.brand, self._prefixes),
            storable(user_agent, MOST_AGENT, self._database.brand, self._prefixes),
            storable_route(route, self._database.brand, self._prefixes),
            hour_at,
        )
        tally = self._uses.get(stored)
        if tally is None and len(self._uses) < _MOST_PENDING:
            tally = self._uses[stored] = [0, at, at, key_id]
        return tally

    def _put_back(
        self,
        uses: Mapping[Use, Tally],
        rejections: Counter[tuple[int, str]],
    ) -> None:
        with self._lock:
            self._rejections += rejections
            for use, tally in uses.items():
                newer = self._uses.get(use)
                if newer is not None:
                    newer[_COUNT] += tally[_COUNT]
                    newer[_FIRST_AT] = tally[_FIRST_AT]
                elif len(self._uses) < _MOST_PENDING:
                    self._uses[use] = tally
                else:
                    self.lost += tally[_COUNT]

    def _read_prefixes(self) -> None:
        if self._has_prefixes and not self._verdicts and not self._uses:
            return
        with self._database.read() as tx:
            prefixes = tx.connection.execute(select(import_prefixes.c.prefix)).scalars()
            self._prefixes = tuple(sorted(prefixes))
        self._has_prefixes = True

    def _append(self, uses: Mapping[Use, Tally], rejections: Mapping[tuple[int, str], int]) -> None:
        """Write everything as one row; raises `StorageBusy` if too many rows await merging."""
        groups: dict[tuple[str, str, str, str, int], list[tuple[Any, ...]]] = {}
        brand, prefixes = self._database.brand, self._prefixes
        for (kid, code, address, user_agent, route, hour_at), tally in uses.items():
            count, first_at, last_at, key_id = tally
            # A prefix may have been registered since the use was noted.
            agent = storable(user_agent, MOST_AGENT, brand, prefixes)
            group = (code, address, agent, storable_route(route, brand, prefixes), hour_at)
            secret_tally = (kid, key_id, count, first_at, last_at)
            if group in groups:
                groups[group].append(secret_tally)
            else:
                groups[group] = [secret_tally]
        row = {
            "at": self._database.clock(),
            "uses": _to_json(
                [
                    (code, address, agent, route, product_of(agent), hour_at // HOUR_MS, tallies)
                    for (code, address, agent, route, hour_at), tallies in groups.items()
                ]
            ),
            "refused": _to_json([(*group, count) for group, count in rejections.items()]),
        }
        with storage_errors(), self._database.usage.begin() as connection:
            if not connection.execute(_APPEND, {**row, "most": _MOST_ROWS}).rowcount:
                raise StorageBusy


def _to_json(rows: list[tuple[Any, ...]]) -> str:
    return msgspec.json.encode(rows).decode()


# If merges keep failing, no more rows are added: counts stay in memory, up to `_MOST_PENDING`.
_APPEND = text("""
  INSERT INTO usage.pending (at, uses, refused)
  SELECT CAST(:at AS BIGINT), CAST(:uses AS TEXT), CAST(:refused AS TEXT)
  WHERE coalesce((SELECT max(id) FROM usage.pending) - (SELECT min(id) FROM usage.pending), 0)
    < :most
""")
