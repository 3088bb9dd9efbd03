from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.database import everything_stored
from tests.support.server import Server

PASSWORD = "moss on a northern roof"


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


def created(owner: httpx.Client, username: str, **more: object) -> Any:  # noqa: ANN401 - JSON
    answer = owner.post("/v2/clients", json={"username": username, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def listed(owner: httpx.Client, **params: str) -> list[str]:
    page = owner.get("/v2/clients", params=params).json()
    assert page["total"] == len(page["clients"])
    return [client["username"] for client in page["clients"]]


def actions_on(owner: httpx.Client, client_id: str) -> list[str]:
    page = owner.get("/v2/audit-events", params={"target_id": client_id}).json()
    return [event["action"] for event in reversed(page["events"])]


def test_a_client_can_be_created_read_changed_and_deleted(owner: httpx.Client) -> None:
    made = created(owner, "agent-01", display_name=" Agent 1 ", tags=["a", "b", "a"])["client"]
    org_id = owner.get("/v2/organization").json()["id"]
    assert made["id"].startswith("cli_")
    assert made["mqtt_username"] == f"agent-01@{org_id}"
    assert (made["display_name"], made["tags"], made["enabled"]) == ("Agent 1", ["a", "b"], True)
    assert made["last_connected_at"] is None
    path = f"/v2/clients/{made['id']}"
    assert owner.get(path).json() == made
    changed = owner.patch(path, json={"display_name": "", "tags": [], "enabled": False}).json()
    assert (changed["display_name"], changed["tags"], changed["enabled"]) == ("", [], False)
    assert owner.patch(path, json={}).json() == changed
    assert owner.patch(path, json={"tags": None}).json() == changed
    assert owner.post(f"{path}/disable").json() == changed
    assert owner.post(f"{path}/enable").json()["enabled"] is True
    assert owner.delete(path).json() == {"id": made["id"], "sessions": None}
    assert owner.get(path).json()["code"] == "client_not_found"
    assert owner.delete(path).json()["code"] == "client_not_found"
    assert actions_on(owner, made["id"]) == [
        "client.created",
        "client.disabled",
        "client.updated",
        "client.enabled",
        "client.deleted",
    ]
    again = created(owner, "agent-01")["client"]
    assert again["id"] != made["id"]


def test_a_password_is_returned_once_and_never_stored_or_logged(
    server: Server, owner: httpx.Client
) -> None:
    text = secrets.token_hex(32)
    again = {"Idempotency-Key": text}
    body = {"username": "told-once"}
    first = owner.post("/v2/clients", json=body, headers=again).json()
    assert owner.post("/v2/clients", json=body, headers=again).json() == first
    path = f"/v2/clients/{first['client']['id']}"
    second = owner.post(f"{path}/password").json()
    given = owner.post(
        f"{path}/password", json={"password": PASSWORD}, headers={"Idempotency-Key": text}
    ).json()
    assert given["password"] is None
    assert given["client"]["password_set_at"] >= second["client"]["password_set_at"]
    passwords = [first["password"], second["password"]]
    assert len(set(passwords)) == 2
    assert all(len(password) == 32 for password in passwords)
    visible = owner.get(path).text + owner.get("/v2/clients").text
    visible += owner.get("/v2/audit-events").text + server.output + everything_stored(server)
    for password in (*passwords, PASSWORD):
        assert password not in visible
    assert actions_on(owner, first["client"]["id"]) == [
        "client.created",
        "client.password_set",
        "client.password_set",
    ]


BAD = {
    "empty": ({"username": ""}, "invalid_username"),
    "long": ({"username": "a" * 65}, "invalid_username"),
    "organization": ({"username": "a@org_x"}, "invalid_username"),
    "plus": ({"username": "a+"}, "invalid_username"),
    "hash": ({"username": "a#"}, "invalid_username"),
    "star": ({"username": "a*"}, "invalid_username"),
    "greater": ({"username": "a>"}, "invalid_username"),
    "slash": ({"username": "a/b"}, "invalid_username"),
    "white space": ({"username": "a "}, "invalid_username"),
    "line": ({"username": "a\n"}, "invalid_username"),
    "NUL": ({"username": "a\0"}, "invalid_username"),
    "other letters": ({"username": "агент"}, "invalid_username"),
    "short": ({"password": "a" * 6 + "bcdef"}, "weak_password"),
    "too long": ({"password": PASSWORD * 6}, "weak_password"),
    "repeats": ({"password": "abababababab"}, "weak_password"),
    "not printable": ({"password": PASSWORD + "\0"}, "weak_password"),
    "surrogate": ({"password": PASSWORD + "\ud800"}, "invalid_request"),
    "hidden": ({"display_name": "a\u202eb"}, "invalid_name"),
    "tag": ({"tags": ["a", "b c"]}, "invalid_tag"),
    "21 tags": ({"tags": [f"t{n}" for n in range(21)]}, "invalid_request"),
    "no boolean": ({"enabled": "yes"}, "invalid_request"),
    "environment": ({"environment": "staging"}, "invalid_request"),
    "unknown field": ({"acl": []}, "invalid_request"),
}


@pytest.mark.parametrize(("fields", "code"), BAD.values(), ids=BAD)
def test_400_bad_input_creates_no_client(
    owner: httpx.Client, fields: dict[str, object], code: str
) -> None:
    before = owner.get("/v2/clients").json()["total"]
    # Encoded as ASCII, because the HTTP client's own encoder rejects a lone surrogate.
    body = json.dumps({"username": "bad", **fields})
    answer = owner.post("/v2/clients", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, code), answer.text
    assert PASSWORD not in answer.text
    assert owner.get("/v2/clients").json()["total"] == before


def test_400_bad_changes_leave_a_client_unchanged(owner: httpx.Client) -> None:
    made = created(owner, "steady")["client"]
    path = f"/v2/clients/{made['id']}"
    assert owner.patch(path, json={"username": "other"}).json()["code"] == "invalid_request"
    assert owner.patch(path, json={"display_name": "a\0"}).json()["code"] == "invalid_name"
    assert owner.patch(path, json={"tags": ["#"]}).json()["code"] == "invalid_tag"
    weak = owner.post(f"{path}/password", json={"password": "short"})
    assert weak.json()["code"] == "weak_password"
    assert weak.json()["errors"][0]["field"] == "password"
    assert owner.get(path).json() == made


def test_409_a_username_is_unique_per_environment(owner: httpx.Client) -> None:
    live = created(owner, "both", environment="live")["client"]
    test = created(owner, "both", environment="test")["client"]
    assert test["mqtt_username"] == f"{live['mqtt_username']}.test"
    taken = owner.post("/v2/clients", json={"username": "both"})
    assert (taken.status_code, taken.json()["code"]) == (409, "username_taken")
    created(owner, "Both")


def test_live_and_test_never_see_each_other(server: Server, owner: httpx.Client) -> None:
    made = created(owner, "only-in-test", environment="test")["client"]
    path = f"/v2/clients/{made['id']}"
    assert owner.get(path).json()["code"] == "client_not_found"
    assert owner.delete(path).json()["code"] == "client_not_found"
    assert owner.post(f"{path}/password").json()["code"] == "client_not_found"
    assert listed(owner, search="only-in-test") == []
    assert listed(owner, search="only-in-test", environment="test") == ["only-in-test"]
    with server.owner(Wardkey_Environment="test") as in_test:
        assert in_test.get(path).json() == made
    with server.client(server.first_key) as key:
        refused = key.post("/v2/clients", json={"username": "crossing", "environment": "test"})
        assert (refused.status_code, refused.json()["code"]) == (403, "wrong_environment")
        assert key.get("/v2/clients?environment=test").json()["code"] == "wrong_environment"


def test_403_viewer_cannot_create_a_client(server: Server, owner: httpx.Client) -> None:
    made = created(owner, "not-a-viewers")["client"]
    path = f"/v2/clients/{made['id']}"
    with server.person("viewer") as viewer:
        refused = [
            viewer.post("/v2/clients", json={"username": "viewers"}),
            # Callers without the permission don't learn whether the password is weak.
            viewer.post("/v2/clients", json={"username": "viewers", "password": "short"}),
            viewer.patch(path, json={"enabled": False}),
            viewer.post(f"{path}/disable"),
            viewer.post(f"{path}/enable"),
            viewer.post(f"{path}/password"),
            viewer.delete(path),
        ]
        assert viewer.get(path).json() == made
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
        assert 'scope="clients:write"' in answer.headers["www-authenticate"]
    with server.person("member") as member:
        created(member, "members")


def test_403_a_key_needs_the_permission_for_clients(server: Server, owner: httpx.Client) -> None:
    def key(name: str, kind: str, **more: object) -> httpx.Client:
        answer = owner.post("/v2/keys", json={"name": name, "type": kind, **more})
        return server.client(answer.json()["secret"])

    with key("live-reads", "secret", permissions=["clients:read"]) as reading:
        assert reading.get("/v2/clients").status_code == 200
        refused = reading.post("/v2/clients", json={"username": "keys"})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    with key("live-writes", "secret", permissions=["clients:write"]) as writing:
        assert created(writing, "by-a-key")["client"]["created_by"].startswith("key_")
        assert writing.get("/v2/clients").json()["code"] == "not_permitted"
    with key("live-page", "publishable") as page:
        assert page.get("/v2/clients").json()["code"] == "secret_key_required"


def test_a_list_pages_through_clients_newest_first(owner: httpx.Client) -> None:
    for n in range(5):
        created(owner, f"walk-{n}")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"search": "walk-", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = owner.get("/v2/clients", params=params).json()
        seen += [client["username"] for client in page["clients"]]
        cursor = page["next_cursor"]
        if len(seen) == 2:
            other = owner.get("/v2/clients", params={"search": "other", "cursor": cursor or ""})
            assert other.json()["code"] == "invalid_cursor"
    assert seen == [f"walk-{n}" for n in reversed(range(5))]


def test_a_search_matches_names_whole_tags_and_ids(owner: httpx.Client) -> None:
    lamp = created(owner, "find.lamp", display_name="Lämp 100%", tags=["hall:b"])["client"]
    created(owner, "find.door", tags=["hall:bc"], enabled=False)
    assert listed(owner, search="FIND.") == ["find.door", "find.lamp"]
    assert listed(owner, search="FIND.", enabled="true") == ["find.lamp"]
    assert listed(owner, search="FIND.", enabled="false") == ["find.door"]
    for text in ("lämp", "100%", "hall:b", lamp["id"], lamp["mqtt_username"]):
        assert listed(owner, search=text) == ["find.lamp"], text
    for text in ("find_lamp", "%.lamp", "all:b"):
        assert listed(owner, search=text) == [], text


def test_the_audit_chain_is_intact_at_the_end(owner: httpx.Client) -> None:
    assert owner.get("/v2/audit-events/verify").json()["holds"]
