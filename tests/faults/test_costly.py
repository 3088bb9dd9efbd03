"""Expensive work is bounded: excess requests of one caller are refused without harming others."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from select import select
from struct import pack
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx
import pytest

from tests.support.mqtt import connected
from tests.support.mqtt_wire import CONNECT, Wire, text, wired
from tests.support.server import OWNER, Server, running, wait_until
from tests.support.server import PASSWORD as SERVER_PASSWORD
from wardkey.actions.core.audit import Target, record
from wardkey.config import load_config
from wardkey.db.engine import Transaction
from wardkey.deployment import open_deployment
from wardkey.domain.principal import Principal, operator

PASSWORD = "moss on a northern roof"
KEPT_ALIVE_S = 60
API_EXPORT = "/v2/audit-events/export"
EVENTS = 4_000


@contextmanager
def connections(server: Server, count: int, buffer: int = 0) -> Iterator[list[socket.socket]]:
    """Open connections until the block ends; the kernel buffers `buffer` unread bytes for each."""
    host, _, port = server.url.rpartition("/")[2].rpartition(":")
    lines = [socket.socket() for _ in range(count)]
    try:
        for line in lines:
            if buffer:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            line.settimeout(30)
            line.connect((host, int(port)))
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
    """Send every request except its last byte, then all last bytes at once."""
    for line, request in zip(lines, requests, strict=True):
        line.sendall(request[:-1])
    for line, request in zip(lines, requests, strict=True):
        line.sendall(request[-1:])


def answer_of(line: socket.socket) -> tuple[int, str, str]:
    """Return the status, head and body of the only response on a connection."""
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
    """Return the worker's peak resident memory in MiB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int((re.search(r"VmHWM:\s+(\d+) kB", status) or ["", "0"])[1]) / 1024


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one worker behind a proxy, so requests can come from many addresses."""
    with running(
        tmp_path_factory.mktemp("alone") / "data", behind_proxy=1, private_issuers=1
    ) as up:
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
def test_503_many_sign_ins_at_once_use_bounded_memory_and_delay_no_other_request(
    alone: Server, ask: Callable[[int], list[bytes]]
) -> None:
    before = peak_mib(alone)
    with connections(alone, 60) as lines, alone.client(alone.first_key) as key:
        send_at_once(lines, ask(60))
        began = time.monotonic()
        assert key.get("/v2/organization").status_code == 200
        assert time.monotonic() - began < 10
        answers = [answer_of(line) for line in lines]
    statuses = [status for status, _, _ in answers]
    refused = [(head, body) for status, head, body in answers if status == 503]
    assert statuses.count(401) + len(refused) == 60
    # Two running and sixteen waiting.
    assert statuses.count(401) >= 18
    assert refused
    if ask is sign_ins:
        assert all("retry-after: " in head for head, _ in refused)
        assert all('"code":"overloaded"' in body for _, body in refused)
    # Two hashes of 64 MiB, where sixty would be nearly 4 GiB.
    assert peak_mib(alone) - before < 300
    # Sign-in works again at once, for the same people too.
    with connections(alone, 1) as lines:
        send_at_once(lines, ask(1))
        assert answer_of(lines[0])[0] == 401


def test_a_guessed_link_does_not_trigger_hashing(alone: Server) -> None:
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
        # More than there are slots, so each would be refused if it needed hashing.
        assert {answer_of(line)[0] for line in lines} == {401}


def test_many_wrong_mqtt_logins_block_neither_a_right_one_nor_the_api(
    start: Callable[..., Server],
) -> None:
    server = start(no_messaging=0)
    with server.client(server.first_key) as key:
        made = key.post("/v2/clients", json={"username": "agent", "password": PASSWORD})
        assert made.status_code == 201, made.text
        right = made.json()["client"]["mqtt_username"]
        # A busy machine may be too slow once; clients retry.
        assert any(
            logs_in_among_wrong_ones(server, right, f"127.0.1.{attempt}", key)
            for attempt in range(1, 5)
        )


def logs_in_among_wrong_ones(
    server: Server, username: str, attacker: str, key: httpx.Client
) -> bool:
    """Return whether a valid login succeeds after many wrong ones from one address."""
    with ExitStack() as opened:
        wires = [opened.enter_context(wired(server, attacker)) for _ in range(120)]
        other = opened.enter_context(wired(server, "127.0.0.2"))
        for number, wire in enumerate(wires):
            connect(wire, username.replace("agent", f"nobody-{number}"), f"wrong {number}")
        connect(other, username, PASSWORD)
        began = time.monotonic()
        assert key.get("/v2/organization").status_code == 200
        assert time.monotonic() - began < 10
        answer = other.read()
        return answer is not None and answer.body[1] == 0


def connect(wire: Wire, username: str, password: str) -> None:
    """Send a CONNECT without waiting for the response."""
    flags = bytes([0b1100_0010])
    body = text("MQTT") + bytes([4]) + flags + KEPT_ALIVE_S.to_bytes(2, "big")
    wire.send(CONNECT, body + text(username[:20]) + text(username) + text(password))


def test_503_two_provider_tests_at_once_wait_for_a_silent_issuer(
    alone: Server,
) -> None:
    provider = {"kind": "oidc", "name": "slow", "audiences": ["a"], "algorithms": ["RS256"]}
    with socket.create_server(("127.0.0.1", 0)) as issuer, alone.owner() as owner:
        provider["issuer"] = f"http://127.0.0.1:{issuer.getsockname()[1]}"
        token = owner.headers["authorization"]
        ask = request_of(
            "POST", "/v2/auth-providers/test", {"provider": provider}, Authorization=token
        )
        with connections(alone, 20) as lines:
            send_at_once(lines, [ask] * 20)
            answered = wait_for_answers(lines, 18)
            statuses = [answer_of(line)[0] for line in answered]
            assert statuses == [503] * 18
            issuer.close()
            waiting = [line for line in lines if line not in answered]
            assert [answer_of(line)[0] for line in waiting] == [200, 200]
        with connections(alone, 1) as lines:
            send_at_once(lines, [ask])
            assert answer_of(lines[0])[0] == 200


def wait_for_answers(lines: list[socket.socket], count: int) -> list[socket.socket]:
    """Wait until `count` connections have a response, and return these."""
    return wait_until(lambda: ready if len(ready := select(lines, (), (), 0)[0]) >= count else [])


class Tenants:
    """Two organizations on one server; the first has a long audit chain."""

    def __init__(self, server: Server) -> None:
        self.server = server
        done = server.cli_here("org", "create", "Globex", "--owner", "o@globex.example", "--json")
        link = json.loads(done.stdout)["setup_link"].rpartition("/")[2]
        with server.client() as anyone:
            set_up = anyone.post("/v2/setup", json={"token": link, "password": PASSWORD})
        assert set_up.status_code == 201, set_up.text
        with server.client(set_up.json()["token"]) as owner:
            issued = owner.post(
                "/v2/keys", json={"name": "other", "type": "secret", "environment": "live"}
            )
            assert issued.status_code == 201, issued.text
            self.other = issued.json()["secret"]
            made = owner.post("/v2/clients", json={"username": "agent", "password": PASSWORD})
            assert made.status_code == 201, made.text
            self.username = made.json()["client"]["mqtt_username"]
        server.owner().close()
        with server.client() as browser:
            form = {"email": OWNER, "password": SERVER_PASSWORD, "next": "/account"}
            self.cookie = browser.post("/sign-in", data=form).headers["set-cookie"].split(";")[0]
        with server.client(server.first_key) as key:
            org_id = key.get("/v2/organization").json()["id"]
        options = {"data_dir": server.data_dir, "database_url": ""}
        with open_deployment(load_config({}, options)) as runner:
            runner.write(lengthen, replace(operator(), org_id=org_id))

    def requests(self, count: int) -> list[bytes]:
        """Return export requests for the API and, in both formats, for the dashboard."""
        log = "/o/acme/live/audit-log"
        asks = (
            request_of("GET", API_EXPORT, Authorization=f"Bearer {self.server.first_key}"),
            request_of("GET", f"{log}/export.csv", Cookie=self.cookie),
            request_of("GET", f"{log}/export.jsonl", Cookie=self.cookie),
        )
        return [asks[n % 3] for n in range(count)]

    def check_others(self) -> None:
        """Fail if the other organization or the health check has to wait."""
        for _ in range(10):
            # Each on a new connection, so both workers answer.
            with self.server.client(self.other) as other:
                assert other.get("/v2/organization").status_code == 200
                assert other.get("/v2/audit-events").status_code == 200
                assert other.get("/readyz").status_code == 200
        with connected(self.server, self.username, PASSWORD, "agent") as client:
            assert client.code == 0

    def exported(self) -> int:
        """Return the number of lines in a full export; 0 while no slot is free."""
        with self.server.client(self.server.first_key) as key:
            answer = key.get(API_EXPORT)
        assert answer.status_code in {200, 503}, answer.text
        return len(answer.text.splitlines()) if answer.status_code == 200 else 0


def lengthen(tx: Transaction, by: Principal) -> None:
    """Add 16 MB of events, more than the socket buffers hold."""
    for number in range(EVENTS):
        record(tx, by, "test.noted", Target("test", str(number)), {"text": "x" * 4_000})


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    with running(tmp_path_factory.mktemp("tenants") / "data", no_messaging=0, workers=2) as up:
        yield Tenants(up)


def open_slowly(lines: list[socket.socket], requests: list[bytes]) -> list[int]:
    """Request exports and read the first thousand bytes; return the statuses."""
    send_at_once(lines, requests)
    return [int(line.recv(1_000).split()[1]) for line in lines]


def test_many_slow_export_readers_do_not_block_the_database(tenants: Tenants) -> None:
    with connections(tenants.server, 24, buffer=4_096) as lines:
        statuses = open_slowly(lines, tenants.requests(24))
        assert set(statuses) == {200, 503}
        # Two per organization in each of two workers.
        assert statuses.count(200) <= 4
        tenants.check_others()
    # Once they disconnect, every export is complete again.
    for _ in range(4):
        assert wait_until(tenants.exported) > EVENTS


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_aborted_exports_free_their_slots_at_once(tenants: Tenants, *, reset: bool) -> None:
    for _ in range(12):
        with connections(tenants.server, 2, buffer=4_096) as lines:
            open_slowly(lines, tenants.requests(3)[:2])
            if reset:
                for line in lines:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    tenants.check_others()
    for _ in range(4):
        assert wait_until(tenants.exported) > EVENTS


@pytest.mark.parametrize("path", ["/v2/audit-events/verify", "/v2/retained"])
def test_503_expensive_requests_are_limited_and_do_not_delay_others(
    tenants: Tenants, path: str
) -> None:
    ask = request_of("GET", path, Authorization=f"Bearer {tenants.server.first_key}")
    with connections(tenants.server, 16) as lines:
        send_at_once(lines, [ask] * 16)
        tenants.check_others()
        answers = [answer_of(line) for line in lines]
    assert {status for status, _, _ in answers} == {200, 503}
    for status, head, body in answers:
        document = json.loads(body)
        if status == 200:
            assert document.get("holds", True) is True
        else:
            assert document["code"] == "overloaded"
            assert "retry-after: " in head
    with connections(tenants.server, 1) as lines:
        send_at_once(lines, [ask])
        assert answer_of(lines[0])[0] == 200
