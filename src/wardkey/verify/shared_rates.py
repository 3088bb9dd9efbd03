"""How far rate limits are used up, shared by all processes of one machine."""

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

# Each slot: a digest of the key's id, and its theoretical arrival time (see `domain.rate`).
_SLOT = Struct("<Qd")
_SLOTS = 1 << 18
# How many slots after its own a key may be in.
_WINDOW = 64
_HEADER = 64
_SIZE = _HEADER + _SLOTS * _SLOT.size
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The lock is held for microseconds; only a stopped process holds it longer.
_LONGEST_WAIT_S = 0.05


class SharedRates:
    """A mapped file of arrival times, on a clock that restarts with the machine.

    A file lock makes each admission atomic. An evicted slot is that of the key whose budget is
    full soonest. The file takes 4 MiB; raises `StorageFull` where there is no room for it.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            if os.fstat(self._file).st_size != _SIZE:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, _SIZE)
            with storage_errors():
                # A page without room on the disk would kill the process that writes to it.
                os.posix_fallocate(self._file, 0, _SIZE)
            self._map = mmap.mmap(self._file, _SIZE)
            boot = _boot_id()
            if self._map[: len(boot)] != boot:
                self._map[_HEADER:] = bytes(_SIZE - _HEADER)
                self._map[: len(boot)] = boot

    def admit(self, limit: RateLimit, key_id: str, now_ms: int, cost: int) -> Admission:
        """Decide on a request of `cost`, as `domain.rate.admit` does, and keep its outcome."""
        name = _name_of(key_id)
        with self._lock, self._locked():
            slot, tat = self._find(name, now_ms)
            admission = admit(limit, tat, now_ms, cost)
            if admission.tat != tat:
                _SLOT.pack_into(self._map, slot, name, admission.tat)
        return admission

    def take(self, limits: Sequence[tuple[RateLimit, str]], now_ms: int) -> int:
        """Take one request from each of several named limits, or none from any of them.

        Return 0, or the milliseconds after which the limit that is used up most admits one.
        """
        names = [(limit, _name_of(name)) for limit, name in limits]
        with self._lock, self._locked():
            waits = [
                admit(limit, self._find(name, now_ms)[1], now_ms).retry_after_ms or 0
                for limit, name in names
            ]
            if any(waits):
                return max(waits)
            for limit, name in names:
                # Once more, because the one before may have taken the same empty slot.
                slot, tat = self._find(name, now_ms)
                _SLOT.pack_into(self._map, slot, name, admit(limit, tat, now_ms).tat)
        return 0

    def give_back(self, limits: Sequence[tuple[RateLimit, str]], now_ms: int) -> None:
        """Give back what `take` took; a count that was evicted meanwhile stays away."""
        with self._lock, self._locked():
            for limit, text in limits:
                name = _name_of(text)
                slot, tat = self._find(name, now_ms)
                if tat:
                    _SLOT.pack_into(self._map, slot, name, tat - limit.increment_ms)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        os.close(self._file)

    def _find(self, name: int, now_ms: int) -> tuple[int, float]:
        """Return the key's slot and arrival time, or the slot that it is to take and 0."""
        start, best, soonest = name % _SLOTS, -1, float("inf")
        for step in range(_WINDOW):
            slot = _HEADER + (start + step) % _SLOTS * _SLOT.size
            other, tat = _SLOT.unpack_from(self._map, slot)
            if other == name:
                return slot, tat
            # What is over is as good as empty.
            soon = max(tat, now_ms)
            if soon < soonest:
                best, soonest = slot, soon
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
                # A request that is admitted beyond the limit is better than a stalled worker.
                now = time.monotonic()
                end = end or now + _LONGEST_WAIT_S
                if now > end:
                    break
                time.sleep(0)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _name_of(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def _boot_id() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()[:_HEADER]
    except OSError:
        return b"unknown"
