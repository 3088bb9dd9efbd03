"""Rate limit counters, shared by all processes on one machine."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from struct import Struct

from wardkey.db.engine import storage_errors
from wardkey.domain.rate import Admission, RateLimit, admit

# A slot contains a digest of the key's id and its theoretical arrival time (see `domain.rate`).
_SLOT = Struct("<Qd")
_SLOTS = 1 << 18
# The number of slots, starting with its own, that are searched for a key.
_WINDOW = 64
_HEADER = 64
_SIZE = _HEADER + _SLOTS * _SLOT.size
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The lock is held for microseconds; only a suspended process holds it longer.
_LONGEST_WAIT_S = 0.05


class SharedRates:
    """A memory-mapped file of arrival times, on a clock that restarts with the machine.

    A file lock makes each admission atomic. Eviction takes the slot of the key whose budget is
    full again soonest. The file takes 4 MiB; raises `StorageFull` if the disk has no room for it.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            if os.fstat(self._file).st_size != _SIZE:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, _SIZE)
            with storage_errors():
                # Writing to a mapped page without disk space would kill the process (SIGBUS).
                os.posix_fallocate(self._file, 0, _SIZE)
            self._map = mmap.mmap(self._file, _SIZE)
            boot = _boot_id()
            if self._map[: len(boot)] != boot:
                self._map[_HEADER:] = bytes(_SIZE - _HEADER)
                self._map[: len(boot)] = boot

    def admit(self, limit: RateLimit, key_id: str, now_ms: int, cost: int) -> Admission:
        """Decide on a request of `cost` like `domain.rate.admit`, and store the new state."""
        digest = _digest(key_id)
        with self._lock, self._locked():
            slot, tat = self._find(digest, now_ms)
            admission = admit(limit, tat, now_ms, cost)
            if admission.tat != tat:
                _SLOT.pack_into(self._map, slot, digest, admission.tat)
        return admission

    def take(self, limits: Sequence[tuple[RateLimit, str]], now_ms: int) -> int:
        """Take one request from each of several named limits, or from none of them.

        Return 0, or the milliseconds until all of the limits admit a request.
        """
        digests = [(limit, _digest(name)) for limit, name in limits]
        with self._lock, self._locked():
            waits = [
                admit(limit, self._find(digest, now_ms)[1], now_ms).retry_after_ms or 0
                for limit, digest in digests
            ]
            if any(waits):
                return max(waits)
            for limit, digest in digests:
                # Search again, because the previous limit may have taken the same empty slot.
                slot, tat = self._find(digest, now_ms)
                _SLOT.pack_into(self._map, slot, digest, admit(limit, tat, now_ms).tat)
        return 0

    def give_back(self, limits: Sequence[tuple[RateLimit, str]], now_ms: int) -> None:
        """Return the requests that `take` took, except to counters that were evicted since."""
        with self._lock, self._locked():
            for limit, name in limits:
                digest = _digest(name)
                slot, tat = self._find(digest, now_ms)
                if tat:
                    _SLOT.pack_into(self._map, slot, digest, tat - limit.increment_ms)

    def close(self) -> None:
        """Unmap and close the file."""
        self._map.close()
        os.close(self._file)

    def _find(self, digest: int, now_ms: int) -> tuple[int, float]:
        """Return the key's slot and arrival time, or the slot to use for it and 0."""
        start, best, soonest = digest % _SLOTS, -1, float("inf")
        for step in range(_WINDOW):
            slot = _HEADER + (start + step) % _SLOTS * _SLOT.size
            other, tat = _SLOT.unpack_from(self._map, slot)
            if other == digest:
                return slot, tat
            # A slot whose time has passed is as good as an empty one.
            full_at = max(tat, now_ms)
            if full_at < soonest:
                best, soonest = slot, full_at
            if not other:
                break
        return best, 0.0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        end = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Proceed without the lock: exceeding a limit is better than a stalled worker.
                now = time.monotonic()
                end = end or now + _LONGEST_WAIT_S
                if now > end:
                    break
                time.sleep(0)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _digest(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def _boot_id() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()[:_HEADER]
    except OSError:
        return b"unknown"
