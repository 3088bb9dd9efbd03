"""Exports: responses of any length, such as an audit log, sent a page at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wardkey.domain.errors import WardkeyError
from wardkey.services.work_slots import WorkSlots

log = logging.getLogger(__name__)

# A slow client occupies a slot and a page in memory, but no thread or database connection.
_MAX_EXPORTS, _MAX_PER_ORGANIZATION = 16, 2
# Reading a page needs the interpreter, so parallel reads would only delay other requests.
_MAX_READS = 1
LONGEST_S = 600.0
# `Connection` disconnects a client that doesn't read this much in time.
_PIECE_BYTES = 65_536

Chunks = Generator[str, None, None]


@dataclass(slots=True)
class Exports:
    """The exports that run in this process."""

    slots: WorkSlots = field(default_factory=lambda: WorkSlots(_MAX_EXPORTS, _MAX_PER_ORGANIZATION))
    reads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MAX_READS))

    def begin(
        self, org_id: str, chunks: Chunks, media_type: str, headers: Mapping[str, str] | None = None
    ) -> Export:
        """Return a response that sends `chunks`, generating each in a thread when it is needed.

        The generator must not keep a transaction open when it yields. Raises `Overloaded` if too
        many exports run, in total or for the organization.
        """
        self.slots.take(org_id)
        return Export(self, org_id, chunks, media_type, headers)


class Export(Response):
    """Sends chunks as the client reads them, for at most ten minutes; frees its slot at the end.

    An export that is cut off lacks the end of its chunked body (RFC 9112 §8), so a client can't
    mistake it for a complete one. `Connection` disconnects a client that stops reading.
    """

    def __init__(
        self,
        exports: Exports,
        org_id: str,
        chunks: Chunks,
        media_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        self._exports, self._org_id, self._chunks = exports, org_id, chunks
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the export; an error before the first chunk is raised, a later one cuts it off."""
        disconnection = asyncio.ensure_future(_wait_for_disconnection(receive))
        try:
            first = await self._next_chunk()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with move_on_after(LONGEST_S) as deadline:
                await self._send_all(first, send, disconnection)
            if deadline.cancelled_caught:
                log.warning("an export of %s took longer than %d s", self._org_id, LONGEST_S)
        finally:
            disconnection.cancel()
            self._exports.slots.give_back(self._org_id)
            # A generator that is still running can't be closed: the server stopped within a page.
            with suppress(ValueError):
                self._chunks.close()

    async def _send_all(
        self, chunk: str | None, send: Send, disconnection: asyncio.Future[None]
    ) -> None:
        while chunk is not None:
            if disconnection.done():
                return
            body = chunk.encode()
            for start in range(0, len(body), _PIECE_BYTES):
                # `send` waits until the client has read the pieces before.
                piece = body[start : start + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            try:
                chunk = await self._next_chunk()
            except WardkeyError as error:
                log.warning("an export of %s was cut off: %s", self._org_id, error.code)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_chunk(self) -> str | None:
        return await run_sync(partial(next, self._chunks, None), limiter=self._exports.reads)


async def _wait_for_disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
