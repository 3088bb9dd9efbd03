"""One HTTP/1.1 connection: where a request begins and ends, decided before any route sees it.

Requests that parsers read in different ways are refused (RFC 9112 §11.2), and what follows a
refusal, a `Connection: close` or an unread body is never parsed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from wardkey.domain.errors import (
    HeadersTooLarge,
    InternalError,
    InvalidHttp,
    RequestTimeout,
    WardkeyError,
)
from wardkey.web.request_head import MOST_HEAD, check_head, head_size, origin_form

log = logging.getLogger(__name__)

SLOW_S = 30.0
# How long what a client still sends is dropped, so that it can read why it was refused.
LINGER_S = 2.0
_LOOK_S = 5.0
_END_OF_HEAD = b"\r\n\r\n"
# Requests shorter than this are parsed a few at a time.
_LEAST_SLICE = 64
_BODY_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"expect"})


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds, which keeps in step with the client or closes.

    One request is answered at a time: what follows it on the connection waits unparsed.
    """

    # When the request that is being received began, and since when nothing was received or sent.
    _begun: float | None = None
    _idle_since: float | None = None
    _stalled_since: float | None = None
    _closing_since: float | None = None
    # Bytes after a request that has no answer yet, and how many of them were parsed already.
    _held = b""
    _held_start = 0
    # Nothing more is parsed; a refusal waits for answers that are due before it.
    _ended = False
    _refusal: WardkeyError | None = None
    _in_head = False
    _drops_body = False
    _lingers = False
    _shuts_down = False
    _offers_upgrade = False
    # Whether the bytes parsed last completed a head or held a part of a body, and how many did not.
    _progressed = False
    _idle_bytes = 0
    _fed = 0
    # Of the head that was checked last: its fields by name, and whether it announces a body.
    named: dict[bytes, bytes]
    has_body = False
    _version = "1.1"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's signature
        super().__init__(*args, **kwargs)
        self.parser = self._new_parser()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Take a new connection."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._idle_since = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_S, self._look_for_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection."""
        self._looking.cancel()
        if self._lingers:
            self._lingering.cancel()
        self.end_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, or hold it while an earlier request has no answer."""
        if self._ended:
            return
        if self._held:
            # The transport had read this before it was paused.
            self._held, self._held_start = self._held[self._held_start :] + data, 0
        else:
            self._receive(data)

    def pause_writing(self) -> None:
        """Note since when the client reads nothing."""
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        super().resume_writing()
        self._stalled_since = None

    def on_message_begin(self) -> None:
        """Begin a request; the framework's scope is made only if it is needed."""
        if self._ended:
            return
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._begun = self.loop.time()
        self._idle_since = None

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        if not self._ended:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field; those that come after the body (trailers) are dropped."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head and take the request, unless it has to be parsed again."""
        self._in_head = False
        self._progressed = True
        self._offers_upgrade = self.parser.should_upgrade()
        if self._offers_upgrade or self._ended:
            return
        if self._fed > MOST_HEAD and head_size(self.url, self.headers) > MOST_HEAD:
            self.refuse(HeadersTooLarge())
            return
        try:
            self._version = self.parser.get_http_version()
            self.named = dict(self.headers)
            self.has_body = check_head(self._version, self.headers, self.named)
            if not self.url.startswith(b"/"):
                self.url = origin_form(self.url, self.headers)
            self.take_request()
        except WardkeyError as failure:
            self.refuse(failure)
        except httptools.HttpParserInvalidURLError:
            self.refuse(InvalidHttp())

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._progressed = True
        if not self._ended:
            self.take_body(body)

    def on_message_complete(self) -> None:
        """End the request, and the reading with it where the client sends no other."""
        self._progressed = True
        if self._offers_upgrade or self._ended:
            return
        self._begun = None
        self._ended = self._version == "1.0" or not self.parser.should_keep_alive()
        self.complete_request()

    def on_response_complete(self) -> None:
        """Go on with what waited for this answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._lingers:
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self.refuse(self._refusal)
            return
        elif self.cycle.more_body:
            # The rest of the body has no use, and reading it would have no bound.
            self.close_gently()
            return
        self.proceed()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Refuse bytes that are not HTTP."""
        self.refuse(InvalidHttp())

    def shutdown(self) -> None:
        """Close when the request that is being answered has its answer."""
        self._shuts_down = True
        super().shutdown()

    def take_request(self) -> None:
        """Handle a head that was checked; the framework does unless a subclass knows better."""
        self.hand_to_framework()

    def take_body(self, body: bytes) -> None:
        """Handle a part of the body."""
        super().on_body(body)

    def complete_request(self) -> None:
        """Handle the end of a request."""
        super().on_message_complete()

    def write_refusal(self, failure: WardkeyError) -> None:
        """Answer with `failure`."""
        raise NotImplementedError

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes wait unparsed for an answer."""
        return bool(self._held)

    @property
    def is_answering(self) -> bool:
        """Whether an earlier request of this connection has no complete answer yet."""
        # uvicorn's annotation leaves out that there is none before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def is_free(self) -> bool:
        """Whether an answer can be written now: none is due before it, and the client reads."""
        return (
            not self.is_answering and not self.flow.write_paused and not self.transport.is_closing()
        )

    def drop_body(self) -> None:
        """Answer the request without its body and close: the body may never come."""
        self._drops_body = True
        self.headers = [field for field in self.headers if field[0] not in _BODY_FIELDS]
        self.named = dict(self.headers)
        self.end_reading()

    def end_reading(self) -> None:
        """Parse nothing more of this connection."""
        self._ended = True
        self._begun = None
        self._held = b""

    def hand_to_framework(self) -> None:
        """Let uvicorn start the application on this request."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        if self._drops_body:
            self.cycle.keep_alive = False
            super().on_message_complete()
        self.cycle.transport = cast("Any", _LingeringTransport(self))

    def proceed(self) -> None:
        """Go on after an answer: with what was held meanwhile, or idle."""
        if self._ended:
            if not self.is_answering:
                self.close_gently()
            return
        held, self._held = self._held, b""
        if held:
            self._receive(held, self._held_start)
        self.flow.resume_reading()
        if self._begun is None and not self.is_answering:
            self._idle_since = self.loop.time()

    def refuse(self, failure: WardkeyError) -> None:
        """Answer `failure` after the answers that are due before it, and close."""
        self.end_reading()
        if self.transport.is_closing() or self._lingers:
            return
        if self.pipeline:
            if self.cycle.more_body:
                self.pipeline.popleft()
            self._refusal = failure
            return
        if self.is_answering:
            if not self.cycle.more_body:
                self._refusal = failure
                return
            # The request that is refused had begun; its application is told that it broke off.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self.write_refusal(failure)
        self.close_gently()

    def close_gently(self) -> None:
        """Close once the client has, or after a while: a reset could discard the answer."""
        self.end_reading()
        if self.transport.is_closing() or self._lingers:
            return
        if self._shuts_down or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingers = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._lingering = self.loop.call_later(LINGER_S, self.transport.close)

    def _receive(self, data: bytes, start: int = 0) -> None:
        """Parse bytes up to a request that has to wait for an answer; hold the rest."""
        size = len(data)
        while start < size and not self._ended and not self.transport.is_closing():
            if self.pipeline or (self._begun is None and self.is_answering):
                self._held, self._held_start = data, start
                self.flow.pause_reading()
                return
            end = _slice_end(data, start)
            start += self._feed(data if end - start == size else data[start:end])

    def _feed(self, data: bytes) -> int:
        """Parse bytes; return how many of them were used."""
        self._progressed = False
        self._fed = self._idle_bytes + len(data)
        used = self._parse(data)
        self._idle_bytes = 0 if self._progressed else self._fed
        if self._idle_bytes > MOST_HEAD and not self._ended:
            self.refuse(HeadersTooLarge())
        return used

    def _parse(self, data: bytes) -> int:
        """Feed the parser, refuse what it refuses; return how many bytes were used.

        httptools takes the body of a request that offers an upgrade for bytes of another protocol
        (Kludex/uvicorn#2722), so its head is parsed again without the offer (RFC 9110 §7.8).
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as signal:
            used: int = signal.args[0]
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be handled")
            self.refuse(InternalError())
            return len(data)
        except httptools.HttpParserError:
            if not self._ended:
                self.refuse(InvalidHttp())
            return len(data)
        else:
            return len(data)
        if self.parser.get_method() == b"CONNECT":
            self.refuse(InvalidHttp("CONNECT is not served; send the request itself."))
        elif not self._ended:
            head = self._head_without_offer()
            self.parser = self._new_parser()
            self._parse(head)
        return used

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # uvicorn lets requests after `Connection: close` through; RFC 9112 §9.6 forbids it.
        parser.set_dangerous_leniencies(lenient_data_after_close=False)
        return parser

    def _head_without_offer(self) -> bytes:
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        return b"".join([line, *fields, b"\r\n"])

    def _look_for_slow(self) -> None:
        """Close a connection that is idle, or whose client sends or reads too slowly.

        One look in five seconds costs less than a timer for each answer.
        """
        now = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_S, self._look_for_slow)
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > SLOW_S:
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since > SLOW_S:
            self.transport.abort()
        elif self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        elif self._begun is not None and now - self._begun > SLOW_S:
            self.refuse(RequestTimeout())


class _Flow(FlowControl):
    """Flow control that reads nothing while bytes are held, though an application asks for more."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if not self._connection.holds_bytes:
            super().resume_reading()


class _LingeringTransport:
    """What a framework's answer is written to; the client may send more while it is closed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        """Close after an answer that the client can read to its end."""
        self._connection.close_gently()


def _slice_end(data: bytes, start: int) -> int:
    """Return where to stop parsing, so that few requests are parsed before the first is answered.

    A request's end is not known before it is parsed, but each head ends with an empty line.
    """
    end = data.find(_END_OF_HEAD, start + _LEAST_SLICE)
    if end < 0 or data.find(_END_OF_HEAD, end + 4) < 0:
        return len(data)
    return end + 4
