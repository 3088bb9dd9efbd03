"""Migrates a database to this version's tables, and returns its current version."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.schema import CreateColumn

from wardkey.db.atomic_files import set_aside
from wardkey.db.engine import Database, connect_sqlite, storage_errors
from wardkey.db.schema import usage
from wardkey.domain.errors import DatabaseDamaged, DatabaseNewer, WrongMasterKey

log = logging.getLogger(__name__)

# Processes that start at the same time on PostgreSQL migrate one after the other.
_LOCK = 0x77617264


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A database's version (None: empty) and its pending migrations."""

    current: str | None
    pending: tuple[str, ...]


def migration_state(connection: Connection) -> MigrationState:
    """Return the migration state; raises `DatabaseNewer` for a version this code doesn't know."""
    script = ScriptDirectory.from_config(_alembic())
    known = [revision.revision for revision in script.walk_revisions()][::-1]
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return MigrationState(None, tuple(known))
    if current not in known:
        raise DatabaseNewer(
            f"The database has version {current}, which this Wardkey doesn't know; upgrade this "
            "installation, or restore a backup from before."
        )
    return MigrationState(current, tuple(known[known.index(current) + 1 :]))


def migrate(database: Database) -> MigrationState:
    """Run the pending migrations, all or none; return the state before."""
    with storage_errors(), database.writer.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        state = upgrade(connection)
    create_usage_tables(database)
    return state


def upgrade(connection: Connection) -> MigrationState:
    """Run the pending migrations within the connection's transaction; return the state before."""
    state = migration_state(connection)
    if state.pending:
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return state


def create_usage_tables(database: Database) -> None:
    """Create missing usage tables; they contain nothing that must last.

    A usage file that doesn't open is set aside, because verdicts must continue without it.
    """
    aside = set_aside_usage(database)
    if aside is not None:
        log.warning(
            "usage.db can't be opened; it was renamed to %s and a new one created", aside.name
        )
    with database.usage.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS usage"))
        inspector = inspect(connection)
        present = inspector.get_table_names(schema="usage")
        missing = [table for table in usage.sorted_tables if table.name not in present]
        usage.create_all(connection, tables=missing, checkfirst=False)
        for table in usage.sorted_tables:
            if table not in missing:
                known = {column["name"] for column in inspector.get_columns(table.name, "usage")}
                _add_columns(connection, table, known)
                indexes = {index["name"] for index in inspector.get_indexes(table.name, "usage")}
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    if index.name not in indexes:
                        index.create(connection)


def _add_columns(connection: Connection, table: Table, known: set[str]) -> None:
    """Add the columns that an earlier version's table lacks; they are nullable."""
    for column in table.columns:
        if column.name not in known:
            spec = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE usage.{table.name} ADD COLUMN {spec}"))


def set_aside_usage(database: Database) -> Path | None:
    """Rename a usage file that the master key doesn't open; return its new path, or None.

    A rotation that was interrupted between the two files leaves this one under the old key.
    """
    path = Path(database.url.database or "").with_name("usage.db")
    if database.kind != "sqlite" or not path.exists():
        return None
    try:
        with storage_errors():
            connection = connect_sqlite(path, database.master.database_key)
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            finally:
                connection.close()
    except (WrongMasterKey, DatabaseDamaged):
        return set_aside(path, database.clock())
    return None


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
