"""Token exchange responses contain the details that third-party clients need."""

from __future__ import annotations

import pytest

from tests.api.test_exchange import ADDRESSES, EXCHANGE, PROVIDERS, World, refused, world
from tests.support.database import everything_stored

__all__ = ["world"]  # pytest finds fixtures by their names here


def test_a_refresh_with_a_lost_response_can_be_repeated_until_the_new_password_is_used(
    world: World,
) -> None:
    first = world.granted()
    apart = world.granted(first["provider"])
    lost = world.refreshed(first).json()
    result = world.refreshed(first)
    assert result.status_code == 200, result.text
    assert result.json()["mqtt_username"] == first["mqtt_username"]
    assert [world.status(grant) for grant in (lost, result.json())] == ["refreshed", "active"]
    again = world.refreshed(result.json()).json()
    assert refused(world.refreshed(lost)) == (401, "refresh_replayed")
    assert [world.status(grant) for grant in (lost, result.json(), again)] == ["revoked"] * 3
    assert world.status(apart) == "active", "only the family ends, not the person's other grants"
    # No password of a repeatable response is stored.
    stored = everything_stored(world.server)
    for grant in (first, lost, result.json(), again):
        assert grant["mqtt_password"].rpartition("_")[2] not in stored


def test_429_after_a_hundred_bad_refreshes_while_valid_ones_from_that_address_pass(
    world: World,
) -> None:
    grant, address = world.granted(), next(ADDRESSES)
    body = {"token_id": grant["token_id"], "current_token_password": grant["mqtt_password"]}
    wrong = body | {"current_token_password": grant["mqtt_password"][:-1]}
    with world.anyone(address) as client:
        codes = [client.post("/v2/tokens/refresh", json=wrong).status_code for _ in range(110)]
        assert codes[:100] == [401] * 100
        assert codes[-1] == 429
        assert client.post("/v2/tokens/refresh", json=body).status_code == 200


def test_the_error_for_an_app_without_an_origin_names_allow_native(world: World) -> None:
    place = world.provider(limits={"publishable_may_exchange": True})["name"]
    made = world.new_key(type="publishable", allowed_origins=["https://acme.example"])
    body = {"provider": place, "token": world.issuer.of_oidc(place)}
    with world.server.client(made["secret"]) as app:
        answer = app.post(EXCHANGE, json=body)
        assert refused(answer) == (403, "origin_not_allowed")
        assert "allow_native" in answer.json()["detail"]
        elsewhere = app.post(EXCHANGE, json=body, headers={"Origin": "https://evil.example"})
        assert "allow_native" not in elsewhere.json()["detail"]
        change = {"allow_native": True}
        assert world.owner.patch(f"/v2/keys/{made['key']['id']}", json=change).is_success
        assert app.post(EXCHANGE, json=body).status_code == 200


def test_a_page_can_read_the_public_part_of_its_organization(world: World) -> None:
    page = world.new_key(type="publishable", allowed_origins=["https://acme.example"])["secret"]
    with world.server.client(page, Origin="https://acme.example") as client:
        response = client.get("/v2/organization")
        changed = client.patch("/v2/organization", json={"name": "Mine"})
    assert (response.status_code, response.json()["id"]) == (200, world.org_id)
    assert response.json()["created_at"] is None
    assert response.headers["access-control-allow-origin"] == "*"
    assert "Wardkey-Request-Id" in response.headers["access-control-expose-headers"]
    assert changed.status_code == 403
    with world.server.client() as browser:
        headers = {"Origin": "https://acme.example", "Access-Control-Request-Method": "PATCH"}
        answer = browser.options("/v2/organization", headers=headers)
    assert answer.headers["access-control-allow-methods"] == "GET, OPTIONS"


def test_a_key_usable_from_any_page_gets_a_warning(world: World) -> None:
    fields: dict[str, object] = {"type": "publishable", "name": "live-chat-page"}
    (warning,) = world.new_key(**fields)["warnings"]
    assert "allowed_origins" in warning
    fields |= {"name": "live-chat-site", "allowed_origins": ["https://acme.example"]}
    made = world.new_key(**fields)
    assert made["warnings"] == []
    assert world.new_key(name="live-chat-server")["warnings"] == []
    path = f"/v2/keys/{made['key']['id']}"
    assert world.owner.patch(path, json={"description": "x"}).json()["warnings"] == []
    assert world.owner.patch(path, json={"allowed_origins": []}).json()["warnings"] == [warning]


def test_a_provider_test_reports_the_same_user_as_the_exchange(world: World) -> None:
    made = world.provider()
    token = world.issuer.of_oidc(made["name"], sub="user_42")
    exchanged = world.exchange(made["name"], token).json()["mqtt_username"].partition("@")[0]
    saved = world.owner.post(f"{PROVIDERS}/{made['id']}/test", json={"token": token}).json()
    assert saved["identity"]["username"] == exchanged
    settings = {name: made[name] for name in ("kind", "issuer", "audiences", "algorithms")}
    unsaved = world.owner.post(f"{PROVIDERS}/test", json={"provider": settings, "token": token})
    assert unsaved.json()["identity"]["username"] == "user_42_…"


def test_without_a_key_the_error_names_the_setting_to_check(world: World) -> None:
    place = world.provider()["name"]
    answer = world.keyless(world.issuer.of_oidc(place))
    assert refused(answer) == (401, "invalid_token")
    assert "keyless_may_exchange" in answer.json()["detail"]


@pytest.mark.parametrize("path", [EXCHANGE, "/v2/tokens/refresh", "/oauth/token"])
def test_a_page_can_read_retry_after_and_the_request_id(world: World, path: str) -> None:
    with world.server.client(Origin="https://acme.example") as browser:
        answer = browser.post(path, json={})
    readable = answer.headers["access-control-expose-headers"].split(", ")
    assert {"Retry-After", "RateLimit", "RateLimit-Policy", "Wardkey-Request-Id"} <= set(readable)
