"""Bringing a database to this version's tables, and telling how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from wardkey.db.engine import Database
from wardkey.db.schema import usage
from wardkey.domain.errors import DatabaseNewer

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
    with database.writer.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        state = migration_state(connection)
        if state.pending:
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    make_usage(database)
    return state


def make_usage(database: Database) -> None:
    """Make the usage tables where they are missing; they hold nothing that must last."""
    with database.usage.begin() as connection:
        if database.kind == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS usage"))
        present = inspect(connection).get_table_names(schema="usage")
        missing = [table for table in usage.sorted_tables if table.name not in present]
        usage.create_all(connection, tables=missing, checkfirst=False)


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
