"""Turns are limited in number, fair to addresses, and never lost."""

from __future__ import annotations

import asyncio

import pytest

from wardkey.adapters.turns import Turns
from wardkey.domain.errors import Overloaded


def test_addresses_take_turns() -> None:
    async def serve() -> list[str]:
        turns, served = Turns(1, 100), []

        async def take(name: str) -> None:
            async with turns.take(name[0]):
                served.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(*map(take, ("a1", "a2", "a3", "a4", "b1", "c1", "b2")))
        return served

    assert asyncio.run(serve()) == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


def test_the_address_with_the_most_waiting_is_refused() -> None:
    async def serve() -> list[str]:
        turns, refused, go = Turns(1, 2), [], asyncio.Event()

        async def take(name: str) -> None:
            try:
                async with turns.take(name[0]):
                    await go.wait()
            except Overloaded:
                refused.append(name)

        async with asyncio.TaskGroup() as group:
            for name in ("a1", "a2", "a3", "a4", "b1", "c1"):
                group.create_task(take(name))
                await asyncio.sleep(0)
            go.set()
        return refused

    assert sorted(asyncio.run(serve())) == ["a3", "a4", "c1"]


def test_an_abandoned_turn_goes_to_the_next() -> None:
    async def serve() -> int:
        turns, served = Turns(2, 10), []

        async def take(number: int) -> None:
            async with turns.take("a"):
                await asyncio.sleep(0)
                served.append(number)

        tasks = [asyncio.create_task(take(number)) for number in range(10)]
        await asyncio.sleep(0)
        # One running, one waiting, and one whose turn comes at the same moment.
        tasks[0].cancel()
        tasks[5].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in range(2):
            await take(number)
        with pytest.raises(ZeroDivisionError):
            async with turns.take("a"):
                _ = 1 // 0
        await take(10)
        return len(served)

    assert asyncio.run(serve()) == 10
