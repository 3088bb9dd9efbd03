"""Bringing a database to this version's tables, and telling how far it is."""

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

# Two processes that start at once on PostgreSQL migrate one after the other.
_LOCK = 0x77617264


@dataclass(frozen=True, slots=True)
class MigrationState:
    """The version that a database has (None: empty) and those that it lacks."""

    current: str | None
    pending: tuple[str, ...]


def migration_state(connection: Connection) -> MigrationState:
    """Return how far the database is; raises `DatabaseNewer` if this code does not know it."""
    script = ScriptDirectory.from_config(_alembic())
    known = [revision.revision for revision in script.walk_revisions()][::-1]
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return MigrationState(None, tuple(known))
    if current not in known:
        raise DatabaseNewer(
            f"The database is of version {current}, which this Wardkey does not know; upgrade "
            "this installation, or restore a backup from before."
        )
    return MigrationState(current, tuple(known[known.index(current) + 1 :]))


def migrate(database: Database) -> MigrationState:
    """Run the pending migrations, all or none; return the state before."""
    with storage_errors(), database.writer.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        state = upgrade(connection)
    make_usage(database)
    return state


def upgrade(connection: Connection) -> MigrationState:
    """Run the pending migrations within the connection's transaction; return the state before."""
    state = migration_state(connection)
    if state.pending:
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return state


def make_usage(database: Database) -> None:
    """Make the usage tables where they are missing; they hold nothing that must last.

    A usage file that does not open is set aside, since verdicts must go on without it.
    """
    aside = set_aside_usage(database)
    if aside is not None:
        log.warning("usage.db does not open; it is kept as %s and begun anew", aside.name)
    with database.usage.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS usage"))
        there = inspect(connection)
        present = there.get_table_names(schema="usage")
        missing = [table for table in usage.sorted_tables if table.name not in present]
        usage.create_all(connection, tables=missing, checkfirst=False)
        for table in usage.sorted_tables:
            if table not in missing:
                known = {column["name"] for column in there.get_columns(table.name, "usage")}
                _add_columns(connection, table, known)
                indexes = {index["name"] for index in there.get_indexes(table.name, "usage")}
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    if index.name not in indexes:
                        index.create(connection)


def _add_columns(connection: Connection, table: Table, known: set[str]) -> None:
    """Add the columns that a table of an earlier version lacks; they may be null."""
    for column in table.columns:
        if column.name not in known:
            spec = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE usage.{table.name} ADD COLUMN {spec}"))


def set_aside_usage(database: Database) -> Path | None:
    """Rename a usage file that the master key does not open; return its new place, if so.

    A rotation that was cut off between the two files leaves one under the old key.
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
