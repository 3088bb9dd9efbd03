from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from wardkey.actions.core.runner import Runner
from wardkey.db.migrate import migrate, migration_state
from wardkey.db.schema import metadata, usage


def test_the_migrations_create_the_tables_of_the_schema(runner: Runner) -> None:
    with runner.database.writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert migration_state(connection).pending == ()


def test_the_primary_keys_match_the_schema(runner: Runner) -> None:
    # Alembic does not compare primary keys.
    with runner.database.writer.connect() as connection:
        there = inspect(connection)
        for table in metadata.sorted_tables:
            columns = there.get_pk_constraint(table.name)["constrained_columns"]
            assert columns == [column.name for column in table.primary_key.columns], table.name


def test_the_usage_tables_match_the_schema(runner: Runner) -> None:
    with runner.database.usage.connect() as connection:
        there = inspect(connection)
        for table in usage.sorted_tables:
            columns = {column["name"] for column in there.get_columns(table.name, schema="usage")}
            assert columns == set(table.columns.keys()), table.name


def test_migrating_again_changes_nothing(runner: Runner) -> None:
    state = migrate(runner.database)
    assert state.current is not None
    assert state.pending == ()


def test_the_usage_tables_of_an_earlier_version_get_new_columns_and_indexes(
    runner: Runner,
) -> None:
    names = {"ix_mqtt_ids_freed_at", "ix_mqtt_ids_subject_id"}
    with runner.database.usage.begin() as connection:
        for name in names:
            connection.execute(text(f"DROP INDEX usage.{name}"))
        for column in ("taken_at", "freed_at", "leased_until"):
            connection.execute(text(f"ALTER TABLE usage.mqtt_ids DROP COLUMN {column}"))
    migrate(runner.database)
    with runner.database.usage.connect() as connection:
        there = inspect(connection)
        indexes = {index["name"] for index in there.get_indexes("mqtt_ids", schema="usage")}
        assert names <= indexes
        columns = {column["name"] for column in there.get_columns("mqtt_ids", schema="usage")}
    assert columns == set(usage.tables["usage.mqtt_ids"].columns.keys())
