"""The fast path: answers the hot routes inside uvicorn's protocol class.

It reads and writes bytes without the framework, a task or a thread, and calls the same functions
as the framework's routes. All other requests go to the framework, on the same connection.
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
from wardkey.web.problems import raw_problem_response
from wardkey.web.raw_http import CallerCache, RawRequest, RawResponse, header_lines, next_request_id

log = logging.getLogger(__name__)

MAX_FAST_BODY = 65_536
_MAX_KNOWN_HEAD = 4_096
_CLOSE = "connection: close\r\n"
_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n" for s in HTTPStatus}
# A user token is looked up in the database, which would block the event loop.
_USER_TOKEN = b"ut_"
_FRAMEWORK_ONLY = frozenset({b"expect", b"transfer-encoding"})
# A proxy may announce the body of the request that it is holding and never send it.
_FORWARD_AUTH = b"/v2/auth"


@dataclass(frozen=True, slots=True)
class FastRoute:
    """A route that the fast path answers; `name` is its method and path.

    If `is_cached` is false, `answer` would need the network, so the framework answers in a thread;
    it also does if `answer` returns None. A future resolves to a later response and never fails.
    """

    method: bytes
    name: str
    answer: Callable[[RawRequest, AppContext], RawResponse | asyncio.Future[RawResponse] | None]
    is_cached: Callable[[RawRequest, AppContext], bool]


class DeferredResponse:
    """A pending response in place of uvicorn's request cycle: pipelined requests wait for it.

    Apart from `request_id`, these are the attributes uvicorn reads; `message_event` is never
    awaited.
    """

    __slots__ = ("disconnected", "keep_alive", "request_id", "response_complete")
    message_event = asyncio.Event()
    more_body = False

    def __init__(self, request_id: str, *, keep_alive: bool) -> None:
        self.request_id, self.keep_alive = request_id, keep_alive
        self.disconnected = self.response_complete = False


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The last head of a connection, byte for byte, and its parsed form.

    A request of the same length that begins with these bytes differs only in its body.
    """

    head: bytes
    size: int
    route: FastRoute
    query: bytes
    fields: list[tuple[bytes, bytes]]
    named: dict[bytes, bytes]


class FastPathProtocol(Connection):
    """A connection that answers the hot routes directly."""

    _route: FastRoute | None = None
    _named: dict[bytes, bytes]
    _query = b""
    _body = b""
    _dated: list[tuple[bytes, bytes]] | None = None
    _date_lines = ""
    _keep_alive = False
    _known_head: KnownHead | None = None
    # The received bytes, if a request begins with them.
    _received = b""
    _waits_for_network = False

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Set up a new connection."""
        super().connection_made(transport)
        self._caller_cache = CallerCache()
        self._ctx: AppContext = self.app.state.context
        self._routes: Mapping[bytes, FastRoute] = self.app.state.hot_routes
        self._waits_for_network = self._ctx.waits_for_network
        self._peer = self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Answer a request with the same head as the last; parse anything else."""
        known = self._known_head
        # Parsing takes half of a request's time, and the head is nearly always the same.
        if (
            known is not None
            and len(data) == known.size
            and self._receiving_since is None
            and data.startswith(known.head)
            and self.is_free
            and not self._reading_ended
            and self._answer(
                known.route, known.query, known.fields, known.named, data[len(known.head) :]
            )
        ):
            return
        self._received = data if self._receiving_since is None else b""
        super().data_received(data)

    def take_request(self) -> None:
        """Choose between the fast path and the framework."""
        self._route = None
        path, _, query = self.url.partition(b"?")
        if self.has_body and (path == _FORWARD_AUTH or path.startswith(_FORWARD_AUTH + b"/")):
            self.drop_body()
        route = self._routes.get(path)
        if route is not None and route.method == self.parser.get_method() and self.is_free:
            named = self.named
            credential = named.get(b"authorization") or named.get(b"wardkey-api-key", b"")
            if (
                _FRAMEWORK_ONLY.isdisjoint(named)
                and int(named.get(b"content-length", b"0")) <= MAX_FAST_BODY
                and _USER_TOKEN not in credential
                and (not self._ctx.key_headers or credential)
            ):
                self._route, self._query, self._named, self._body = route, query, named, b""
                if self._reading_ended:
                    self.complete_request()
                return
        self.hand_to_framework()

    def take_body(self, body: bytes) -> None:
        """Append a part of the body."""
        if self._route is None:
            super().take_body(body)
        else:
            self._body += body

    def complete_request(self) -> None:
        """Answer the request, or pass it to the framework."""
        route, self._route = self._route, None
        if route is None:
            super().complete_request()
            return
        if self._answer(route, self._query, self.headers, self._named, self._body):
            self._remember_head(route)
            return
        self.hand_to_framework()
        if self._drops_body:
            return
        if self._body:
            super().take_body(self._body)
        super().complete_request()

    def shutdown(self) -> None:
        """Close after the request being received is answered."""
        if self._route is None:
            super().shutdown()
        else:
            self._shuts_down = True

    def write_refusal(self, error: WardkeyError) -> None:
        """Write the response for `error`, the last of this connection."""
        request_id = next_request_id()
        self._write(raw_problem_response(error, request_id), request_id, keep_alive=False)

    def _answer(
        self,
        route: FastRoute,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        named: dict[bytes, bytes],
        body: bytes,
    ) -> bool:
        """Answer a hot route; return false if the framework must answer."""
        request_id, began = next_request_id(), perf_counter()
        incoming = RawRequest(
            query, fields, self._peer, body, request_id, self._caller_cache, route.name, named
        )
        if self._waits_for_network and not route.is_cached(incoming, self._ctx):
            return False
        response = route.answer(incoming, self._ctx)
        if response is None:
            return False
        keep_alive = self._keep_alive = not self._shuts_down and not self._reading_ended
        if isinstance(response, RawResponse):
            self._write(response, request_id, keep_alive=keep_alive)
            self._log(route, response, began, request_id)
            self.server_state.total_requests += 1
            if keep_alive:
                self._idle_since = self.loop.time()
            else:
                self.close_gently()
            return True
        deferred = DeferredResponse(request_id, keep_alive=keep_alive)
        self.cycle = cast("RequestResponseCycle", deferred)
        response.add_done_callback(partial(self._send_deferred, deferred, route, began))
        return True

    def _log(self, route: FastRoute, response: RawResponse, began: float, request_id: str) -> None:
        if self._ctx.access_log:
            method, _, path = route.name.partition(" ")
            status = response.status
            log_access(method, path, status, began, client=self._peer, request_id=request_id)

    def _send_deferred(
        self,
        deferred: DeferredResponse,
        route: FastRoute,
        began: float,
        future: asyncio.Future[RawResponse],
    ) -> None:
        """Send a deferred response, and continue with the requests that waited for it."""
        deferred.response_complete = True
        if deferred.disconnected or self.transport.is_closing():
            return
        keep_alive = deferred.keep_alive and not self._shuts_down
        response = future.result()
        self._write(response, deferred.request_id, keep_alive=keep_alive)
        self._log(route, response, began, deferred.request_id)
        if keep_alive:
            self.on_response_complete()
        else:
            self.close_gently()

    def _remember_head(self, route: FastRoute) -> None:
        """Remember the head of a request that arrived alone in one piece, on a kept connection.

        The head of a request without a body contains the key to verify, which rarely repeats.
        """
        received = self._received
        end = len(received) - len(self._body)
        if (
            self._body
            and self._keep_alive
            and end <= _MAX_KNOWN_HEAD
            and received.find(b"\r\n\r\n") == end - 4
        ):
            self._known_head = KnownHead(
                received[:end], len(received), route, self._query, self.headers, self._named
            )

    def _write(self, response: RawResponse, request_id: str, *, keep_alive: bool) -> None:
        try:
            fields = header_lines(response.headers) if response.headers else ""
        except ValueError:
            log.exception("the response to request %s can't be sent", request_id)
            response = raw_problem_response(InternalError(), request_id)
            fields = header_lines(response.headers)
        if self._dated is not self.server_state.default_headers:
            # uvicorn replaces the list every second, for its date.
            self._dated = self.server_state.default_headers
            dated = [f"{name.decode()}: {value.decode()}\r\n" for name, value in self._dated]
            self._date_lines = "".join(dated)
        kind = f"content-type: {response.content_type}\r\n" if response.content_type else ""
        head = (
            f"{_LINES[response.status]}{kind}content-length: {len(response.body)}\r\n"
            f"{response.lines}{fields}{self._date_lines}wardkey-request-id: {request_id}\r\n"
            f"x-content-type-options: nosniff\r\ncache-control: no-store\r\n"
            f"{'' if keep_alive else _CLOSE}\r\n"
        )
        self.transport.write(head.encode("latin-1") + response.body)
