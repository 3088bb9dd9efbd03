from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest

from tests.support.server import Server, running

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
PREFIX = "beta_"
USER = {"user_email": "a@acme.example"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with running(folder, key_headers="apikey") as up:
        yield up


@pytest.fixture(scope="module")
def imported(server: Server) -> str:
    text = PREFIX + secrets.token_hex(20)
    with server.owner() as owner:
        assert owner.post("/v2/import-prefixes", json={"prefix": PREFIX}).status_code == 201
        key: dict[str, object] = {"name": "live-billing-imported", "environment": "live",
               "prefix": PREFIX, "entropy_bits": 160}  # fmt: skip
        key["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        made = owner.post("/v2/keys/import", json=key)
        assert made.status_code == 201, made.text
    return text


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def call_entry_points(server: Server, fields: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """Return status and code of every entry point for keys, each twice on one connection."""
    answers = []
    with httpx.Client(base_url=server.url, timeout=20, verify=server.trust) as client:
        for _ in range(2):
            answers += [
                client.get("/v2/auth", headers=fields),
                client.get("/v2/keys", headers=fields),
                client.post(
                    "/v2/keys/verify", headers=fields, json={"key": server.first_key}
                ),
                client.post("/v2/keys/verify-batch", headers=fields, json={"items": []}),
                client.post("/v2/tokens/create", headers=fields, json=USER),
            ]  # fmt: skip
    return [
        (a.status_code, a.json().get("code", "") if a.status_code >= 400 else "") for a in answers
    ]


def test_a_foreign_credential_beside_a_key_is_ignored(server: Server, imported: str) -> None:
    key = server.first_key
    for mine in (key, imported):
        for fields in (
            [("Authorization", f"Bearer {JWT}"), ("Wardkey-Api-Key", mine)],
            [("Authorization", f"Bearer {JWT}"), ("apikey", mine)],
            [("Authorization", basic("me:password")), ("apikey", mine)],
            [("Authorization", f"Bearer {mine}"), ("apikey", JWT)],
            [("Wardkey-Api-Key", mine), ("apikey", mine)],
        ):
            for status, code in call_entry_points(server, fields):
                assert status in (200, 403), (fields, status, code)


def test_two_different_wardkey_credentials_are_ambiguous(server: Server, imported: str) -> None:
    key = server.first_key
    other = key[:-1] + ("a" if key[-1] != "a" else "b")
    for fields in (
        [("Authorization", f"Bearer {key}"), ("apikey", other)],
        [("Authorization", f"Bearer {key}"), ("apikey", imported)],
        [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {other}")],
        [("Authorization", basic(f"{key}:{other}"))],
        [("Authorization", f"Bearer {JWT}"), ("apikey", "another.thing")],
    ):
        assert {code for _, code in call_entry_points(server, fields)} == {"ambiguous_credentials"}


def test_a_key_is_accepted_as_basic_and_bare(server: Server, imported: str) -> None:
    for key in (server.first_key, imported):
        for value in (key, basic(f"{key}:"), basic(f":{key}"), basic(f"me:{key}")):
            for status, code in call_entry_points(server, [("Authorization", value)]):
                assert status in (200, 403), (value, status, code)


def test_the_error_names_the_credential_sent_instead_of_a_key(server: Server) -> None:
    for value, names in (
        (basic("me:password"), "Basic"),
        ("Token abc", "Token"),
        ("abc", "scheme"),
    ):
        with server.client() as client:
            for answer in (
                client.get("/v2/auth", headers={"Authorization": value}),
                client.get("/v2/keys", headers={"Authorization": value}),
                client.post("/v2/keys/verify", headers={"Authorization": value}, json={"key": "x"}),
            ):
                assert (answer.status_code, answer.json()["code"]) == (401, "missing_credentials")
                assert names in answer.json()["detail"]
                assert value.split()[-1] not in answer.json()["detail"]


def test_a_user_token_is_accepted_in_every_form(server: Server) -> None:
    token = server.owner().headers["Authorization"].removeprefix("Bearer ")
    fields = {"Wardkey-Organization": "acme"}
    for value in (token, basic(f"{token}:"), f"Bearer  {token}"):
        with server.client() as client:
            answer = client.get("/v2/keys", headers={**fields, "Authorization": value})
            assert answer.status_code == 200
            verified = client.post("/v2/keys/verify", headers={**fields, "Authorization": value},
                                json={"key": server.first_key})  # fmt: skip
            assert verified.json()["code"] == "valid"


@pytest.mark.parametrize("around", ["\n", " ", "\t\r\n", "\ufeff", "\u200b", "\xa0"])
def test_invisible_characters_around_a_presented_key_are_ignored(
    server: Server, imported: str, around: str
) -> None:
    with server.client(server.first_key) as client:
        for key in (server.first_key, imported):
            for text in (key + around, around + key):
                one = client.post("/v2/keys/verify", json={"key": text}).json()
                many = client.post("/v2/keys/verify-batch", json={"items": [{"key": text}]}).json()
                assert one["code"] == many["items"][0]["code"] == "valid"
        made = client.post(
            "/v2/tokens/create", json=USER | {"secret_key": around + server.first_key}
        )
        assert made.status_code in (200, 403), made.text


@pytest.mark.parametrize(
    ("form", "names"), [('"{}"', "quotes"), ("Bearer {}", "Bearer"), ("“{}”", "quotes")]
)
def test_the_error_names_quotes_and_bearer_inside_a_key(
    server: Server, form: str, names: str
) -> None:
    text = form.format(server.first_key)
    with server.client(server.first_key) as client:
        one = client.post("/v2/keys/verify", json={"key": text}).json()
        many = client.post("/v2/keys/verify-batch", json={"items": [{"key": text}]}).json()
    with server.client() as client:
        header = client.get("/v2/auth", headers=[(b"apikey", text.encode())]).json()
    for result in (one, many["items"][0], header):
        assert result["code"] == "malformed"
        assert names in result["detail"]
        assert server.first_key not in result["detail"]


PLACES = {
    "organization": ("other_organization", "other"),
    "environment": ("wrong_environment", "test"),
}
ENTRY_POINTS = {
    "rest": ("GET", "/v2/keys", None),
    "verify": ("POST", "/v2/keys/verify", {"key": "x"}),
    "batch": ("POST", "/v2/keys/verify-batch", {"items": [{"key": "x"}]}),
    "publish": ("POST", "/publish", {"topic": "a", "payload": 1}),
    "exchange": ("POST", "/v2/tokens/exchange", {"token": "x"}),
    "create": ("POST", "/v2/tokens/create", {"user_email": "a@acme.example"}),
    "simulate": ("GET", "/v2/acl/rules", None),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_403_a_key_that_names_another_organization_or_environment(
    server: Server, entry: str, place: str
) -> None:
    method, path, body = ENTRY_POINTS[entry]
    code, other = PLACES[place]
    with server.client(server.first_key) as key:
        own = key.get("/v2/organization").json()
        answer = key.request(method, path, json=body, headers={f"Wardkey-{place}": other})
        if path == "/publish" and answer.status_code == 404:
            pytest.skip("messaging is off here; the fast path's tests cover it")
        assert (answer.status_code, answer.json()["code"]) == (403, code), answer.text
        assert "remove the header" in answer.json()["detail"]
        names = [own["id"], own["slug"]] if place == "organization" else ["live"]
        for name in names:
            answer = key.request(method, path, json=body, headers={f"Wardkey-{place}": name})
            assert answer.json().get("code") != code, answer.text


def test_a_former_slug_still_identifies_the_keys_own_organization(
    start: Callable[..., Server],
) -> None:
    server = start()
    with server.owner() as owner, server.client(server.first_key) as key:
        before = owner.get("/v2/organization").json()["slug"]
        assert owner.patch("/v2/organization", json={"slug": "renamed"}).status_code == 200
        for slug in (before, "renamed"):
            named = {"Wardkey-Organization": slug}
            assert key.get("/v2/keys", headers=named).status_code == 200
            question = {"key": server.first_key, "organization": slug}
            assert key.post("/v2/keys/verify", json=question).json()["code"] == "valid"
        verified = key.post("/v2/keys/verify", json={"key": "x", "organization": "other"})
        assert verified.json()["code"] == "other_organization"


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_401_every_entry_point_names_a_credential_of_another_form(
    server: Server, entry: str
) -> None:
    method, path, body = ENTRY_POINTS[entry]
    forms = {
        "x-api-key": {"X-API-Key": server.first_key},
        "Token": {"Authorization": f"Token {server.first_key}"},
        "Basic": {"Authorization": "Basic bWU6cHc="},
    }
    for named, fields in forms.items():
        with server.client() as anyone:
            answer = anyone.request(method, path, json=body, headers=fields)
        if path == "/publish" and answer.status_code == 404:
            pytest.skip("messaging is off here; the fast path's tests cover it")
        assert (answer.status_code, answer.json()["code"]) == (401, "missing_credentials")
        assert named in answer.json()["detail"].replace("X-API-Key", "x-api-key")
        assert server.first_key not in answer.text


def test_401_a_proxied_request_with_a_credential_in_another_form(server: Server) -> None:
    with server.client() as anyone:
        answer = anyone.get("/v2/auth", headers={"X-API-Key": "abc"})
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_credentials")
    assert "header x-api-key" in answer.json()["detail"]


def test_a_client_of_a_proxy_may_send_any_organization(server: Server) -> None:
    # Behind a proxy the header is the client's own; the service gets Wardkey's.
    with server.client(server.first_key) as key:
        answer = key.get("/v2/auth", headers={"Wardkey-Organization": "other"})
    assert answer.status_code == 200
    assert answer.headers["wardkey-organization"].startswith("org_")
