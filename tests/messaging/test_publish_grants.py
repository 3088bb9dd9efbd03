"""`POST /publish` with a page's key and the grant of the user signed in on that page."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.messaging.test_publish import publish
from tests.messaging.test_sessions import second_organization
from tests.support.mqtt import MqttClient, connected
from tests.support.server import Server, running, wait_until

PEOPLE = "people/{claim.user_id}"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("beside") / "data", no_messaging=0) as server:
        yield server


@pytest.fixture(scope="module")
def receiver(broker: Server) -> Iterator[MqttClient]:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "receiver"}).json()
        client = {"kind": "client", "value": made["client"]["id"]}
        rules: list[dict[str, Any]] = [
            {"filter": f"{PEOPLE}/shut", "effect": "deny", "action": "publish"},
            {"filter": f"{PEOPLE}/#", "effect": "allow", "action": "publish"},
            {"filter": "#", "effect": "allow", "action": "subscribe", "subject": client},
        ]
        for number, rule in enumerate(rules):
            body = {"subject": {"kind": "everyone"}, "priority": number, **rule}
            response = owner.post("/v2/acl/rules", json=body)
            assert response.status_code == 201, response.text
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
    with connected(broker, made["client"]["mqtt_username"], made["password"], "receiver") as live:
        assert live.subscribe("#") == 1
        yield live


@pytest.fixture(scope="module")
def page_key(broker: Server) -> str:
    """Return a page's key, which no rule allows anything."""
    with broker.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-page", "type": "publishable"})
    return str(made.json()["secret"])


def grant_of(server: Server, email: str, **headers: str) -> dict[str, Any]:
    with server.owner(**headers) as owner:
        made = owner.post("/v2/tokens/create", json={"user_email": email})
    assert made.status_code == 200, made.text
    grant: dict[str, Any] = made.json()
    return grant


def test_a_page_publishes_by_the_rules_of_its_users_grant(
    broker: Server, receiver: MqttClient, page_key: str
) -> None:
    grant = grant_of(broker, "ada@acme.example")
    headers = {"X-Wardkey-Grant": grant["mqtt_password"]}
    own = {"topic": "people/ada@acme.example/seat", "payload": "4", "qos": 1}
    sent = publish(broker, own, page_key, **headers)
    assert sent.status_code == 200, sent.text
    wait_until(lambda: (own["topic"], b"4") in receiver.messages)
    assert publish(broker, own, page_key).json()["code"] == "publish_denied"
    denied = ["people/grace@acme.example/seat", "people/ada@acme.example/shut", "agents/x"]
    for topic in denied:
        refused = publish(broker, {**own, "topic": topic}, page_key, **headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "publish_denied")
    many = publish(broker, [own, {**own, "topic": denied[0]}], page_key, **headers).json()
    assert [result["success"] for result in many] == [True, False]
    once = {**headers, "Idempotency-Key": str(uuid.uuid4())}
    assert publish(broker, own, page_key, **once).status_code == 200


def test_401_a_grant_sent_with_a_key_is_live_and_of_the_same_tenant_scope(
    broker: Server, page_key: str
) -> None:
    grant = grant_of(broker, "over@acme.example")
    own = {"topic": "people/over@acme.example/x", "payload": 1}
    with second_organization(broker)[1] as other:
        body = {"user_email": "over@acme.example"}
        elsewhere = other.post("/v2/tokens/create", json=body).json()
    test = grant_of(broker, "over@acme.example", **{"Wardkey-Environment": "test"})
    assert len({minted["mqtt_username"] for minted in (grant, elsewhere, test)}) == 3
    for password in (
        elsewhere["mqtt_password"], test["mqtt_password"], grant["mqtt_password"][:-1], "x"
    ):  # fmt: skip
        refused = publish(broker, own, page_key, **{"X-Wardkey-Grant": password})
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
        assert refused.headers["access-control-allow-origin"] == "*"
    headers = {"X-Wardkey-Grant": grant["mqtt_password"]}
    assert publish(broker, own, page_key, **headers).status_code == 200
    with broker.owner() as owner:
        assert owner.delete(f"/v2/tokens/{grant['token_id']}").status_code == 200
    assert publish(broker, own, page_key, **headers).json()["code"] == "invalid_token"
