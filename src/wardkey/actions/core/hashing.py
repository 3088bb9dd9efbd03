"""Argon2 in this process: how many hashes run at once, and how many may wait for their turn."""

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
AT_ONCE = 2
_RETRY_S = 2.0
_hasher = PasswordHasher()


class Line(IntEnum):
    """The two queues of the gate, served alternately; the value is how many may wait.

    A waiting REQUEST holds one of the framework's 40 threads. A waiting LOGIN holds none, but its
    broker gives up after two seconds, and at most 48 logins are judged at once (`broker_link`).
    """

    REQUEST = 16
    LOGIN = 32


class HashingGate:
    """Runs password hashes: `AT_ONCE` at a time, those that wait in bounded queues.

    Each address (an IPv6 /64) has an equal share of a full queue. Work beyond that fails at once
    with `Overloaded`, which says nothing about the password.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._lines = {line: FairQueue[Job](line) for line in Line}
        # The line that is served next; each one moves to the end when it was served.
        self._order = list(Line)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="wardkey-hashing")

    def submit(self, line: Line, address: str, work: Callable[[], T]) -> Future[T]:
        """Return the future result of `work`, which hashes; it may fail with `Overloaded`."""
        future: Future[T] = Future()
        dropped = None
        with self._lock:
            if self._running < AT_ONCE:
                self._running += 1
                self._threads.submit(self._run, future, work)
            else:
                dropped = self._lines[line].put(network_of(address), (future, work))
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
                following = self._next()
                if following is None:
                    self._running -= 1
                    return
            future, work = following

    def _next(self) -> Job | None:
        for line in tuple(self._order):
            following = self._lines[line].take()
            if following is not None:
                self._order.remove(line)
                self._order.append(line)
                return following
        return None


# One for the process, because the memory and the cores that it protects are.
_gate = HashingGate()


def hash_password(password: str, address: str) -> str:
    """Return the Argon2id hash of a password; raises `Overloaded`.

    Parameters are argon2-cffi's defaults (RFC 9106, low-memory profile).
    """
    return _gate.submit(Line.REQUEST, address, partial(_hasher.hash, password)).result()


def check_password(known_hash: str | None, password: str, address: str) -> bool:
    """Return whether a password fits; a missing hash takes as long and never fits.

    Raises `Overloaded`.
    """
    return submit(Line.REQUEST, address, partial(verify, known_hash, password)).result()


def submit(line: Line, address: str, work: Callable[[], T]) -> Future[T]:
    """Return the future result of `work`, which calls `verify`; it may fail with `Overloaded`."""
    return _gate.submit(line, address, work)


def verify(known_hash: str | None, password: str) -> bool:
    """Return whether a password fits, hashing in this thread: only for work given to `submit`."""
    try:
        _hasher.verify(known_hash or _unmatched_hash(), password)
    except Argon2Error:
        return False
    return known_hash is not None


@cache
def _unmatched_hash() -> str:
    """Return the hash of an unknown text, so that an unknown name costs as much as a known one."""
    return _hasher.hash(random_text(32))
