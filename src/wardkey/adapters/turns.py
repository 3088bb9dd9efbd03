"""Limits concurrent tasks, and queues the others fairly by network address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wardkey.domain.addresses import network_of
from wardkey.domain.errors import Overloaded
from wardkey.domain.fair_queue import FairQueue


class Turns:
    """At most `max_running` tasks run; at most `max_waiting` wait, round-robin by network."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._free = max_running
        self._waiting = FairQueue[asyncio.Future[None]](max_waiting)

    @asynccontextmanager
    async def take(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it during the block.

        Raises `Overloaded` if too many tasks wait and this address's network has the most of them.
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
