"""Who uses which secret, and the refused strangers: counted in memory, written in batches."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Delete, Insert, Table, bindparam, case, delete, select
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
_COUNT, _FIRST_AT, _LAST_AT, _KEY_ID = range(4)


# The fields of a `Use`, bare, because naming them takes longer than counting.
Noted: TypeAlias = tuple[str, str, str, str, str, int]


class Use(NamedTuple):
    """What is counted together within a batch; `hour_at` is when its hour began."""

    kid: str
    code: str
    address: str
    user_agent: str
    route: str
    hour_at: int


# Count, first and last time, key id: a list, because it is changed in place for each verdict.
Tally: TypeAlias = list[Any]
Name: TypeAlias = tuple[str, str, str]


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
            self._write({Use(*use): tally for use, tally in uses.items()}, strangers)
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

    def _write(self, uses: Mapping[Use, Tally], strangers: Counter[tuple[int, str]]) -> None:
        kind = self._database.kind
        latest, counted, seen = _latest(uses), _by_hour(uses), _sightings(uses)
        key_ids = {use.kid: tally[_KEY_ID] for use, tally in uses.items()}
        with self._database.counting() as connection:
            if latest:
                _run(connection, _merge_uses(kind), latest)
            if counted:
                rows = [
                    {"kid": kid, "hour": hour, "code": code, "key_id": key_ids[kid], "count": count}
                    for (kid, hour, code), count in sorted(counted.items())
                ]
                _run(connection, _add_counts(kind, hours), rows)
            if strangers:
                rows = [
                    {"hour": hour, "code": code, "count": count}
                    for (hour, code), count in sorted(strangers.items())
                ]
                _run(connection, _add_counts(kind, refused), rows)
            kids = sorted(seen)
            for start in range(0, len(kids), _SECRETS_AT_ONCE):
                some = {kid: seen[kid] for kid in kids[start : start + _SECRETS_AT_ONCE]}
                _write_callers(connection, kind, some, key_ids)


def _latest(uses: Mapping[Use, Tally]) -> list[dict[str, Any]]:
    """Return the rows of `last_used`: of each secret its latest valid use, and how many."""
    rows: dict[str, dict[str, Any]] = {}
    for use, tally in uses.items():
        if use.code != Verdict.VALID:
            continue
        row = rows.setdefault(use.kid, {"kid": use.kid, "verifications": 0, "at": -1})
        row["verifications"] += tally[_COUNT]
        if tally[_LAST_AT] > row["at"]:
            row |= {
                "key_id": tally[_KEY_ID],
                "at": tally[_LAST_AT],
                "address": use.address,
                "user_agent": use.user_agent,
            }
    return [rows[kid] for kid in sorted(rows)]


def _by_hour(uses: Mapping[Use, Tally]) -> Counter[tuple[str, int, str]]:
    counted: Counter[tuple[str, int, str]] = Counter()
    for use, tally in uses.items():
        counted[use.kid, use.hour_at // HOUR_MS, use.code] += tally[_COUNT]
    return counted


def _sightings(uses: Mapping[Use, Tally]) -> dict[str, dict[Name, Sighting]]:
    """Return who was seen with each secret, whatever the verdict was."""
    seen: defaultdict[str, dict[Name, Sighting]] = defaultdict(dict)
    for use, (count, first_at, last_at, _) in uses.items():
        name = (use.address, product_of(use.user_agent), use.route)
        one = Sighting(count, first_at, last_at)
        before = seen[use.kid].get(name)
        seen[use.kid][name] = one if before is None else before.plus(one)
    return seen


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
    dropped: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    for kid, new in seen.items():
        before = kept[kid]
        after = merge(before, new, MOST_CALLERS)
        dropped += (_named(kid, name) for name in sorted(before.keys() - after.keys()))
        written += (
            {
                "kid": kid,
                "address": name[0],
                "product": name[1],
                "route": name[2],
                "key_id": key_ids[kid],
                "first_at": sighting.first_at,
                "last_at": sighting.last_at,
                "count": sighting.count,
            }
            for name, sighting in sorted(after.items(), key=itemgetter(0))
            if sighting != before.get(name)
        )
    if dropped:
        _run(connection, _DROP_CALLER, dropped)
    if written:
        _run(connection, _put_callers(kind), written)


def _run(connection: Connection, statement: Insert | Delete, rows: list[dict[str, Any]]) -> None:
    """Run a statement for many rows by the driver itself: half of the time goes otherwise."""
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
    names = compiled.positiontup
    values = rows if names is None else [tuple(row[name] for name in names) for row in rows]
    connection.exec_driver_sql(str(compiled), values)


def _named(kid: str, name: Iterable[str]) -> dict[str, str]:
    return dict(zip(("of_kid", "of_address", "of_product", "of_route"), (kid, *name), strict=True))


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


def _put_callers(kind: Kind) -> Insert:
    insert = _insert(kind, callers)
    put: Insert = insert.on_conflict_do_update(
        index_elements=list(callers.primary_key),
        set_={name: insert.excluded[name] for name in ("first_at", "last_at", "count")},
    )
    return put
