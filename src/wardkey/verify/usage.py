"""Counting the uses of secrets and the refused strangers, written in batches beside verdicts."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Insert, case, func
from sqlalchemy.dialects import postgresql, sqlite

from wardkey.db.engine import Database, storage_failure
from wardkey.db.schema import last_used, refused

HOUR_MS = 3_600_000
_MOST_PENDING = 100_000


@dataclass(slots=True)
class Use:
    """The latest use of one secret since the last batch, and how many there were."""

    key_id: str
    at: int
    address: str
    user_agent: str
    count: int


class Usage:
    """Pending counts of this process; `flush` writes them to the usage database.

    What cannot be written is kept for the next batch, up to a bound; `lost` counts what went
    over it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._uses: dict[str, Use] = {}
        self._refused: Counter[tuple[int, str]] = Counter()
        self.lost = 0

    def note(self, kid: str, key_id: str, at: int, address: str, user_agent: str) -> None:
        """Count one valid use; memory only."""
        with self._lock:
            use = self._uses.get(kid)
            if use is None:
                if len(self._uses) >= _MOST_PENDING:
                    self.lost += 1
                    return
                self._uses[kid] = Use(key_id, at, address, user_agent, 1)
                return
            use.at, use.address, use.user_agent = at, address, user_agent
            use.count += 1

    def note_stranger(self, at: int, code: str) -> None:
        """Count one refused credential that belongs to nobody."""
        with self._lock:
            self._refused[at // HOUR_MS, code] += 1

    def flush(self) -> None:
        """Write what is pending; raises the storage's failure and keeps it all for later."""
        with self._lock:
            uses, self._uses = self._uses, {}
            strangers, self._refused = self._refused, Counter()
        if not uses and not strangers:
            return
        try:
            self._write(uses, strangers)
        except Exception as fault:
            self._put_back(uses, strangers)
            raise storage_failure(fault) or fault from fault

    def _put_back(self, uses: dict[str, Use], strangers: Counter[tuple[int, str]]) -> None:
        with self._lock:
            self._refused += strangers
            for kid, use in uses.items():
                newer = self._uses.get(kid)
                if newer is not None:
                    newer.count += use.count
                elif len(self._uses) < _MOST_PENDING:
                    self._uses[kid] = use
                else:
                    self.lost += use.count

    def _write(self, uses: dict[str, Use], strangers: Counter[tuple[int, str]]) -> None:
        with self._database.usage.begin() as connection:
            if uses:
                rows = [
                    {
                        "kid": kid,
                        "key_id": use.key_id,
                        "at": use.at,
                        "address": use.address[:64],
                        "user_agent": use.user_agent[:200],
                        "verifications": use.count,
                    }
                    # One order for all processes, so that their batches cannot deadlock.
                    for kid, use in sorted(uses.items())
                ]
                connection.execute(_merge_uses(self._database.kind), rows)
            if strangers:
                counts = [
                    {"hour": hour, "code": code, "count": count}
                    for (hour, code), count in sorted(strangers.items())
                ]
                connection.execute(_merge_refused(self._database.kind), counts)


def _merge_uses(kind: str) -> Insert:
    insert = sqlite.insert(last_used) if kind == "sqlite" else postgresql.insert(last_used)
    new = insert.excluded
    newer = new.at >= last_used.c.at
    return insert.on_conflict_do_update(
        index_elements=[last_used.c.kid],
        set_={
            "at": case((newer, new.at), else_=last_used.c.at),
            "address": case((newer, new.address), else_=last_used.c.address),
            "user_agent": case((newer, new.user_agent), else_=last_used.c.user_agent),
            "verifications": last_used.c.verifications + new.verifications,
        },
    )


def _merge_refused(kind: str) -> Insert:
    insert = sqlite.insert(refused) if kind == "sqlite" else postgresql.insert(refused)
    return insert.on_conflict_do_update(
        index_elements=[refused.c.hour, refused.c.code],
        set_={"count": func.coalesce(refused.c.count, 0) + insert.excluded["count"]},
    )
