"""Files of a deployment that are put in each other's place so that a power cut leaves one whole."""

from __future__ import annotations

import os
from pathlib import Path

from wardkey.domain.errors import UnwritableFile


def make_private(path: Path) -> None:
    """Make an empty file for its owner alone; raises `UnwritableFile`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise UnwritableFile(f"{path} cannot be written: {error.strerror}.") from None


def put_in_place(made: Path, path: Path) -> None:
    """Rename a finished file to `path`, which is the old one or the new one at any time."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, now: int) -> Path:
    """Rename an SQLite file that cannot be read, with what lies beside it; return its new place.

    `now` in epoch milliseconds becomes part of the name. The -wal goes first, because SQLite
    would apply it to whatever file comes into the place.
    """
    aside = path.with_name(f"{path.name}.unreadable-{now}")
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    sync_folder(path.parent)
    return aside
