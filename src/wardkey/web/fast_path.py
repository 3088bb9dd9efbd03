"""The fast lane: the hot routes answered where uvicorn's parser delivers them.

No framework, task or thread hop: the lane reads and writes bytes, and the same functions that
the framework's routes call decide. Whatever is not an ordinary request of a hot route takes the
framework's way on the same connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from wardkey.domain.errors import InternalError, WardkeyError
from wardkey.web.access_log import log_access
from wardkey.web.connection import Connection
from wardkey.web.context import AppContext
from wardkey.web.problems import problem_outgoing
from wardkey.web.raw_http import CallerCache, RawRequest, RawResponse, header_lines, next_request_id

log = logging.getLogger(__name__)

MOST_LANE_BODY = 65_536
_MOST_KNOWN_HEAD = 4_096
_CLOSE = "connection: close\r\n"
_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n" for s in HTTPStatus}
# A person's token is looked up in the database, which is no work for the event loop.
_USER = b"ut_"
_ELSEWHERE = frozenset({b"expect", b"transfer-encoding"})
# A proxy may announce the body of the request that it holds up and never send it.
_FORWARD_AUTH = b"/v2/auth"


@dataclass(frozen=True, slots=True)
class FastRoute:
    """A route that the lane answers; `name` is its method and path.

    `at_hand` tells whether `answer` would need no network; otherwise the framework's way, which
    waits in a thread, is taken. So it is where `answer` gives None; a future is an answer that
    comes later, and never fails.
    """

    method: bytes
    name: str
    answer: Callable[[RawRequest, AppContext], RawResponse | asyncio.Future[RawResponse] | None]
    is_cached: Callable[[RawRequest, AppContext], bool]


class DeferredResponse:
    """An answer that comes later, in the place of uvicorn's cycle: what comes next waits for it.

    All but the request's id is what uvicorn looks at in a cycle; nobody waits for the event.
    """

    __slots__ = ("disconnected", "keep_alive", "request_id", "response_complete")
    message_event = asyncio.Event()
    more_body = False

    def __init__(self, request_id: str, *, stays: bool) -> None:
        self.request_id, self.keep_alive = request_id, stays
        self.disconnected = self.response_complete = False


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The head that a connection sent last, byte for byte, and what the parser made of it.

    A request that begins with the same bytes and is as long parses the same, but for its body.
    """

    head: bytes
    size: int
    route: FastRoute
    query: bytes
    fields: list[tuple[bytes, bytes]]
    named: dict[bytes, bytes]


class FastPathProtocol(Connection):
    """A connection whose hot routes are answered at once."""

    _judging: FastRoute | None = None
    _named: dict[bytes, bytes]
    _query = b""
    _body = b""
    _dated: list[tuple[bytes, bytes]] | None = None
    _date_lines = ""
    _stays = False
    _known: KnownHead | None = None
    _whole = b""
    _waits = False

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Take a new connection."""
        super().connection_made(transport)
        self._seen = CallerCache()
        self._here: AppContext = self.app.state.context
        self._routes: Mapping[bytes, FastRoute] = self.app.state.hot_routes
        self._waits = self._here.waits_for_network
        self._peer = self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Answer a head that the connection sent before; parse all else."""
        known = self._known
        # Half of a request's time goes into parsing a head that is nearly always the same.
        if (
            known is not None
            and len(data) == known.size
            and self._begun is None
            and data.startswith(known.head)
            and self.is_free
            and not self._ended
            and self._judge(
                known.route, known.query, known.fields, known.named, data[len(known.head) :]
            )
        ):
            return
        self._whole = data if self._begun is None else b""
        super().data_received(data)

    def take_request(self) -> None:
        """Choose the way of this request."""
        self._judging = None
        path, _, query = self.url.partition(b"?")
        if self.has_body and (path == _FORWARD_AUTH or path.startswith(_FORWARD_AUTH + b"/")):
            self.drop_body()
        route = self._routes.get(path)
        if route is not None and route.method == self.parser.get_method() and self.is_free:
            named = self.named
            shown = named.get(b"authorization") or named.get(b"wardkey-api-key", b"")
            if (
                _ELSEWHERE.isdisjoint(named)
                and int(named.get(b"content-length", b"0")) <= MOST_LANE_BODY
                and _USER not in shown
                and (not self._here.key_headers or shown)
            ):
                self._judging, self._query, self._named, self._body = route, query, named, b""
                if self._ended:
                    self.complete_request()
                return
        self.hand_to_framework()

    def take_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._judging is None:
            super().take_body(body)
        else:
            self._body += body

    def complete_request(self) -> None:
        """Answer, or leave it to the framework."""
        route, self._judging = self._judging, None
        if route is None:
            super().complete_request()
            return
        if self._judge(route, self._query, self.headers, self._named, self._body):
            self._keep_head(route)
            return
        self.hand_to_framework()
        if self._drops_body:
            return
        if self._body:
            super().take_body(self._body)
        super().complete_request()

    def shutdown(self) -> None:
        """Close when the request that is being received has its answer."""
        if self._judging is None:
            super().shutdown()
        else:
            self._shuts_down = True

    def write_refusal(self, failure: WardkeyError) -> None:
        """Answer `failure` as the last of this connection."""
        request_id = next_request_id()
        self._write(problem_outgoing(failure, request_id), request_id, stays=False)

    def _judge(
        self,
        route: FastRoute,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        named: dict[bytes, bytes],
        body: bytes,
    ) -> bool:
        """Answer a hot route; false where that would need the network."""
        request_id, began = next_request_id(), perf_counter()
        incoming = RawRequest(
            query, fields, self._peer, body, request_id, self._seen, route.name, named
        )
        if self._waits and not route.is_cached(incoming, self._here):
            return False
        out = route.answer(incoming, self._here)
        if out is None:
            return False
        stays = self._stays = not self._shuts_down and not self._ended
        if isinstance(out, RawResponse):
            self._write(out, request_id, stays=stays)
            self._log(route, out, began, request_id)
            self.server_state.total_requests += 1
            if stays:
                self._idle_since = self.loop.time()
            else:
                self.close_gently()
            return True
        owed = DeferredResponse(request_id, stays=stays)
        self.cycle = cast("RequestResponseCycle", owed)
        out.add_done_callback(partial(self._pay, owed, route, began))
        return True

    def _log(self, route: FastRoute, out: RawResponse, began: float, request_id: str) -> None:
        if self._here.access_log:
            method, _, path = route.name.partition(" ")
            log_access(method, path, out.status, began, client=self._peer, request_id=request_id)

    def _pay(
        self,
        owed: DeferredResponse,
        route: FastRoute,
        began: float,
        done: asyncio.Future[RawResponse],
    ) -> None:
        """Answer what was owed, and go on with what came in the meantime."""
        owed.response_complete = True
        if owed.disconnected or self.transport.is_closing():
            return
        stays = owed.keep_alive and not self._shuts_down
        out = done.result()
        self._write(out, owed.request_id, stays=stays)
        self._log(route, out, began, owed.request_id)
        if stays:
            self.on_response_complete()
        else:
            self.close_gently()

    def _keep_head(self, route: FastRoute) -> None:
        """Remember the head of a request that came alone and whole, and after which more may.

        Without a body the head holds the key that is asked about, which is seldom the same.
        """
        whole = self._whole
        end = len(whole) - len(self._body)
        if (
            self._body
            and self._stays
            and end <= _MOST_KNOWN_HEAD
            and whole.find(b"\r\n\r\n") == end - 4
        ):
            self._known = KnownHead(
                whole[:end], len(whole), route, self._query, self.headers, self._named
            )

    def _write(self, out: RawResponse, request_id: str, *, stays: bool) -> None:
        try:
            fields = header_lines(out.headers) if out.headers else ""
        except ValueError:
            log.exception("request %s has an answer that cannot be sent", request_id)
            out = problem_outgoing(InternalError(), request_id)
            fields = header_lines(out.headers)
        if self._dated is not self.server_state.default_headers:
            # uvicorn makes the list anew each second, for its date.
            self._dated = self.server_state.default_headers
            dated = [f"{name.decode()}: {value.decode()}\r\n" for name, value in self._dated]
            self._date_lines = "".join(dated)
        kind = f"content-type: {out.content_type}\r\n" if out.content_type else ""
        head = (
            f"{_LINES[out.status]}{kind}content-length: {len(out.body)}\r\n{out.lines}{fields}"
            f"{self._date_lines}wardkey-request-id: {request_id}\r\n"
            f"x-content-type-options: nosniff\r\ncache-control: no-store\r\n"
            f"{'' if stays else _CLOSE}\r\n"
        )
        self.transport.write(head.encode("latin-1") + out.body)
