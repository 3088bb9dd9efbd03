from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx2 as httpx
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

from tests.api.test_exchange import World, trusted, world

__all__ = ["trusted", "world"]  # pytest finds fixtures by their names here

NODE = Path(__file__).parents[1] / "node"
TYPE = "urn:ietf:params:oauth:token-type"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"


def exchange_form(world: World, place: str, **more: str) -> dict[str, str]:
    good = {
        "grant_type": GRANT,
        "subject_token": world.issuer.of_oidc(place),
        "subject_token_type": f"{TYPE}:id_token",
        "provider": place,
    }
    return {name: value for name, value in (good | more).items() if value}


def basic(secret: str) -> dict[str, str]:
    credential = base64.b64encode(f"wardkey:{secret}".encode()).decode()
    return {"Authorization": f"Basic {credential}"}


def posted(world: World, form: Any, **headers: str) -> httpx.Response:  # noqa: ANN401 - a form
    with world.anyone() as client:
        return client.post("/oauth/token", data=form, headers=headers)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_an_oauth_library_exchanges_and_refreshes(world: World, trusted: str, method: str) -> None:
    url, key = f"{world.server.url}/oauth/token", world.server.first_key
    with OAuth2Session("wardkey", key, token_endpoint_auth_method=method) as session:
        form = exchange_form(world, trusted, ttl="600")
        result = session.fetch_token(url, **form)
        assert (result["token_type"], result["expires_in"]) == ("Bearer", 600)
        assert result["issued_token_type"] == f"{TYPE}:access_token"
        assert result["access_token"].startswith("tkn_")
        again = session.refresh_token(url, result["refresh_token"])
        assert again["access_token"] != result["access_token"]
        assert again["mqtt_username"] == result["mqtt_username"]
        # As if the response was lost; the next one is used.
        once_more = session.refresh_token(url, result["refresh_token"])
        session.refresh_token(url, once_more["refresh_token"])
        with pytest.raises(OAuthError) as refused:
            session.refresh_token(url, result["refresh_token"])
        assert refused.value.error == "invalid_grant"
        with pytest.raises(OAuthError) as refused:
            session.fetch_token(url, **form | {"subject_token": "nothing"})
        assert refused.value.error == "invalid_request"


def test_a_javascript_library_that_encodes_both_parts_exchanges_and_refreshes(
    world: World, trusted: str
) -> None:
    form = exchange_form(world, trusted)
    options = {"url": world.server.url, "secret": world.server.first_key, "form": form}
    done = subprocess.run(
        ["node", NODE / "oauth.mjs", json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    exchanged, refreshed = json.loads(done.stdout)
    assert exchanged["mqtt_username"] == refreshed["mqtt_username"]
    assert exchanged["access_token"] != refreshed["access_token"]


@pytest.mark.parametrize("name", ["my_app", ""])
def test_a_key_is_accepted_raw_and_in_either_encoding(
    world: World, trusted: str, name: str
) -> None:
    key = world.server.first_key
    escaped = "".join(f"%{ord(letter):02X}" for letter in key)
    for key_text in (
        key,
        quote_plus(key),
        key.replace("_", "%5F"),
        key.replace("_", "%5f"),
        escaped,
    ):
        pair = f"{name}:{key_text}" if name else f"{key_text}:"
        headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        answer = posted(world, exchange_form(world, trusted), **headers)
        assert answer.status_code == 200, (key_text, answer.text)


def test_a_plain_form_works_with_a_bearer_key_or_without_a_key(world: World, trusted: str) -> None:
    key = world.server.first_key
    for headers in ({"Authorization": f"Bearer {key}"}, {"Wardkey-Api-Key": key}, basic(key)):
        answer = posted(world, exchange_form(world, trusted), **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["access-control-allow-origin"] == "*"
    # A public client has an id and no secret; the organization is the audience.
    public = exchange_form(world, trusted, audience=world.org_id, client_id="page")
    assert posted(world, public).status_code == 200
    answer = posted(world, exchange_form(world, trusted, audience="org_0fA3xQ2LmN7pR9sT1uV4wY"))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("scope", ["openid", "openid profile email", "offline_access", ""])
def test_a_requested_scope_is_ignored_and_the_response_names_the_granted_one(
    world: World, trusted: str, scope: str
) -> None:
    answer = posted(
        world, exchange_form(world, trusted, scope=scope), **basic(world.server.first_key)
    )
    assert (answer.status_code, answer.json()["scope"]) == (200, "mqtt")


def test_a_key_as_the_basic_username_is_accepted(world: World, trusted: str) -> None:
    pair = base64.b64encode(f"{world.server.first_key}:".encode()).decode()
    answer = posted(world, exchange_form(world, trusted), Authorization=f"Basic {pair}")
    assert answer.status_code == 200, answer.text


REFUSED: dict[str, tuple[dict[str, str], int, str]] = {
    "no grant type": ({"grant_type": ""}, 400, "unsupported_grant_type"),
    "a password": ({"grant_type": "password"}, 400, "unsupported_grant_type"),
    "a malformed scope": ({"scope": 'a"b'}, 400, "invalid_scope"),
    "no token": ({"subject_token": ""}, 400, "invalid_request"),
    "no token type": ({"subject_token_type": ""}, 400, "invalid_request"),
    "another token type": ({"subject_token_type": f"{TYPE}:saml2"}, 400, "invalid_request"),
    "another requested token type": (
        {"requested_token_type": f"{TYPE}:jwt"},
        400,
        "invalid_request",
    ),
    "an actor": ({"actor_token": "x"}, 400, "invalid_request"),
    "an invalid token": ({"subject_token": "x"}, 400, "invalid_request"),
    "an unknown provider": ({"provider": "nobody"}, 400, "invalid_target"),
    "another organization": ({"audience": "org_0fA3xQ2LmN7pR9sT1uV4wY"}, 400, "invalid_target"),
    "a short time": ({"ttl": "5"}, 400, "invalid_request"),
    "a time in words": ({"ttl": "soon"}, 400, "invalid_request"),
    "a long number": ({"ttl": "9" * 5_000}, 400, "invalid_request"),
    "a number in other digits": ({"ttl": "٣٦٠٠"}, 400, "invalid_request"),
    "a long token": ({"subject_token": "x" * 40_000}, 413, "invalid_request"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_has_the_oauth_format(world: World, trusted: str, name: str) -> None:
    more, status, code = REFUSED[name]
    answer = posted(world, exchange_form(world, trusted, **more), **basic(world.server.first_key))
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), answer.text
    assert body["error_description"].endswith(".")
    assert body["error_uri"].startswith("/problems/")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"


def test_a_missing_claim_is_an_oauth_400(world: World) -> None:
    place = world.provider(mapping={"username_from": "email"})["name"]
    answer = posted(world, exchange_form(world, place), **basic(world.server.first_key))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert "email" in answer.json()["error_description"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (basic("sk_live_nothing"), 401, "invalid_client"),
        ({"Authorization": "Basic %%%"}, 401, "invalid_client"),
        ({"Authorization": "Bearer nothing"}, 401, "invalid_client"),
    ],
)
def test_401_an_unknown_client_gets_an_authentication_challenge(
    world: World, trusted: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = posted(world, exchange_form(world, trusted), **headers)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_only_one_client_authentication_method_and_no_repeated_parameters(
    world: World, trusted: str
) -> None:
    key, form = world.server.first_key, exchange_form(world, trusted)
    for headers in (basic(key), {"Authorization": "Bearer sk_live_other"}):
        answer = posted(world, {**form, "client_secret": key}, **headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
        assert answer.json()["error_uri"] == "/problems/ambiguous_credentials"
    twice = urlencode([*form.items(), ("ttl", "60"), ("ttl", "3600")])
    with world.anyone() as client:
        form_type = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = client.post("/oauth/token", content=twice, headers=basic(key) | form_type)
        assert answer.json()["error"] == "invalid_request"
        answer = client.post("/oauth/token", json=form, headers=basic(key))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
        answer = client.post("/oauth/token", content=b"\xff=%ff&a", headers=form_type)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_a_403_for_a_key_becomes_unauthorized_client(world: World) -> None:
    place = world.provider()["name"]
    page = world.new_key(type="publishable")["secret"]
    answer = posted(world, exchange_form(world, place), **basic(page))
    assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client")


def test_an_unreachable_issuer_is_a_503_with_retry_after(world: World) -> None:
    made = world.provider(name="gone", issuer="http://127.0.0.1:9")
    token = world.issuer.token("rsa", {"iss": made["issuer"], "aud": "my-app", "sub": "abc"})
    form = exchange_form(world, "gone", subject_token=token)
    answer = posted(world, form, **basic(world.server.first_key))
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
