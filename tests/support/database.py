"""Direct access to a running server's database, as its command line has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Table, select, update

from tests.support.server import Server
from wardkey.config import load_config
from wardkey.db.schema import metadata
from wardkey.deployment import open_deployment


@contextmanager
def database_of(server: Server) -> Iterator[Connection]:
    """Open a transaction that bypasses all actions, to simulate passing time or damage."""
    options = {
        "data_dir": server.data_dir,
        "database_url": str(server.settings.get("database_url", "")),
    }
    with (
        open_deployment(load_config({}, options)) as runner,
        runner.database.writer.begin() as connection,
    ):
        yield connection


@contextmanager
def usage_of(server: Server) -> Iterator[Connection]:
    """Open a transaction on the server's usage database."""
    options = {
        "data_dir": server.data_dir,
        "database_url": str(server.settings.get("database_url", "")),
    }
    with (
        open_deployment(load_config({}, options)) as runner,
        runner.database.counting() as connection,
    ):
        yield connection


def age(server: Server, table: Table, column: str, ms: int, **where: Any) -> None:  # noqa: ANN401 - any value of a column
    """Move a stored time back by `ms`."""
    with database_of(server) as connection:
        conditions = [table.c[name] == value for name, value in where.items()]
        moved = update(table).where(*conditions).values({column: table.c[column] - ms})
        assert connection.execute(moved).rowcount > 0


def everything_stored(server: Server) -> str:
    """Return every value of every table as text, bytes as their repr."""
    with database_of(server) as connection:
        return repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
