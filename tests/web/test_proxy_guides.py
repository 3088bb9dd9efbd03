"""The configuration blocks of the proxy guide, run unchanged by real proxies."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.support.ports import free_ports
from tests.support.proxies import running_proxy
from tests.support.server import OWNER, PASSWORD, Server, running, wait_until

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "proxies.md").read_text()
KINDS = ("nginx", "caddy", "traefik")
LANGUAGES = {"nginx": "nginx", "caddy": "caddyfile", "traefik": "yaml"}
ID = "org_0fA3xQ2LmN7pR9sT1uV4wY"
IDENTITY = (
    "Wardkey-Verdict", "Wardkey-Key-Id", "Wardkey-Kid", "Wardkey-Key-Name", "Wardkey-Key-Type",
    "Wardkey-Environment", "Wardkey-Organization", "Wardkey-Organization-Slug",
    "Wardkey-Permissions", "Wardkey-Expires-At",
)  # fmt: skip
# Clients have another address than the proxy, to tell the two apart.
CLIENT = "127.0.0.2"
PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}


def block(kind: str, number: int) -> str:
    """Return one of the guide's blocks for a kind of proxy."""
    return str(re.findall(rf"```{LANGUAGES[kind]}\n(.*?)```", GUIDE, re.DOTALL)[number])


def settings(kind: str, text: str, port: int, host: str, folder: Path) -> str:
    """Return a block with the settings around it that it needs to run on a port without TLS."""
    if kind == "caddy":
        opened = text.replace(f"{host} {{", f"http://{host}:{port} {{\n\tbind 127.0.0.1", 1)
        return "{\n\tadmin off\n\tauto_https off\n}\n" + opened
    if kind == "traefik":
        return text.replace("      tls: {}\n", "")
    plain = re.sub(r"\n *ssl_certificate.*;", "", text)
    plain = plain.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in names)
    return (
        f"daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log off; {paths}\n{plain}\n}}\n"
    )


@dataclass
class Upstream:
    """A service that echoes the request it got; `seen` counts requests."""

    seen: list[str] = field(default_factory=list)
    netloc: str = ""

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        seen = self.seen

        class Echo(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                seen.append(self.command)
                if self.headers.get("Upgrade", "").lower() == "websocket":
                    self.send_response(101)
                    self.send_header("Upgrade", "websocket")
                    self.send_header("Connection", "Upgrade")
                    self.end_headers()
                    self.wfile.write(self.rfile.read(4))
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length", "0"))
                echo = {
                    "method": self.command,
                    "path": self.path,
                    "body": len(self.rfile.read(length)),
                    "fields": self.headers.items(),
                }
                body = json.dumps(echo).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
            setattr(Echo, f"do_{method}", Echo.answer)
        return Echo


@dataclass
class Gate:
    """A proxy in front of the service that authenticates requests with the deployment."""

    url: str
    server: Server
    upstream: Upstream

    def client(self, key: str = "", **more: str) -> httpx.Client:
        fields = {"Host": "api.example.com"} | more
        if key:
            fields["Authorization"] = f"Bearer {key}"
        transport = httpx.HTTPTransport(local_address=CLIENT)
        return httpx.Client(base_url=self.url, headers=fields, transport=transport, timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with running(folder, behind_proxy=1, trusted_proxies="127.0.0.1") as up:
        up.owner().close()
        made = up.cli("org", "create", "Beta", "--owner", "owner@beta.example")
        assert made.returncode == 0, made.stderr
        yield up


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), made.handler)
    made.netloc = f"127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield made
    httpd.shutdown()
    httpd.server_close()


def organization(server: Server) -> str:
    with server.client(server.first_key) as client:
        return str(client.get("/v2/organization").json()["id"])


def open_gate(
    stack: ExitStack,
    kind: str,
    server: Server,
    upstream: Upstream,
    folder: Path,
    terms: str = "",
    wardkey: str = "",
) -> Gate:
    """Run the first block of a kind, with more parameters in its URL."""
    (port,) = free_ports(1)
    text = block(kind, 0)
    assert text.count(ID) == text.count("127.0.0.1:9000") == text.count("127.0.0.1:8787") == 1
    text = text.replace(f"organization={ID}", f"organization={organization(server)}{terms}")
    text = text.replace("127.0.0.1:9000", upstream.netloc)
    text = text.replace("127.0.0.1:8787", wardkey or urlsplit(server.url).netloc)
    made = settings(kind, text, port, "api.example.com", folder)
    url = stack.enter_context(running_proxy(kind, made, port, folder))
    gate = Gate(url, server, upstream)
    with gate.client() as client:
        # Traefik listens before it has read its routes.
        wait_until(lambda: "404 page not found" not in client.get("/").text)
    return gate


@pytest.fixture(scope="module", params=KINDS)
def gate(
    request: pytest.FixtureRequest,
    server: Server,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gate]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp(request.param)
        yield open_gate(stack, request.param, server, upstream, folder)


def made(server: Server, **spec: object) -> dict[str, str]:
    """Issue a key; return its id and secret."""
    number = made.count = getattr(made, "count", 0) + 1  # type: ignore[attr-defined]
    body = {"name": f"live-proxied-{number}", "type": "secret", "permissions": ["keys:verify"]}
    with server.owner() as owner:
        answer = owner.post("/v2/keys", json=body | spec)
    assert answer.status_code == 201, answer.text
    return {"id": answer.json()["key"]["id"], "secret": answer.json()["secret"]}


def cgi(answer: httpx.Response) -> dict[str, list[str]]:
    """Return the headers that reached the service, by their CGI and WSGI names."""
    headers: dict[str, list[str]] = {}
    for name, value in answer.json()["fields"]:
        headers.setdefault(re.sub(r"[^A-Z0-9]", "_", name.upper()), []).append(value)
    return headers


def spellings(name: str) -> Iterator[str]:
    """Return a header's name in every mix of hyphens, underscores and dots."""
    parts = name.split("-")
    for marks in product("-_.", repeat=len(parts) - 1):
        spelled = "".join(a + b for a, b in zip(parts, (*marks, ""), strict=True))
        yield from (spelled, spelled.lower(), spelled.upper())


def test_a_valid_key_passes_with_its_identity_and_without_the_secret(gate: Gate) -> None:
    key = made(gate.server)
    for fields in ({"Authorization": f"Bearer {key['secret']}"},
                   {"Wardkey-Api-Key": key["secret"]}):  # fmt: skip
        with gate.client(**fields) as client:
            answer = client.get("/orders/7?x=1")
        assert answer.status_code == 200, answer.text
        assert answer.json()["path"] == "/orders/7?x=1"
        seen = cgi(answer)
        assert seen["WARDKEY_KEY_ID"] == [key["id"]]
        assert seen["WARDKEY_VERDICT"] == ["valid"]
        assert seen["WARDKEY_ORGANIZATION"] == [organization(gate.server)]
        assert seen["WARDKEY_PERMISSIONS"] == ["keys:verify"]
        assert key["secret"] not in answer.text
        assert seen["X_FORWARDED_FOR"] == [CLIENT]


def test_no_spelling_of_an_identity_header_reaches_the_service(gate: Gate) -> None:
    key = made(gate.server)
    forged = [(spelling, "forged") for name in IDENTITY for spelling in spellings(name)]
    for start in range(0, len(forged), 40):
        with gate.client(key["secret"]) as client:
            fields = [*client.headers.items(), *forged[start : start + 40]]
            answer = client.get("/", headers=fields)
        assert answer.status_code == 200, answer.text
        assert "forged" not in answer.text
        assert cgi(answer)["WARDKEY_KEY_ID"] == [key["id"]]


def test_rejections_keep_their_status_and_never_reach_the_service(gate: Gate) -> None:
    revoked = made(gate.server)
    with gate.server.owner() as owner:
        assert owner.post(f"/v2/keys/{revoked['id']}/revoke").status_code == 200
    elsewhere = made(gate.server, allowed_addresses=["203.0.113.7"])
    before = len(gate.upstream.seen)
    cases = [
        ({}, 401, "missing_credentials"),
        ({"Authorization": "Bearer nonsense"}, 401, "malformed"),
        ({"Authorization": f"Bearer {revoked['secret']}"}, 401, "revoked"),
        ({"Authorization": f"Bearer {elsewhere['secret']}"}, 403, "address_not_allowed"),
        ({"Authorization": f"Bearer {elsewhere['secret']}", "X-Forwarded-For": "203.0.113.7",
          "X-Real-Ip": "203.0.113.7", "Forwarded": "for=203.0.113.7"}, 403,
         "address_not_allowed"),
    ]  # fmt: skip
    for fields, status, code in cases:
        for method in ("GET", "POST"):
            with gate.client(**fields) as client:
                answer = client.request(method, "/", content=b"x" if method == "POST" else None)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            if status == 401:
                assert len(answer.headers.get_list("www-authenticate")) == 1
    assert len(gate.upstream.seen) == before


def test_the_clients_own_address_is_checked(gate: Gate) -> None:
    here = made(gate.server, allowed_addresses=[CLIENT])
    with gate.client(here["secret"]) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 200


def test_a_rate_limit_is_429_with_retry_after(gate: Gate) -> None:
    limited = made(gate.server, rate_limit={"limit": 1, "period_s": 60, "burst": 1})
    with gate.client(limited["secret"]) as client:
        assert client.get("/").status_code == 200
        answer = client.get("/")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(answer.headers["retry-after"]) <= 60


def test_bodies_of_any_size_and_every_method_reach_the_service(gate: Gate) -> None:
    key = made(gate.server)
    with gate.client(key["secret"]) as client:
        for size in (1, 5_000_000):
            for method in ("POST", "PUT"):
                answer = client.request(method, "/upload", content=b"x" * size)
                assert answer.status_code == 200, answer.text
                assert (answer.json()["method"], answer.json()["body"]) == (method, size)
        assert client.head("/").status_code == 200
        # Chunked, without a length; proxies may forward it either way.
        assert client.post("/", content=iter([b"x" * 100_000] * 3)).status_code == 200


def test_a_websocket_opens_through_the_proxy_only_with_a_key(gate: Gate) -> None:
    key = made(gate.server)
    parts = urlsplit(gate.url)
    assert parts.hostname
    for credential, status in (
        (f"Authorization: Bearer {key['secret']}\r\n", b"101"),
        ("", b"401"),
    ):
        with socket.create_connection(
            (parts.hostname, parts.port or 80), timeout=10, source_address=(CLIENT, 0)
        ) as sock:
            sock.sendall(
                "GET /socket HTTP/1.1\r\nHost: api.example.com\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{credential}\r\n".encode()
            )
            with sock.makefile("rb") as file:
                assert file.readline().split()[1] == status
                if status == b"101":
                    while file.readline() != b"\r\n":
                        pass
                    sock.sendall(b"ping")
                    assert file.read(4) == b"ping"


def test_only_a_preflight_passes_without_a_key(gate: Gate) -> None:
    with gate.client() as client:
        passed = client.options("/", headers=PREFLIGHT)
        assert passed.status_code == 200, passed.text
        assert cgi(passed)["WARDKEY_VERDICT"] == ["preflight"]
        assert set(cgi(passed).get("WARDKEY_KEY_ID", [""])) == {""}
        claimed = {"X-Forwarded-Method": "OPTIONS", "X-Original-Method": "OPTIONS"}
        for method in ("GET", "POST"):
            assert client.request(method, "/", headers=PREFLIGHT | claimed).status_code == 401
        assert client.options("/").status_code == 401


def test_a_secret_key_from_a_browser_is_rejected(gate: Gate) -> None:
    with gate.client(made(gate.server)["secret"]) as client:
        assert client.get("/", headers={"Origin": "https://a.example"}).status_code == 403


@pytest.mark.parametrize("kind", KINDS)
def test_the_url_can_require_permissions(
    kind: str, server: Server, upstream: Upstream, tmp_path: Path
) -> None:
    right = made(server, permissions=["keys:verify", "keys:read"])
    with ExitStack() as stack:
        gate = open_gate(stack, kind, server, upstream, tmp_path, "&permission=keys:read")
        for key, status in ((right, 200), (made(server), 403)):
            with gate.client(key["secret"]) as client:
                assert client.get("/").status_code == status


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_while_wardkey_is_down_or_the_url_is_wrong(
    kind: str, server: Server, upstream: Upstream, tmp_path: Path
) -> None:
    (closed,) = free_ports(1)
    before = len(upstream.seen)
    key = made(server)
    with ExitStack() as stack:
        down = open_gate(stack, kind, server, upstream, tmp_path, wardkey=f"127.0.0.1:{closed}")
        with down.client(key["secret"]) as client:
            assert client.get("/").status_code >= 500
            assert client.options("/", headers=PREFLIGHT).status_code >= 500
    with ExitStack() as stack:
        wrong = open_gate(stack, kind, server, upstream, tmp_path, "x")
        with wrong.client(key["secret"]) as client:
            answer = client.get("/")
        assert answer.status_code == (503 if kind == "nginx" else 404)
    assert len(upstream.seen) == before


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run the second block, with Wardkey itself behind it."""
    folder = tmp_path_factory.mktemp("front")
    (port,) = free_ports(1)
    text = block(request.param, 1).replace("127.0.0.1:8787", urlsplit(server.url).netloc)
    made = settings(request.param, text, port, "keys.example.com", folder)
    with running_proxy(request.param, made, port, folder) as url:
        yield url


def test_the_block_for_wardkey_itself_serves_users_and_keys_but_not_proxies(
    front: str, server: Server
) -> None:
    port = urlsplit(front).port
    with httpx.Client(base_url=front, headers={"Host": f"keys.example.com:{port}"}) as client:
        headers = {"Authorization": f"Bearer {server.first_key}"}
        assert client.get("/v2/keys", headers=headers).status_code == 200
        for path in ("/v2/auth", "/v2/auth/", "/v2/auth/x", "/v2/auth?organization=acme"):
            assert client.get(path, headers=headers).status_code == 404
            assert "wardkey-verdict" not in client.get(path, headers=headers).headers
        form = {"email": OWNER, "password": PASSWORD}
        for origin, status in ((f"http://keys.example.com:{port}", 303),
                               ("https://evil.example", 403)):  # fmt: skip
            answer = client.post("/sign-in", data=form, headers={"Origin": origin})
            assert answer.status_code == status, answer.text


def test_signing_in_works_behind_an_nginx_that_sends_its_own_host(
    server: Server, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    text = block("nginx", 1).replace("127.0.0.1:8787", urlsplit(server.url).netloc)
    text = re.sub(r"\n *proxy_set_header (Host|X-Forwarded-Host) .*;", "", text)
    made = settings("nginx", text, port, "keys.example.com", tmp_path)
    form = {"email": OWNER, "password": PASSWORD}
    fields = {"Host": "keys.example.com", "Origin": "https://keys.example.com"}
    with (
        running_proxy("nginx", made, port, tmp_path) as url,
        httpx.Client(base_url=url, headers=fields) as client,
    ):
        # A browser sends Sec-Fetch-Site only over TLS or to loopback.
        sent = client.post("/sign-in", data=form, headers={"Sec-Fetch-Site": "same-origin"})
        assert sent.status_code == 303, sent.text
        crossed = client.post("/sign-in", data=form, headers={"Sec-Fetch-Site": "cross-site"})
        assert crossed.status_code == 403
        plain = client.post("/sign-in", data=form)
        assert plain.status_code == 403
        assert "proxy_set_header Host" in plain.text
        assert "--public-url" in plain.text
