"""Loads the master key, checks it against the database and opens the vault."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, insert, inspect, select, text

from wardkey.db.atomic_files import sync_folder
from wardkey.db.engine import Database, connect_sqlite, open_database, storage_errors
from wardkey.db.schema import (
    auth_providers,
    browser_sessions,
    clients,
    grants,
    hook_tokens,
    invitations,
    master_keys,
    secrets,
    service_keys,
    setup_links,
    user_tokens,
)
from wardkey.db.vault import MasterKey, Vault, derive, unseal
from wardkey.domain.errors import InvalidMasterKey, MasterKeyMissing, WrongMasterKey

# Tables with values hashed or sealed under a pepper; `secrets` includes the imported ones.
PEPPERED = (
    secrets,
    service_keys,
    invitations,
    setup_links,
    user_tokens,
    clients,
    hook_tokens,
    grants,
    auth_providers,
    browser_sessions,
)
_NEWEST_TAG = text("SELECT tag FROM master_keys ORDER BY version DESC LIMIT 1")


@dataclass(frozen=True, slots=True)
class MasterKeySource:
    """The key as text, a command that prints it, or (if both are empty) a 0600 file."""

    file: Path
    text: str = ""
    command: str = ""

    @property
    def uses_file(self) -> bool:
        """Return whether the key is read from the file."""
        return not self.text and not self.command

    @property
    def next_file(self) -> Path:
        """The file that holds the new key during a rotation, until the database uses it."""
        return self.file.with_name(self.file.name + ".next")

    def load(self, *, may_create: bool) -> MasterKey:
        """Return the key; the first start of a deployment with a key file generates one.

        Raises `InvalidMasterKey`, and `MasterKeyMissing` if the file is missing and `may_create`
        is false.
        """
        if self.text:
            return MasterKey.parse(self.text)
        if self.command:
            return MasterKey.parse(_run(self.command))
        try:
            return MasterKey.parse(self.file.read_text("ascii"))
        except UnicodeDecodeError:
            raise InvalidMasterKey from None
        except FileNotFoundError:
            if not may_create:
                raise MasterKeyMissing(
                    f"{self.file} does not exist; put this deployment's master key back there."
                ) from None
        key = MasterKey.generate()
        write_key(self.file, key)
        return key


def write_key(path: Path, key: MasterKey) -> None:
    """Write a key to a new 0600 file and sync it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def resolve_master_key(source: MasterKeySource, url: str) -> MasterKey:
    """Return the master key that opens the database at `url`; generate one if both are new.

    After an interrupted rotation, the database decides: if it uses the new key, the new key's
    file replaces the old one; if not, the new file is ignored and the next rotation deletes it.
    Raises `MasterKeyMissing`, `WrongMasterKey`, `InvalidMasterKey` and the storage's errors.
    """
    initialized = is_initialized(url)
    master = source.load(may_create=not initialized)
    if not initialized or _opens_database(url, master):
        return master
    if source.uses_file and source.next_file.exists():
        following = MasterKey.parse(source.next_file.read_text("ascii"))
        if _opens_database(url, following):
            source.next_file.replace(source.file)
            sync_folder(source.file.parent)
            return following
    raise WrongMasterKey


def open_vault(database: Database) -> None:
    """Set the database's vault from its stored keys; raises `WrongMasterKey`.

    In a database without stored keys, the current master key becomes the first one.
    """
    master = database.master
    with database.reader.connect() as connection:
        rows = connection.execute(select(master_keys)).all()
    if not rows:
        with database.writer.begin() as connection:
            connection.execute(
                insert(master_keys).values(version=1, tag=master.tag, created_at=database.clock())
            )
        database.vault = Vault.first(master)
        return
    database.vault = vault_of(master, rows)


def vault_of(master: MasterKey, rows: Sequence[Row[Any]]) -> Vault:
    """Return the vault for these rows of `master_keys`; raises `WrongMasterKey`."""
    *older, newest = sorted(rows, key=lambda row: row.version)
    if bytes(newest.tag) != master.tag:
        raise WrongMasterKey
    sealing = sealing_key(master)
    return Vault.of(
        master,
        newest.version,
        {r.version: unseal(sealing, r.sealed_pepper or b"") for r in older},
        {r.version: unseal(sealing, r.sealed_audit_key or b"") for r in older},
        newest.sealed_broker_root and unseal(sealing, newest.sealed_broker_root),
    )


@dataclass(frozen=True, slots=True)
class PepperState:
    """A pepper version: the number of rows that need it, and whether the master key opens it."""

    version: int
    rows: int
    current: bool
    opens: bool


def check_peppers(database: Database) -> list[PepperState]:
    """Return the state of each pepper version that is stored or needed, by trying to open it."""
    with storage_errors(), database.reader.connect() as connection:
        stored = {row.version: row for row in connection.execute(select(master_keys))}
        needed: Counter[int] = Counter()
        for table in PEPPERED:
            version = table.c.pepper_version
            # Null for a client with a chosen password, which has an Argon2id hash instead.
            counts = connection.execute(
                select(version, func.count()).where(version.is_not(None)).group_by(version)
            )
            needed.update({row[0]: row[1] for row in counts})
    newest = max(stored, default=0)
    return [
        PepperState(
            version, needed[version], version == newest,
            version in stored and _opens_row(database.master, stored[version], newest),
        )
        for version in sorted(stored.keys() | needed.keys())
    ]  # fmt: skip


def _opens_row(master: MasterKey, row: Row[Any], newest: int) -> bool:
    sealing = sealing_key(master)
    try:
        if row.version == newest:
            if row.sealed_broker_root:
                unseal(sealing, row.sealed_broker_root)
            return bytes(row.tag) == master.tag
        unseal(sealing, row.sealed_pepper or b"")
        unseal(sealing, row.sealed_audit_key or b"")
    except WrongMasterKey:
        return False
    return True


def sealing_key(master: MasterKey) -> bytes:
    """Return the key that encrypts the stored peppers and keys of older master keys."""
    return derive(master.raw, "older-keys")


def is_initialized(url: str) -> bool:
    """Return whether the database exists and is not empty."""
    database = open_database(url, MasterKey(bytes(32)))
    if database.kind == "sqlite":
        path = Path(database.url.database or "")
        return path.exists() and path.stat().st_size > 0
    try:
        with storage_errors(), database.reader.connect() as connection:
            return inspect(connection).has_table(master_keys.name)
    finally:
        database.close()


def _opens_database(url: str, master: MasterKey) -> bool:
    database = open_database(url, master)
    try:
        with storage_errors():
            sqlite = database.kind == "sqlite"
            tag = _read_sqlite_tag(database) if sqlite else _read_postgres_tag(database)
    except WrongMasterKey:
        return False
    finally:
        database.close()
    return tag is None or bytes(tag) == master.tag


def _read_postgres_tag(database: Database) -> bytes | None:
    with database.reader.connect() as connection:
        if not inspect(connection).has_table(master_keys.name):
            return None
        return connection.execute(_NEWEST_TAG).scalar_one_or_none()


def _read_sqlite_tag(database: Database) -> bytes | None:
    """Return the tag without attaching the usage file, whose state does not matter here."""
    path = Path(database.url.database or "")
    connection = connect_sqlite(path, database.master.database_key)
    try:
        has_table = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if connection.execute(has_table, (master_keys.name,)).fetchone() is None:
            return None
        row = connection.execute(str(_NEWEST_TAG)).fetchone()
        return row[0] if row else None
    finally:
        connection.close()


def _run(command: str) -> str:
    try:
        process = subprocess.run(  # noqa: S603 - the operator's own setting
            shlex.split(command),
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
            # The command may need its own credentials, such as a cloud's, but never ours.
            env={k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidMasterKey(f"The command that prints the master key failed: {error}") from None
    return process.stdout
