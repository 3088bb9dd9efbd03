"""No byte of one request is ever parsed as another, with or without a proxy in front."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.proxies import proxy_in_front
from tests.support.server import Server, running


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one worker, so a proxy's clients share its pool of one connection."""
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


@pytest.fixture(scope="module")
def nginx(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with proxy_in_front("nginx", single.url, tmp_path_factory.mktemp("nginx")) as url:
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=10)


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """Return status and body of one response."""
    with sock.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, file.read(length)


def offering_upgrade(path: str, protocol: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "foo"])
def test_another_client_of_nginx_gets_the_response_to_its_own_request(
    single: Server, nginx: str, protocol: str
) -> None:
    hidden = b"GET /v2/organization HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_live_x\r\n\r\n"
    with connect(nginx) as attacker:
        attacker.sendall(offering_upgrade("/healthz", protocol, b"\r\n" * 60_000 + hidden))
        assert read_answer(attacker)[0] == 405
    for _ in range(3):
        with connect(nginx) as victim:
            victim.sendall(
                b"GET /v2/organization HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                + single.first_key.encode()
                + b"\r\nConnection: close\r\n\r\n"
            )
            status, body = read_answer(victim)
            assert (status, json.loads(body)["name"]) == (200, "Acme")


def test_a_request_hidden_in_a_body_cannot_swallow_the_next_clients_request(
    single: Server, nginx: str
) -> None:
    """The hidden request is sent incomplete: its rest would be the victim's request."""
    hidden = (
        b"POST /v2/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + single.first_key.encode()
        + b'\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"name": "stolen '
    )
    with connect(nginx) as attacker:
        attacker.sendall(offering_upgrade("/healthz", "foo", b"\r\n" * 60_000 + hidden))
        assert read_answer(attacker)[0] == 405
    with connect(nginx) as victim:
        victim.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Secret: s\r\n\r\n")
        assert read_answer(victim) == (200, b'{"status":"ok"}')


FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    "chunked": lambda body: (
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    ),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("protocol", ["h2c", "websocket", "foo"])
@pytest.mark.parametrize("path", ["/healthz", "/v2/keys/verify", "/v2/keys", "/sign-in"])
@pytest.mark.parametrize("cut", ["whole", "after the head", "everywhere"])
def test_a_request_that_offers_an_upgrade_keeps_its_body(
    single: Server, path: str, protocol: str, framing: str, cut: str
) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
    sent = head.encode() + FRAMINGS[framing](hidden)
    after = b"GET /v2/auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    end = sent.index(b"\r\n\r\n") + 4
    parts = {
        "whole": [sent + after],
        "after the head": [sent[:end], sent[end:] + after],
        "everywhere": [(sent + after)[i : i + 1] for i in range(len(sent + after))],
    }[cut]
    with connect(single.url) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
        with sock.makefile("rb") as file:
            answers = file.read()
    assert answers.count(b"HTTP/1.1 ") == 2, answers
    assert b'"code":"missing_credentials"' in answers


def test_an_offer_of_h2c_is_ignored_and_the_body_is_read(single: Server) -> None:
    """Java's default client sends this offer."""
    body = json.dumps({"key": single.first_key}).encode()
    with connect(single.url) as sock:
        for _ in range(3):
            sock.sendall(
                b"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\n"
                b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
                b"Content-Type: application/json\r\nAuthorization: Bearer "
                + single.first_key.encode()
                + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            sock.sendall(body)
            status, response = read_answer(sock)
            assert (status, json.loads(response)["code"]) == (200, "valid")


def test_a_websocket_handshake_on_forward_auth_gets_a_verdict_and_logs_no_warning(
    single: Server,
) -> None:
    with connect(single.url) as sock:
        sock.sendall(
            b"GET /v2/auth HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Authorization: Bearer " + single.first_key.encode() + b"\r\n\r\n"
        )
        assert read_answer(sock)[0] == 200
    assert "upgrade" not in single.output.lower()
