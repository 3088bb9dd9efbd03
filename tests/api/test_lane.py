"""The fast path answers like the framework, and handles malformed requests safely."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.server import Server

# Parts of a response that differ each time, from the fast path and the framework alike.
VOLATILE = re.compile(
    rb'req_[0-9a-f]{16}|"as_of":"[^"]+"|"(remaining|reset_s|retry_after_s)":[0-9.]+'
    rb"|(?<=;r=)\d+|(?<=;t=)\d+|(?<=retry-after: )\d+"
)


class Wire:
    """A raw connection that sends bytes and reads whole responses."""

    def __init__(self, server: Server) -> None:
        parts = urlsplit(server.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=15)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers in lower case and body of the next response."""
        line = self.file.readline()
        assert line, "the server closed the connection"
        status = int(line.split()[1])
        fields: dict[str, str] = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()
        if status == 100:
            return self.answer()
        return status, fields, self.file.read(int(fields.get("content-length", "0")))

    def closed(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    made = Wire(server)
    yield made
    made.close()


@pytest.fixture(scope="module")
def secrets(server: Server) -> dict[str, str]:
    """Issue a key of each kind that a request can present."""
    with server.owner() as owner:

        def issue(name: str, **more: object) -> str:
            made = owner.post("/v2/keys", json={"name": name, "type": "secret"} | more)
            assert made.status_code == 201, made.text
            return str(made.json()["secret"])

        texts = {
            "first": server.first_key,
            "plain": issue("live-lane-plain"),
            "narrow": issue("live-lane-narrow", permissions=["keys:read"]),
            "address": issue("live-lane-address", allowed_addresses=["192.0.2.1"]),
            "page": issue(
                "live-lane-page", type="publishable", allowed_origins=["https://a.example"]
            ),
            "meta": issue("live-lane-méta", metadata={"plan": ["pro", {"n": 1}], "n": 1}),
            "gone": issue("live-lane-gone"),
            "limited": issue(
                "live-lane-limited", rate_limit={"limit": 900, "period_s": 1, "burst": 900}
            ),
        }
        key_id = next(
            k["id"]
            for k in owner.get("/v2/keys", params={"search": "live-lane-gone"}).json()["keys"]
        )
        owner.post(f"/v2/keys/{key_id}/revoke")
    texts["mistyped"] = texts["plain"][:-1] + ("a" if texts["plain"][-1] != "a" else "b")
    texts["noise"] = "not a key"
    texts["user"] = "ut_nobody"
    return texts


NAMES = (
    "first", "plain", "narrow", "address", "page", "meta", "gone", "limited", "mistyped", "noise",
    "user",
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Origin",
            "Sec-Fetch-Site",
            "User-Agent",
            "wardkey-api-key",
            "X-Forwarded-For",
            "Access-Control-Request-Method",
            "X-Forwarded-Method",
            "X-API-Key",
            "Wardkey-Organization",
            "Wardkey-Environment",
        ]
    ),
    st.sampled_from(
        [
            "other",
            "test",
            "https://a.example",
            "cross-site",
            "probe/1",
            "192.0.2.1",
            "x" * 300,
            "{plain}",
            "{page}",
            "OPTIONS",
        ]
    ),
    max_size=3,
)
# How a client presents its credential; `user` and `password` are Basic pairs with the key.
FORMS = st.sampled_from(
    ["Authorization: Bearer {key}", "Authorization: bearer  {key} ", "Authorization: {key}",
     "Authorization: Basic {user}", "Authorization: Basic {password}", "Authorization: Token {key}",
     "Authorization: Basic !", "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
     "Wardkey-Api-Key: {key}", "Wardkey-Api-Key: {key}\r\nAuthorization: Bearer e.y.J",
     "Wardkey-Api-Key: {key}\r\nAuthorization: Bearer {key}",
     "Authorization: Bearer {key}\r\nAuthorization: Bearer {plain}",
     'Authorization: Bearer "{key}"', "Authorization: Bearer Bearer {key}"]
)  # fmt: skip
ORDINARY = st.one_of(st.just("Authorization: Bearer {key}"), FORMS)


def presented(form: str, headers: dict[str, str], secrets: dict[str, str], caller: str) -> str:
    """Return headers that present a credential in the given form, plus the given headers."""
    lines = form + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    key = secrets[caller]
    for name, text in {
        **secrets,
        "key": key,
        "user": base64.b64encode(f"{key}:".encode()).decode(),
        "password": base64.b64encode(f"me:{key}".encode()).decode(),
    }.items():
        lines = lines.replace(f"{{{name}}}", text)
    return lines


BODIES = st.one_of(
    st.fixed_dictionaries(
        {"key": st.sampled_from(NAMES)},
        optional={
            "permissions": st.sampled_from(
                [[], ["keys:read"], ["invoices:read"], ["nope"], ["keys:burn"]]
            ),
            "environment": st.sampled_from(["live", "test", "moon"]),
            "type": st.sampled_from(["secret", "publishable"]),
            "address": st.sampled_from(["192.0.2.1", "198.51.100.7", "no address"]),
            "origin": st.sampled_from(["https://a.example", "https://b.example"]),
            "cost": st.sampled_from([0, 1, -1, 10**7, "1"]),
            "organization": st.sampled_from(["", "acme", "other"]),
            "unknown": st.just(1),
        },
    ).map(json.dumps),
    st.sampled_from(
        ["", "{", "[]", "null", '{"key":1}', '{"items":[]}', '{"items":[{"key":"x"}]}']
    ),
)
QUERIES = st.sampled_from(
    ["", "?organization=acme", "?organization=other", "?environment=test", "?type=publishable",
     "?organization=any", "?organization=any&type=publishable", "?organization=",
     "?permission=keys:read", "?permission=invoices:read", "?permission=nope",
     "?organisation=acme", "?environment=moon",
     "?browser=allow", "?browser=allow&type=publishable", "?preflight=x-forwarded-method",
     "?organization=acme&organization=other", "?organization=acme&path=/x?organization=other",
     "?path=/x?key={plain}&environment=test"]
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(server: Server) -> Iterator[Wire]:
    """Keep one connection for all fast-path requests, so its caches stay filled."""
    made = Wire(server)
    yield made
    made.close()


def both_ways(server: Server, kept: Wire, head: str, body: bytes) -> None:
    """Compare the fast path's response with the framework's, which handles chunked bodies.

    The fast path gets three requests: parsed, with a cached caller, with a known head.
    """
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    responses = [plain(kept, request) for _ in range(3)]
    framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    wire = Wire(server)
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + framed + b"0\r\n\r\n"
    assert responses == [plain(wire, chunked)] * 3
    wire.close()


def plain(wire: Wire, data: bytes) -> tuple[int, set[str], bytes]:
    """Return the response without the parts that differ each time."""
    wire.send(data)
    status, fields, body = wire.answer()
    told_fields = {
        VOLATILE.sub(b"", f"{name}: {value}".encode()).decode()
        for name, value in fields.items()
        if name not in ("date", "content-length", "connection")
    }
    return status, told_fields, VOLATILE.sub(b"", body)


@given(st.sampled_from(NAMES), HEADERS, BODIES, st.sampled_from(["application/json", "text/plain"]),
       st.sampled_from(["verify", "verify-batch"]), ORDINARY)  # fmt: skip
@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_verify_gets_the_same_response_from_the_fast_path_and_the_framework(
    server: Server,
    kept: Wire,
    secrets: dict[str, str],
    caller: str,
    headers: dict[str, str],
    body: str,
    kind: str,
    route: str,
    form: str,
) -> None:
    for name, text in secrets.items():
        body = body.replace(f'"key": "{name}"', f'"key": {json.dumps(text)}')
    head = (
        f"POST /v2/keys/{route} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"{presented(form, headers, secrets, caller)}"
    )
    both_ways(server, kept, head, body.encode())


@given(st.sampled_from(NAMES), HEADERS, QUERIES, ORDINARY)
@settings(
    max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_forward_auth_gets_the_same_response_from_the_fast_path_and_the_framework(
    server: Server,
    kept: Wire,
    secrets: dict[str, str],
    shown: str,
    headers: dict[str, str],
    query: str,
    form: str,
) -> None:
    fields = presented(form, headers, secrets, shown)
    query = query.replace("{plain}", secrets["plain"])
    head = f"GET /v2/auth{query} HTTP/1.1\r\nHost: x\r\n{fields}"
    both_ways(server, kept, head, b"")


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def request(server: Server, *fields: str, version: str = "1.1") -> bytes:
    head = f"GET /v2/auth HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n"
    return (head + "".join(f"{field}\r\n" for field in fields) + "\r\n").encode()


def test_pipelined_requests_are_answered_in_order(server: Server, wire: Wire) -> None:
    slow = f"GET /v2/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n\r\n"
    wire.send(request(server) + slow.encode() + request(server) + HEALTH)
    responses = [wire.answer() for _ in range(4)]
    assert [status for status, _, _ in responses] == [200, 200, 200, 200]
    assert "wardkey-verdict" in responses[0][1]
    assert b'"keys"' in responses[1][2]
    assert "wardkey-verdict" in responses[2][1]
    assert b'"ok"' in responses[3][2]


def test_a_known_head_with_another_body_is_answered_as_if_parsed(
    server: Server, secrets: dict[str, str], wire: Wire
) -> None:
    head = (
        f"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n"
        "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    )
    right = json.dumps({"key": secrets["plain"]})
    mistyped = json.dumps({"key": secrets["mistyped"]})
    broken = right[:-1] + " "
    requests = {
        text: head.format(len(text)).encode() + text.encode() for text in (right, mistyped, broken)
    }
    for _ in range(3):
        wire.send(requests[right])
        assert json.loads(wire.answer()[2])["code"] == "valid"
    wire.send(requests[mistyped])
    assert json.loads(wire.answer()[2])["code"] == "malformed"
    wire.send(requests[broken])
    assert json.loads(wire.answer()[2])["code"] == "malformed_json"
    # Two at once, and one in two parts, the first as long as a whole request.
    wire.send(requests[right] * 2)
    assert [wire.answer()[0] for _ in range(2)] == [200, 200]
    wire.send(requests[right] + requests[mistyped][:-20])
    assert json.loads(wire.answer()[2])["code"] == "valid"
    wire.send(requests[mistyped][-20:])
    assert json.loads(wire.answer()[2])["code"] == "malformed"
    wire.send(requests[right])
    assert json.loads(wire.answer()[2])["code"] == "valid"


def test_a_connection_in_use_is_not_closed_as_idle(server: Server, wire: Wire) -> None:
    """The framework closes connections idle for 5 s; fast-path requests count as use too."""
    body = json.dumps({"key": server.first_key})
    request = (
        f"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    for data in (request, request, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        wire.send(data)
        assert wire.answer()[0] == 200
    end = time.monotonic() + 6
    while time.monotonic() < end:
        wire.send(request)
        assert wire.answer()[0] == 200
        time.sleep(0.2)


def test_bytes_sent_one_by_one_form_one_request(server: Server, wire: Wire) -> None:
    for byte in request(server):
        wire.send(bytes([byte]))
    assert wire.answer()[0] == 200


@pytest.mark.parametrize(
    ("version", "fields"),
    [("1.0", ()), ("1.0", ("Connection: keep-alive",)), ("1.1", ("Connection: close",))],
)
def test_the_connection_closes_on_request(
    server: Server, wire: Wire, version: str, fields: tuple[str, ...]
) -> None:
    wire.send(request(server, *fields, version=version))
    status, headers, _ = wire.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert wire.closed()


def test_expect_is_answered_before_the_body_is_sent(server: Server, wire: Wire) -> None:
    body = json.dumps({"key": server.first_key}).encode()
    wire.send(
        f"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Expect: 100-continue\r\n\r\n".encode()
    )
    assert wire.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert wire.file.readline() == b"\r\n"
    wire.send(body)
    assert wire.answer()[0] == 200


def test_an_endless_head_is_rejected_with_431(wire: Wire) -> None:
    wire.send(b"GET /v2/auth HTTP/1.1\r\nX-Long: ")
    for _ in range(80):
        try:
            wire.send(b"a" * 1024)
        except OSError:
            break
    status, _, body = wire.answer()
    assert (status, json.loads(body)["code"]) == (431, "headers_too_large")
    assert wire.closed()


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"],
)
def test_bytes_that_are_not_http_are_rejected_with_400(wire: Wire, noise: bytes) -> None:
    wire.send(noise)
    status, _, body = wire.answer()
    assert (status, json.loads(body)["code"]) == (400, "invalid_http")
    assert wire.closed()


def test_a_body_over_the_limit_is_rejected_with_413(server: Server, wire: Wire) -> None:
    wire.send(
        f"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n".encode()
    )
    status, _, body = wire.answer()
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")


def test_a_connections_cached_caller_is_not_reused_for_another_credential(
    secrets: dict[str, str], wire: Wire
) -> None:
    """The connection caches its last caller; each request is verified by its own credential."""
    for name, expected in (("first", 200), ("gone", 401), ("first", 200), ("mistyped", 401)):
        head = f"GET /v2/auth HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secrets[name]}\r\n\r\n"
        wire.send(head.encode())
        assert wire.answer()[0] == expected


def test_a_cached_caller_is_rejected_once_revoked(server: Server, wire: Wire) -> None:
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-lane-caller", "type": "secret",
                                            "permissions": ["keys:verify"]}).json()  # fmt: skip
        body = json.dumps({"key": server.first_key})
        ask = (
            "POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {made['secret']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        for _ in range(3):
            wire.send(ask)
            assert wire.answer()[0] == 200
        owner.post(f"/v2/keys/{made['key']['id']}/revoke")
        wire.send(ask)
        assert wire.answer()[0] == 401


def test_a_revoked_caller_is_rejected_even_after_another_key_used_the_connection(
    server: Server, secrets: dict[str, str], wire: Wire
) -> None:
    with server.owner() as owner:
        fields = {"name": "live-lane-between", "type": "secret", "permissions": ["keys:verify"]}
        made = owner.post("/v2/keys", json=fields).json()
        body = json.dumps({"key": server.first_key})
        ask = (
            "POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {made['secret']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        credential = f"Authorization: Bearer {secrets['plain']}"
        other = f"GET /v2/auth HTTP/1.1\r\nHost: x\r\n{credential}\r\n\r\n"
        for data in (ask, other.encode(), ask, other.encode()):
            wire.send(data)
            assert wire.answer()[0] == 200
        owner.post(f"/v2/keys/{made['key']['id']}/revoke")
        wire.send(ask)
        status, _, content = wire.answer()
    assert (status, json.loads(content)["code"]) == (401, "revoked")


def test_a_second_credential_is_ambiguous_even_if_the_first_is_cached(
    server: Server, secrets: dict[str, str], wire: Wire
) -> None:
    body = json.dumps({"key": secrets["plain"]})
    for extra, expected in (("", 200), (f"Authorization: Bearer {secrets['plain']}\r\n", 400)):
        wire.send(
            "POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {server.first_key}\r\n{extra}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        status, _, content = wire.answer()
        assert status == expected, content
