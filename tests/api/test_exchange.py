from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any

import httpx2 as httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from tests.adapters.issuer import issuing
from tests.adapters.test_tokens import b64, signed
from tests.support.database import everything_stored
from tests.support.issuers import CLIENT, MockIssuer, mock_issuer, oidc_provider
from tests.support.server import Server, running

EXCHANGE = "/v2/tokens/exchange"
PROVIDERS = "/v2/auth-providers"
PLACES = (f"p{number}" for number in count())
ADDRESSES = (f"203.0.113.{number}" for number in range(1, 250))


@dataclass
class World:
    """A deployment that trusts loopback issuers, with a mock issuer."""

    server: Server
    issuer: MockIssuer
    owner: httpx.Client
    key: httpx.Client
    org_id: str
    made: dict[str, str] = field(default_factory=dict)

    def provider(self, place: str = "", **more: Any) -> Any:  # noqa: ANN401 - JSON
        """Create a provider with its own OIDC issuer, under a new prefix unless one is given."""
        place = place or next(PLACES)
        name = more.get("name", place)
        body = {
            "kind": "oidc",
            "name": name,
            "issuer": f"{self.issuer.url}/{place}",
            "audiences": [CLIENT],
            "algorithms": ["RS256", "ES256"],
        }
        answer = self.owner.post(PROVIDERS, json=body | more)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def new_key(self, **more: object) -> Any:  # noqa: ANN401 - JSON
        body = {"type": "secret", "name": f"live-key-{next(PLACES)}"} | more
        answer = self.owner.post("/v2/keys", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def exchange(self, provider: str, token: str, **more: object) -> httpx.Response:
        return self.key.post(EXCHANGE, json={"provider": provider, "token": token, **more})

    def granted(self, provider: str = "", **claims: Any) -> Any:  # noqa: ANN401 - JSON
        provider = provider or self.provider()["name"]
        answer = self.exchange(provider, self.issuer.of_oidc(provider, **claims))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def anyone(self, address: str = "", **headers: str) -> httpx.Client:
        """Return a client with its own address, so other clients' failures can't throttle it."""
        return self.server.client("", X_Forwarded_For=address or next(ADDRESSES), **headers)

    def keyless(self, token: str, **more: object) -> httpx.Response:
        with self.anyone() as client:
            return client.post(
                EXCHANGE, json={"organization_id": self.org_id} | more | {"token": token}
            )

    def status(self, grant: Any) -> str:  # noqa: ANN401 - JSON
        result = self.owner.get(f"/v2/tokens/{grant['token_id']}")
        assert result.status_code == 200, result.text
        return str(result.json()["status"])

    def refreshed(self, grant: Any) -> httpx.Response:  # noqa: ANN401 - JSON
        body = {
            "token_id": grant["token_id"],
            "current_token_password": grant["mqtt_password"],
        }
        with self.anyone() as client:
            return client.post("/v2/tokens/refresh", json=body)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = tmp_path_factory.mktemp("exchange") / "data"
    with (
        mock_issuer() as issuer,
        running(data, private_issuers=1, behind_proxy=1) as server,
        server.owner() as owner,
        server.client(server.first_key) as key,
    ):
        org_id = owner.get("/v2/organization").json()["id"]
        yield World(server, issuer, owner, key, org_id)


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_key_exchanges_a_supabase_token(world: World) -> None:
    place = next(PLACES)
    made = world.owner.post(
        PROVIDERS,
        json={
            "kind": "supabase",
            "project_url": f"{world.issuer.url}/{place}",
            "mapping": {"variables": {"team": "app_metadata.team"}},
        },
    )
    assert made.status_code == 201, made.text
    before = time.time()
    for alg in ("ec", "rsa"):
        token = world.issuer.of_supabase(place, alg)
        answer = world.exchange("supabase", token)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert body["token_type"] == "Bearer"
        assert body["mqtt_password"].startswith("tkn_")
        assert body["access_token"] == body["mqtt_password"]
        assert body["mqtt_credentials"] == {
            "username": body["mqtt_username"],
            "password": body["mqtt_password"],
        }
        name, _, scope = body["mqtt_username"].partition("@")
        assert (scope, body["provider"], body["user_email"]) == (
            world.org_id,
            "supabase",
            "ada@acme.example",
        )
        assert body["user_id"] == "4be2ff38-1a55-4d3c-9c35-0f2d35d1a6a5"
        assert re.fullmatch(r"4be2ff38_1a55_4d3c_9c35_0f2d35d1a6a5_[a-z2-7]{8}", name)
        assert body["expires_in"] == 3600
        ends, again = (
            datetime.fromisoformat(body[at]).timestamp()
            for at in ("expires_at", "refresh_recommended_at")
        )
        assert before + 3600 <= ends + 0.01
        assert ends < time.time() + 3601
        assert ends - again == pytest.approx(720)
    for role in ("anon", "service_role"):
        answer = world.exchange("supabase", world.issuer.of_supabase(place, role=role))
        assert refused(answer) == (401, "invalid_token")


def test_without_a_key_the_issuer_identifies_the_provider(world: World) -> None:
    made = world.provider(limits={"keyless_may_exchange": True})
    token = world.issuer.of_oidc(made["name"], "ec", email="Ada@acme.example")
    answer = world.keyless(token)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["user_id"], body["user_email"]) == ("abc", "ada@acme.example")
    named = world.keyless(token, integration_id=made["id"])
    # The user has the same name with and without a key.
    by_key = world.exchange(made["name"], token)
    names = {grant.json()["mqtt_username"] for grant in (answer, named, by_key)}
    assert len(names) == 1
    page = world.owner.get("/v2/audit-events", params={"actor_id": made["id"]}).json()
    assert {event["action"] for event in page["events"]} == {"grant.exchanged"}


def test_an_id_token_from_a_real_sign_in_is_exchanged(world: World) -> None:
    people = {"ada@acme.example": {"password": "of a test", "sub": "ada", "team": "hall-b"}}
    with oidc_provider(people) as issuer:
        token = issuer.id_token("ada@acme.example", "of a test")
        body = {"kind": "oidc", "name": "real", "issuer": issuer.url, "audiences": [CLIENT]}
        assert world.owner.post(PROVIDERS, json=body).status_code == 201
        answer = world.exchange("real", token)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["user_id"], answer.json()["user_email"]) == ("ada", "ada@acme.example")


RSA: RSAKey = RSAKey.generate_key(2048, {"kid": "rsa"})


def access_token(issuer: str, **more: object) -> str:
    """Sign an access token like Amazon Cognito's: with `client_id`, without `aud`."""
    now = int(time.time())
    claims: dict[str, Any] = {"iss": issuer, "sub": "abc", "client_id": CLIENT, **more}
    claims |= {"token_use": "access", "exp": now + 600, "iat": now}
    return jwt.encode({"alg": "RS256", "kid": "rsa"}, claims, RSA, ["RS256"])


def test_an_issuer_with_only_a_key_set_is_trusted(world: World) -> None:
    with issuing() as place:
        jwks = place.puts("/d/keys?p=B2C_1_in", {"keys": [RSA.as_dict(private=False)]})
        body = {"issuer": "urn:acme:b2c", "jwks_uri": jwks, "audience_claim": "client_id"}
        made = world.provider("b2c", **body)
        assert (made["jwks_uri"], made["keys_url"]) == (jwks, jwks)
        assert made["audience_claim"] == "client_id"
        path, token = f"{PROVIDERS}/{made['id']}", access_token("urn:acme:b2c")
        assert world.owner.post(f"{path}/test", json={"token": token}).json()["ok"]
        assert world.exchange("b2c", token).status_code == 200
        for wrong in ({"client_id": "other"}, {"client_id": [CLIENT]}, {"client_id": None}):
            refusal = world.exchange("b2c", access_token("urn:acme:b2c", aud=CLIENT, **wrong))
            assert refused(refusal) == (401, "invalid_token")
            assert "client_id is" in refusal.json()["detail"]
        # With another key set, keys of the first one are no longer trusted.
        other = place.puts("/other", {"keys": []})
        assert world.owner.patch(path, json={"jwks_uri": other}).json()["keys_url"] == other
        assert refused(world.exchange("b2c", token)) == (401, "invalid_token")
        assert {"/other", "/d/keys?p=B2C_1_in"} == set(place.asked)
        # Without a key set the issuer must be a URL again, to discover its keys.
        cleared = world.owner.patch(path, json={"jwks_uri": ""})
        assert refused(cleared) == (400, "invalid_provider")
        assert [error["field"] for error in cleared.json()["errors"]] == ["issuer"]


def test_keys_rotated_at_run_time_are_found_and_each_is_fetched_once(
    world: World,
) -> None:
    place = world.provider()["name"]
    world.granted(place)
    fetches = world.issuer.fetches(f"/{place}/jwks")
    world.granted(place, kid="ec")
    assert world.issuer.fetches(f"/{place}/jwks") == fetches == 1
    world.issuer.generate("ES256", "rotated")
    world.granted(place, kid="rotated")
    assert world.issuer.fetches(f"/{place}/jwks") == 2
    world.issuer.generate("RS256", "nowhere")
    world.issuer.ask("withdraw", kid="nowhere")
    stranger = world.issuer.of_oidc(place, "nowhere")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: world.exchange(place, stranger), range(40)))
    assert {refused(answer) for answer in answers} == {(401, "invalid_token")}
    assert "nowhere" in answers[0].json()["detail"]
    # The keys were fetched just now, so an unknown kid doesn't cause another fetch.
    assert world.issuer.fetches(f"/{place}/jwks") == 2


def test_concurrent_tokens_with_an_unknown_kid_cause_one_fetch(world: World) -> None:
    place = world.provider()["name"]
    world.granted(place)
    tokens = [
        world.issuer.token("rsa", {"iss": f"{world.issuer.url}/{place}"}, {"kid": f"k{n}"})
        for n in range(40)
    ]
    world.issuer.ask("serve", delay_ms=200)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda token: world.exchange(place, token), tokens))
    world.issuer.ask("serve")
    assert {refused(answer) for answer in answers} == {(401, "invalid_token")}
    assert world.issuer.fetches(f"/{place}/jwks") == 2


def test_an_exchange_does_not_wait_for_another_providers_issuer(world: World) -> None:
    quick, slow = world.provider()["name"], world.provider()["name"]
    world.granted(quick)
    token, other = world.issuer.of_oidc(slow), world.issuer.of_oidc(quick)
    world.issuer.ask("serve", delay_ms=1500)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(world.exchange, slow, token)
        began = time.monotonic()
        assert world.exchange(quick, other).status_code == 200
        assert time.monotonic() - began < 1.4
        assert not waiting.done()
        world.issuer.ask("serve")
        assert waiting.result().status_code == 200


def test_two_keys_without_a_kid_are_both_tried(world: World) -> None:
    for kid in ("bare-1", "bare-2"):
        world.issuer.generate("RS256", kid)
        world.issuer.ask("unname", kid=kid)
    place = world.provider()["name"]
    for kid in ("bare-1", "bare-2"):
        good = {"iss": f"{world.issuer.url}/{place}", "aud": CLIENT, "sub": "abc"}
        token = world.issuer.token(kid, good, {"kid": None})
        assert world.exchange(place, token).status_code == 200


Hostile = Callable[[World, str], str]
NOW = int(time.time())


def of(kid: str = "rsa", **claims: object) -> Hostile:
    return lambda world, place: world.issuer.of_oidc(place, kid, **claims)


def _with_public_key(world: World, place: str) -> str:
    public = world.issuer.ask("key", kid="rsa")["key"]
    claims = {"iss": f"{world.issuer.url}/{place}", "aud": CLIENT, "sub": "abc", "exp": NOW + 60}
    key = OctKey.import_key(json.dumps(public).encode())
    return signed({"alg": "HS256", "kid": "rsa"}, claims, key)


def _embedded(world: World, place: str) -> str:
    mine = ECKey.generate_key("P-256")
    claims = {"iss": f"{world.issuer.url}/{place}", "aud": CLIENT, "sub": "abc", "exp": NOW + 60}
    header = {"alg": "ES256", "kid": "ec", "jwk": mine.as_dict(private=False)}
    return signed(header, claims, mine)


def _unsigned(world: World, place: str) -> str:
    claims = {"iss": f"{world.issuer.url}/{place}", "aud": CLIENT, "sub": "abc", "exp": NOW + 60}
    head, payload = (b64(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
    return f"{head}.{payload}."


def _altered(world: World, place: str) -> str:
    head, payload, tail = world.issuer.of_oidc(place).split(".")
    return f"{head}.{payload}.{tail[:-20]}{tail[-20:-10].swapcase()}{tail[-10:]}"


HOSTILE: dict[str, tuple[Hostile, str]] = {
    "expired": (of(exp=NOW - 100), "token_expired"),
    "without an end": (of(exp=None), "exp"),
    "a text as expiry": (of(exp="tomorrow"), "exp"),
    "not yet valid": (of(nbf=NOW + 7200), "nbf"),
    "made in the future": (of(iat=NOW + 7200), "iat"),
    "an issuer with a slash": (lambda w, p: w.issuer.of_oidc(f"{p}/"), "a slash at the end"),
    "another's audience": (of(aud="another-app"), "aud"),
    "a list of others": (of(aud=["another-app", "api"]), "aud"),
    "a list with a number": (of(aud=[CLIENT, 1]), "aud"),
    "no audience": (of(aud=None), "aud"),
    "an audience in capitals": (of(aud=CLIENT.upper()), "aud"),
    "an altered signature": (_altered, "signature"),
    "no signature": (_unsigned, "three parts"),
    "signed with the public key": (_with_public_key, "alg"),
    "a key of its own": (_embedded, "signature"),
    "a deep claim": (
        of(deep=json.loads("[" * 400 + "]" * 400)),
        "more than 16 levels",
    ),
    "no token": (lambda _w, _p: "nothing", "three parts"),
    "no text": (lambda _w, _p: "\u0000.\u2603.x", "can't be read"),
    "a long token": (of(filler="x" * 16_000), "longer than 16 KiB"),
}


@pytest.fixture(scope="module")
def trusted(world: World) -> str:
    return str(world.provider(limits={"keyless_may_exchange": True})["name"])


@pytest.mark.parametrize("name", HOSTILE)
def test_401_an_invalid_token_is_rejected_with_the_reason(
    world: World, trusted: str, name: str
) -> None:
    make, expected = HOSTILE[name]
    answer = world.exchange(trusted, make(world, trusted))
    assert answer.status_code == 401, answer.text
    problem = answer.json()
    code = expected if expected == "token_expired" else "invalid_token"
    assert problem["code"] == code
    assert expected == code or expected in problem["detail"]
    assert answer.headers["access-control-allow-origin"] == "*"


def test_413_a_token_of_one_mebibyte_is_rejected(world: World, trusted: str) -> None:
    for size in (40_000, 1 << 20, (1 << 20) + 50):
        answer = world.exchange(trusted, "x" * size)
        assert refused(answer) == (413, "body_too_large")
    assert refused(world.keyless("x" * (1 << 20))) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"\xff", "malformed_json"),
        (b'{"token":' * 3_000, "invalid_request"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"token": 1}', "invalid_request"),
        (b'{"token": null}', "invalid_request"),
        (b'{"token": "x", "typo": null}', "invalid_request"),
        (b'{"token": "x", "provider": ' + b"[" * 3_000, "invalid_request"),
        (b'{"token": "x", "typo": 1}', "invalid_request"),
        (b'{"token": "x", "ttl": "3600"}', "invalid_request"),
        (b'{"token": "x", "ttl": 1e400}', "invalid_request"),
        (b'{"token": "\\ud800.a.b", "provider": "\\ud800"}', "malformed_json"),
    ],
)
def test_400_a_malformed_body_is_reported(world: World, body: bytes, code: str) -> None:
    answer = world.key.post(EXCHANGE, content=body, headers={"Content-Type": "application/json"})
    assert refused(answer) == (400, code), answer.text
    assert answer.headers["access-control-allow-origin"] == "*"


def test_null_in_an_optional_field_means_absent(world: World) -> None:
    name = world.provider()["name"]
    with world.server.client(world.server.first_key) as server:
        empty = {"ttl": None, "organization_id": None, "integration_id": None}
        body = {"provider": name, "token": world.issuer.of_oidc(name), **empty}
        assert server.post(EXCHANGE, json=body).status_code == 200
        body = {"user_email": "ada@acme.example", "replace_existing": None, "secret_key": None}
        assert server.post("/v2/tokens/create", json=body | empty).status_code == 200
    body = {"token": world.issuer.of_oidc(name), "provider": None}
    assert refused(world.keyless(**body)) == (401, "invalid_token")


def test_415_a_body_that_is_not_json_is_reported(world: World) -> None:
    answer = world.key.post(EXCHANGE, content=b"{}", headers={"Content-Type": "text/plain"})
    assert refused(answer) == (415, "unsupported_media_type")


def test_an_audience_list_and_a_small_clock_skew_are_accepted(world: World, trusted: str) -> None:
    for token in (
        world.issuer.of_oidc(trusted, aud=["api", CLIENT]),
        world.issuer.of_oidc(trusted, exp=int(time.time()) - 10),
        world.issuer.of_oidc(trusted, iat=int(time.time()) + 10, nbf=int(time.time()) + 10),
    ):
        assert world.exchange(trusted, token).status_code == 200


def test_422_a_missing_claim_is_named(world: World) -> None:
    place = world.provider(mapping={"username_from": "email"})["name"]
    answer = world.exchange(place, world.issuer.of_oidc(place))
    assert refused(answer) == (422, "claim_missing")
    assert [error["field"] for error in answer.json()["errors"]] == ["email"]
    named = world.granted(place, email="ada.b@acme.example")
    assert named["mqtt_username"].startswith("ada_b_acme_example_")
    other = world.provider(mapping={"required": ["app.tenant"], "user_id": "uid"})["name"]
    answer = world.exchange(other, world.issuer.of_oidc(other, uid="x"))
    assert [error["field"] for error in answer.json()["errors"]] == ["app.tenant"]
    answer = world.exchange(other, world.issuer.of_oidc(other, app={"tenant": "t"}))
    assert [error["field"] for error in answer.json()["errors"]] == ["uid"]


def test_two_providers_with_the_same_issuer_require_a_provider_name(world: World) -> None:
    place = next(PLACES)
    one, other = (world.provider(place, name=f"{place}-{n}", audiences=[f"a{n}"]) for n in (1, 2))
    token = world.issuer.of_oidc(place, aud="a2")
    answer = world.key.post(EXCHANGE, json={"token": token})
    assert refused(answer) == (400, "ambiguous_provider")
    assert one["name"] in answer.json()["detail"]
    assert world.exchange(other["name"], token).status_code == 200
    assert world.exchange(other["id"], token).status_code == 200
    assert refused(world.exchange(one["name"], token)) == (401, "invalid_token")
    assert refused(world.exchange("oidc", token)) == (400, "ambiguous_provider")
    world.owner.post(f"{PROVIDERS}/{one['id']}/disable")
    assert world.key.post(EXCHANGE, json={"token": token}).status_code == 200


def test_503_while_the_issuer_is_down_and_cached_keys_keep_working(world: World) -> None:
    warm, cold = world.provider(), world.provider()
    tokens = {token["name"]: world.issuer.of_oidc(token["name"]) for token in (warm, cold)}
    assert world.exchange(warm["name"], tokens[warm["name"]]).status_code == 200
    world.issuer.stop()
    try:
        assert world.exchange(warm["name"], tokens[warm["name"]]).status_code == 200
        for _ in range(2):
            answer = world.exchange(cold["name"], tokens[cold["name"]])
            assert refused(answer) == (503, "key_set_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" in answer.json()["detail"]
        # Purged keys are no longer used, even while their issuer is unreachable.
        purge = f"{PROVIDERS}/{warm['id']}/purge-keys"
        assert world.owner.post(purge).status_code == 204
        answer = world.exchange(warm["name"], tokens[warm["name"]])
        assert refused(answer) == (503, "key_set_unavailable")
    finally:
        world.issuer.start()
    assert world.owner.post(purge).status_code == 204
    assert world.exchange(warm["name"], tokens[warm["name"]]).status_code == 200


LOST = ["a.b", "a_b", "a-b", "a+b", "a/b", "a#b", "a*b", "a@b", "A_B", "a|b", "ä_b", "a_b" * 40]


def test_user_ids_that_differ_only_in_dropped_characters_get_distinct_names(world: World) -> None:
    one, other = world.provider()["name"], world.provider()["name"]
    grants = [world.granted(place, sub=sub) for place in (one, other) for sub in LOST]
    assert [grant["user_id"] for grant in grants] == LOST * 2
    names = {grant["mqtt_username"].lower() for grant in grants}
    assert len(names) == 2 * len(LOST)
    assert all(re.fullmatch(r"[a-z0-9_]{1,64}@org_\w+", name) for name in names)


def test_a_repeated_exchange_keeps_the_same_user(world: World) -> None:
    place = world.provider()["name"]
    token = world.issuer.of_oidc(place)
    results = [world.exchange(place, token).json() for _ in range(3)]
    assert len({result["token_id"] for result in results}) == 3
    assert len({result["mqtt_password"] for result in results}) == 3
    assert len({result["mqtt_username"] for result in results}) == 1
    assert {world.status(result) for result in results} == {"active"}


def test_a_refresh_returns_a_new_password_and_a_reuse_revokes_the_family(world: World) -> None:
    first = world.granted()
    apart = world.granted(first["provider"])
    second = world.refreshed(first)
    assert second.status_code == 200, second.text
    again = second.json()
    assert again["mqtt_username"] == first["mqtt_username"]
    assert again["mqtt_password"] != first["mqtt_password"]
    assert (again["provider"], again["expires_in"]) == (first["provider"], 3600)
    third = world.refreshed(again).json()
    body = world.owner.get(f"/v2/tokens/{first['token_id']}").json()
    assert body["replaced_by"] == again["token_id"]
    assert refused(world.refreshed(first)) == (401, "refresh_replayed")
    assert [world.status(grant) for grant in (first, again, third)] == ["revoked"] * 3
    assert refused(world.refreshed(third)) == (401, "invalid_token")
    assert world.status(apart) == "active"
    events = world.owner.get("/v2/audit-events", params={"action": "grant.replayed"}).json()
    assert [event["target_id"] for event in events["events"]] == [first["token_id"]]


def test_401_a_refresh_needs_the_id_and_password_of_the_same_grant(world: World) -> None:
    one, other = world.granted(), world.granted()
    for wrong in (
        {**one, "mqtt_password": other["mqtt_password"]},
        {**one, "mqtt_password": one["mqtt_password"][:-1]},
        {**one, "mqtt_password": world.server.first_key},
        {**one, "token_id": "tok_nothing"},
        {**one, "token_id": one["token_id"].removeprefix("tok_")},
    ):
        assert refused(world.refreshed(wrong)) == (401, "invalid_token")
    assert world.refreshed(one).status_code == 200


def _without_id(answer: httpx.Response) -> bytes:
    return answer.content.replace(answer.json()["request_id"].encode(), b"")


def test_without_a_key_every_not_found_response_is_the_same(world: World) -> None:
    place = world.provider(limits={"keyless_may_exchange": True})["name"]
    closed = world.provider()["name"]
    disabled = world.provider(limits={"keyless_may_exchange": True})
    world.owner.post(f"{PROVIDERS}/{disabled['id']}/disable")
    away = world.provider(
        name="away", issuer="http://127.0.0.1:9", limits={"keyless_may_exchange": True}
    )
    made = world.server.cli("org", "create", "Empty", "--owner", "e@acme.example", "--json")
    empty = json.loads(made.stdout)
    world.issuer.generate("RS256", "stranger")
    world.issuer.ask("withdraw", kid="stranger")
    good = world.issuer.of_oidc(place)
    unknown = "org_0fA3xQ2LmN7pR9sT1uV4wY"
    org_id = empty.get("id") or empty["organization"]["id"]
    assert world.keyless(good).status_code == 200
    answers = {
        "unknown organization": world.keyless(good, organization_id=unknown),
        "no id": world.keyless(good, organization_id="acme"),
        "organization without providers": world.keyless(good, organization_id=org_id),
        "test environment": world.keyless(good, organization_id=f"{world.org_id}.test"),
        "not keyless": world.keyless(world.issuer.of_oidc(closed)),
        "disabled": world.keyless(world.issuer.of_oidc(disabled["name"])),
        "another provider's name": world.keyless(good, provider=closed),
        "wrong signature": world.keyless(_altered(world, place)),
        "unknown kid": world.keyless(world.issuer.of_oidc(place, "stranger")),
        "wrong audience": world.keyless(world.issuer.of_oidc(place, aud="other")),
        "issuer of nobody": world.keyless(world.issuer.of_oidc("nobody")),
        "issuer away": world.keyless(world.issuer.token("rsa", {"iss": away["issuer"]})),
        "no token": world.keyless("nothing"),
    }
    for why, answer in answers.items():
        assert refused(answer) == (401, "invalid_token"), why
        assert answer.headers["access-control-allow-origin"] == "*", why
    assert len({_without_id(answer) for answer in answers.values()}) == 1
    heads = [{k for k in answer.headers if k != "date"} for answer in answers.values()]
    assert all(head == heads[0] for head in heads)
    # A missing organization has its own error, which reveals nothing about existing ones.
    nowhere = world.keyless(good, organization_id="")
    assert refused(nowhere) == (401, "missing_credentials")
    assert "organization_id" in nowhere.json()["detail"]
    assert nowhere.headers["access-control-allow-origin"] == "*"
    # An invalid TTL gets the same error whether or not the organization exists.
    for where in (world.org_id, unknown):
        answer = world.keyless(good, organization_id=where, ttl=5)
        assert refused(answer) == (400, "invalid_ttl")


def test_429_after_a_hundred_bad_tokens_while_valid_ones_from_that_address_pass(
    world: World,
) -> None:
    trusted = world.provider(limits={"keyless_may_exchange": True})["name"]
    good, address = world.issuer.of_oidc(trusted), next(ADDRESSES)
    body = {"organization_id": world.org_id, "token": "nothing"}
    with world.anyone(address) as client:
        codes = [client.post(EXCHANGE, json=body).status_code for _ in range(110)]
        # Each second of this loop allows one more attempt.
        assert codes[:100] == [401] * 100
        assert codes[-1] == 429
        many = client.post(EXCHANGE, json=body, headers={"Origin": "https://acme.example"})
        assert refused(many) == (429, "too_many_attempts")
        assert many.headers["retry-after"]
        assert "Retry-After" in many.headers["access-control-expose-headers"]
        assert client.post(EXCHANGE, json=body | {"token": good}).status_code == 200
        headers = {"Authorization": f"Bearer {world.server.first_key}"}
        for _ in range(12):
            bad = client.post(EXCHANGE, json={"provider": trusted, "token": "x"}, headers=headers)
            assert bad.status_code == 401
        taken = {"provider": trusted, "token": good}
        assert client.post(EXCHANGE, json=taken, headers=headers).status_code == 200


def test_a_caller_with_a_key_learns_what_is_missing(world: World, trusted: str) -> None:
    token = world.issuer.of_oidc(trusted)
    assert refused(world.exchange("nobody", token)) == (404, "provider_not_found")
    foreign = world.issuer.of_oidc("nobody")
    answer = world.key.post(EXCHANGE, json={"token": foreign})
    assert refused(answer) == (404, "provider_not_found")
    made = world.provider()
    world.owner.post(f"{PROVIDERS}/{made['id']}/disable")
    answer = world.exchange(made["name"], world.issuer.of_oidc(made["name"]))
    assert refused(answer) == (403, "provider_disabled")
    for other in ("org_0fA3xQ2LmN7pR9sT1uV4wY", f"{world.org_id}.test"):
        answer = world.exchange(trusted, token, organization_id=other)
        assert refused(answer) == (404, "organization_not_found")
    assert world.exchange(trusted, token, organization_id=world.org_id).status_code == 200
    narrow = world.new_key(permissions=["keys:verify"])["secret"]
    with world.server.client(narrow) as client:
        answer = client.post(EXCHANGE, json={"provider": trusted, "token": token})
    assert refused(answer) == (403, "not_permitted")
    with world.server.client("sk_live_nothing") as client:
        answer = client.post(EXCHANGE, json={"provider": trusted, "token": token})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_page_can_exchange_where_its_key_and_the_provider_allow_it(world: World) -> None:
    closed = world.provider()["name"]
    place = world.provider(limits={"publishable_may_exchange": True})["name"]
    page = world.new_key(type="publishable", allowed_origins=["https://acme.example"])["secret"]
    token = world.issuer.of_oidc(place)
    body = {"provider": place, "token": token}
    with world.server.client(page, Origin="https://acme.example") as client:
        answer = client.post(EXCHANGE, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
        answer = client.post(
            EXCHANGE, json={"provider": closed, "token": world.issuer.of_oidc(closed)}
        )
        assert refused(answer) == (403, "exchange_not_allowed")
        assert answer.headers["access-control-allow-origin"] == "*"
        answer = client.post("/v2/tokens/create", json={"user_email": "ada@acme.example"})
        assert answer.status_code == 403
    for origin in ("https://evil.example", ""):
        headers = {"Origin": origin} if origin else {}
        with world.server.client(page, **headers) as client:
            answer = client.post(EXCHANGE, json=body)
        assert refused(answer) == (403, "origin_not_allowed")
        assert answer.headers["access-control-allow-origin"] == "*"
    with world.server.client(world.server.first_key, Origin="https://acme.example") as client:
        answer = client.post(EXCHANGE, json=body)
    assert refused(answer) == (403, "secret_key_in_browser")
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "path", [EXCHANGE, "/v2/tokens/refresh", "/oauth/token", "/v2/organization"]
)
def test_a_preflight_is_answered_for_every_origin(world: World, path: str) -> None:
    headers = {"Origin": "https://any.example", "Access-Control-Request-Method": "POST"}
    with world.server.client() as browser:
        answer = browser.options(path, headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert {"Authorization", "Content-Type"} <= set(
        answer.headers["access-control-allow-headers"].split(", ")
    )


@pytest.mark.parametrize(
    "path", [EXCHANGE, "/v2/tokens/refresh", "/oauth/token", "/publish", "/v1/publish"]
)
@pytest.mark.parametrize("query", ["", "?a=%00"])
def test_a_page_can_read_an_error_raised_before_routing(
    world: World, path: str, query: str
) -> None:
    with world.server.client(Origin="https://acme.example") as browser:
        answer = browser.post(f"{path}{query}", content=b"" if query else b"x" * 1_100_000)
        assert refused(answer) == ((400, "invalid_request") if query else (413, "body_too_large"))
        assert answer.headers["access-control-allow-origin"] == "*"
        # A page learns nothing from routes that other sites may not call.
        other = browser.post("/v2/keys", content=b"x" * 1_100_000)
        assert refused(other) == (413, "body_too_large")
        assert "access-control-allow-origin" not in other.headers


def test_429_a_provider_enforces_its_exchange_limit(world: World) -> None:
    rate = {"limit": 2, "period_s": 3600, "burst": 2}
    place = world.provider(limits={"rate": rate})["name"]
    # Requests without a valid issuer token don't count against the limit.
    for _ in range(5):
        assert world.exchange(place, _altered(world, place)).status_code == 401
    codes = [world.exchange(place, world.issuer.of_oidc(place)).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    answer = world.exchange(place, world.issuer.of_oidc(place))
    assert refused(answer) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) > 60
    assert place in answer.json()["detail"]
    world.granted()


@pytest.mark.parametrize("ttl", [29, 0, -1, 86_401, 10**18])
def test_400_a_grant_lasts_from_30_seconds_to_a_day(world: World, trusted: str, ttl: int) -> None:
    answer = world.exchange(trusted, world.issuer.of_oidc(trusted), ttl=ttl)
    assert refused(answer) == (400, "invalid_ttl")
    answer = world.key.post("/v2/tokens/create", json={"user_email": "a@acme.example", "ttl": ttl})
    assert refused(answer) == (400, "invalid_ttl")


def test_a_grant_never_lasts_longer_than_its_provider_allows(world: World) -> None:
    place = world.provider(limits={"max_ttl_s": 120, "max_refresh_s": 600})["name"]
    body: Any = None
    for ttl, lasts in ((30, 30), (120, 120), (86_400, 120), (None, 120)):
        more = {} if ttl is None else {"ttl": ttl}
        body = world.exchange(place, world.issuer.of_oidc(place), **more).json()
        assert body["expires_in"] == lasts
    record = world.owner.get(f"/v2/tokens/{body['token_id']}").json()
    made, until = (
        datetime.fromisoformat(record[at]).timestamp() for at in ("created_at", "refreshable_until")
    )
    assert until - made == pytest.approx(600)


def test_a_server_creates_grants_for_its_own_users(world: World) -> None:
    def create(client: httpx.Client, **more: object) -> httpx.Response:
        return client.post("/v2/tokens/create", json={"user_email": "Eve@acme.example", **more})

    first = create(world.key)
    assert first.status_code == 200, first.text
    body = first.json()
    assert (body["provider"], body["user_email"]) == ("native", "eve@acme.example")
    key = world.new_key()["secret"]
    with world.server.client() as anyone:
        other = create(anyone, secret_key=key, user_email="eve@acme.example", ttl=60)
        assert other.status_code == 200, other.text
        assert create(anyone).json()["code"] == "missing_credentials"
        assert create(anyone, secret_key="x").status_code == 401
    assert other.json()["mqtt_username"] == body["mqtt_username"]
    assert refused(create(world.key, secret_key=key)) == (400, "ambiguous_credentials")
    assert create(world.key, secret_key=world.server.first_key).status_code == 200
    assert refused(create(world.key, user_email="eve")) == (400, "invalid_email")
    wrong = create(world.key, organization_id="org_0fA3xQ2LmN7pR9sT1uV4wY")
    assert refused(wrong) == (404, "organization_not_found")
    nobody = create(world.key, integration_id="prv_nobody")
    assert refused(nobody) == (404, "provider_not_found")
    mine = world.provider()
    linked = create(world.key, integration_id=mine["id"]).json()
    assert linked["provider"] == mine["name"]
    assert world.status(body) == world.status(other.json()) == "active"
    apart = world.key.post("/v2/tokens/create", json={"user_email": "bob@acme.example"}).json()
    last = create(world.key, replace_existing=True).json()
    assert world.status(body) == world.status(other.json()) == "revoked"
    assert world.status(last) == world.status(apart) == "active"
    for role in ("admin", "member"):
        with world.server.person(role) as person:
            assert create(person).status_code == (200 if role == "admin" else 403)


def test_grants_are_listed_in_pages_and_filtered_by_subject(world: World) -> None:
    place = world.provider()
    key = world.new_key()
    grants = []
    for n in range(5):
        body = {
            "provider": place["name"],
            "token": world.issuer.of_oidc(
                place["name"], sub=f"u{n % 2}", email=f"U{n % 2}@list.example"
            ),
        }
        with world.server.client(key["secret"]) as client:
            grants.append(client.post(EXCHANGE, json=body).json()["token_id"])

    def listed(**params: str) -> list[str]:
        found: list[str] = []
        while True:
            page = world.owner.get("/v2/tokens", params=params)
            assert page.status_code == 200, page.text
            assert "mqtt_password" not in page.text
            found += [grant["token_id"] for grant in page.json()["tokens"]]
            if page.json()["next_cursor"] is None:
                return found
            params["cursor"] = page.json()["next_cursor"]

    newest = grants[::-1]
    of_two = [grant for n, grant in enumerate(grants) if n % 2 == 0][::-1]
    assert listed(provider_id=place["id"], limit="2") == newest
    assert listed(key_id=key["key"]["id"], limit="1") == newest
    assert listed(user_id="u0", provider_id=place["id"]) == of_two
    assert listed(user_email="u0@LIST.example") == of_two
    world.owner.delete(f"/v2/tokens/{grants[0]}")
    assert listed(provider_id=place["id"], active="true") == newest[:-1]
    assert listed(provider_id=place["id"], active="false") == [grants[0]]
    page = world.owner.get("/v2/tokens", params={"limit": "2"}).json()
    stolen = {"cursor": page["next_cursor"], "user_id": "u0"}
    assert refused(world.owner.get("/v2/tokens", params=stolen)) == (400, "invalid_cursor")
    record = world.owner.get(f"/v2/tokens/{grants[1]}").json()
    assert (record["provider_id"], record["key_id"]) == (place["id"], key["key"]["id"])
    nobody = world.owner.get("/v2/tokens/tok_nothing")
    assert refused(nobody) == (404, "grant_not_found")
    in_test = {"Wardkey-Environment": "test"}
    assert world.owner.get("/v2/tokens", headers=in_test).json()["tokens"] == []
    there = world.owner.get(f"/v2/tokens/{grants[1]}", headers=in_test)
    assert refused(there) == (404, "grant_not_found")


def test_revoking_a_grant_ends_only_that_grant_and_its_refreshes(world: World) -> None:
    one, other = world.granted(), world.granted()
    path = f"/v2/tokens/{one['token_id']}"
    assert world.owner.delete(path).json()["status"] == "revoked"
    assert world.owner.delete(path).json()["status"] == "revoked"
    assert refused(world.refreshed(one)) == (401, "invalid_token")
    assert world.refreshed(other).status_code == 200
    for role in ("member", "viewer"):
        with world.server.person(role) as person:
            assert person.get(path).status_code == 200
            assert refused(person.delete(path)) == (403, "not_permitted")


@pytest.mark.parametrize("by", ["user_id", "user_email", "provider_id", "key_id"])
def test_grants_can_be_revoked_in_bulk(world: World, by: str) -> None:
    places = [world.provider(), world.provider()]
    keys = [world.new_key(), world.new_key()]

    def grant(place: int, key: int, sub: str) -> Any:  # noqa: ANN401 - JSON
        name = places[place]["name"]
        token = world.issuer.of_oidc(name, sub=f"{by}-{sub}", email=f"{by}-{sub}@acme.example")
        with world.server.client(keys[key]["secret"]) as client:
            return client.post(EXCHANGE, json={"provider": name, "token": token}).json()

    hit, same_user, same_provider, same_key = (
        grant(0, 0, "a"),
        grant(1, 1, "a"),
        grant(0, 1, "b"),
        grant(1, 0, "c"),
    )
    subject = {
        "user_id": hit["user_id"],
        "user_email": hit["user_email"].upper(),
        "provider_id": places[0]["id"],
        "key_id": keys[0]["key"]["id"],
    }[by]
    ended = {"provider_id": same_provider, "key_id": same_key}.get(by, same_user)
    answer = world.owner.post("/v2/tokens/revoke", json={by: subject})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"sessions": None, "revoked": 2}
    everyone = (hit, same_user, same_provider, same_key)
    assert [item for item in everyone if world.status(item) == "revoked"] == [hit, ended]
    # A new exchange after the revocation is accepted.
    assert world.status(grant(0, 0, "a")) == "active"
    assert world.owner.post("/v2/tokens/revoke", json={by: subject}).json()["revoked"] == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "invalid_request")),
        ({"user_id": "a", "key_id": "b"}, (400, "invalid_request")),
        ({"user_id": ""}, (400, "invalid_request")),
        ({"everybody": True}, (400, "invalid_request")),
        ({"provider_id": "prv_nobody"}, (404, "provider_not_found")),
        ({"key_id": "key_nobody"}, (404, "key_not_found")),
        ({"user_id": "nobody"}, (200, None)),
    ],
)
def test_a_revocation_takes_exactly_one_kind_of_subject(
    world: World, body: dict[str, object], expected: tuple[int, str | None]
) -> None:
    answer = world.owner.post("/v2/tokens/revoke", json=body)
    assert (answer.status_code, answer.json().get("code")) == expected, answer.text


def test_grants_end_with_their_provider_or_key_and_outlive_its_disabling(world: World) -> None:
    gone, disabled = world.provider(), world.provider()
    of_gone, of_disabled = world.granted(gone["name"]), world.granted(disabled["name"])
    keys = [world.new_key() for _ in range(3)]
    by_key = []
    for key in keys:
        with world.server.client(key["secret"]) as client:
            body = {"user_email": "key@acme.example"}
            by_key.append(client.post("/v2/tokens/create", json=body).json())
    world.owner.post(f"{PROVIDERS}/{disabled['id']}/disable")
    assert world.status(of_disabled) == "active"
    assert refused(world.refreshed(of_disabled)) == (401, "invalid_token")
    world.owner.delete(f"{PROVIDERS}/{gone['id']}")
    assert world.status(of_gone) == "revoked"
    world.owner.post(f"/v2/keys/{keys[0]['key']['id']}/revoke")
    world.owner.post(f"/v2/keys/{keys[1]['key']['id']}/disable")
    world.owner.post(f"/v2/keys/{keys[2]['key']['id']}/rotate")
    assert [world.status(grant) for grant in by_key] == ["revoked", "revoked", "active"]


def test_403_a_suspended_organization_cannot_exchange_tokens(world: World, trusted: str) -> None:
    token, grant = world.issuer.of_oidc(trusted), world.granted()
    assert world.server.cli("org", "suspend", "acme").returncode == 0
    try:
        answers = [
            world.exchange(trusted, token),
            world.keyless(token),
            world.key.post("/v2/tokens/create", json={"user_email": "eve@acme.example"}),
        ]
        assert [refused(item) for item in answers] == [
            (401, "disabled"),
            (403, "organization_suspended"),
            (401, "disabled"),
        ]
        assert refused(world.refreshed(grant)) == (401, "invalid_token")
    finally:
        assert world.server.cli("org", "resume", "acme").returncode == 0
    assert world.exchange(trusted, token).status_code == 200


def test_passwords_and_tokens_are_never_stored_or_logged(world: World, trusted: str) -> None:
    token = world.issuer.of_oidc(trusted)
    grant = world.exchange(trusted, token).json()
    world.exchange(trusted, token + "x")
    world.refreshed(grant)
    kept = everything_stored(world.server) + world.server.output
    for secret in (grant["mqtt_password"], token, token.rpartition(".")[2]):
        assert secret not in kept


def test_a_provider_change_applies_in_every_process_at_once(
    server: Server,
) -> None:
    # These processes fetch no keys: a legacy project only has its shared secret.
    secret = "a-shared-secret-of-a-legacy-project-0123456789"
    fields = {
        "kind": "supabase",
        "project_url": "https://abcdefgh.supabase.co",
        "legacy_secret": True,
        "secret": secret,
    }
    claims = {
        "iss": "https://abcdefgh.supabase.co/auth/v1",
        "aud": "authenticated",
        "role": "authenticated",
        "sub": "abc",
        "exp": int(time.time()) + 600,
    }
    token = signed({"alg": "HS256"}, claims, OctKey.import_key(secret.encode()))
    body = {"provider": "supabase", "token": token}

    def codes() -> set[int]:
        def one(_: int) -> int:
            with server.client(server.first_key) as client:
                return client.post(EXCHANGE, json=body).status_code

        with ThreadPoolExecutor(4) as pool:
            return set(pool.map(one, range(24)))

    with server.owner() as owner:
        made = owner.post(PROVIDERS, json=fields)
        assert made.status_code == 201, made.text
        path = f"{PROVIDERS}/{made.json()['id']}"
        assert codes() == {200}
        owner.post(f"{path}/disable")
        assert codes() == {403}
        owner.post(f"{path}/enable")
        assert codes() == {200}
        owner.patch(path, json={"secret": secret[::-1]})
        assert codes() == {401}
        owner.delete(path)
        assert codes() == {404}
