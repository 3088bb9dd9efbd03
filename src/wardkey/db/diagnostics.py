"""The storage facts that `doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, text

from wardkey.db.engine import Database, storage_errors
from wardkey.db.migrate import MigrationState, migration_state
from wardkey.db.schema import last_used


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """A storage's migration state and settings; `clock` in epoch ms, 0 on SQLite."""

    migrations: MigrationState
    journal_mode: str
    clock: int


def storage_facts(database: Database) -> StorageFacts:
    """Query the storage's facts; raises the storage's error and `DatabaseNewer`."""
    with storage_errors(), database.reader.connect() as connection:
        state = migration_state(connection)
        if database.kind == "sqlite":
            mode = connection.execute(text("PRAGMA main.journal_mode")).scalar_one()
            return StorageFacts(state, str(mode), 0)
        now = text("SELECT extract(epoch FROM clock_timestamp()) * 1000")
        return StorageFacts(state, "", int(connection.execute(now).scalar_one()))


def check_usage(database: Database) -> None:
    """Read a row of the usage database; raises the storage's error if it can't be opened."""
    with storage_errors(), database.usage.connect() as connection:
        connection.execute(select(last_used.c.kid).limit(1)).all()
