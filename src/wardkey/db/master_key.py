"""Where the master key comes from, and fitting it to the database."""

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

# What is hashed, or sealed, under a pepper; imported secrets stand among the secrets.
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
    """The key's text itself, a command that prints it, or (both empty) a 0600 file."""

    file: Path
    text: str = ""
    command: str = ""

    @property
    def uses_file(self) -> bool:
        """Tell whether the key lies in the file."""
        return not self.text and not self.command

    @property
    def next_file(self) -> Path:
        """Where a rotation keeps the new key until the database has taken it."""
        return self.file.with_name(self.file.name + ".next")

    def load(self, *, may_create: bool) -> MasterKey:
        """Return the key, made on the first start of a deployment that keeps it in a file.

        Raises `InvalidMasterKey`, and `MasterKeyMissing` where it may not be made.
        """
        if self.text:
            return MasterKey.parse(self.text)
        if self.command:
            return MasterKey.parse(_output(self.command))
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
    """Write a key to a new 0600 file and through to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def resolve_master_key(source: MasterKeySource, url: str) -> MasterKey:
    """Return the master key that opens the database at `url`; made where both are new.

    A rotation that was cut off is finished by looking which key the database has; where that is
    the old one, the new one's file has no meaning any more, and the next rotation removes it.
    Raises `MasterKeyMissing`, `WrongMasterKey`, `InvalidMasterKey` and the storage's failures.
    """
    begun = is_initialized(url)
    master = source.load(may_create=not begun)
    if not begun or _fits(url, master):
        return master
    if source.uses_file and source.next_file.exists():
        following = MasterKey.parse(source.next_file.read_text("ascii"))
        if _fits(url, following):
            source.next_file.replace(source.file)
            sync_folder(source.file.parent)
            return following
    raise WrongMasterKey


def open_vault(database: Database) -> None:
    """Open the keys of earlier master keys; raises `WrongMasterKey`.

    A database without any master key's tag takes the one it was opened with as its first.
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
    """Return the vault of a database with these `master_keys`; raises `WrongMasterKey`."""
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
    """One pepper version: how many stored secrets need it, and whether the master key opens it."""

    version: int
    rows: int
    current: bool
    opens: bool


def check_peppers(database: Database) -> list[PepperState]:
    """Open the keys of each version that is kept or needed, without trusting that they open."""
    with storage_errors(), database.reader.connect() as connection:
        kept = {row.version: row for row in connection.execute(select(master_keys))}
        needed: Counter[int] = Counter()
        for table in PEPPERED:
            version = table.c.pepper_version
            # A client whose password was chosen has none.
            found = connection.execute(
                select(version, func.count()).where(version.is_not(None)).group_by(version)
            )
            needed.update({row[0]: row[1] for row in found})
    newest = max(kept, default=0)
    return [
        PepperState(
            version, needed[version], version == newest,
            version in kept and _opens(database.master, kept[version], newest),
        )
        for version in sorted(kept.keys() | needed.keys())
    ]  # fmt: skip


def _opens(master: MasterKey, row: Row[Any], newest: int) -> bool:
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
    """Return the key under which a database keeps what older master keys derived."""
    return derive(master.raw, "older-keys")


def is_initialized(url: str) -> bool:
    """Tell whether the database has anything in it."""
    database = open_database(url, MasterKey(bytes(32)))
    if database.kind == "sqlite":
        path = Path(database.url.database or "")
        return path.exists() and path.stat().st_size > 0
    try:
        with storage_errors(), database.reader.connect() as connection:
            return inspect(connection).has_table(master_keys.name)
    finally:
        database.close()


def _fits(url: str, master: MasterKey) -> bool:
    database = open_database(url, master)
    try:
        with storage_errors():
            tag = _sqlite_tag(database) if database.kind == "sqlite" else _tag(database)
    except WrongMasterKey:
        return False
    finally:
        database.close()
    return tag is None or bytes(tag) == master.tag


def _tag(database: Database) -> bytes | None:
    with database.reader.connect() as connection:
        if not inspect(connection).has_table(master_keys.name):
            return None
        return connection.execute(_NEWEST_TAG).scalar_one_or_none()


def _sqlite_tag(database: Database) -> bytes | None:
    """Ask without the usage file, whose state says nothing about the master key."""
    path = Path(database.url.database or "")
    connection = connect_sqlite(path, database.master.database_key)
    try:
        named = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if connection.execute(named, (master_keys.name,)).fetchone() is None:
            return None
        row = connection.execute(str(_NEWEST_TAG)).fetchone()
        return row[0] if row else None
    finally:
        connection.close()


def _output(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own setting
            shlex.split(command),
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
            # The command needs its own credentials, such as a cloud's, but none of ours.
            env={k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidMasterKey(f"The command that prints the master key failed: {error}") from None
    return done.stdout
