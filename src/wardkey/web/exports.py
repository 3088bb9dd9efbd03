"""Exports: answers as long as a tenant's history, sent a page at a time."""

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

# A client that reads slowly holds a place and a page in memory, but no thread and no connection
# to the database.
_MOST, _MOST_EACH = 16, 2
# How many pages are read at once. More would be no faster, because reading one is work for the
# interpreter, and would only keep it from answering others.
_MOST_READS = 1
LONGEST_S = 600.0
# A client that does not read as much in the time that `Connection` allows is cut off.
_PIECE = 65_536

Chunks = Generator[str, None, None]


@dataclass(slots=True)
class Exports:
    """The exports that run in this process."""

    places: WorkSlots = field(default_factory=lambda: WorkSlots(_MOST, _MOST_EACH))
    reads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_MOST_READS))

    def begin(
        self, org_id: str, chunks: Chunks, media_type: str, headers: Mapping[str, str] | None = None
    ) -> Export:
        """Return the response that sends `chunks`, each made in a thread when it is needed.

        The generator holds no transaction where it yields. Raises `Overloaded` where too many
        exports run, of the organization or of all.
        """
        self.places.take(org_id)
        return Export(self, org_id, chunks, media_type, headers)


class Export(Response):
    """Sends chunks as the client reads them, for ten minutes at most; frees its place at the end.

    An export that is cut off lacks the end of its chunked body (RFC 9112, section 8), so a client
    cannot take it for a whole one. `Connection` cuts off a client that reads nothing for long.
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
        """Send the export; a fault before its first chunk is raised, a later one cuts it off."""
        gone = asyncio.ensure_future(_wait_until_gone(receive))
        try:
            first = await self._following()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with move_on_after(LONGEST_S) as bound:
                await self._send_all(first, send, gone)
            if bound.cancelled_caught:
                log.warning("an export of %s took longer than %d s", self._org_id, LONGEST_S)
        finally:
            gone.cancel()
            self._exports.places.give_back(self._org_id)
            # It is still running where the server stops in the middle of a page.
            with suppress(ValueError):
                self._chunks.close()

    async def _send_all(self, chunk: str | None, send: Send, gone: asyncio.Future[None]) -> None:
        while chunk is not None:
            if gone.done():
                return
            body = chunk.encode()
            for start in range(0, len(body), _PIECE):
                # Waits while the client has not read what was sent before.
                piece = body[start : start + _PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            try:
                chunk = await self._following()
            except WardkeyError as failure:
                log.warning("an export of %s was cut off: %s", self._org_id, failure.code)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _following(self) -> str | None:
        return await run_sync(partial(next, self._chunks, None), limiter=self._exports.reads)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
