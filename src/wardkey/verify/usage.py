"""Who uses which secret, and the refused strangers: counted in memory, then one row a flush."""

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
    HOUR_MS,
    MOST_ADDRESS,
    MOST_AGENT,
    product_of,
    storable,
    storable_route,
)
from wardkey.domain.errors import StorageBusy, WardkeyError
from wardkey.verify.pending import merge_pending

log = logging.getLogger(__name__)

_MOST_PENDING = 100_000
_MOST_ROWS = 10_000
_FOLDED_AT_ONCE = 1_000
_COUNT, _FIRST_AT, _LAST_AT, _KEY_ID = range(4)


# Kid, code, address, user agent, route and when the hour began: what is counted together, bare,
# because naming the fields takes longer than counting.
Noted: TypeAlias = tuple[str, str, str, str, str, int]


# Count, first and last time, key id: a list, because it is changed in place for each verdict.
Tally: TypeAlias = list[Any]


class Usage:
    """Counts of this process; `flush` writes them to the usage database, where they are merged.

    What cannot be written is kept for the next batch, up to a bound; `lost` counts what went
    over it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._noted: deque[tuple[str, str, str, str, str, str, int]] = deque()
        self._uses: dict[Noted, Tally] = {}
        self.lost = 0
        self._refused: Counter[tuple[int, str]] = Counter()
        # Import prefixes as of the last flush, so that texts are masked before they are cut.
        self._prefixes: tuple[str, ...] = ()
        self._has_prefixes = False

    def note(  # noqa: PLR0917 - called for each verdict, and names take longer
        self, kid: str, key_id: str, code: str, at: int, address: str, user_agent: str, route: str
    ) -> None:
        """Count one verdict on a secret whose hash matched; memory only."""
        # Appending needs no lock, which would take longer than all else here.
        self._noted.append((kid, code, address, user_agent, route, key_id, at))
        if len(self._noted) >= _FOLDED_AT_ONCE:
            self._fold()

    def note_stranger(self, at: int, code: str) -> None:
        """Count one refused credential that belongs to nobody."""
        with self._lock:
            self._refused[at // HOUR_MS, code] += 1

    def flush(self) -> None:
        """Write what is pending; raises the storage's failure and keeps it all for later."""
        try:
            self._read_prefixes()
        except Exception as error:
            raise storage_failure(error) or error from error
        self._fold()
        with self._lock:
            uses, self._uses = self._uses, {}
            strangers, self._refused = self._refused, Counter()
        if not uses and not strangers:
            return
        try:
            self._append(uses, strangers)
        except Exception as error:
            self._put_back(uses, strangers)
            raise storage_failure(error) or error from error

    def catch_up(self) -> None:
        """Merge what is pending for who reads usage next; where that fails, reading goes on."""
        try:
            merge_pending(self._database)
        except WardkeyError as failure:
            log.warning("%s: %s", failure.code, failure.detail)
        except Exception:
            log.exception("pending usage cannot be merged")

    def _fold(self) -> None:
        """Count what was noted. Others may note meanwhile, so only what is there now is taken."""
        hour_at = hour_end = 0
        with self._lock:
            noted, uses = self._noted, self._uses
            for _ in range(len(noted)):
                kid, code, address, user_agent, route, key_id, at = noted.popleft()
                if not hour_at <= at < hour_end:
                    hour_at = at - at % HOUR_MS
                    hour_end = hour_at + HOUR_MS
                use = (kid, code, address, user_agent, route, hour_at)
                tally = uses.get(use)
                if tally is None:
                    tally = self._begin(use, key_id, at)
                    if tally is None:
                        self.lost += 1
                        continue
                tally[_COUNT] += 1
                # Threads come here in another order than they took the time.
                tally[_LAST_AT] = max(tally[_LAST_AT], at)

    def _begin(self, use: Noted, key_id: str, at: int) -> Tally | None:
        """Return the tally of a use in the form that is stored, or None where there is no room.

        What is too long comes by here each time, so that the usual need not be looked at.
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
        uses: Mapping[Noted, Tally],
        strangers: Counter[tuple[int, str]],
    ) -> None:
        with self._lock:
            self._refused += strangers
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
        if self._has_prefixes and not self._noted and not self._uses:
            return
        with self._database.read() as tx:
            found = tx.connection.execute(select(import_prefixes.c.prefix)).scalars()
            self._prefixes = tuple(sorted(found))
        self._has_prefixes = True

    def _append(
        self, uses: Mapping[Noted, Tally], strangers: Mapping[tuple[int, str], int]
    ) -> None:
        """Write one row, whatever the number of uses; raises `StorageBusy` if nobody merges."""
        alike: dict[tuple[str, str, str, str, int], list[tuple[Any, ...]]] = {}
        brand, prefixes = self._database.brand, self._prefixes
        for (kid, code, address, user_agent, route, hour_at), tally in uses.items():
            count, first_at, last_at, key_id = tally
            # A prefix may have been registered since the use was noted.
            agent = storable(user_agent, MOST_AGENT, brand, prefixes)
            who = (code, address, agent, storable_route(route, brand, prefixes), hour_at)
            one = (kid, key_id, count, first_at, last_at)
            if who in alike:
                alike[who].append(one)
            else:
                alike[who] = [one]
        row = {
            "at": self._database.clock(),
            "uses": _text_of(
                [
                    (code, address, agent, route, product_of(agent), hour_at // HOUR_MS, people)
                    for (code, address, agent, route, hour_at), people in alike.items()
                ]
            ),
            "refused": _text_of([(*of, count) for of, count in strangers.items()]),
        }
        with storage_errors(), self._database.usage.begin() as connection:
            if not connection.execute(_APPEND, {**row, "most": _MOST_ROWS}).rowcount:
                raise StorageBusy


def _text_of(rows: list[tuple[Any, ...]]) -> str:
    return msgspec.json.encode(rows).decode()


# Where merges fail for long, memory and `lost` bound what is kept instead of the disk.
_APPEND = text("""
  INSERT INTO usage.pending (at, uses, refused)
  SELECT CAST(:at AS BIGINT), CAST(:uses AS TEXT), CAST(:refused AS TEXT)
  WHERE coalesce((SELECT max(id) FROM usage.pending) - (SELECT min(id) FROM usage.pending), 0)
    < :most
""")
