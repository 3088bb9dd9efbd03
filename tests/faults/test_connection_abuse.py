"""Clients that send endlessly or never read use little memory and delay no other client."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.server import Server, running, wait_until
from tests.web.test_smuggling import read_answer

MIB = 1_048_576
CHUNKED = (
    b"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


def memory(server: Server) -> int:
    """Return the resident memory of the only worker in bytes."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2)


def flood(server: Server, head: bytes, repeated: bytes, most: int) -> int:
    """Send until done, disconnected or the server stops reading; return the bytes sent."""
    block = repeated * (65_536 // len(repeated) + 1)
    sent = 0
    with closing(connect(server)) as sock, suppress(OSError):
        sock.sendall(head)
        while sent < most:
            sock.sendall(block)
            sent += len(block)
        # The server must have processed the data before memory is measured.
        with suppress(TimeoutError):
            sock.recv(1)
    return sent


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "trailers": (CHUNKED + b"0\r\n", b"a1: xxxxxxxx\r\n"),
    "one trailer": (CHUNKED + b"0\r\na: ", b"x" * 100),
    "chunk extensions": (CHUNKED + b"1;", b"x" * 100),
    "small chunks": (CHUNKED, b"1\r\n \r\n"),
    "a head": (b"GET /healthz HTTP/1.1\r\nX: ", b"x" * 100),
    "header fields": (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n"),
    "a target": (b"GET /", b"x" * 100),
    "blank lines": (b"", b"\r\n" * 50),
    "requests to the framework": (b"", b"GET /healthz HTTP/1.1\r\nHost:x\r\n\r\n"),
    "requests to the lane": (b"", b"GET /v2/auth HTTP/1.1\r\nHost:x\r\n\r\n"),
    "bodies": (b"", b"POST /healthz HTTP/1.1\r\nHost:x\r\nContent-Length:1\r\n\r\n "),
    "a body": (CHUNKED, b"ffff\r\n%b\r\n" % (b" " * 0xFFFF)),
    "what follows a refusal": (b"noise\r\n\r\n", b"x" * 100),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_on_one_connection_stays_within_a_few_mebibytes(single: Server, name: str) -> None:
    head, repeated = FLOODS[name]
    before = memory(single)
    flood(single, head, repeated, 40 * MIB)
    assert memory(single) - before < 24 * MIB
    with single.client(single.first_key) as client:
        assert client.get("/v2/organization").status_code == 200


def test_idle_connections_stay_open_longer_than_client_pools_keep_them(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """Client pools keep connections for up to 90 s and notice a closed one late."""
    short = start(tmp_path / "short", workers=1, keep_alive=5)
    usual = start(tmp_path / "usual", workers=1)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with closing(connect(short)) as one, closing(connect(usual)) as other:
        for sock in (one, other):
            sock.sendall(request)
            assert read_answer(sock) == (200, b'{"status":"ok"}')
        one.settimeout(15)
        assert one.recv(1) == b""
        other.sendall(request)
        assert read_answer(other) == (200, b'{"status":"ok"}')


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_a_client_that_reads_nothing_is_disconnected(single: Server) -> None:
    with closing(connect(single)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(TimeoutError):
            while True:
                sock.sendall(b"GET /v2/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        began = time.monotonic()

        def is_reset() -> bool:
            try:
                return sock.send(b"x") < 0
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_reset, 60)
        assert 25 < time.monotonic() - began < 50
