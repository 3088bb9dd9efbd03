"""HTTP/1.1 connections: finds where each request begins and ends, before any route sees it.

Requests that parsers could read in different ways are refused (RFC 9112 §11.2). Nothing is parsed
after a refusal, a `Connection: close` or an unread body.
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
from wardkey.web.request_head import MAX_HEAD, check_head, head_size, origin_form

log = logging.getLogger(__name__)

SLOW_S = 30.0
# How long further input is discarded before closing, so the client can read the response.
_LAST_REQUEST_S = 0.5
LINGER_S = 2.0
_TIMEOUT_CHECK_S = 5.0
_END_OF_HEAD = b"\r\n\r\n"
# Requests shorter than this are parsed a few at a time.
_MIN_SLICE = 64
_BODY_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"expect"})


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits on time and size.

    It answers one request at a time; pipelined requests wait unparsed.
    """

    # Times of the event loop; the first is when the request being received began.
    _receiving_since: float | None = None
    _idle_since: float | None = None
    _stalled_since: float | None = None
    _closing_since: float | None = None
    # Bytes received after an unanswered request, and how many of them are already parsed.
    _buffered = b""
    _buffered_start = 0
    # Nothing more is parsed; a refusal waits until earlier requests are answered.
    _reading_ended = False
    _refusal: WardkeyError | None = None
    _in_head = False
    _drops_body = False
    _lingers = False
    _shuts_down = False
    _offers_upgrade = False
    # Whether the last bytes completed a head or contained part of a body, how many bytes in a row
    # did neither, and the size of the head so far.
    _progressed = False
    _idle_bytes = 0
    _fed_bytes = 0
    # The last head: its fields by name, and whether it announces a body.
    named: dict[bytes, bytes]
    has_body = False
    _version = "1.1"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's signature
        super().__init__(*args, **kwargs)
        self.parser = self._new_parser()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's transports
        """Set up a new connection."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._idle_since = self.loop.time()
        self._timeout_check = self.loop.call_later(_TIMEOUT_CHECK_S, self._check_timeouts)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release a closed connection."""
        self._timeout_check.cancel()
        if self._lingers:
            self._linger_end.cancel()
        self.end_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, or buffer it while an earlier request is unanswered."""
        if self._reading_ended:
            return
        if self._buffered:
            # The transport had already read this when it was paused.
            self._buffered, self._buffered_start = self._buffered[self._buffered_start :] + data, 0
        else:
            self._receive(data)

    def pause_writing(self) -> None:
        """Record when the client stopped reading."""
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """Record that the client is reading again."""
        super().resume_writing()
        self._stalled_since = None

    def on_message_begin(self) -> None:
        """Begin a request; the framework's scope is created only if needed."""
        if self._reading_ended:
            return
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._receiving_since = self.loop.time()
        self._idle_since = None

    def on_url(self, url: bytes) -> None:
        """Append a part of the request target."""
        if not self._reading_ended:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Append a header; trailers, which come after the body, are dropped."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head and start the request, unless the head must be parsed again."""
        self._in_head = False
        self._progressed = True
        self._offers_upgrade = self.parser.should_upgrade()
        if self._offers_upgrade or self._reading_ended:
            return
        if self._fed_bytes > MAX_HEAD and head_size(self.url, self.headers) > MAX_HEAD:
            self.refuse(HeadersTooLarge())
            return
        try:
            self._version = self.parser.get_http_version()
            self.named = dict(self.headers)
            self.has_body = check_head(self._version, self.headers, self.named)
            if not self.url.startswith(b"/"):
                self.url = origin_form(self.url, self.headers)
            self.take_request()
        except WardkeyError as error:
            self.refuse(error)
        except httptools.HttpParserInvalidURLError:
            self.refuse(InvalidHttp())

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._progressed = True
        if not self._reading_ended:
            self.take_body(body)

    def on_message_complete(self) -> None:
        """Complete the request; stop reading if the client will not send another."""
        self._progressed = True
        if self._offers_upgrade or self._reading_ended:
            return
        self._receiving_since = None
        self._reading_ended = self._version == "1.0" or not self.parser.should_keep_alive()
        self.complete_request()

    def on_response_complete(self) -> None:
        """Continue with the requests that waited for this response."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._lingers:
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self.refuse(self._refusal)
            return
        elif self.cycle.more_body:
            # Reading the rest of an unused body could take forever.
            self.close_gently()
            return
        self.proceed()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Refuse bytes that are not HTTP."""
        self.refuse(InvalidHttp())

    def shutdown(self) -> None:
        """Close after the current request is answered.

        An idle connection may send one more: its client may be writing a request, the first one
        on a connection that was just accepted.
        """
        self._shuts_down = True
        if not self.is_answering:
            self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self._receiving_since is None and not self.is_answering:
            self.transport.close()

    def take_request(self) -> None:
        """Handle a checked head: pass it to the framework, unless a subclass overrides this."""
        self.hand_to_framework()

    def take_body(self, body: bytes) -> None:
        """Handle a part of the body."""
        super().on_body(body)

    def complete_request(self) -> None:
        """Handle the end of a request."""
        super().on_message_complete()

    def write_refusal(self, error: WardkeyError) -> None:
        """Write the response for `error`."""
        raise NotImplementedError

    @property
    def has_buffered_bytes(self) -> bool:
        """Whether unparsed bytes wait until a request is answered."""
        return bool(self._buffered)

    @property
    def is_answering(self) -> bool:
        """Whether an earlier request of this connection is not completely answered yet."""
        # uvicorn's annotation omits that it is None before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def is_free(self) -> bool:
        """Whether a response can be written now: no other is due first, and the client reads."""
        return (
            not self.is_answering and not self.flow.write_paused and not self.transport.is_closing()
        )

    def drop_body(self) -> None:
        """Answer the request without its body, which may never come, and close."""
        self._drops_body = True
        self.headers = [field for field in self.headers if field[0] not in _BODY_FIELDS]
        self.named = dict(self.headers)
        self.end_reading()

    def end_reading(self) -> None:
        """Stop parsing this connection's input."""
        self._reading_ended = True
        self._receiving_since = None
        self._buffered = b""

    def hand_to_framework(self) -> None:
        """Let uvicorn run the application for this request."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        if self._drops_body or self._shuts_down:
            self.cycle.keep_alive = False
        if self._drops_body:
            super().on_message_complete()
        self.cycle.transport = cast("Any", _LingeringTransport(self))

    def proceed(self) -> None:
        """Continue after a response: parse the buffered bytes, or become idle."""
        if self._reading_ended:
            if not self.is_answering:
                self.close_gently()
            return
        buffered, self._buffered = self._buffered, b""
        if buffered:
            self._receive(buffered, self._buffered_start)
        self.flow.resume_reading()
        if self._receiving_since is None and not self.is_answering:
            self._idle_since = self.loop.time()

    def refuse(self, error: WardkeyError) -> None:
        """Send `error` after the responses that are due before it, and close."""
        self.end_reading()
        if self.transport.is_closing() or self._lingers:
            return
        if self.pipeline:
            if self.cycle.more_body:
                self.pipeline.popleft()
            self._refusal = error
            return
        if self.is_answering:
            if not self.cycle.more_body:
                self._refusal = error
                return
            # The application already handles the refused request; signal that it was cut short.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self.write_refusal(error)
        self.close_gently()

    def close_gently(self) -> None:
        """Close after the client does, or after `LINGER_S`: a reset could discard the response."""
        self.end_reading()
        if self.transport.is_closing() or self._lingers:
            return
        if self._shuts_down or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingers = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_end = self.loop.call_later(LINGER_S, self.transport.close)

    def _receive(self, data: bytes, start: int = 0) -> None:
        """Parse bytes up to a request that must wait for a response; buffer the rest."""
        size = len(data)
        while start < size and not self._reading_ended and not self.transport.is_closing():
            if self.pipeline or (self._receiving_since is None and self.is_answering):
                self._buffered, self._buffered_start = data, start
                self.flow.pause_reading()
                return
            end = _slice_end(data, start)
            start += self._feed(data if end - start == size else data[start:end])

    def _feed(self, data: bytes) -> int:
        """Parse bytes; return the number used."""
        self._progressed = False
        self._fed_bytes = self._idle_bytes + len(data)
        used = self._parse(data)
        self._idle_bytes = 0 if self._progressed else self._fed_bytes
        if self._idle_bytes > MAX_HEAD and not self._reading_ended:
            self.refuse(HeadersTooLarge())
        return used

    def _parse(self, data: bytes) -> int:
        """Feed the parser, and refuse what it rejects; return the number of bytes used.

        httptools treats the body of a request that offers an upgrade as another protocol
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
            if not self._reading_ended:
                self.refuse(InvalidHttp())
            return len(data)
        else:
            return len(data)
        if self.parser.get_method() == b"CONNECT":
            self.refuse(InvalidHttp("CONNECT is not supported; send the request itself."))
        elif not self._reading_ended:
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

    def _check_timeouts(self) -> None:
        """Close a connection that is idle, or whose client sends or reads too slowly.

        A check every five seconds costs less than a timer for each response.
        """
        now = self.loop.time()
        self._timeout_check = self.loop.call_later(_TIMEOUT_CHECK_S, self._check_timeouts)
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > SLOW_S:
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since > SLOW_S:
            self.transport.abort()
        elif self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        elif self._receiving_since is not None and now - self._receiving_since > SLOW_S:
            self.refuse(RequestTimeout())


class _Flow(FlowControl):
    """Flow control that doesn't resume reading while bytes are buffered."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if not self._connection.has_buffered_bytes:
            super().resume_reading()


class _LingeringTransport:
    """The transport for the framework's responses; closing it lets the client read to the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        """Close so that the client can read the whole response."""
        self._connection.close_gently()


def _slice_end(data: bytes, start: int) -> int:
    """Return where to stop parsing, to parse few requests before the first is answered.

    The end of a request is unknown until it is parsed, but each head ends with an empty line.
    """
    end = data.find(_END_OF_HEAD, start + _MIN_SLICE)
    if end < 0 or data.find(_END_OF_HEAD, end + 4) < 0:
        return len(data)
    return end + 4
