"""Merging what all processes wrote of usage, one row a flush, into the tables that are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
from sqlalchemy import Connection, TextClause, bindparam, select, text

from wardkey.db.engine import Database, Kind, storage_errors
from wardkey.db.schema import pending
from wardkey.domain.callers import MOST_CALLERS
from wardkey.domain.heavy_hitters import Sighting, merge

# How old the oldest pending row may be before a ticker merges.
MERGE_MS = 30_000
# How many rows one transaction merges, so that it takes neither memory nor the lock without bound.
_AT_ONCE = 1_000

Name: TypeAlias = tuple[str, str, str]
Statements: TypeAlias = Mapping[str, TextClause]
# Kid, address, product, route, key id, count, first and last time.
CallerRow: TypeAlias = tuple[str, str, str, str, str, int, int, int]

# What the two databases say differently. SQLite takes bare columns from the row of max().
_WORDS: Mapping[Kind, Mapping[str, str]] = {
    "sqlite": {
        "uses": "jsonb_each(jsonb(uses)) AS one",
        "strangers": "jsonb_each(jsonb(refused)) AS one",
        "rows": "jsonb_each(jsonb(:rows)) AS one",
        "people": "jsonb_extract(value, '$[6]')",
        "person": "jsonb_each(people) AS one",
        "ordered": "WITHOUT ROWID",
        "key_id": "key_id",
        "address": "address",
        "user_agent": "user_agent",
        "least": "min",
        "greatest": "max",
        "kids": "SELECT value FROM json_each(:kids)",
        "list": "json_group_array(json_array({caller}))",
    },
    "postgresql": {
        "uses": "jsonb_array_elements(CAST(uses AS jsonb)) AS one(value)",
        "strangers": "jsonb_array_elements(CAST(refused AS jsonb)) AS one(value)",
        "rows": "jsonb_array_elements(CAST(:rows AS jsonb)) AS one(value)",
        "people": "value->6",
        "person": "jsonb_array_elements(people) AS one(value)",
        "ordered": "ON COMMIT DROP",
        "key_id": "(array_agg(key_id ORDER BY last_at DESC))[1]",
        "address": "(array_agg(address ORDER BY last_at DESC))[1]",
        "user_agent": "(array_agg(user_agent ORDER BY last_at DESC))[1]",
        "least": "least",
        "greatest": "greatest",
        "kids": "SELECT json_array_elements_text(CAST(:kids AS json))",
        "list": "CAST(json_agg(json_build_array({caller})) AS text)",
    },
}
_COLUMNS: Mapping[str, str] = {
    "caller": "kid, address, product, route, key_id, count, first_at, last_at",
    "seen": """
      SELECT kid, address, product, route, max(key_id) AS key_id,
        CAST(sum(count) AS BIGINT) AS count, min(first_at) AS first_at, max(last_at) AS last_at
      FROM batch""",
}
# Each makes its rows itself: a driver gives up the interpreter's lock, and takes it again, for
# each row that it is handed, but for a whole statement once.
_TEXTS: Mapping[str, str] = {
    # The order of its key lets what follows be grouped without being sorted again.
    "begin": """
      CREATE TEMPORARY TABLE batch (kid TEXT, code TEXT, hour BIGINT, address TEXT,
        user_agent TEXT, route TEXT, product TEXT, key_id TEXT, count BIGINT, first_at BIGINT,
        last_at BIGINT, PRIMARY KEY (kid, code, hour, address, user_agent, route)) {ordered}""",
    # Materialized, or SQLite would sort each use with the whole group that it came in.
    "fill": """
      WITH alike AS MATERIALIZED (
        SELECT value->>0 AS code, value->>1 AS address, value->>2 AS user_agent,
          value->>3 AS route, value->>4 AS product, CAST(value->>5 AS BIGINT) AS hour,
          {people} AS people
        FROM usage.pending, {uses} WHERE pending.id IN :ids
      ), used AS MATERIALIZED (
        SELECT value->>0 AS kid, code, hour, address, user_agent, route, product,
          value->>1 AS key_id, CAST(value->>2 AS BIGINT) AS count,
          CAST(value->>3 AS BIGINT) AS first_at, CAST(value->>4 AS BIGINT) AS last_at
        FROM alike, {person}
      )
      INSERT INTO batch
      SELECT kid, code, hour, address, user_agent, route, max(product), max(key_id), sum(count),
        min(first_at), max(last_at)
      FROM used GROUP BY kid, code, hour, address, user_agent, route
      ORDER BY kid, code, hour, address, user_agent, route""",
    "hours": """
      INSERT INTO usage.hours AS kept (kid, hour, code, key_id, count)
      SELECT kid, hour, code, max(key_id), sum(count) FROM batch GROUP BY kid, code, hour
      ON CONFLICT (kid, hour, code) DO UPDATE SET count = kept.count + excluded.count""",
    "last_used": """
      INSERT INTO usage.last_used AS kept (kid, key_id, at, address, user_agent, verifications)
      SELECT kid, {key_id}, max(last_at), {address}, {user_agent}, sum(count)
      FROM batch WHERE code = 'valid' GROUP BY kid
      ON CONFLICT (kid) DO UPDATE SET
        verifications = kept.verifications + excluded.verifications,
        at = {greatest}(kept.at, excluded.at),
        address = CASE WHEN excluded.at >= kept.at THEN excluded.address ELSE kept.address END,
        user_agent = CASE WHEN excluded.at >= kept.at THEN excluded.user_agent
          ELSE kept.user_agent END""",
    "refused": """
      INSERT INTO usage.refused AS kept (hour, code, count)
      SELECT hour, code, sum(count) FROM (
        SELECT CAST(value->>0 AS BIGINT) AS hour, value->>1 AS code,
          CAST(value->>2 AS BIGINT) AS count
        FROM usage.pending, {strangers} WHERE pending.id IN :ids) AS met
      GROUP BY hour, code
      ON CONFLICT (hour, code) DO UPDATE SET count = kept.count + excluded.count""",
    "crowded": """
      SELECT kid FROM (SELECT kid, count(*) AS arrived FROM batch GROUP BY kid) AS met
      WHERE arrived + (SELECT count(*) FROM usage.callers AS kept WHERE kept.kid = met.kid)
        > :most""",
    "callers": """
      INSERT INTO usage.callers AS kept ({caller})
      {seen} WHERE kid NOT IN ({kids}) GROUP BY kid, address, product, route
      ON CONFLICT (kid, address, product, route) DO UPDATE SET
        count = kept.count + excluded.count,
        first_at = {least}(kept.first_at, excluded.first_at),
        last_at = {greatest}(kept.last_at, excluded.last_at)""",
    "kept": "SELECT {list} FROM usage.callers WHERE kid IN ({kids})",
    "arriving": """
      SELECT {list} FROM (
        {seen} WHERE kid IN ({kids}) GROUP BY kid, address, product, route) AS met""",
    "drop_callers": "DELETE FROM usage.callers WHERE kid IN ({kids})",
    "put_callers": """
      INSERT INTO usage.callers ({caller})
      SELECT value->>0, value->>1, value->>2, value->>3, value->>4, CAST(value->>5 AS BIGINT),
        CAST(value->>6 AS BIGINT), CAST(value->>7 AS BIGINT)
      FROM {rows}""",
    "end": "DROP TABLE batch",
    "delete": "DELETE FROM usage.pending WHERE id IN :ids",
}


def _statement(kind: Kind, said: str) -> TextClause:
    # Twice, for the words that hold words.
    statement = text(said.format(**_WORDS[kind], **_COLUMNS).format(**_COLUMNS))
    return statement.bindparams(bindparam("ids", expanding=True)) if ":ids" in said else statement


_STATEMENTS: Mapping[Kind, Statements] = {
    kind: {name: _statement(kind, said) for name, said in _TEXTS.items()} for kind in _WORDS
}
_OLDEST = select(pending.c.at).order_by(pending.c.id).limit(1)
_IDS = select(pending.c.id).order_by(pending.c.id).limit(_AT_ONCE)


def merge_pending(database: Database, older_ms: int = 0) -> None:
    """Merge the pending rows of all processes, once, if the oldest is `older_ms` old.

    Raises the storage's failure; then all stays pending.
    """
    # Looked at by a reader, which waits for nobody, since mostly there is nothing to do.
    with storage_errors(), database.reader.connect() as reading:
        oldest = reading.execute(_OLDEST).scalar_one_or_none()
    # A row from a clock that is ahead of this one must not wait until that time comes.
    if oldest is None or abs(database.clock() - oldest) < older_ms:
        return
    more = True
    while more:
        with database.counting() as connection:
            ids = connection.execute(_IDS).scalars().all()
            if ids:
                _merge_rows(connection, _STATEMENTS[database.kind], ids)
        more = len(ids) == _AT_ONCE


def _merge_rows(connection: Connection, say: Statements, ids: Sequence[int]) -> None:
    named = {"ids": ids}
    connection.execute(say["begin"])
    connection.execute(say["fill"], named)
    connection.execute(say["hours"])
    connection.execute(say["last_used"])
    connection.execute(say["refused"], named)
    crowded = connection.execute(say["crowded"], {"most": MOST_CALLERS}).scalars().all()
    kids = {"kids": msgspec.json.encode(crowded).decode()}
    connection.execute(say["callers"], kids)
    if crowded:
        _sketch_callers(connection, say, kids)
    connection.execute(say["end"])
    connection.execute(say["delete"], named)


def _sketch_callers(connection: Connection, say: Statements, kids: Mapping[str, str]) -> None:
    """Merge the callers of secrets that may have too many of them by the sketch."""
    key_ids: dict[str, str] = {}
    kept = _sightings(connection, say["kept"], kids, key_ids)
    arriving = _sightings(connection, say["arriving"], kids, key_ids)
    rows: list[CallerRow] = [
        (kid, *name, key_ids[kid], one.count, one.first_at, one.last_at)
        for kid, new in sorted(arriving.items())
        for name, one in sorted(merge(kept[kid], new, MOST_CALLERS).items(), key=_by_name)
    ]
    connection.execute(say["drop_callers"], kids)
    connection.execute(say["put_callers"], {"rows": msgspec.json.encode(rows).decode()})


def _by_name(item: tuple[Name, Sighting]) -> Name:
    return item[0]


def _sightings(
    connection: Connection,
    statement: TextClause,
    kids: Mapping[str, str],
    key_ids: dict[str, str],
) -> defaultdict[str, dict[Name, Sighting]]:
    """Return who used each secret; put whose secrets they are in `key_ids`."""
    found: defaultdict[str, dict[Name, Sighting]] = defaultdict(dict)
    told = connection.execute(statement, kids).scalar_one() or "[]"
    for kid, address, product, route, key_id, *seen in msgspec.json.decode(
        told, type=list[CallerRow]
    ):
        found[kid][address, product, route] = Sighting(*seen)
        key_ids[kid] = key_id
    return found
