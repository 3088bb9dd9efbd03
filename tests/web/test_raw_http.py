"""Raw bytes get exactly the expected responses, in number and status, and nothing after them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.support.proxies import KINDS, proxy_in_front
from tests.support.server import Server, running

# One route of the framework, one of the fast path.
ROUTES = ("/healthz", "/v2/auth")
LAST = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GET = b"GET @ HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"

OWN = b"GET /v2/organization HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%\r\n"

# Bytes and the statuses of their responses. `@` is the route, `%` its credential. A closing
# request for /readyz follows each: its 200 at the end shows that the connection was in sync.
EXCHANGES: dict[str, tuple[bytes, list[int]]] = {
    "one": (GET + b"%\r\n", [200, 200]),
    "three": ((GET + b"%\r\n") * 3, [200, 200, 200, 200]),
    "blank lines before it": (b"\r\n\r\n" + GET + b"%\r\n", [200, 200]),
    "HEAD": (b"HEAD @ HTTP/1.1\r\nHost: x\r\n%\r\n", [200, 200]),
    "after close": (GET + b"%Connection: close\r\n\r\n" + GET + b"%\r\n", [200]),
    "after close among others": (GET + b"%Connection: TE, close\r\n\r\n", [200]),
    "after HTTP/1.0": (b"GET @ HTTP/1.0\r\n%\r\n" + GET + b"%\r\n", [200]),
    "after HTTP/1.0 that stays": (b"GET @ HTTP/1.0\r\n%Connection: keep-alive\r\n\r\n", [200]),
    "no host": (b"GET @ HTTP/1.1\r\n%\r\n", [400]),
    "two hosts": (GET + b"Host: y\r\n%\r\n", [400]),
    "the same host twice": (GET + b"Host: x\r\n%\r\n", [400]),
    "empty host": (b"GET @ HTTP/1.1\r\nHost:\r\n%\r\n", [400]),
    "host with a path": (b"GET @ HTTP/1.1\r\nHost: x/y\r\n%\r\n", [400]),
    "host with a user": (b"GET @ HTTP/1.1\r\nHost: a@x\r\n%\r\n", [400]),
    "host list": (b"GET @ HTTP/1.1\r\nHost: x y\r\n%\r\n", [400]),
    "host with a port": (b"GET @ HTTP/1.1\r\nHost: x.example:8787\r\n%\r\n", [200, 200]),
    "IPv6 host": (b"GET @ HTTP/1.1\r\nHost: [::1]:8787\r\n%\r\n", [200, 200]),
    "absolute form": (b"GET http://x@ HTTP/1.1\r\nHost: x\r\n%\r\n", [200, 200]),
    "absolute form, port": (b"GET http://X:80@ HTTP/1.1\r\nHost: x\r\n%\r\n", [200, 200]),
    "absolute form, other host": (b"GET http://y@ HTTP/1.1\r\nHost: x\r\n%\r\n", [400]),
    "absolute form, other port": (b"GET http://x:81@ HTTP/1.1\r\nHost: x\r\n%\r\n", [400]),
    "absolute form, a user": (b"GET http://x@x@ HTTP/1.1\r\nHost: x@x\r\n%\r\n", [400]),
    "absolute form, other scheme": (b"GET ftp://x@ HTTP/1.1\r\nHost: x\r\n%\r\n", [400]),
    "no path": (b"GET x HTTP/1.1\r\nHost: x\r\n%\r\n", [400]),
    "HTTP/0.9": (b"GET @\r\n\r\n", [400]),
    "HTTP/1.2": (b"GET @ HTTP/1.2\r\nHost: x\r\n%\r\n", [400]),
    "HTTP/2.0": (b"GET @ HTTP/2.0\r\nHost: x\r\n%\r\n", [400]),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + GET + b"%\r\n", [400]),
    "bare LF": (b"GET @ HTTP/1.1\nHost: x\n%\n", [400]),
    "bare CR": (b"GET @ HTTP/1.1\r\nHost: x\rX: y\r\n%\r\n", [400]),
    "NUL in a field": (GET + b"X: a\0b\r\n%\r\n", [400]),
    "folded field": (GET + b"X: a\r\n b\r\n%\r\n", [400]),
    "space before a colon": (GET + b"X : a\r\n%\r\n", [400]),
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\x01", [400]),
    "noise after an answer": (GET + b"%\r\n\x16\x03\x01" + LAST, [200, 400]),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", [400]),
    "the same length twice": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", [400]),
    "length list": (POST + b"Content-Length: 2, 2\r\n\r\n{}", [400]),
    "length with a sign": (POST + b"Content-Length: +2\r\n\r\n{}", [400]),
    "negative length": (POST + b"Content-Length: -2\r\n\r\n{}", [400]),
    "hexadecimal length": (POST + b"Content-Length: 0x2\r\n\r\n{}", [400]),
    "empty length": (POST + b"Content-Length:\r\n\r\n{}", [400]),
    "length and coding": (
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        [400],
    ),
    "other coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [400]),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n{}", [400]),
    "chunked, then another": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", [400]),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", [400]),
    "chunked, misspelled": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", [400]),
    "chunked in HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n", [400]),
    "chunks": (CHUNKED + b"1\r\n{\r\n1;a=b\r\n}\r\n0\r\n\r\n", [401, 200]),
    "chunk size that is not a number": (CHUNKED + b"x\r\n{}\r\n0\r\n\r\n" + GET + b"%\r\n", [400]),
    "chunk longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n" + GET + b"%\r\n", [400]),
    "chunk size without bound": (CHUNKED + b"f" * 20 + b"\r\n{}", [400]),
    "credential in a trailer": (
        CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: Bearer !\r\n\r\n",
        [401, 200],
    ),
    "many trailers": (CHUNKED + b"0\r\n" + b"a: b\r\n" * 150_000, [431]),
    "a trailer without end": (CHUNKED + b"0\r\na: " + b"b" * 900_000, [431]),
    "a chunk extension without end": (CHUNKED + b"1;" + b"b" * 900_000, [431]),
    "a head without end": (GET + b"X: " + b"b" * 100_000, [431]),
    "a long head": (GET + b"X: " + b"b" * 70_000 + b"\r\n\r\n" + GET + b"%\r\n", [431]),
    "blank lines without end": (b"\r\n" * 50_000, [431]),
    "length, no body, on forward-auth": (
        b"GET /v2/auth HTTP/1.1\r\nHost: x\r\n%Content-Length: 11\r\n\r\n",
        [200],
    ),
    "body on forward-auth": (
        b"GET /v2/auth HTTP/1.1\r\nHost: x\r\n%Content-Length: 11\r\n\r\nhello world" + GET,
        [200],
    ),
    "chunks on forward-auth": (
        b"GET /v2/auth HTTP/1.1\r\nHost: x\r\n%Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
        [200],
    ),
    "empty body on forward-auth": (
        b"GET /v2/auth HTTP/1.1\r\nHost: x\r\n%Content-Length: 0\r\n\r\n",
        [200, 200],
    ),
    "body too large": (POST + b"Content-Length: 2000000\r\n\r\n" + GET + b"%\r\n", [413]),
    "NUL in the path, with a body": (
        b"POST /a%00b HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n".replace(b"%", b"\x25")
        + b"x" * 40,
        [404, 200],
    ),
    "offer of an upgrade": (GET + b"%" + UPGRADE + b"\r\n", [200, 200]),
    "offer in HTTP/1.0": (b"GET @ HTTP/1.0\r\n%" + UPGRADE + b"\r\n" + GET + b"%\r\n", [200]),
    "offer and close": (
        GET + b"%Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET + b"%\r\n",
        [200],
    ),
    "offer and another host": (GET + b"Host: y\r\n" + UPGRADE + b"\r\n" + GET + b"%\r\n", [400]),
    "offer, length and coding": (
        POST + UPGRADE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [400],
    ),
    "offer with chunks and trailers": (
        POST + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n",
        [401, 200],
    ),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


@pytest.fixture(scope="module")
def proxies(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("proxies")
        yield {
            kind: stack.enter_context(proxy_in_front(kind, single.url, folder / kind))
            for kind in KINDS
        }


def filled(server: Server, data: bytes, route: str) -> bytes:
    credential = b"Authorization: Bearer " + server.first_key.encode() + b"\r\n"
    marked = data.replace(b"!", server.first_key.encode()).replace(b"%\r\n", credential + b"\r\n")
    marked = re.sub(rb"%(?=[A-Z])", lambda _: credential, marked)
    return marked.replace(b"@", route.encode(), marked.count(b"@") if b"x@x" not in data else 0)


def answers(url: str, data: bytes, timeout_s: float = 10) -> bytes:
    """Send bytes and return everything received until the server closes or goes silent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as sock:
        sock.settimeout(timeout_s)
        received = []
        try:
            sock.sendall(data)
            while part := sock.recv(65_536):
                received.append(part)
        except (ConnectionError, TimeoutError):
            pass
        return b"".join(received)


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_raw_bytes_get_exactly_the_expected_responses(
    single: Server, name: str, route: str
) -> None:
    data, expected = EXCHANGES[name]
    assert statuses(answers(single.url, filled(single, data, route) + LAST)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_sent_through_a_proxy_never_change_another_clients_response(
    single: Server, proxies: dict[str, str], kind: str
) -> None:
    """The proxy keeps one connection to the server and reuses it for the next client's request."""
    for name, (data, _) in EXCHANGES.items():
        for route in ROUTES:
            answers(proxies[kind], filled(single, data, route) + LAST, 0.3)
            own = answers(proxies[kind], filled(single, OWN, route))
            assert statuses(own) == [200], (name, route, own)
            assert b'"slug":"acme"' in own, (name, route, own)


def test_an_earlier_request_is_answered_before_the_next_one_is_rejected(single: Server) -> None:
    slow = f"GET /v2/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {single.first_key}\r\n\r\n"
    received = answers(single.url, slow.encode() + b"noise\r\n\r\n" + LAST)
    assert statuses(received) == [200, 400]
    assert received.index(b'"keys"') < received.index(b'"invalid_http"')


def test_a_client_that_sends_a_large_body_can_read_the_rejection(single: Server) -> None:
    """Closing while bytes are unread resets the connection, and the answer may be lost."""
    head = b"POST /v2/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n"
    received = answers(single.url, head + b"x" * 4_000_000)
    assert statuses(received) == [413]
    assert b'"body_too_large"' in received
