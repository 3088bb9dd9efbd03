"""Turns of tasks that are judged a few at a time, in an order that is fair to addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wardkey.domain.addresses import network_of
from wardkey.domain.errors import Overloaded
from wardkey.domain.fair_queue import FairQueue


class Turns:
    """At most `at_once` tasks have a turn; of at most `most` that wait, addresses go in turn."""

    def __init__(self, at_once: int, most: int) -> None:
        self._free = at_once
        self._waiting = FairQueue[asyncio.Future[None]](most)

    @asynccontextmanager
    async def taken(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it during the block.

        Raises `Overloaded` where too many wait, and this address has the most of them.
        """
        await self._wait(address)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, address: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        dropped = self._waiting.put(network_of(address), turn)
        if dropped is not None and not dropped.done():
            dropped.set_exception(Overloaded())
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while (turn := self._waiting.take()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
