"""Replacing files atomically, so a power cut leaves either the old or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from wardkey.domain.errors import UnwritableFile


def make_private(path: Path) -> None:
    """Create an empty file with mode 0600; raises `UnwritableFile`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise UnwritableFile(f"{path} cannot be written: {error.strerror}.") from None


def put_in_place(new: Path, path: Path) -> None:
    """Sync the finished file `new` and rename it to `path`, replacing the old one atomically."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so renames and new files in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, now: int) -> Path:
    """Rename an unreadable SQLite file with its -wal and -shm; return the new path.

    `now`, in epoch milliseconds, becomes part of the name. The -wal is renamed first, because
    SQLite would apply it to the next file at `path`.
    """
    aside = path.with_name(f"{path.name}.unreadable-{now}")
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    sync_folder(path.parent)
    return aside
