from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from joserfc.jwk import OctKey, RSAKey

from tests.adapters.issuer import issuing
from tests.adapters.test_tokens import signed
from tests.support.database import everything_stored
from tests.support.issuers import CLIENT, MockIssuer, mock_issuer
from tests.support.server import Server, running
from wardkey.domain.providers import ALGORITHMS

ROUTE = "/v2/auth-providers"
SECRET = "a-shared-secret-of-a-legacy-project-0123456789"
# The values people copy from each vendor's console, and the resulting settings.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "supabase": (
        {"project_url": "https://abcdefgh.supabase.co/"},
        "https://abcdefgh.supabase.co/auth/v1",
    ),
    "firebase": ({"project_id": "acme-app-1"}, "https://securetoken.google.com/acme-app-1"),
    "auth0": (
        {"domain": "https://acme.eu.auth0.com/", "audiences": ["https://api.acme.example"]},
        "https://acme.eu.auth0.com/",
    ),
    "clerk": (
        {"domain": "clerk.acme.example", "allowed_origins": ["https://acme.example"]},
        "https://clerk.acme.example",
    ),
    "oidc": (
        {"issuer": "https://id.acme.example/realms/acme", "audiences": [CLIENT]},
        "https://id.acme.example/realms/acme",
    ),
}


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


@pytest.fixture(scope="module")
def issuer() -> Iterator[MockIssuer]:
    with mock_issuer() as running_issuer:
        yield running_issuer


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Sign in as the owner of a deployment that trusts issuers at private addresses."""
    data = tmp_path_factory.mktemp("inside") / "data"
    with running(data, private_issuers=1, workers=2) as up, up.owner() as client:
        yield client


def created(owner: httpx.Client, **fields: object) -> Any:  # noqa: ANN401 - JSON
    answer = owner.post(ROUTE, json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def actions_on(owner: httpx.Client, target: str) -> list[str]:
    page = owner.get("/v2/audit-events", params={"target_id": target}).json()
    return [event["action"] for event in reversed(page["events"])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_provider_can_be_created_read_changed_disabled_and_deleted(
    owner: httpx.Client, kind: str
) -> None:
    fields, issuer = KINDS[kind]
    made = created(owner, kind=kind, name=f"the-{kind}", **fields)
    path = f"{ROUTE}/{made['id']}"
    assert made["id"].startswith("prv_")
    assert (made["kind"], made["issuer"], made["enabled"]) == (kind, issuer, True)
    assert made["keys_url"].startswith("https://")
    assert set(made["algorithms"]) <= set(ALGORITHMS)
    assert owner.get(path).json() == made
    assert made in owner.get(ROUTE).json()["auth_providers"]
    settings = {"limits": {"max_ttl_s": 900}, "mapping": {"variables": {"team": "app.team"}}}
    changed = owner.patch(path, json=settings).json()
    assert changed["limits"]["max_ttl_s"] == 900
    assert changed["mapping"]["variables"] == {"team": "app.team"}
    assert {name: changed[name] for name in fields} == {name: made[name] for name in fields}
    assert owner.patch(path, json={}).json() == changed
    assert owner.patch(path, json={"name": None}).json() == changed
    assert owner.post(f"{path}/disable").json()["enabled"] is False
    assert owner.post(f"{path}/disable").json()["enabled"] is False
    assert owner.post(f"{path}/enable").json()["enabled"] is True
    assert owner.post(f"{path}/purge-keys").status_code == 204
    assert owner.delete(path).status_code == 200
    assert refused(owner.get(path)) == (404, "provider_not_found")
    assert refused(owner.delete(path)) == (404, "provider_not_found")
    assert actions_on(owner, made["id"]) == [
        "provider.created",
        "provider.updated",
        "provider.disabled",
        "provider.enabled",
        "provider.keys_purged",
        "provider.deleted",
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": "supabase"}, "project_url"),
        ({"kind": "supabase", "project_url": "http://abc.supabase.co"}, "project_url"),
        ({"kind": "supabase", "project_url": "https://a@abc.supabase.co"}, "project_url"),
        ({"kind": "firebase", "project_id": "x"}, "project_id"),
        (
            {
                "kind": "supabase",
                **KINDS["supabase"][0],
                "mapping": {"verified_email_only": True},
            },
            "mapping.verified_email_only",
        ),
        ({"kind": "auth0", **KINDS["auth0"][0], "audience_claim": "azp"}, "audience_claim"),
        ({"kind": "oidc", **KINDS["oidc"][0], "jwks_uri": "ftp://a.example/k"}, "jwks_uri"),
        ({"kind": "firebase", "project_id": "acme-app-1", "domain": "a.example"}, "domain"),
        ({"kind": "auth0", "domain": "acme.eu.auth0.com"}, "audiences"),
        ({"kind": "clerk", "domain": "127.0.0.1:80"}, "domain"),
        ({"kind": "oidc", "issuer": "https://id.acme.example"}, "audiences"),
        (
            {"kind": "oidc", **KINDS["oidc"][0], "algorithms": ["HS256"]},
            "algorithms.0",
        ),
        ({"kind": "oidc", **KINDS["oidc"][0], "algorithms": ["none"]}, "algorithms.0"),
        ({"kind": "oidc", **KINDS["oidc"][0], "secret": SECRET}, "secret"),
        ({"kind": "oidc", **KINDS["oidc"][0], "name": "A B"}, "name"),
        ({"kind": "oidc", **KINDS["oidc"][0], "mapping": {"user_id": ""}}, "mapping.user_id"),
        (
            {"kind": "supabase", **KINDS["supabase"][0], "legacy_secret": True},
            "secret",
        ),
        (
            {
                "kind": "supabase",
                **KINDS["supabase"][0],
                "legacy_secret": True,
                "secret": "-----BEGIN PUBLIC KEY-----MFkwEwYHKoZIzj0CAQYI",
            },
            "secret",
        ),
    ],
)
def test_400_an_invalid_setting_is_named(
    owner: httpx.Client, fields: dict[str, Any], field: str
) -> None:
    answer = owner.post(ROUTE, json=fields)
    assert refused(answer) == (400, "invalid_provider"), answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_a_shared_secret_is_sealed_and_never_returned(server: Server, owner: httpx.Client) -> None:
    settings = {"kind": "supabase", "name": "legacy", **KINDS["supabase"][0]}
    made = created(owner, **settings, legacy_secret=True, secret=f" {SECRET}\n")
    path = f"{ROUTE}/{made['id']}"
    assert (made["has_secret"], "HS256" in made["algorithms"]) == (True, True)
    other = SECRET[::-1]
    assert owner.patch(path, json={"secret": other}).json()["has_secret"] is True
    # Changing other settings keeps the secret.
    assert owner.patch(path, json={"name": "still-legacy"}).json()["has_secret"] is True
    shown = [owner.get(path).text, owner.get(ROUTE).text, owner.get("/v2/audit-events").text]
    stored = [everything_stored(server), server.output]
    for text in (SECRET, other, base64.b64encode(other.encode()).decode()):
        assert not [place for place in (*shown, *stored) if text in place]
    files = [file for file in server.data_dir.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if other.encode() in file.read_bytes()]
    gone = owner.patch(path, json={"legacy_secret": False}).json()
    assert (gone["has_secret"], "HS256" in gone["algorithms"]) == (False, False)
    again = owner.patch(path, json={"legacy_secret": True})
    assert refused(again) == (400, "invalid_provider")
    owner.delete(path)


def test_a_provider_name_is_unique_per_environment(owner: httpx.Client) -> None:
    settings = {"kind": "oidc", **KINDS["oidc"][0]}
    made = created(owner, **settings)
    assert made["name"] == "oidc"
    assert refused(owner.post(ROUTE, json=settings)) == (409, "duplicate_provider")
    other = created(owner, **settings, name="other")
    answer = owner.patch(f"{ROUTE}/{other['id']}", json={"name": "oidc"})
    assert refused(answer) == (409, "duplicate_provider")
    test = {"Wardkey-Environment": "test"}
    there = owner.post(ROUTE, json=settings, headers=test)
    assert (there.status_code, there.json()["environment"]) == (201, "test")
    in_test = f"{ROUTE}/{there.json()['id']}"
    assert owner.get(in_test).status_code == 404
    assert refused(owner.patch(in_test, json={})) == (404, "provider_not_found")
    assert owner.delete(in_test, headers=test).status_code == 200
    for item in (made, other):
        owner.delete(f"{ROUTE}/{item['id']}")


def test_an_environment_has_at_most_fifty_providers(owner: httpx.Client) -> None:
    test = {"Wardkey-Environment": "test"}
    settings = {"kind": "firebase", "project_id": "acme-app-1"}
    for place in range(50):
        made = owner.post(ROUTE, json={**settings, "name": f"p{place}"}, headers=test)
        assert made.status_code == 201
    answer = owner.post(ROUTE, json={**settings, "name": "p50"}, headers=test)
    assert refused(answer) == (409, "too_many_providers")


READERS = {"admin": 201, "member": 403, "viewer": 403}


@pytest.mark.parametrize("role", READERS)
def test_403_only_owners_and_admins_can_change_providers(
    server: Server, owner: httpx.Client, role: str
) -> None:
    theirs = created(owner, kind="firebase", project_id="acme-app-1", name=f"seen-by-{role}")
    path = f"{ROUTE}/{theirs['id']}"
    settings = {"kind": "firebase", "project_id": "acme-app-1", "name": f"by-{role}"}
    with server.person(role) as person:
        assert person.get(path).status_code == 200
        assert person.post(ROUTE, json=settings).status_code == READERS[role]
        if role != "admin":
            for method, ending in (
                ("PATCH", ""),
                ("DELETE", ""),
                ("POST", "/enable"),
                ("POST", "/disable"),
                ("POST", "/test"),
                ("POST", "/purge-keys"),
            ):
                answer = person.request(method, path + ending, json={})
                assert refused(answer) == (403, "not_permitted"), ending
            answer = person.post(f"{ROUTE}/test", json={"provider": settings})
            assert refused(answer) == (403, "not_permitted")


def test_403_a_key_needs_the_permission_and_a_publishable_key_never_has_it(
    server: Server, owner: httpx.Client
) -> None:
    def key(**more: object) -> str:
        made = owner.post("/v2/keys", json={"type": "secret", **more})
        return str(made.json()["secret"])

    page = key(name="live-page", type="publishable")
    reader = key(name="live-reader", permissions=["providers:read"])
    writer = key(name="live-writer", permissions=["providers:write", "providers:read"])
    settings = {"kind": "firebase", "project_id": "acme-app-1", "name": "by-key"}
    for credential, reads, writes in ((page, 403, 403), (reader, 200, 403), (writer, 200, 201)):
        with server.client(credential) as client:
            assert client.get(ROUTE).status_code == reads
            assert client.post(ROUTE, json=settings).status_code == writes


def test_without_the_setting_private_issuer_addresses_are_rejected(owner: httpx.Client) -> None:
    plain = {"kind": "oidc", "issuer": "http://127.0.0.1:9", "audiences": [CLIENT]}
    assert refused(owner.post(ROUTE, json=plain)) == (400, "invalid_provider")
    for host in ("127.0.0.1:9", "localhost:9", "[::1]:9", "169.254.169.254", "10.0.0.1"):
        body = owner.post(
            f"{ROUTE}/test", json={"provider": {**plain, "issuer": f"https://{host}"}}
        ).json()
        assert (body["ok"], body["steps"][0]["step"]) == (False, "keys"), body
        assert "public" in body["steps"][0]["detail"], body


def test_400_settings_that_cannot_be_saved_cannot_be_tested(owner: httpx.Client) -> None:
    legacy = {"kind": "supabase", **KINDS["supabase"][0], "legacy_secret": True}
    for more in ({}, {"secret": "too short"}):
        answer = owner.post(f"{ROUTE}/test", json={"provider": {**legacy, **more}, "token": "eyJ"})
        assert refused(answer) == (400, "invalid_provider")


def checked(inside: httpx.Client, provider: object, token: str = "") -> Any:  # noqa: ANN401 - JSON
    if isinstance(provider, str):
        answer = inside.post(f"{ROUTE}/{provider}/test", json={"token": token})
    else:
        answer = inside.post(f"{ROUTE}/test", json={"provider": provider, "token": token})
    assert answer.status_code == 200, answer.text
    return answer.json()


def first_fault(result: Any) -> str:  # noqa: ANN401 - JSON
    faults = [step["step"] for step in result["steps"] if not step["ok"]]
    assert result["ok"] is not bool(faults)
    assert (result["identity"] is None) is bool(faults)
    return faults[0] if faults else ""


def test_a_provider_test_shows_step_by_step_where_a_token_fails(
    inside: httpx.Client, issuer: MockIssuer
) -> None:
    now = int(time.time())
    settings = {
        "kind": "oidc",
        "issuer": f"{issuer.url}/tested",
        "audiences": [CLIENT],
        "mapping": {"variables": {"team": "app.team"}, "roles": "roles", "required": ["tenant"]},
    }
    good: dict[str, Any] = {
        "email": "Ada@acme.example",
        "tenant": "t1",
        "roles": ["x"],
        "app": {"team": "hall"},
    }
    text = issuer.of_oidc("tested", **good)
    result = checked(inside, settings, text)
    assert first_fault(result) == ""
    assert [step["step"] for step in result["steps"]] == [
        *("keys", "form", "header", "algorithm", "key", "signature", "payload"),
        *("iss", "aud", "exp", "nbf", "iat", "claims"),
    ]
    who = result["identity"]
    assert who["username"].startswith("abc_")
    assert (who["user_id"], who["roles"]) == ("abc", ["x"])
    assert who["variables"] == {"user_id": "abc", "team": "hall"}
    issuer.generate("RS256", "unserved")
    issuer.ask("withdraw", kid="unserved")
    bad = {
        "form": "nothing",
        "header": issuer.token("rsa", good, {"typ": "secevent+jwt"}),
        "algorithm": issuer.of_oidc("tested", "ec", **good),
        "key": issuer.of_oidc("tested", "unserved", **good),
        "signature": f"{text[:-20]}{text[-20:-10].swapcase()}{text[-10:]}",
        "iss": issuer.of_oidc("tested/", **good),
        "aud": issuer.of_oidc("tested", **good, aud=["other"]),
        "exp": issuer.of_oidc("tested", **good, exp=now - 100),
        "nbf": issuer.of_oidc("tested", **good, nbf=now + 100),
        "iat": issuer.of_oidc("tested", **good, iat=now + 100),
        "claims": issuer.of_oidc("tested", **good | {"tenant": None}),
    }
    made = created(inside, name="tested", **settings)
    for step, hostile in bad.items():
        assert first_fault(checked(inside, settings, hostile)) == step
        assert first_fault(checked(inside, made["id"], hostile)) == step
    assert "tenant" in checked(inside, settings, bad["claims"])["steps"][-1]["detail"]
    assert (
        "issued by someone else"
        in checked(inside, settings, bad["signature"])["steps"][-1]["detail"]
    )


def test_a_provider_test_without_a_token_checks_the_keys(
    inside: httpx.Client, issuer: MockIssuer
) -> None:
    settings = {"kind": "oidc", "issuer": f"{issuer.url}/keys-only", "audiences": [CLIENT]}
    result = checked(inside, settings)
    assert (result["ok"], result["identity"]) == (True, None)
    assert result["steps"] == [{"step": "keys", "ok": True, "detail": ""}]
    fetches = issuer.fetches("/keys-only/jwks")
    checked(inside, settings)
    # The test fetches the keys again instead of using the cache.
    assert issuer.fetches("/keys-only/jwks") == fetches + 1
    away = checked(inside, {**settings, "issuer": "http://127.0.0.1:9"})
    assert (away["ok"], away["steps"][0]["step"]) == (False, "keys")
    other = checked(inside, {**settings, "issuer": f"{issuer.url}/keys-only/"})
    assert "another issuer" in other["steps"][0]["detail"]


RSA: RSAKey = RSAKey.generate_key(2048, {"kid": "rsa"})


def test_null_in_a_setting_means_absent(owner: httpx.Client) -> None:
    bare = created(owner, kind="oidc", name="bare", **KINDS["oidc"][0])
    mapping = dict.fromkeys(bare["mapping"])
    settings = dict.fromkeys(("project_url", "legacy_secret", "secret", "project_id", "domain"))
    settings |= dict.fromkeys(("jwks_uri", "audience_claim", "allowed_origins", "algorithms"))
    for parts in (
        {"mapping": None, "limits": None},
        {"mapping": mapping, "limits": {"rate": None}},
    ):
        made = created(
            owner, **{**settings, "name": "nulls", "kind": "oidc", **KINDS["oidc"][0]}, **parts
        )
        own = ("id", "name", "created_at", "updated_at")
        assert {**made, **{name: bare[name] for name in own}} == bare
        assert owner.patch(f"{ROUTE}/{made['id']}", json={**settings, **parts}).json() == made
        assert owner.delete(f"{ROUTE}/{made['id']}").status_code == 200
    for unknown in ({"typo": None}, {"mapping": {"typo": None}}):
        answer = owner.post(ROUTE, json={"kind": "oidc", **KINDS["oidc"][0], **unknown})
        assert refused(answer) == (400, "invalid_request")


def test_a_provider_test_names_the_ignored_keys(inside: httpx.Client) -> None:
    weak = {"kty": "RSA", "kid": "weak", "n": "AQAB", "e": "AQAB"}
    good = {**RSA.as_dict(private=False), "alg": None, "use": None, "key_ops": None}
    with issuing() as place:
        jwks = place.puts("/keys", {"keys": [{"kty": "oct", "kid": "hs"}, good, weak]})
        settings = {"kind": "oidc", "issuer": place.url, "audiences": [CLIENT], "jwks_uri": jwks}
        (step,) = checked(inside, settings)["steps"]
        assert step["ok"]
        assert "Key 1 with the kid “hs” is left out: its kty is “oct”" in step["detail"]
        assert "Key 3 with the kid “weak” is left out: it has 17 bits" in step["detail"]
        place.puts("/keys", {"keys": [weak]})
        (step,) = checked(inside, settings)["steps"]
        assert not step["ok"]
        assert step["detail"].startswith("The key set has no key that can verify. Key 1 with")


def test_a_key_set_is_fetched_only_from_public_addresses(owner: httpx.Client) -> None:
    settings = {"kind": "oidc", "issuer": "https://id.acme.example", "audiences": [CLIENT]}
    for host in ("127.0.0.1:9", "localhost:9", "[::1]:9", "169.254.169.254", "10.0.0.1"):
        result = checked(owner, {**settings, "jwks_uri": f"https://{host}/keys?x=1"})
        assert (result["ok"], result["steps"][0]["step"]) == (False, "keys"), result
        assert "public" in result["steps"][0]["detail"], result
    plain = {**settings, "jwks_uri": "http://id.acme.example/keys"}
    assert refused(owner.post(ROUTE, json=plain)) == (400, "invalid_provider")
    assert refused(owner.post(f"{ROUTE}/test", json={"provider": plain})) == (
        400,
        "invalid_provider",
    )


def test_a_provider_test_of_a_legacy_project_uses_the_shared_secret(inside: httpx.Client) -> None:
    now = int(time.time())
    settings = {
        "kind": "supabase",
        "project_url": "https://abcdefgh.supabase.co",
        "legacy_secret": True,
        "secret": SECRET,
    }
    claims = {
        "iss": "https://abcdefgh.supabase.co/auth/v1",
        "aud": "authenticated",
        "role": "authenticated",
        "sub": "abc",
        "exp": now + 60,
    }
    header = {"alg": "HS256", "typ": "JWT"}
    good = signed(header, claims, OctKey.import_key(SECRET.encode()))
    forged = signed(header, claims, OctKey.import_key(b"another-secret-of-somebody-0123456789"))
    made = created(inside, name="legacy", **settings)
    for provider in (settings, made["id"]):
        assert first_fault(checked(inside, provider, good)) == ""
        assert first_fault(checked(inside, provider, forged)) == "signature"
    service = signed(header, claims | {"role": "anon"}, OctKey.import_key(SECRET.encode()))
    assert first_fault(checked(inside, settings, service)) == "role"


def test_400_a_provider_test_requires_the_shared_secret_too(inside: httpx.Client) -> None:
    settings = {"kind": "firebase", "project_id": "x"}
    assert refused(inside.post(f"{ROUTE}/test", json={"provider": settings})) == (
        400,
        "invalid_provider",
    )
    nobody = inside.post(f"{ROUTE}/prv_nobody/test", json={})
    assert refused(nobody) == (404, "provider_not_found")


def test_concurrent_changes_by_several_people_are_all_kept(owner: httpx.Client) -> None:
    made = created(owner, kind="firebase", project_id="acme-app-1", name="shared")
    path = f"{ROUTE}/{made['id']}"
    changes: list[dict[str, Any]] = [
        {"name": "renamed"},
        {"limits": {"max_ttl_s": 900}},
        {"mapping": {"roles": "roles"}},
        {"project_id": "acme-app-2"},
    ]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda one: owner.patch(path, json=one).status_code, changes))
    assert done == [200] * 4
    body = owner.get(path).json()
    assert (body["name"], body["project_id"]) == ("renamed", "acme-app-2")
    assert (body["limits"]["max_ttl_s"], body["mapping"]["roles"]) == (900, "roles")
