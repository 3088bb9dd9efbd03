"""Scopes of an organization's own services: the catalogue, and the permission to grant them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import Server


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


@pytest.fixture(scope="module")
def first(server: Server) -> Iterator[httpx.Client]:
    """Return a client with the key created at first start."""
    with server.client(server.first_key) as client:
        yield client


def new(*permissions: str, **more: object) -> dict[str, object]:
    body = {"name": f"live-{uuid.uuid4()}", "type": "secret", "permissions": permissions}
    return {**body, **more}


def key_with(server: Server, owner: httpx.Client, *permissions: str, **more: object) -> Any:  # noqa: ANN401 - a client
    made = owner.post("/v2/keys", json=new(*permissions, create_scopes=True, **more))
    assert made.status_code == 201, made.text
    return server.client(made.json()["secret"])


def names(client: httpx.Client, search: str = "") -> list[str]:
    page = client.get("/v2/scopes", params={"limit": 200, "search": search}).json()
    return [scope["name"] for scope in page["scopes"]]


def test_the_first_key_adds_a_scope_issues_a_key_with_it_and_verifies_that_key(
    first: httpx.Client,
) -> None:
    added = first.post("/v2/scopes", json={"name": "ledger:read", "description": " Read it "})
    assert added.status_code == 201, added.text
    assert added.json()["description"] == "Read it"
    assert added.json()["keys"] == 0
    made = first.post("/v2/keys", json=new("ledger:read"))
    assert made.status_code == 201, made.text
    secret = made.json()["secret"]
    for permission, code in (("ledger:read", "valid"), ("ledger:write", "not_permitted")):
        verdict = first.post("/v2/keys/verify", json={"key": secret, "permissions": [permission]})
        assert verdict.json()["code"] == code
    rotated = first.post(f"/v2/keys/{made.json()['key']['id']}/rotate")
    assert rotated.status_code == 200, rotated.text
    (scope,) = first.get("/v2/scopes", params={"search": "ledger:r"}).json()["scopes"]
    assert (scope["name"], scope["keys"]) == ("ledger:read", 1)


@pytest.mark.parametrize("how", ["issue", "change", "import"])
def test_a_scope_missing_from_the_catalogue_is_rejected_or_added_on_request(
    owner: httpx.Client, first: httpx.Client, how: str
) -> None:
    scope = f"{how}d:read"
    made = owner.post("/v2/keys", json=new()).json()["key"]["id"]
    if how == "import":
        owner.post("/v2/import-prefixes", json={"prefix": "elsewhere_"})

    def ask(**more: object) -> httpx.Response:
        body = {"permissions": [scope, f"{how}d:write"], **more}
        if how == "change":
            return first.patch(f"/v2/keys/{made}", json=body)
        if how == "issue":
            return first.post("/v2/keys", json=new() | body)
        origin = {"prefix": "elsewhere_", "sha256": "cd" * 32, "entropy_bits": 160}
        known = {"name": "live-elsewhere", "environment": "live"}
        return first.post("/v2/keys/import", json={**known, **origin, **body})

    refused = ask()
    assert refused.status_code == 400
    assert refused.json()["code"] == "unknown_scope"
    detail = refused.json()["detail"]
    assert scope in detail
    assert f"{how}d:write" in detail
    assert "POST /v2/scopes" in detail
    assert "create_scopes" in detail
    assert scope not in names(owner)
    if how == "change":
        # A key with only keys:write can't widen a key, so the owner does it.
        taken = owner.patch(
            f"/v2/keys/{made}", json={"permissions": [scope], "create_scopes": True}
        )
    else:
        taken = ask(create_scopes=True)
    assert taken.status_code in {200, 201}, taken.text
    assert scope in names(owner)


@pytest.mark.parametrize(
    ("text", "code", "meant"),
    [
        ("usage:raed", "unknown_permission", "usage:read"),
        ("key:read", "unknown_scope", "keys:read"),
        ("invoicing:raed", "unknown_scope", "invoicing:read"),
        ("invoicing-read", "unknown_permission", "invoicing:read"),
    ],
)
def test_a_typo_gets_the_intended_permission_as_a_suggestion(
    owner: httpx.Client, text: str, code: str, meant: str
) -> None:
    owner.post("/v2/scopes", json={"name": "invoicing:read"})
    answer = owner.post("/v2/keys", json=new(text))
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert f"Did you mean {meant}" in answer.json()["detail"]


def test_a_key_without_scopes_grant_can_only_grant_its_own_scopes(
    server: Server, owner: httpx.Client
) -> None:
    owner.post("/v2/scopes", json={"name": "stock:write"})
    with key_with(server, owner, "keys:write", "keys:read", "stock:read") as key:
        assert key.post("/v2/keys", json=new("stock:read")).status_code == 201
        beyond = key.post("/v2/keys", json=new("stock:read", "stock:write"))
        assert (beyond.status_code, beyond.json()["code"]) == (403, "exceeds_own_permissions")
        assert "Owners and admins, and keys with scopes:grant" in beyond.json()["detail"]
        assert 'scope="scopes:grant"' in beyond.headers["www-authenticate"]
        added = key.post("/v2/keys", json=new("stock:count", create_scopes=True))
        assert (added.status_code, added.json()["code"]) == (403, "not_permitted")
        assert 'scope="scopes:grant"' in added.headers["www-authenticate"]
        assert key.post("/v2/scopes", json={"name": "stock:count"}).status_code == 403
        assert "stock:count" not in names(key)


def test_scopes_grant_must_be_selected_and_covers_no_wardkey_permission(
    server: Server, owner: httpx.Client
) -> None:
    usual = owner.post("/v2/keys", json={"name": "live-usual", "type": "secret"}).json()["key"]
    assert "scopes:grant" not in usual["permissions"]
    owner.post("/v2/scopes", json={"name": "parcels:send"})
    with key_with(server, owner, "keys:write", "scopes:grant") as key:
        assert key.post("/v2/keys", json=new("parcels:send")).status_code == 201
        refused = key.post("/v2/keys", json=new("acl:read"))
        assert refused.json()["code"] == "exceeds_own_permissions"


def test_catalogue_names_are_hidden_from_a_key_without_keys_read(
    server: Server, owner: httpx.Client
) -> None:
    owner.post("/v2/scopes", json={"name": "covert:action"})
    with key_with(server, owner, "keys:write") as key:
        refused = key.post("/v2/keys", json=new("covert:actio"))
        assert "covert:action" not in refused.json()["detail"]
        assert key.get("/v2/scopes").status_code == 403


def test_a_scope_in_use_cannot_be_deleted_until_its_last_key_is_gone(owner: httpx.Client) -> None:
    made = [
        owner.post("/v2/keys", json=new("held:read", create_scopes=True, environment=where))
        for where in ("live", "test")
    ]
    refused = owner.delete("/v2/scopes/held:read")
    assert (refused.status_code, refused.json()["code"]) == (409, "scope_in_use")
    assert refused.json()["detail"].startswith("2 keys hold held:read.")
    test_room = {"Wardkey-Environment": "test"}
    assert owner.delete(f"/v2/keys/{made[0].json()['key']['id']}").status_code == 200
    assert owner.delete("/v2/scopes/held:read").json()["detail"].startswith("1 key holds")
    where = f"/v2/keys/{made[1].json()['key']['id']}"
    assert owner.patch(where, json={"permissions": []}, headers=test_room).status_code == 200
    assert owner.delete("/v2/scopes/held:read").status_code == 204
    assert owner.delete("/v2/scopes/held:read").json()["code"] == "scope_not_found"
    assert owner.post("/v2/keys", json=new("held:read")).json()["code"] == "unknown_scope"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Orders:Read", "Did you mean orders:read?"),
        ("orders", "resource:action"),
        ("keys:burn", "Wardkey reserves the resource keys"),
        ("keys:read", "without adding it to the catalogue"),
        ("a:b:c:d", "resource:action"),
        ("", "resource:action"),
    ],
)
def test_a_scope_must_be_well_formed_and_not_a_wardkey_permission(
    owner: httpx.Client, name: str, said: str
) -> None:
    answer = owner.post("/v2/scopes", json={"name": name})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_scope_name")
    assert said in answer.json()["detail"]


def test_catalogue_changes_are_audited(owner: httpx.Client) -> None:
    made = owner.post("/v2/scopes", json={"name": "audited:read"}).json()
    changed = owner.patch("/v2/scopes/audited:read", json={"description": "Why"}).json()
    assert changed == made | {"description": "Why"}
    assert owner.delete("/v2/scopes/audited:read").status_code == 204
    events = owner.get("/v2/audit-events", params={"target_id": made["id"]}).json()["events"]
    assert [event["action"] for event in events] == [
        "scope.deleted", "scope.updated", "scope.created",
    ]  # fmt: skip
    assert all(event["details"]["name"] == "audited:read" for event in events)
    owner.post("/v2/keys", json=new("audited:implicitly", create_scopes=True))
    assert owner.get("/v2/audit-events").json()["events"][1]["action"] == "scope.created"


def test_the_catalogue_can_be_paged_and_searched(owner: httpx.Client) -> None:
    for number in range(7):
        body = {"name": f"paged:n{number}", "description": f"Number {number} of the pages"}
        owner.post("/v2/scopes", json=body)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = owner.get("/v2/scopes", params={"search": "PAGED:", "limit": 3, "cursor": cursor})
        seen += [scope["name"] for scope in page.json()["scopes"]]
        assert page.json()["total"] == 7
        cursor = page.json()["next_cursor"]
    assert seen == [f"paged:n{number}" for number in range(7)]
    assert names(owner, search="number 5 of") == ["paged:n5"]
    assert names(owner, search="%") == []
