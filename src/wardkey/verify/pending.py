"""Merges the pending usage rows of all processes into the tables that readers use."""

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

# The age of the oldest pending row at which maintenance merges.
MERGE_MS = 30_000
# Rows merged per transaction, which bounds its memory and how long it holds the lock.
_BATCH_SIZE = 1_000

CallerName: TypeAlias = tuple[str, str, str]
Statements: TypeAlias = Mapping[str, TextClause]
# Kid, address, product, route, key id, count, first and last time.
CallerRow: TypeAlias = tuple[str, str, str, str, str, int, int, int]

# The SQL in which the two databases differ. SQLite takes bare columns from the row of max().
_DIALECTS: Mapping[Kind, Mapping[str, str]] = {
    "sqlite": {
        "uses": "jsonb_each(jsonb(uses)) AS item",
        "rejections": "jsonb_each(jsonb(refused)) AS item",
        "rows": "jsonb_each(jsonb(:rows)) AS item",
        "tallies": "jsonb_extract(value, '$[6]')",
        "each_tally": "jsonb_each(tallies) AS item",
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
        "uses": "jsonb_array_elements(CAST(uses AS jsonb)) AS item(value)",
        "rejections": "jsonb_array_elements(CAST(refused AS jsonb)) AS item(value)",
        "rows": "jsonb_array_elements(CAST(:rows AS jsonb)) AS item(value)",
        "tallies": "value->6",
        "each_tally": "jsonb_array_elements(tallies) AS item(value)",
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
    "batch_callers": """
      SELECT kid, address, product, route, max(key_id) AS key_id,
        CAST(sum(count) AS BIGINT) AS count, min(first_at) AS first_at, max(last_at) AS last_at
      FROM batch""",
}
# Each statement generates its rows in SQL: a driver releases and retakes the interpreter lock for
# every row passed to it, but only once per statement.
_TEXTS: Mapping[str, str] = {
    # The order of the key lets the following statements group rows without sorting them again.
    "create_batch": """
      CREATE TEMPORARY TABLE batch (kid TEXT, code TEXT, hour BIGINT, address TEXT,
        user_agent TEXT, route TEXT, product TEXT, key_id TEXT, count BIGINT, first_at BIGINT,
        last_at BIGINT, PRIMARY KEY (kid, code, hour, address, user_agent, route)) {ordered}""",
    # Materialized, because SQLite would otherwise sort each use together with its whole group.
    "fill_batch": """
      WITH use_groups AS MATERIALIZED (
        SELECT value->>0 AS code, value->>1 AS address, value->>2 AS user_agent,
          value->>3 AS route, value->>4 AS product, CAST(value->>5 AS BIGINT) AS hour,
          {tallies} AS tallies
        FROM usage.pending, {uses} WHERE pending.id IN :ids
      ), used AS MATERIALIZED (
        SELECT value->>0 AS kid, code, hour, address, user_agent, route, product,
          value->>1 AS key_id, CAST(value->>2 AS BIGINT) AS count,
          CAST(value->>3 AS BIGINT) AS first_at, CAST(value->>4 AS BIGINT) AS last_at
        FROM use_groups, {each_tally}
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
        FROM usage.pending, {rejections} WHERE pending.id IN :ids) AS rejections
      GROUP BY hour, code
      ON CONFLICT (hour, code) DO UPDATE SET count = kept.count + excluded.count""",
    "crowded": """
      SELECT kid FROM (SELECT kid, count(*) AS added FROM batch GROUP BY kid) AS arrivals
      WHERE added + (SELECT count(*) FROM usage.callers AS kept WHERE kept.kid = arrivals.kid)
        > :most""",
    "callers": """
      INSERT INTO usage.callers AS kept ({caller})
      {batch_callers} WHERE kid NOT IN ({kids}) GROUP BY kid, address, product, route
      ON CONFLICT (kid, address, product, route) DO UPDATE SET
        count = kept.count + excluded.count,
        first_at = {least}(kept.first_at, excluded.first_at),
        last_at = {greatest}(kept.last_at, excluded.last_at)""",
    "stored_callers": "SELECT {list} FROM usage.callers WHERE kid IN ({kids})",
    "new_callers": """
      SELECT {list} FROM (
        {batch_callers} WHERE kid IN ({kids})
        GROUP BY kid, address, product, route) AS arrivals""",
    "delete_callers": "DELETE FROM usage.callers WHERE kid IN ({kids})",
    "insert_callers": """
      INSERT INTO usage.callers ({caller})
      SELECT value->>0, value->>1, value->>2, value->>3, value->>4, CAST(value->>5 AS BIGINT),
        CAST(value->>6 AS BIGINT), CAST(value->>7 AS BIGINT)
      FROM {rows}""",
    "drop_batch": "DROP TABLE batch",
    "delete_pending": "DELETE FROM usage.pending WHERE id IN :ids",
}


def _statement(kind: Kind, template: str) -> TextClause:
    # Formatted twice, because some replacements contain placeholders themselves.
    statement = text(template.format(**_DIALECTS[kind], **_COLUMNS).format(**_COLUMNS))
    if ":ids" not in template:
        return statement
    return statement.bindparams(bindparam("ids", expanding=True))


_STATEMENTS: Mapping[Kind, Statements] = {
    kind: {name: _statement(kind, template) for name, template in _TEXTS.items()}
    for kind in _DIALECTS
}
_OLDEST = select(pending.c.at).order_by(pending.c.id).limit(1)
_IDS = select(pending.c.id).order_by(pending.c.id).limit(_BATCH_SIZE)


def merge_pending(database: Database, min_age_ms: int = 0) -> None:
    """Merge the pending rows of all processes, each once, if the oldest is `min_age_ms` old.

    Raises the storage's error; the rows that were not merged stay pending.
    """
    # Checked by a reader, which takes no lock, because there is usually nothing to do.
    with storage_errors(), database.reader.connect() as connection:
        oldest = connection.execute(_OLDEST).scalar_one_or_none()
    # The absolute age, so a row written by a clock far ahead does not wait until that time.
    if oldest is None or abs(database.clock() - oldest) < min_age_ms:
        return
    more = True
    while more:
        with database.counting() as connection:
            ids = connection.execute(_IDS).scalars().all()
            if ids:
                _merge_rows(connection, _STATEMENTS[database.kind], ids)
        more = len(ids) == _BATCH_SIZE


def _merge_rows(connection: Connection, statements: Statements, ids: Sequence[int]) -> None:
    values = {"ids": ids}
    connection.execute(statements["create_batch"])
    connection.execute(statements["fill_batch"], values)
    connection.execute(statements["hours"])
    connection.execute(statements["last_used"])
    connection.execute(statements["refused"], values)
    crowded = connection.execute(statements["crowded"], {"most": MOST_CALLERS}).scalars().all()
    kids = {"kids": msgspec.json.encode(crowded).decode()}
    connection.execute(statements["callers"], kids)
    if crowded:
        _sketch_callers(connection, statements, kids)
    connection.execute(statements["drop_batch"])
    connection.execute(statements["delete_pending"], values)


def _sketch_callers(
    connection: Connection, statements: Statements, kids: Mapping[str, str]
) -> None:
    """Merge the callers of secrets that may exceed the limit with the Space-Saving sketch."""
    key_ids: dict[str, str] = {}
    stored = _read_sightings(connection, statements["stored_callers"], kids, key_ids)
    added = _read_sightings(connection, statements["new_callers"], kids, key_ids)
    rows: list[CallerRow] = [
        (kid, *name, key_ids[kid], sighting.count, sighting.first_at, sighting.last_at)
        for kid, new in sorted(added.items())
        for name, sighting in sorted(merge(stored[kid], new, MOST_CALLERS).items(), key=_name_of)
    ]
    connection.execute(statements["delete_callers"], kids)
    connection.execute(statements["insert_callers"], {"rows": msgspec.json.encode(rows).decode()})


def _name_of(item: tuple[CallerName, Sighting]) -> CallerName:
    return item[0]


def _read_sightings(
    connection: Connection,
    statement: TextClause,
    kids: Mapping[str, str],
    key_ids: dict[str, str],
) -> defaultdict[str, dict[CallerName, Sighting]]:
    """Return the callers of each secret, and add the secrets' key ids to `key_ids`."""
    sightings: defaultdict[str, dict[CallerName, Sighting]] = defaultdict(dict)
    rows = connection.execute(statement, kids).scalar_one() or "[]"
    for kid, address, product, route, key_id, *counts in msgspec.json.decode(
        rows, type=list[CallerRow]
    ):
        sightings[kid][address, product, route] = Sighting(*counts)
        key_ids[kid] = key_id
    return sightings
