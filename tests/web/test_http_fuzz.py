"""Wardkey and h11 parse the same requests from the same bytes, however they are split."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.server import Server, running

HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES = st.one_of(
    st.sampled_from([b"", b"{}", HIDDEN, HIDDEN * 4, b"\r\n\r\n" * 30, b"0\r\n\r\n" + HIDDEN]),
    st.binary(max_size=200),
)
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE"])
PATHS = st.sampled_from([b"/healthz", b"/v2/keys", b"/v2/keys/verify", b"/nowhere"])
FIELDS = st.lists(
    st.sampled_from(
        [
            b"Connection: Upgrade\r\nUpgrade: h2c",
            b"Connection: upgrade, keep-alive\r\nUpgrade: websocket",
            b"Upgrade: foo",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Accept: text/html",
            b"Content-Type: application/json",
            b"X-Long: " + b"a" * 300,
            b"Host: y",
            b"Transfer-Encoding: gzip",
            b"Content-Length: 7",
            b"X-Odd : a",
            b"X-Bare: a\rb",
            b"Trailer: a",
        ]
    ),
    max_size=3,
)
FRAMINGS = st.sampled_from(["length", "chunked", "none"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method, path, body, framing = draw(METHODS), draw(PATHS), draw(BODIES), draw(FRAMINGS)
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: x", *draw(FIELDS)]
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    else:
        lines.append(b"Transfer-Encoding: chunked")
        sizes = draw(st.lists(st.integers(1, 60), max_size=4))
        body = chunked(body, sizes, draw(st.sampled_from([b"", b"T: v\r\n", b"Host: z\r\n" * 9])))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, sizes: list[int], trailers: bytes) -> bytes:
    parts = []
    for size in [*sizes, max(len(body), 1)]:
        part, body = body[:size], body[size:]
        if part:
            parts.append(b"%x;a=b\r\n%b\r\n" % (len(part), part))
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def is_framed_twice(request: bytes) -> bool:
    """Return whether a head has two lengths; h11 uses one, RFC 9112 lets a server reject it."""
    head = request.partition(b"\r\n\r\n")[0]
    return len(re.findall(rb"\r\n(?:Content-Length|Transfer-Encoding):", head)) > 1


def counted_by_h11(data: bytes) -> int:
    """Return the number of whole requests h11 parses before an error or the end."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=65_536)
    connection.receive_data(data)
    connection.receive_data(b"")
    count = 0
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return count
        if isinstance(event, h11.EndOfMessage):
            count += 1
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return count
            connection.start_next_cycle()
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed | type(h11.NEED_DATA)):
            return count


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


@given(st.lists(requests(), min_size=1, max_size=5), st.lists(st.integers(1, 400), max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_wardkey_answers_as_many_requests_as_h11_parses(
    single: Server, pieces: list[bytes], cuts: list[int]
) -> None:
    data = rest = b"".join(pieces) + LAST
    parts = urlsplit(single.url)
    received = b""
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for size in cuts:
                sock.sendall(rest[:size])
                rest = rest[size:]
            sock.sendall(rest)
            while part := sock.recv(65_536):
                received += part
        except ConnectionError:
            pass
    count = len(re.findall(rb"HTTP/1\.1 \d{3} ", received))
    refused = b'"code":"invalid_http"' in received
    until = next((i for i, piece in enumerate(pieces) if is_framed_twice(piece)), len(pieces) + 1)
    assert count - refused == min(counted_by_h11(data), until), received
