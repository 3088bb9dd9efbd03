"""Password hashes run two at a time, and each address gets a share of the waiting line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress

import pytest

from tests.support.server import wait_until
from wardkey.actions.core.hashing import MAX_CONCURRENT, HashingGate, Line
from wardkey.domain.errors import Overloaded


class Held:
    """A gate whose work waits until it is released."""

    def __init__(self) -> None:
        self.gate = HashingGate()
        self.go = threading.Event()
        self.done: list[str] = []
        self.max_running = self.running = 0
        self.lock = threading.Lock()

    def put(self, name: str, address: str = "192.0.2.1", line: Line = Line.REQUEST) -> Future[None]:
        def work() -> None:
            with self.lock:
                self.running += 1
                self.max_running = max(self.max_running, self.running)
            self.go.wait(20)
            with self.lock:
                self.running -= 1
                self.done.append(name)

        return self.gate.submit(line, address, work)

    def fill(self, address: str, line: Line) -> list[Future[None]]:
        """Occupy every thread and every place of a line."""
        futures = [self.put(f"{address} {n}", address, line) for n in range(MAX_CONCURRENT + line)]
        wait_until(lambda: self.running == MAX_CONCURRENT)
        return futures


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go.set()


def is_refused(future: Future[None]) -> bool:
    return future.done() and isinstance(future.exception(), Overloaded)


@pytest.mark.parametrize("line", Line)
def test_two_hashes_run_at_once_and_a_full_line_refuses_more_at_once(
    held: Held, line: Line
) -> None:
    futures = held.fill("192.0.2.1", line)
    over = [held.put("over", line=line) for _ in range(20)]
    assert all(is_refused(future) for future in over)
    assert not any(future.done() for future in futures)
    held.go.set()
    assert [future.result(20) for future in futures] == [None] * len(futures)
    assert (held.max_running, "over" in held.done) == (MAX_CONCURRENT, False)
    # All places are free again.
    assert held.put("later").result(20) is None


def test_an_address_that_fills_the_line_gives_way_to_other_addresses(held: Held) -> None:
    futures = held.fill("192.0.2.1", Line.LOGIN)
    other = held.put("other", "192.0.2.2", Line.LOGIN)
    assert [is_refused(future) for future in futures].count(True) == 1
    assert is_refused(futures[-1])
    held.go.set()
    other.result(20)
    # Two were running, and the first address was served once before it.
    assert held.done.index("other") <= MAX_CONCURRENT + 2


def test_addresses_of_one_ipv6_network_share_their_places(held: Held) -> None:
    held.fill("2001:db8:0:1::1", Line.REQUEST)
    assert is_refused(held.put("same", "2001:db8:0:1:ffff::2"))
    assert not is_refused(held.put("other", "2001:db8:0:2::1"))


def test_logins_and_requests_do_not_delay_each_other(held: Held) -> None:
    held.fill("192.0.2.1", Line.LOGIN)
    request = held.put("request", "192.0.2.1", Line.REQUEST)
    assert not request.done()
    held.go.set()
    request.result(20)
    assert held.done.index("request") <= MAX_CONCURRENT + 2


def test_cancelled_work_is_never_hashed_and_an_error_frees_its_place(held: Held) -> None:
    first = [held.put("first") for _ in range(MAX_CONCURRENT)]
    given_up = held.put("given up")
    assert given_up.cancel()
    fails = held.gate.submit(Line.REQUEST, "192.0.2.1", lambda: int("nothing"))
    last = held.put("last")
    held.go.set()
    assert [future.result(20) for future in (*first, last)] == [None] * 3
    assert isinstance(fails.exception(20), ValueError)
    assert "given up" not in held.done


def test_a_coroutine_waits_without_a_thread_and_can_be_refused(held: Held) -> None:
    async def count_finished() -> int:
        before = threading.active_count()
        tasks = []
        for number in range(MAX_CONCURRENT + Line.LOGIN + 5):
            future = held.put(str(number), line=Line.LOGIN)
            tasks.append(asyncio.wrap_future(future))
        assert threading.active_count() - before <= MAX_CONCURRENT
        held.go.set()
        finished = 0
        for task in tasks:
            with suppress(Overloaded):
                await task
                finished += 1
        return finished

    assert asyncio.run(count_finished()) == MAX_CONCURRENT + Line.LOGIN
