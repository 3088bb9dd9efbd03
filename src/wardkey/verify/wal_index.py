"""SQLite's WAL-index header through a read-only map: a look at it needs no call into SQLite."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

# Two copies of 48 bytes stand at the start of the `-shm` file (sqlite.org/walformat.html §2.1).
_COPY = 48
_BOTH = 2 * _COPY

# Kept for the life of the process, whoever lets go of them: see `WalIndex`.
_kept: dict[tuple[int, int], mmap.mmap] = {}


class WalIndex:
    """Tells whether anything was committed since `remember`, as far as it can tell.

    The header changes with every commit, so an unchanged one means that nothing was committed.
    A changed or half-written one says nothing: `PRAGMA data_version` decides then. The descriptor
    is never closed, because that would drop this process's locks on the file (fcntl(2)).
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + "-shm")
        found = self._path.stat()
        self._inode = (found.st_dev, found.st_ino)
        self._map = _kept.get(self._inode) or self._open()
        self._remembered = b""

    def unchanged(self) -> bool:
        """Tell whether the header is the remembered one."""
        return self._map[:_BOTH] == self._remembered

    def look(self) -> bytes:
        """Return the header, to be remembered once the commits before it were read."""
        return self._map[:_BOTH]

    def remember(self, looked: bytes) -> None:
        """Trust this header from now on; one whose two copies differ is being written."""
        self._remembered = looked if looked[:_COPY] == looked[_COPY:] else b""

    def is_current(self) -> bool:
        """Tell whether the file that is mapped is still the one that lies in the folder."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def _open(self) -> mmap.mmap:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        made = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        _kept[self._inode] = made
        return made
