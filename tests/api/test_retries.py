from __future__ import annotations

import uuid
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.database import age, everything_stored
from tests.support.server import OWNER, PASSWORD, Server
from wardkey.db.schema import idempotency

MINUTE = 60_000


@pytest.fixture
def key_id(server: Server) -> str:
    with server.owner() as owner:
        body = {"name": f"live-{uuid.uuid4()}", "type": "secret", "permissions": ["keys:read"]}
        made = owner.post("/v2/keys", json=body)
    assert made.status_code == 201, made.text
    result: str = made.json()["key"]["id"]
    return result


def rotate(client: httpx.Client, key_id: str, text: str, grace: str = "24h") -> Any:  # noqa: ANN401 - JSON
    answer = client.post(
        f"/v2/keys/{key_id}/rotate", json={"grace": grace}, headers={"Idempotency-Key": text}
    )
    return answer.json()


def test_a_retry_gets_the_same_secret_for_ten_minutes_and_then_a_new_one(
    server: Server, key_id: str
) -> None:
    text = str(uuid.uuid4())
    with server.owner() as owner:
        first = rotate(owner, key_id, text)
        age(server, idempotency, "created_at", 9 * MINUTE)
        assert rotate(owner, key_id, text) == first
        age(server, idempotency, "created_at", MINUTE)
        later = rotate(owner, key_id, text)
        assert later["secret"] != first["secret"]
        assert len(owner.get(f"/v2/keys/{key_id}").json()["secrets"]) == 3


def test_the_same_idempotency_key_of_another_credential_is_another_request(
    server: Server, key_id: str
) -> None:
    text = str(uuid.uuid4())
    with server.owner() as owner, server.client() as anyone:
        again = anyone.post("/v2/user-tokens", json={"email": OWNER, "password": PASSWORD})
        assert again.status_code == 201, again.text
        made = [rotate(owner, key_id, text)["secret"]]
        # The same user with another token, and an admin.
        for client in (server.client(again.json()["token"]), server.person("admin")):
            with client:
                made.append(rotate(client, key_id, text)["secret"])
        assert rotate(owner, key_id, text)["secret"] == made[0]
    assert len(set(made)) == 3


def test_409_the_same_idempotency_key_with_another_body_is_rejected(
    server: Server, key_id: str
) -> None:
    text = str(uuid.uuid4())
    with server.owner() as owner:
        rotate(owner, key_id, text)
        assert rotate(owner, key_id, text, "1h")["code"] == "idempotency_key_reused"
        # Another route is another request.
        other = owner.post(
            "/v2/keys",
            json={"name": f"live-{text}", "type": "secret"},
            headers={"Idempotency-Key": text},
        )
        assert other.status_code == 201, other.text


def test_a_stored_response_is_sealed(server: Server, key_id: str) -> None:
    with server.owner() as owner:
        made = rotate(owner, key_id, str(uuid.uuid4()))
    stored = everything_stored(server)
    assert made["kid"] in stored
    assert made["secret"] not in stored
    assert made["secret"].rpartition("_")[2] not in stored


@pytest.mark.parametrize(
    "text", ["", "short", "a" * 40, "0123456789abcdef" * 1, "0123456789abcdef-0123456789abcde"]
)
def test_400_a_guessable_idempotency_key_is_rejected(
    server: Server, key_id: str, text: str
) -> None:
    with server.owner() as owner:
        assert rotate(owner, key_id, text)["code"] == "weak_idempotency_key"
        assert len(owner.get(f"/v2/keys/{key_id}").json()["secrets"]) == 1


@pytest.mark.parametrize("route", ["issue", "rotate", "create_client", "set_client_password"])
def test_a_stored_response_is_not_returned_to_a_caller_who_lost_the_permission(
    server: Server, key_id: str, route: str
) -> None:
    name = f"live-{uuid.uuid4()}"
    paths: dict[str, tuple[str, dict[str, Any]]] = {
        "issue": ("/v2/keys", {"name": f"{name}-b", "type": "secret", "permissions": []}),
        "rotate": (f"/v2/keys/{key_id}/rotate", {"grace": "24h"}),
        "create_client": ("/v2/clients", {"username": f"u{uuid.uuid4().hex[:12]}"}),
        "set_client_password": ("/v2/clients/{client}/password", {}),
    }
    with server.owner() as owner:
        made = owner.post("/v2/clients", json={"username": f"u{uuid.uuid4().hex[:12]}"}).json()
        path, body = paths[route]
        path = path.format(client=made["client"]["id"])
        spec = {
            "name": name,
            "type": "secret",
            "permissions": ["keys:read", "keys:write", "clients:write"],
        }
        caller = owner.post("/v2/keys", json=spec).json()
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        with server.client(caller["secret"]) as key:
            first = key.post(path, json=body, headers=headers)
            assert first.is_success, first.text
            assert key.post(path, json=body, headers=headers).json() == first.json()
            owner.patch(f"/v2/keys/{caller['key']['id']}", json={"permissions": ["keys:read"]})
            later = key.post(path, json=body, headers=headers)
    assert (later.status_code, later.json()["code"]) == (403, "not_permitted")
