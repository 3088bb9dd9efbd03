"""Who uses which secret, and the refused strangers: counted in memory, written in batches."""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection, Delete, Insert, Table, bindparam, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from wardkey.db.engine import Database, Kind, storage_failure
from wardkey.db.schema import callers, hours, last_used, refused
from wardkey.domain.callers import (
    HOUR_MS,
    MOST_ADDRESS,
    MOST_AGENT,
    MOST_CALLERS,
    clip,
    clip_route,
    product_of,
)
from wardkey.domain.sketch import Sighting, merge
from wardkey.domain.verdict import Verdict

_MOST_PENDING = 100_000
_FOLDED_AT_ONCE = 1_000
_SECRETS_AT_ONCE = 500
_MOST_PRESENT = 200_000
_COUNT, _FIRST_AT, _LAST_AT, _KEY_ID = range(4)


# Kid, code, address, user agent, route and when the hour began: what is counted together, bare,
# because naming the fields takes longer than counting.
Noted: TypeAlias = tuple[str, str, str, str, str, int]


# Count, first and last time, key id: a list, because it is changed in place for each verdict.
Tally: TypeAlias = list[Any]
Name: TypeAlias = tuple[str, str, str]
_NAMED_MARK = re.compile(r"%\(\w+\)s(?:::\w+)?")


class Usage:
    """Pending counts of this process; `flush` writes them to the usage database.

    What cannot be written is kept for the next batch, up to a bound; `lost` counts what went
    over it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._noted: deque[tuple[str, str, str, str, str, str, int]] = deque()
        self._uses: dict[Noted, Tally] = {}
        # Callers that this process wrote: they hold a place, unless another process took it.
        self._present: set[tuple[str, Name]] = set()
        self.lost = 0
        self._refused: Counter[tuple[int, str]] = Counter()

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
        self._fold()
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
            clip(address, MOST_ADDRESS),
            clip(user_agent, MOST_AGENT),
            clip_route(route, self._database.brand),
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

    def _write(self, uses: Mapping[Noted, Tally], strangers: Counter[tuple[int, str]]) -> None:
        kind = self._database.kind
        batch = Batch()
        for use, tally in uses.items():
            batch.add(use, tally, self._present)
        with self._database.counting() as connection:
            _run(connection, _merge_uses(kind), list(batch.latest.values()))
            _run(connection, _add_counts(kind, hours), list(batch.counted.values()))
            _run(
                connection,
                _add_counts(kind, refused),
                [(hour, code, count) for (hour, code), count in strangers.items()],
            )
            _run(connection, _add_sightings(kind), batch.again)
            kids = list(batch.new)
            for start in range(0, len(kids), _SECRETS_AT_ONCE):
                some = {kid: batch.new[kid] for kid in kids[start : start + _SECRETS_AT_ONCE]}
                _write_callers(connection, kind, some, batch.key_ids)
        if len(self._present) > _MOST_PRESENT:
            self._present.clear()
        self._present |= batch.arrived


class Batch:
    """What is to be written of some uses, as rows in the order of their tables' columns.

    `again` are sightings of callers that this process wrote before; `new` those that may need
    another caller's place.
    """

    def __init__(self) -> None:
        self.latest: dict[str, tuple[Any, ...]] = {}
        self.counted: dict[tuple[str, int, str], tuple[Any, ...]] = {}
        self.again: list[tuple[Any, ...]] = []
        self.new: dict[str, dict[Name, Sighting]] = {}
        self.arrived: set[tuple[str, Name]] = set()
        self.key_ids: dict[str, str] = {}

    def add(self, use: Noted, tally: Tally, present: set[tuple[str, Name]]) -> None:
        """Add one use."""
        kid, code, address, user_agent, route, hour_at = use
        count, first_at, last_at, key_id = tally
        hour = hour_at // HOUR_MS
        before = self.counted.get((kid, hour, code))
        total = count if before is None else before[4] + count
        self.counted[kid, hour, code] = (kid, hour, code, key_id, total)
        if code == Verdict.VALID:
            latest = self.latest.get(kid)
            if latest is None:
                self.latest[kid] = (kid, key_id, last_at, address, user_agent, count)
            elif last_at > latest[2]:
                self.latest[kid] = (kid, key_id, last_at, address, user_agent, latest[5] + count)
            else:
                self.latest[kid] = (*latest[:5], latest[5] + count)
        name = (address, product_of(user_agent), route)
        if (kid, name) in present:
            self.again.append((kid, *name, key_id, first_at, last_at, count))
            return
        self.key_ids[kid] = key_id
        self.arrived.add((kid, name))
        seen = self.new.setdefault(kid, {})
        one = Sighting(count, first_at, last_at)
        known = seen.get(name)
        seen[name] = one if known is None else known.plus(one)


def _write_callers(
    connection: Connection,
    kind: Kind,
    seen: Mapping[str, Mapping[Name, Sighting]],
    key_ids: Mapping[str, str],
) -> None:
    """Merge the callers of some secrets into those kept, and delete whom the sketch drops."""
    kept: defaultdict[str, dict[Name, Sighting]] = defaultdict(dict)
    for kid, *name, count, first_at, last_at in connection.execute(
        _KEPT.where(callers.c.kid.in_(seen))
    ):
        kept[kid][name[0], name[1], name[2]] = Sighting(count, first_at, last_at)
    dropped: list[tuple[Any, ...]] = []
    written: list[tuple[Any, ...]] = []
    for kid, new in seen.items():
        before = kept.get(kid, {})
        after = merge(before, new, MOST_CALLERS)
        dropped += ((kid, *name) for name in before.keys() - after.keys())
        written += (
            (kid, *name, key_ids[kid], one.first_at, one.last_at, one.count)
            for name, one in after.items()
            if one != before.get(name)
        )
    _run(connection, _DROP_CALLER, dropped)
    _run(connection, _put_callers(kind), written)


def _run(
    connection: Connection, statement: Insert | Delete, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Run a statement for many rows by the driver itself: half of the time goes otherwise.

    The values of a row stand in the order of the statement's parameters.
    """
    if rows:
        compiled = statement.compile(
            dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
        )
        marks = compiled.string
        if compiled.positiontup is None:
            marks = _NAMED_MARK.sub("%s", marks)
        connection.exec_driver_sql(marks, list(rows))


_KEPT = select(
    callers.c.kid,
    callers.c.address,
    callers.c.product,
    callers.c.route,
    callers.c["count"],
    callers.c.first_at,
    callers.c.last_at,
)
_DROP_CALLER = delete(callers).where(
    callers.c.kid == bindparam("of_kid"),
    callers.c.address == bindparam("of_address"),
    callers.c.product == bindparam("of_product"),
    callers.c.route == bindparam("of_route"),
)


def _insert(kind: Kind, table: Table) -> Any:  # noqa: ANN401 - two dialects, one interface
    return sqlite.insert(table) if kind == "sqlite" else postgresql.insert(table)


def _merge_uses(kind: Kind) -> Insert:
    insert = _insert(kind, last_used)
    new = insert.excluded
    newer = new.at >= last_used.c.at
    merged: Insert = insert.on_conflict_do_update(
        index_elements=[last_used.c.kid],
        set_={
            "at": case((newer, new.at), else_=last_used.c.at),
            "address": case((newer, new.address), else_=last_used.c.address),
            "user_agent": case((newer, new.user_agent), else_=last_used.c.user_agent),
            "verifications": last_used.c.verifications + new.verifications,
        },
    )
    return merged


def _add_counts(kind: Kind, table: Table) -> Insert:
    insert = _insert(kind, table)
    added: Insert = insert.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={"count": table.c["count"] + insert.excluded["count"]},
    )
    return added


def _add_sightings(kind: Kind) -> Insert:
    insert = _insert(kind, callers)
    new = insert.excluded
    least, most = (func.min, func.max) if kind == "sqlite" else (func.least, func.greatest)
    added: Insert = insert.on_conflict_do_update(
        index_elements=list(callers.primary_key),
        set_={
            "first_at": least(callers.c.first_at, new.first_at),
            "last_at": most(callers.c.last_at, new.last_at),
            "count": callers.c["count"] + new["count"],
        },
    )
    return added


def _put_callers(kind: Kind) -> Insert:
    insert = _insert(kind, callers)
    put: Insert = insert.on_conflict_do_update(
        index_elements=list(callers.primary_key),
        set_={name: insert.excluded[name] for name in ("first_at", "last_at", "count")},
    )
    return put
