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
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from wardkey.domain.errors import Failure, HeadersTooLarge, InvalidHttp, RequestTimeout
from wardkey.web.context import Context
from wardkey.web.incoming import Incoming, Outgoing, Seen, next_request_id
from wardkey.web.problems import problem_outgoing

log = logging.getLogger("wardkey")

MOST_HEAD = 65_536
MOST_LANE_BODY = 65_536
_MOST_KNOWN_HEAD = 4_096
SLOW_S = 30.0
_LOOK_S = 5.0
_CLOSE = "connection: close\r\n"
_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n" for s in HTTPStatus}
# A person's token is looked up in the database, which is no work for the event loop.
_USER = b"ut_"
_ELSEWHERE = frozenset({b"expect", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True, slots=True)
class HotRoute:
    """A route that the lane answers; `name` is its method and path.

    `at_hand` tells whether `answer` would need no network; otherwise the framework's way, which
    waits in a thread, is taken. So it is where `answer` gives None; a future is an answer that
    comes later, and never fails.
    """

    method: bytes
    name: str
    answer: Callable[[Incoming, Context], Outgoing | asyncio.Future[Outgoing] | None]
    at_hand: Callable[[Incoming, Context], bool]


class Owed:
    """An answer that comes later, in the place of uvicorn's cycle: what comes next waits for it.

    All but the request's id is what uvicorn looks at in a cycle; nobody waits for the event.
    """

    __slots__ = ("disconnected", "keep_alive", "request_id", "response_complete")
    message_event = asyncio.Event()

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
    route: HotRoute
    query: bytes
    fields: list[tuple[bytes, bytes]]
    named: dict[bytes, bytes]


class Lane(HttpToolsProtocol):
    """uvicorn's protocol with hot routes and with bounds on heads and on slow requests."""

    _judging: HotRoute | None = None
    _named: dict[bytes, bytes]
    _query = b""
    _body = b""
    _head = 0
    _in_head = False
    _begun: float | None = None
    _idle_since: float | None = None
    _dated: list[tuple[bytes, bytes]] | None = None
    _date_lines = ""
    _closing = False
    _stays = False
    _known: KnownHead | None = None
    _whole = b""
    _waits = False
    _offers_upgrade = False

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Take a new connection."""
        super().connection_made(transport)
        self._seen = Seen()
        self._here: Context = self.app.state.context
        self._routes: Mapping[bytes, HotRoute] = self.app.state.hot_routes
        self._waits = self._here.waits_for_network
        self._peer = self.client[0] if self.client else ""
        self._begun = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_S, self._look_for_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse a head that never ends."""
        known = self._known
        # Half of a request's time goes into parsing a head that is nearly always the same.
        if (
            known is not None
            and len(data) == known.size
            and self._begun is None
            and data.startswith(known.head)
            and self._is_free()
            and self._judge(
                known.route, known.query, known.fields, known.named, data[len(known.head) :]
            )
        ):
            # Set by an answer of the framework's before, to close what is idle.
            self._unset_keepalive_if_required()
            return
        self._whole = data if self._begun is None else b""
        self._head += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._in_head and self._head > MOST_HEAD and not self.transport.is_closing():
            self._refuse(HeadersTooLarge())

    def _feed(self, data: bytes) -> None:
        """Parse bytes; a request that offers an upgrade is parsed again without its offer.

        httptools takes the body of such a request for bytes of another protocol and then for a
        next request (Kludex/uvicorn#2722). RFC 9110 §7.8 lets a server ignore the offer.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as signal:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(InvalidHttp())
                    return
                data = self._head_without_offer() + data[signal.args[0] :]
                self._offers_upgrade = False
            except httptools.HttpParserError:
                self._refuse(InvalidHttp())
                return
            else:
                return

    def _head_without_offer(self) -> bytes:
        fields = [b"%b: %b\r\n" % item for item in self.headers if item[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        return b"".join([line, *fields, b"\r\n"])

    def on_message_begin(self) -> None:
        """Begin a request; the framework's scope is made only if it is needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._judging = None
        self._in_head = True
        self._begun = self.loop.time()
        self._idle_since = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Choose the way of this request."""
        self._in_head = False
        self._head = 0
        self._offers_upgrade = self.parser.should_upgrade()
        if self._offers_upgrade:
            return
        path, _, query = self.url.partition(b"?")
        route = self._routes.get(path)
        if route is not None and route.method == self.parser.get_method() and self._is_free():
            named = dict(self.headers)
            shown = named.get(b"authorization") or named.get(b"wardkey-api-key", b"")
            if (
                _ELSEWHERE.isdisjoint(named)
                and int(named.get(b"content-length", b"0")) <= MOST_LANE_BODY
                and _USER not in shown
                and (not self._here.key_headers or shown)
            ):
                self._judging, self._query, self._named, self._body = route, query, named, b""
                return
        self._take_framework()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._judging is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """Answer, or leave it to the framework."""
        if self._offers_upgrade:
            return
        self._begun = None
        route, self._judging = self._judging, None
        if route is None:
            super().on_message_complete()
            return
        if not self._judge(route, self._query, self.headers, self._named, self._body):
            self._take_framework()
            if self._body:
                super().on_body(self._body)
            super().on_message_complete()
            return
        self._keep_head(route)

    def shutdown(self) -> None:
        """Close when the request that is being received has its answer."""
        if self._judging is None:
            super().shutdown()
        else:
            self._closing = True

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Refuse what is no HTTP."""
        self._refuse(InvalidHttp())

    def _is_free(self) -> bool:
        """Tell whether earlier requests of this connection are answered and the client reads."""
        return (
            not self._is_answering()
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _is_answering(self) -> bool:
        # uvicorn's annotation leaves out that there is none before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _take_framework(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = (b"expect", b"100-continue") in (
            (name, value.lower()) for name, value in headers if name == b"expect"
        )
        super().on_headers_complete()

    def _judge(
        self,
        route: HotRoute,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        named: dict[bytes, bytes],
        body: bytes,
    ) -> bool:
        """Answer a hot route; false where that would need the network."""
        request_id = next_request_id()
        incoming = Incoming(
            query, fields, self._peer, body, request_id, self._seen, route.name, named
        )
        if self._waits and not route.at_hand(incoming, self._here):
            return False
        out = route.answer(incoming, self._here)
        if out is None:
            return False
        stays = self._stays = (
            not self._closing
            and self.parser.should_keep_alive()
            and self.parser.get_http_version() != "1.0"
        )
        if isinstance(out, Outgoing):
            self._write(out, request_id, stays=stays)
            self.server_state.total_requests += 1
            if stays:
                self._idle_since = self.loop.time()
            return True
        owed = Owed(request_id, stays=stays)
        self.cycle = cast("RequestResponseCycle", owed)
        out.add_done_callback(partial(self._pay, owed))
        return True

    def _pay(self, owed: Owed, done: asyncio.Future[Outgoing]) -> None:
        """Answer what was owed, and go on with what came in the meantime."""
        owed.response_complete = True
        if owed.disconnected or self.transport.is_closing():
            return
        self._write(done.result(), owed.request_id, stays=owed.keep_alive and not self._closing)
        if self.pipeline or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._begun is None:
            self._idle_since = self.loop.time()

    def _keep_head(self, route: HotRoute) -> None:
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

    def _write(self, out: Outgoing, request_id: str, *, stays: bool) -> None:
        fields = ""
        if out.headers:
            fields = "".join([f"{name}: {value}\r\n" for name, value in out.headers.items()])
        if self._dated is not self.server_state.default_headers:
            # uvicorn makes the list anew each second, for its date.
            self._dated = self.server_state.default_headers
            dated = [f"{name.decode()}: {value.decode()}\r\n" for name, value in self._dated]
            self._date_lines = "".join(dated)
        kind = f"content-type: {out.content_type}\r\n" if out.content_type else ""
        head = (
            f"{_LINES[out.status]}{kind}content-length: {len(out.body)}\r\n{out.lines}{fields}"
            f"{self._date_lines}wardkey-request-id: {request_id}\r\n"
            f"x-content-type-options: nosniff\r\n{'' if stays else _CLOSE}\r\n"
        )
        self.transport.write(head.encode("latin-1") + out.body)
        if not stays:
            self.transport.close()

    def _refuse(self, failure: Failure) -> None:
        """Tell what is wrong with the connection's bytes and close it.

        While an earlier request has no answer yet there is no place for another one.
        """
        if self._is_free():
            request_id = next_request_id()
            self._write(problem_outgoing(failure, request_id), request_id, stays=False)
        self.transport.close()

    def _look_for_slow(self) -> None:
        """Close a connection that is idle, or whose request takes longer to arrive than any.

        One look in five seconds costs less than a timer for each answer.
        """
        if self.transport.is_closing():
            return
        idle = self._idle_since
        if idle is not None and self.loop.time() - idle > self.timeout_keep_alive:
            self.transport.close()
            return
        if self._begun is not None and self.loop.time() - self._begun > SLOW_S:
            if self._in_head or self._judging or self._head:
                self._refuse(RequestTimeout())
            else:
                self.transport.close()
            return
        self._looking = self.loop.call_later(_LOOK_S, self._look_for_slow)
