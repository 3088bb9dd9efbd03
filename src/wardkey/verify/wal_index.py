"""SQLite's WAL-index header, read through a memory map instead of a call into SQLite."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

# The `-shm` file starts with two copies of 48 bytes each (sqlite.org/walformat.html §2.1).
_COPY = 48
_BOTH = 2 * _COPY

# Maps by device and inode, never closed while the process runs: see `WalIndex`.
_open_maps: dict[tuple[int, int], mmap.mmap] = {}


class WalIndex:
    """Detects that nothing was committed since `remember`.

    The header changes with every commit, so an unchanged one means that nothing was committed. A
    changed or half-written one proves nothing: `PRAGMA data_version` decides then. The descriptor
    is never closed, because that would drop this process's locks on the file (fcntl(2)).
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + "-shm")
        status = self._path.stat()
        self._inode = (status.st_dev, status.st_ino)
        self._map = _open_maps.get(self._inode) or self._open()
        self._remembered = b""

    def is_unchanged(self) -> bool:
        """Return whether the header equals the remembered one."""
        return self._map[:_BOTH] == self._remembered

    def read_header(self) -> bytes:
        """Return the header; pass it to `remember` once the commits before it were read."""
        return self._map[:_BOTH]

    def remember(self, header: bytes) -> None:
        """Compare with this header from now on, unless its copies differ: it is being written."""
        self._remembered = header if header[:_COPY] == header[_COPY:] else b""

    def is_current(self) -> bool:
        """Return whether the mapped file is still the one at the path."""
        try:
            status = self._path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def _open(self) -> mmap.mmap:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        index = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        _open_maps[self._inode] = index
        return index
