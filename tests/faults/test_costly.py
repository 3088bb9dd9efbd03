"""Costly work is bounded: what one caller asks for too much of is refused, and others go on."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.mqtt_wire import CONNECT, Wire, text
from tests.server import Server, running

PASSWORD = "moss on a northern roof"
KEPT_ALIVE_S = 60


@contextmanager
def connections(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Open connections to a server until the block ends."""
    host, _, port = server.url.rpartition("/")[2].rpartition(":")
    lines = [socket.create_connection((host, int(port)), timeout=30) for _ in range(count)]
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


def request_of(method: str, path: str, body: Any = None, **more: str) -> bytes:  # noqa: ANN401 - JSON, or a form's text
    """Return an HTTP request as bytes."""
    is_form = isinstance(body, str)
    sent = b"" if body is None else (body if is_form else json.dumps(body)).encode()
    fields = {"Host": "wardkey", **more}
    if body is not None:
        fields["Content-Type"] = f"application/{'x-www-form-urlencoded' if is_form else 'json'}"
        fields["Content-Length"] = str(len(sent))
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + sent


def send_at_once(lines: list[socket.socket], requests: list[bytes]) -> None:
    """Send every request but its last byte, and then all the last bytes."""
    for line, request in zip(lines, requests, strict=True):
        line.sendall(request[:-1])
    for line, request in zip(lines, requests, strict=True):
        line.sendall(request[-1:])


def answer_of(line: socket.socket) -> tuple[int, str, str]:
    """Return the status, the head and the body of the one answer on a connection."""
    came = b""
    while b"\r\n\r\n" not in came:
        part = line.recv(65_536)
        assert part, came
        came += part
    head, _, body = came.partition(b"\r\n\r\n")
    length = int((re.search(rb"content-length: (\d+)", head) or [b"", b"0"])[1])
    while len(body) < length:
        body += line.recv(65_536)
    return int(head.split()[1]), head.decode().lower(), body.decode()


def peak_mib(server: Server) -> float:
    """Return the most memory that the worker ever had resident, in MiB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int((re.search(r"VmHWM:\s+(\d+) kB", status) or ["", "0"])[1]) / 1024


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one worker behind a proxy, so that requests can come from many addresses."""
    with running(tmp_path_factory.mktemp("alone") / "data", behind_proxy=1) as up:
        up.owner().close()
        yield up


def sign_ins(count: int) -> list[bytes]:
    return [
        request_of(
            "POST",
            "/v2/user-tokens",
            {"email": f"nobody-{n}@acme.example", "password": PASSWORD},
            X_Forwarded_For=f"198.51.100.{n}",
        )
        for n in range(count)
    ]


def pages(count: int) -> list[bytes]:
    return [
        request_of(
            "POST",
            "/sign-in",
            urlencode({"email": f"page-{n}@acme.example", "password": PASSWORD}),
            X_Forwarded_For=f"203.0.113.{n}",
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("ask", [sign_ins, pages])
def test_503_many_sign_ins_at_once_take_bounded_memory_and_hold_up_nobody(
    alone: Server, ask: Callable[[int], list[bytes]]
) -> None:
    before = peak_mib(alone)
    with connections(alone, 80) as lines, alone.client(alone.first_key) as key:
        send_at_once(lines, ask(80))
        began = time.monotonic()
        assert key.get("/v2/organization").status_code == 200
        assert time.monotonic() - began < 3
        answers = [answer_of(line) for line in lines]
    statuses = [status for status, _, _ in answers]
    refused = [(head, body) for status, head, body in answers if status == 503]
    assert statuses.count(401) + len(refused) == 80
    # Two that run and sixteen that wait.
    assert statuses.count(401) >= 18
    assert refused
    if ask is sign_ins:
        assert all("retry-after: " in head for head, _ in refused)
        assert all('"code":"overloaded"' in body for _, body in refused)
    # Two hashes of 64 MiB, where eighty would be 5 GiB.
    assert peak_mib(alone) - before < 300
    # It works again at once, for the same people too.
    with connections(alone, 1) as lines:
        send_at_once(lines, ask(1))
        assert answer_of(lines[0])[0] == 401


def test_a_guessed_link_costs_no_hash(alone: Server) -> None:
    paths = ("/v2/setup", "/v2/invitations/accept")
    requests = [
        request_of(
            "POST",
            paths[n % 2],
            {"token": "0" * 43, "password": PASSWORD},
            X_Forwarded_For=f"192.0.2.{n}",
        )
        for n in range(80)
    ]
    with connections(alone, 80) as lines:
        send_at_once(lines, requests)
        # More than the gate has places for, so each would be refused if it were hashed.
        assert {answer_of(line)[0] for line in lines} == {401}


def test_many_wrong_mqtt_logins_do_not_keep_out_a_right_one_nor_hold_up_the_api(
    start: Callable[..., Server],
) -> None:
    server = start(no_messaging=0)
    with server.client(server.first_key) as key:
        made = key.post("/v2/clients", json={"username": "agent", "password": PASSWORD})
        assert made.status_code == 201, made.text
        right = made.json()["client"]["mqtt_username"]
        wires = [Wire(server) for _ in range(150)]
        for number, wire in enumerate(wires):
            connect(wire, right.replace("agent", f"nobody-{number}"), f"wrong {number}")
        other = Wire(server, "127.0.0.2")
        connect(other, right, PASSWORD)
        began = time.monotonic()
        assert key.get("/v2/organization").status_code == 200
        assert time.monotonic() - began < 1.5
        accepted = other.read()
        assert accepted is not None
        assert accepted.body[1] == 0
        for wire in (*wires, other):
            wire.socket.close()


def connect(wire: Wire, username: str, password: str) -> None:
    """Send a CONNECT and do not wait for its answer."""
    flags = bytes([0b1100_0010])
    body = text("MQTT") + bytes([4]) + flags + KEPT_ALIVE_S.to_bytes(2, "big")
    wire.send(CONNECT, body + text(username[:20]) + text(username) + text(password))
