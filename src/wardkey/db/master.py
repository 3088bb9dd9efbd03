"""Where the master key comes from, and fitting it to the database."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, inspect, select

from wardkey.db.engine import Database, open_database, telling
from wardkey.db.schema import master_keys
from wardkey.db.vault import MasterKey, Vault, derive, unseal
from wardkey.domain.errors import InvalidMasterKey, MasterKeyMissing, WrongMasterKey


@dataclass(frozen=True, slots=True)
class MasterKeySource:
    """The key's text itself, a command that prints it, or (both empty) a 0600 file."""

    file: Path
    text: str = ""
    command: str = ""

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
                    f"The database exists but {self.file} does not; put the master key back there."
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


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fitting_key(source: MasterKeySource, url: str) -> MasterKey:
    """Return the master key that opens the database at `url`; made where both are new.

    A rotation that was cut off is finished, or undone, by looking which key the database has.
    Raises `MasterKeyMissing`, `WrongMasterKey`, `InvalidMasterKey` and the storage's failures.
    """
    begun = _begun(url)
    master = source.load(may_create=not begun)
    if not begun:
        return master
    uses_file = not source.text and not source.command
    if _fits(url, master):
        if uses_file:
            source.next_file.unlink(missing_ok=True)
        return master
    if uses_file and source.next_file.exists():
        following = MasterKey.parse(source.next_file.read_text("ascii"))
        if _fits(url, following):
            source.next_file.replace(source.file)
            sync_folder(source.file.parent)
            return following
    raise WrongMasterKey


def load_vault(database: Database) -> None:
    """Open the keys of earlier master keys; raises `WrongMasterKey`.

    A database without any master key's tag takes the one it was opened with as its first.
    """
    master = database.master
    with database.reader.connect() as connection:
        rows = connection.execute(select(master_keys).order_by(master_keys.c.version)).all()
    if not rows:
        with database.writer.begin() as connection:
            connection.execute(
                insert(master_keys).values(version=1, tag=master.tag, created_at=database.clock())
            )
        database.vault = Vault.first(master)
        return
    *older, newest = rows
    if bytes(newest.tag) != master.tag:
        raise WrongMasterKey
    sealing = sealing_key(master)
    database.vault = Vault.of(
        master,
        newest.version,
        {r.version: unseal(sealing, bytes(r.sealed_pepper)) for r in older},
        {r.version: unseal(sealing, bytes(r.sealed_audit_key)) for r in older},
    )


def sealing_key(master: MasterKey) -> bytes:
    """Return the key under which a database keeps what older master keys derived."""
    return derive(master.raw, "older-keys")


def _begun(url: str) -> bool:
    """Tell whether the database has anything in it."""
    database = open_database(url, MasterKey(bytes(32)))
    if database.kind == "sqlite":
        path = Path(database.url.database or "")
        return path.exists() and path.stat().st_size > 0
    try:
        with telling(), database.reader.connect() as connection:
            return inspect(connection).has_table(master_keys.name)
    finally:
        database.close()


def _fits(url: str, master: MasterKey) -> bool:
    database = open_database(url, master)
    try:
        with telling(), database.reader.connect() as connection:
            if not inspect(connection).has_table(master_keys.name):
                return True
            tag = connection.execute(
                select(master_keys.c.tag).order_by(master_keys.c.version.desc()).limit(1)
            ).scalar_one_or_none()
    except WrongMasterKey:
        return False
    finally:
        database.close()
    return tag is None or bytes(tag) == master.tag


def _output(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own setting
            shlex.split(command), capture_output=True, check=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as fault:
        raise InvalidMasterKey(f"The command that prints the master key failed: {fault}") from None
    return done.stdout
