"""Writes and reads backup files: an encrypted copy of every table from one snapshot."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlcipher3.dbapi2 as sqlcipher
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    event,
    exc,
    func,
    insert,
    inspect,
    select,
    tuple_,
)
from sqlalchemy import table as named_table
from sqlalchemy.pool import StaticPool

from wardkey.db.atomic_files import make_private, put_in_place
from wardkey.db.engine import Database, storage_errors
from wardkey.db.migrate import migration_state, upgrade
from wardkey.db.schema import Json, feed, grant_cutoffs, grants, idempotency, metadata
from wardkey.db.vault import MasterKey, derive
from wardkey.domain.errors import (
    DatabaseNewer,
    InvalidBackup,
    UnhealthyDeployment,
    UnwritableFile,
)

FORMAT = 1
# The first bytes of each file; an older backup's random salt begins so once in 2**48 times.
_SALT_PREFIX = b"wardkb"
_SALT_BYTES = 16
BATCH = 500
# Stored responses last for ten minutes, but would stay in a backup for years. Grants last for
# hours, and a restore couldn't know which of them were ended since.
_NOT_COPIED = (idempotency, grants, grant_cutoffs)
COPIED = tuple(table for table in metadata.sorted_tables if table not in _NOT_COPIED)

_backup = Table(
    "backup",
    MetaData(),
    Column("format", Integer, primary_key=True),
    Column("schema_version", String(32), nullable=False),
    Column("epoch", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("master_key_version", Integer, nullable=False),
    Column("rows", Json, nullable=False),
)

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class BackupHead:
    """A backup's own description; `created_at` in epoch milliseconds, `rows` by table."""

    format: int
    schema_version: str
    epoch: str
    revision: int
    created_at: int
    master_key_version: int
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Backup:
    """An opened backup with this version's tables; every page was checked."""

    head: BackupHead
    connection: Connection
    master: MasterKey

    def batches(self, table: Table) -> Iterator[Sequence[Row[Any]]]:
        """Yield a table's rows, a few hundred at a time."""
        yield from batches(self.connection, table)

    def find(self, table: Table, names: Sequence[tuple[Any, ...]]) -> dict[Any, Row[Any]]:
        """Return the rows with these primary keys, by primary key."""
        return find(self.connection, table, names)


def batches(connection: Connection, table: Table) -> Iterator[Sequence[Row[Any]]]:
    """Yield a table's rows, a few hundred at a time, with only these in memory."""
    result = connection.execute(select(table), execution_options={"yield_per": BATCH})
    yield from result.partitions()


def find(
    connection: Connection, table: Table, names: Sequence[tuple[Any, ...]]
) -> dict[Any, Row[Any]]:
    """Return the rows of `table` with these primary keys, by primary key."""
    columns = list(table.primary_key.columns)
    condition = (
        columns[0].in_([name[0] for name in names])
        if len(columns) == 1
        else tuple_(*columns).in_(names)
    )
    rows = connection.execute(select(table).where(condition))
    return {name_of(table, row): row for row in rows}


def name_of(table: Table, row: Row[Any]) -> tuple[Any, ...]:
    """Return a row's primary key."""
    return tuple(getattr(row, column.name) for column in table.primary_key.columns)


def write_backup(
    database: Database, path: Path, *, force: bool = False, progress: Progress | None = None
) -> BackupHead:
    """Copy every table from one snapshot to a new encrypted file; servers can keep running.

    The file gets its name once it is complete. `progress` is called with a table's name and the
    number of its rows so far. Raises `UnwritableFile`, `StorageFull`, `UnhealthyDeployment`.
    """
    if path.is_dir():
        raise UnwritableFile(f"{path} is a folder; name a file in it.")
    if path.exists() and not force:
        raise UnwritableFile(f"{path} already exists; choose another name, or add --force.")
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    make_private(partial)
    try:
        head = _copy(database, partial, progress)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return head


def _copy(database: Database, path: Path, progress: Progress | None) -> BackupHead:
    engine = _engine(path, database.master, "rw", _salt(database.vault.version))
    try:
        with storage_errors(), database.reader.connect() as source, engine.connect() as target:
            if database.kind == "postgresql":
                source.execution_options(isolation_level="REPEATABLE READ")
            with source.begin(), target.begin():
                version = _version(source)
                upgrade(target)
                _backup.create(target)
                feed_row = source.execute(select(feed)).one()
                head = BackupHead(
                    FORMAT,
                    version,
                    feed_row.epoch,
                    feed_row.revision,
                    database.clock(),
                    database.vault.version,
                    {table.name: _copy_table(source, target, table, progress) for table in COPIED},
                )
                values = {name: getattr(head, name) for name in BackupHead.__slots__}
                target.execute(insert(_backup).values(values))
            return head
    finally:
        engine.dispose()


def _copy_table(
    source: Connection, target: Connection, table: Table, progress: Progress | None
) -> int:
    count = 0
    for rows in batches(source, table):
        target.execute(insert(table), [dict(row._mapping) for row in rows])  # noqa: SLF001
        count += len(rows)
        if progress is not None:
            progress(table.name, count)
    return count


def _version(source: Connection) -> str:
    state = migration_state(source)
    if state.current is None or state.pending:
        raise UnhealthyDeployment(
            f"The database has version {state.current} and lacks {', '.join(state.pending)}. "
            "Start this Wardkey once to migrate it, or back up with the version that is running."
        )
    return state.current


def named_version(path: Path) -> int | None:
    """Return the master key version in a backup's first bytes, unauthenticated, or None.

    SQLCipher stores a file's salt there in the clear; that of older backups is random.
    """
    with path.open("rb") as file:
        salt = file.read(_SALT_BYTES)
    if not salt.startswith(_SALT_PREFIX):
        return None
    return int.from_bytes(salt[len(_SALT_PREFIX) : len(_SALT_PREFIX) + 2])


def opens(path: Path, master: MasterKey) -> bool:
    """Return whether a master key opens a file's first page."""
    engine = _engine(path, master, "ro")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").all()
    except exc.DBAPIError:
        return False
    finally:
        engine.dispose()
    return True


@contextmanager
def open_backup(path: Path, master: MasterKey, scratch: Path) -> Iterator[Backup]:
    """Open and check a backup of this version or an older one, which is migrated in a copy.

    The copy is in the folder `scratch` and encrypted like the backup. Raises `InvalidBackup`,
    `DatabaseNewer`.
    """
    if not path.is_file():
        raise InvalidBackup(f"{path} doesn't exist; check the name.")
    engine = _engine(path, master, "ro")
    copy = scratch / f"backup-{secrets.token_hex(4)}.part"
    try:
        with engine.connect() as connection, _backup_errors(path):
            head, pending = _check(connection, path)
        if pending:
            engine.dispose()
            make_private(copy)
            shutil.copyfile(path, copy)
            engine = _engine(copy, master, "rw")
            with engine.begin() as connection:
                upgrade(connection)
        with engine.connect() as connection:
            yield Backup(head, connection, master)
    finally:
        engine.dispose()
        copy.unlink(missing_ok=True)


def _check(connection: Connection, path: Path) -> tuple[BackupHead, bool]:
    """Check every page's MAC, the tables' row counts and the version."""
    if connection.exec_driver_sql("PRAGMA cipher_integrity_check").all():
        raise InvalidBackup(f"{path} was edited, or this master key doesn't open it.")
    if not inspect(connection).has_table(_backup.name):
        raise InvalidBackup(f"{path} is not a backup of Wardkey.")
    row = connection.execute(select(_backup)).one_or_none()
    if row is None or row.format != FORMAT:
        raise InvalidBackup(f"{path} has a format that this Wardkey can't read.")
    head = BackupHead(*row)
    for name, count in head.rows.items():
        row_count = select(func.count()).select_from(named_table(name))
        if connection.execute(row_count).scalar_one() != count:
            raise InvalidBackup(f"{path} is missing rows of {name}.")
    try:
        return head, bool(migration_state(connection).pending)
    except DatabaseNewer:
        raise DatabaseNewer(
            f"The backup has version {head.schema_version}, which this Wardkey doesn't know; "
            "upgrade this installation."
        ) from None


@contextmanager
def _backup_errors(path: Path) -> Iterator[None]:
    """Raise `InvalidBackup` for a file that SQLCipher can't read."""
    try:
        yield
    except exc.DBAPIError as error:
        raise InvalidBackup(
            f"{path} is truncated, edited, not a backup of Wardkey, or was made under another "
            f"master key ({error.orig}). Name the file of that key with --backup-key-file."
        ) from None


def _salt(version: int) -> bytes:
    """Return a new backup's salt: random except for the version of the key that opens it."""
    prefix = _SALT_PREFIX + min(version, 0xFFFF).to_bytes(2)
    return prefix + secrets.token_bytes(_SALT_BYTES - len(prefix))


def _engine(path: Path, master: MasterKey, mode: str, salt: bytes = b"") -> Engine:
    # Without a salt here, SQLCipher uses the file's own.
    key = derive(master.raw, "backup").hex() + salt.hex()

    def connect() -> Any:  # noqa: ANN401 - sqlcipher3 has no types
        connection = sqlcipher.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA cipher_log_level = NONE")
        connection.execute(f"PRAGMA key = \"x'{key}'\"")
        if mode == "rw":
            # An unfinished file is discarded as a whole, so it needs no journal.
            connection.execute("PRAGMA journal_mode = OFF").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    engine = create_engine("sqlite://", module=sqlcipher, creator=connect, poolclass=StaticPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
