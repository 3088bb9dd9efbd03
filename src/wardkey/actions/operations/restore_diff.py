"""What a database that a restore replaces knows beyond the backup, and how the two are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Row, Table

from wardkey.actions.core.audit import Target
from wardkey.db.backup import Backup, batches, find, name_of
from wardkey.db.engine import Transaction

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CarriedRestriction:
    """A row to narrow once the backup's rows are in: new values, or (None) its deletion."""

    table: Table
    name: tuple[Any, ...]
    values: Fields | None
    action: str
    target: Target
    org_id: str = ""
    environment: str = ""
    details: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LostRecord:
    """Something that is gone, or wider again, after the restore; `label` is what people call it."""

    kind: str
    id: str
    label: str
    org_id: str = ""
    prefixes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptRules:
    """A room's ACL rules, which differ from the backup's and stay; `replaced` counts the latter."""

    org_id: str
    environment: str
    rules: tuple[Fields, ...]
    replaced: int


@dataclass(slots=True)
class Survey:
    """All that the replaced database knows beyond the backup, before anything is replaced."""

    narrowed: list[CarriedRestriction] = field(default_factory=list)
    lost: list[LostRecord] = field(default_factory=list)
    widened: list[LostRecord] = field(default_factory=list)
    kept_rules: list[KeptRules] = field(default_factory=list)
    receipts: list[Fields] = field(default_factory=list)
    # Slugs that organizations took after the backup.
    slugs: list[Fields] = field(default_factory=list)
    # Owners of organizations whose owner in the backup is no longer theirs: (person, member).
    owners: list[tuple[Fields, Fields]] = field(default_factory=list)


def pairs(
    tx: Transaction, backup: Backup, table: Table
) -> Iterator[tuple[Row[Any], Row[Any] | None]]:
    """Yield each row of the database with the backup's of the same name."""
    for rows in batches(tx.connection, table):
        known = backup.find(table, [name_of(table, row) for row in rows])
        for row in rows:
            yield row, known.get(name_of(table, row))


def missing_rows(tx: Transaction, backup: Backup, table: Table) -> Iterator[Row[Any]]:
    """Yield each row of the backup that the database does not have."""
    for rows in backup.batches(table):
        known = find(tx.connection, table, [name_of(table, row) for row in rows])
        yield from (row for row in rows if name_of(table, row) not in known)


def set_after_backup(now: Row[Any], then: Row[Any], column: Column[Any]) -> bool:
    """Tell whether something was set after the backup."""
    return getattr(now, column.name) is not None and getattr(then, column.name) is None


def ends_earlier(now: int | None, then: int | None) -> bool:
    """Tell whether something ends sooner than it did at the backup; None is never."""
    return now is not None and (then is None or now < then)
