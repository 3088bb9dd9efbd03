"""Password hashing with Argon2: limits how many hashes run at once and how many may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from functools import cache, partial
from typing import Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error

from wardkey.domain.addresses import network_of
from wardkey.domain.errors import Overloaded
from wardkey.domain.fair_queue import FairQueue
from wardkey.domain.secret import random_text

T = TypeVar("T")
Job = tuple[Future[Any], Callable[[], Any]]

# Each hash takes 64 MiB and a core for tens of milliseconds.
MAX_CONCURRENT = 2
_RETRY_S = 2.0
_hasher = PasswordHasher()


class Line(IntEnum):
    """The gate's two queues, served alternately; the value is the length of the queue.

    A waiting REQUEST occupies one of the framework's 40 threads. A waiting LOGIN occupies none, but
    its broker gives up after two seconds, and at most 48 logins are checked at once
    (`broker_link`).
    """

    REQUEST = 16
    LOGIN = 32


class HashingGate:
    """Runs at most `MAX_CONCURRENT` password hashes at a time and queues the rest.

    Addresses (IPv6: /64 networks) share a full queue equally. Work beyond that fails immediately
    with `Overloaded`, without checking the password.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._queues = {line: FairQueue[Job](line) for line in Line}
        # The first queue is served next; it then moves to the end.
        self._order = list(Line)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="wardkey-hashing")

    def submit(self, line: Line, address: str, work: Callable[[], T]) -> Future[T]:
        """Return the future result of `work`, a hashing job; it may fail with `Overloaded`."""
        future: Future[T] = Future()
        dropped = None
        with self._lock:
            if self._running < MAX_CONCURRENT:
                self._running += 1
                self._threads.submit(self._run, future, work)
            else:
                dropped = self._queues[line].put(network_of(address), (future, work))
        # Outside the lock, because callbacks of the future run here.
        if dropped is not None and dropped[0].set_running_or_notify_cancel():
            dropped[0].set_exception(Overloaded(retry_after_s=_RETRY_S))
        return future

    def _run(self, future: Future[Any], work: Callable[[], Any]) -> None:
        while True:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - belongs to the caller
                    future.set_exception(error)
            with self._lock:
                next_job = self._take_next()
                if next_job is None:
                    self._running -= 1
                    return
            future, work = next_job

    def _take_next(self) -> Job | None:
        for line in tuple(self._order):
            job = self._queues[line].take()
            if job is not None:
                self._order.remove(line)
                self._order.append(line)
                return job
        return None


# One per process, like the memory and cores that it protects.
_gate = HashingGate()


def hash_password(password: str, address: str) -> str:
    """Return the Argon2id hash of a password; raises `Overloaded`.

    Parameters are argon2-cffi's defaults (RFC 9106, low-memory profile).
    """
    return _gate.submit(Line.REQUEST, address, partial(_hasher.hash, password)).result()


def check_password(known_hash: str | None, password: str, address: str) -> bool:
    """Return whether a password matches; a missing hash takes as long and never matches.

    Raises `Overloaded`.
    """
    return submit(Line.REQUEST, address, partial(verify, known_hash, password)).result()


def submit(line: Line, address: str, work: Callable[[], T]) -> Future[T]:
    """Return the future result of `work`, which calls `verify`; it may fail with `Overloaded`."""
    return _gate.submit(line, address, work)


def verify(known_hash: str | None, password: str) -> bool:
    """Return whether a password matches, hashing in this thread: only for work in `submit`."""
    try:
        _hasher.verify(known_hash or _dummy_hash(), password)
    except Argon2Error:
        return False
    return known_hash is not None


@cache
def _dummy_hash() -> str:
    """Return the hash of a random text, so unknown user names take as long as known ones."""
    return _hasher.hash(random_text(32))
