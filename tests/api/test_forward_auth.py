from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.support.server import Server, running, wait_until
from wardkey.domain.errors import InvalidRequest
from wardkey.domain.forward_auth import parse_terms, split_query

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "TRACE")
PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server") / "data") as up:
        made = up.cli("org", "create", "Beta", "--owner", "owner@beta.example")
        assert made.returncode == 0, made.stderr
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def bearer(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.first_key}"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_verified_on_every_path(
    server: Server, client: httpx.Client, method: str
) -> None:
    for url in (
        "/v2/auth?organization=acme",
        "/v2/auth?organization=acme&path=/orders/7?x=1",
        "/v2/auth?organization=acme&path=",
    ):
        taken = client.request(method, url, headers=bearer(server))
        assert (taken.status_code, taken.headers["wardkey-verdict"]) == (200, "valid"), url
        refused = client.request(method, url)
        assert refused.status_code == 401
        assert refused.headers["wardkey-key-id"] == ""
    for url in ("/v2/auth/", "/v2/auth/orders/7?x=1", "/v2/auth//a/../b;c=%2F?x"):
        verdict = client.request(method, url, headers=bearer(server))
        assert verdict.status_code == 400
        assert verdict.headers["wardkey-verdict"] == "organization_required"


@pytest.mark.parametrize(
    "url",
    [
        "/v2/auth/organization=acme",
        "/v2/auth/x?organization=acme",
        "/v2/auth/x&organization=acme",
        "/v2/auth/?organization=acme",
        "/v2/auth/x?path=&organization=acme",
        "/v2/auth?path=/x&organization=acme",
        "/v2/auth?environment=live&path=/x?organization=acme",
    ],
)
def test_the_clients_path_and_query_never_name_the_organization(
    server: Server, client: httpx.Client, url: str
) -> None:
    answer = client.get(url, headers=bearer(server))
    assert answer.headers["wardkey-verdict"] == "organization_required"


def test_a_repeated_parameter_is_rejected(server: Server, client: httpx.Client) -> None:
    answer = client.get("/v2/auth?organization=beta/&organization=acme", headers=bearer(server))
    assert (answer.status_code, answer.headers["wardkey-verdict"]) == (400, "invalid_request")
    with pytest.raises(InvalidRequest):
        parse_terms(b"type=secret&type=secret")


def test_everything_after_the_first_path_parameter_is_the_path() -> None:
    assert split_query(b"a=1&path=/x&path=/y") == (b"a=1", b"/x&path=/y")
    assert split_query(b"path=") == (b"", b"")
    assert split_query(b"xpath=/x") == (b"xpath=/x", b"")


def test_a_keys_routes_are_matched_against_the_original_request(
    server: Server, client: httpx.Client
) -> None:
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-proxy-routes", "type": "secret"}).json()
        headers = {"Authorization": f"Bearer {made['secret']}", "X-Forwarded-Uri": "/forged"}
        client.delete("/v2/auth?organization=acme&path=/orders/7?x=1", headers=headers)

        def routes() -> list[str]:
            kid = made["key"]["secrets"][0]["kid"]
            path = f"/v2/keys/{made['key']['id']}/callers"
            body = owner.get(path, params={"secret": kid}).json()
            return [caller["route"] for caller in body["secrets"][0]["callers"]]

        assert wait_until(routes) == ["DELETE /orders/7"]


def test_a_preflight_passes_only_if_the_proxys_url_allows_it(client: httpx.Client) -> None:
    url = "/v2/auth?organization=acme"
    refused = client.get(url, headers=PREFLIGHT | {"X-Forwarded-Method": "OPTIONS"})
    assert refused.status_code == 401
    assert "preflight=" in refused.json()["detail"]
    passed = client.get(
        f"{url}&preflight=x-forwarded-method", headers=PREFLIGHT | {"X-Forwarded-Method": "OPTIONS"}
    )
    assert (passed.status_code, passed.headers["wardkey-verdict"]) == (200, "preflight")
    assert passed.headers["wardkey-key-id"] == passed.headers["wardkey-organization"] == ""
    own = client.options(f"{url}&preflight=method", headers=PREFLIGHT)
    assert own.headers["wardkey-verdict"] == "preflight"


@pytest.mark.parametrize(
    ("source", "method", "fields"),
    [
        ("x-forwarded-method", "GET", [("X-Forwarded-Method", "GET")]),
        ("x-forwarded-method", "OPTIONS", []),
        ("x-forwarded-method", "GET", [("X-Original-Method", "OPTIONS")]),
        ("x-forwarded-method", "GET",
         [("X-Forwarded-Method", "OPTIONS"), ("X-Forwarded-Method", "POST")]),
        ("x-original-method", "GET", [("X-Forwarded-Method", "OPTIONS")]),
        ("x-original-method", "OPTIONS", [("X-Original-Method", "DELETE")]),
        ("method", "POST", [("X-Forwarded-Method", "OPTIONS"), ("X-Original-Method", "OPTIONS")]),
    ],
)  # fmt: skip
def test_a_method_claimed_by_the_client_grants_no_access(
    client: httpx.Client, source: str, method: str, fields: list[tuple[str, str]]
) -> None:
    answer = client.request(
        method,
        f"/v2/auth?organization=acme&preflight={source}",
        headers=[*PREFLIGHT.items(), *fields],
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("missing", PREFLIGHT)
def test_options_without_preflight_headers_need_a_key(client: httpx.Client, missing: str) -> None:
    fields = {name: value for name, value in PREFLIGHT.items() if name != missing}
    answer = client.options("/v2/auth?organization=acme&preflight=method", headers=fields)
    assert answer.status_code == 401


def test_a_key_sent_with_a_preflight_is_verified(server: Server, client: httpx.Client) -> None:
    wrong = server.first_key[:-1] + ("a" if server.first_key[-1] != "a" else "b")
    answer = client.options(
        "/v2/auth?organization=acme&preflight=method",
        headers=PREFLIGHT | {"Authorization": f"Bearer {wrong}"},
    )
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "fields", [{"Origin": "http://api.internal"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_the_proxys_url_can_allow_browser_requests(
    server: Server, client: httpx.Client, fields: dict[str, str]
) -> None:
    with server.owner() as owner:
        name = f"live-proxy-{'-'.join(fields).lower()}"
        made = owner.post("/v2/keys", json={"name": name, "type": "secret"}).json()
        headers = {"Authorization": f"Bearer {made['secret']}"} | fields

        def exposures() -> int:
            page = owner.get("/v2/audit-events", params={"action": "key.exposed"}).json()
            return sum(made["key"]["id"] in str(event) for event in page["events"])

        allowed = client.get("/v2/auth?organization=acme&browser=allow", headers=headers)
        assert (allowed.status_code, allowed.headers["wardkey-verdict"]) == (200, "valid")
        refused = client.get("/v2/auth?organization=acme", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "secret_key_in_browser")
        assert "browser=allow" in refused.json()["detail"]
        wait_until(exposures)
        assert exposures() == 1


def test_allowing_browsers_does_not_widen_a_publishable_key(
    server: Server, client: httpx.Client
) -> None:
    with server.owner() as owner:
        page = owner.post(
            "/v2/keys",
            json={"name": "live-proxy-page", "type": "publishable",
                  "allowed_origins": ["https://a.example"]},
        ).json()  # fmt: skip
    headers = {"Authorization": f"Bearer {page['secret']}", "Origin": "https://b.example"}
    url = "/v2/auth?organization=acme&type=publishable&browser=allow"
    assert client.get(url, headers=headers).status_code == 403
    assert client.get(url, headers=headers | {"Origin": "https://a.example"}).status_code == 200
