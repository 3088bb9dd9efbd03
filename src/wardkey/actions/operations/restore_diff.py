"""The differences between a backup and the database that it replaces, and row comparison."""

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
    """A restriction to apply to a restored row: new values, or its deletion if None."""

    table: Table
    primary_key: tuple[Any, ...]
    values: Fields | None
    action: str
    target: Target
    org_id: str = ""
    environment: str = ""
    details: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LostRecord:
    """An object that a restore loses, or whose edits it undoes; `label` is its display name."""

    kind: str
    id: str
    label: str
    org_id: str = ""
    prefixes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptRules:
    """A tenant scope's current rules, kept over the backup's, whose number is `replaced`."""

    org_id: str
    environment: str
    rules: tuple[Fields, ...]
    replaced: int


@dataclass(slots=True)
class RestorePlan:
    """What a restore carries over, keeps and loses, collected before rows are replaced."""

    restrictions: list[CarriedRestriction] = field(default_factory=list)
    lost: list[LostRecord] = field(default_factory=list)
    widened: list[LostRecord] = field(default_factory=list)
    kept_rules: list[KeptRules] = field(default_factory=list)
    receipts: list[Fields] = field(default_factory=list)
    # Slugs taken after the backup.
    slugs: list[Fields] = field(default_factory=list)
    # (user, member) rows of current owners, where the owner in the backup no longer is one.
    owners: list[tuple[Fields, Fields]] = field(default_factory=list)


def paired_rows(
    tx: Transaction, backup: Backup, table: Table
) -> Iterator[tuple[Row[Any], Row[Any] | None]]:
    """Yield each row of the database with the backup's row of the same primary key, or None."""
    for rows in batches(tx.connection, table):
        old_rows = backup.find(table, [name_of(table, row) for row in rows])
        for row in rows:
            yield row, old_rows.get(name_of(table, row))


def missing_rows(tx: Transaction, backup: Backup, table: Table) -> Iterator[Row[Any]]:
    """Yield each row of the backup that the database no longer has."""
    for rows in backup.batches(table):
        current_rows = find(tx.connection, table, [name_of(table, row) for row in rows])
        yield from (row for row in rows if name_of(table, row) not in current_rows)


def set_after_backup(current: Row[Any], old: Row[Any], column: Column[Any]) -> bool:
    """Return whether a column was set after the backup."""
    return getattr(current, column.name) is not None and getattr(old, column.name) is None


def ends_earlier(current: int | None, old: int | None) -> bool:
    """Return whether an expiry is earlier than the backup's; None means never."""
    return current is not None and (old is None or current < old)
