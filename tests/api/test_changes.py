from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import Server

LATER = "2200-01-31T12:00:00.000Z"
RATE = {"limit": 5, "period_s": 60, "burst": 5}
# key type, field, value sent, value returned afterwards
SHOWN: list[tuple[str, str, object, object]] = [
    ("secret", "name", " live-renamed ", "live-renamed"),
    ("secret", "description", "Nightly\r\nexport", "Nightly\nexport"),
    ("secret", "permissions", ["keys:read", "invoices:read"], ["invoices:read", "keys:read"]),
    ("secret", "permissions", [], []),
    ("secret", "allowed_addresses", ["203.0.113.0/24"], ["203.0.113.0/24"]),
    ("secret", "rate_limit", RATE, RATE),
    ("secret", "metadata", {"team": {"of": ["billing"]}, "n": 3, "on": True}, None),
    ("secret", "expires_at", "2200-01-31T13:00:00+01:00", LATER),
    ("publishable", "allowed_origins", ["https://App.example.com"], ["https://app.example.com"]),
    ("publishable", "allow_native", True, True),
]


@pytest.fixture
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


def issue(owner: httpx.Client, **more: object) -> Any:  # noqa: ANN401 - JSON
    body = {"name": f"live-{uuid.uuid4()}", "type": "secret", "create_scopes": True, **more}
    answer = owner.post("/v2/keys", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("kind", "field", "sent", "shown"), SHOWN, ids=[f"{row[1]}={row[2]}" for row in SHOWN]
)
def test_a_change_updates_only_its_own_field(
    owner: httpx.Client, kind: str, field: str, sent: object, shown: object
) -> None:
    before = issue(owner, type=kind)["key"]
    where = f"/v2/keys/{before['id']}"
    answer = owner.patch(where, json={field: sent, "create_scopes": True})
    assert answer.status_code == 200, answer.text
    after = owner.get(where).json()
    assert after.pop("updated_at") >= before.pop("updated_at")
    assert after == before | {field: sent if shown is None else shown}
    owner.patch(where, json={"name": before["name"]})
    events = owner.get("/v2/audit-events", params={"target_id": before["id"]}).json()["events"]
    assert [field] in [event["details"].get("changed") for event in events]


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ({"expires_at": LATER}, {"expires_at": None}),
        ({"rate_limit": RATE}, {"rate_limit": None}),
        ({"description": "x"}, {"description": ""}),
        ({"metadata": {"a": 1}}, {"metadata": {}}),
        ({"allowed_addresses": ["203.0.113.7/32"]}, {"allowed_addresses": []}),
    ],
)
def test_optional_fields_of_a_key_can_be_cleared(
    owner: httpx.Client, taken: dict[str, object], left: dict[str, object]
) -> None:
    key_id = issue(owner, **taken)["key"]["id"]
    (field,) = taken
    assert owner.get(f"/v2/keys/{key_id}").json()[field] == taken[field]
    assert owner.patch(f"/v2/keys/{key_id}", json=left).json()["key"][field] == left[field]


def test_a_narrowing_change_applies_to_the_next_verification(owner: httpx.Client) -> None:
    def judged(**fields: object) -> str:
        code: str = owner.post("/v2/keys/verify", json={"key": made["secret"], **fields}).json()[
            "code"
        ]
        return code

    made = issue(owner, permissions=["invoices:read"])
    where = f"/v2/keys/{made['key']['id']}"
    assert judged(permissions=["invoices:read"], address="198.51.100.1") == "valid"
    owner.patch(where, json={"permissions": []})
    assert judged(permissions=["invoices:read"]) == "not_permitted"
    owner.patch(where, json={"allowed_addresses": ["203.0.113.0/24"]})
    assert judged(address="198.51.100.1") == "address_not_allowed"
    owner.patch(where, json={"allowed_addresses": []})
    owner.patch(where, json={"rate_limit": {"limit": 1, "period_s": 3600, "burst": 1}})
    assert "rate_limited" in [judged() for _ in range(6)]


def test_null_and_an_empty_change_leave_a_key_unchanged(owner: httpx.Client) -> None:
    before = issue(owner, permissions=["invoices:read"])["key"]
    for body in ({}, {"name": None}, {"permissions": None}):
        after = owner.patch(f"/v2/keys/{before['id']}", json=body).json()["key"]
        assert after | {"updated_at": ""} == before | {"updated_at": ""}, body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "publishable"}, "invalid_request"),
        ({"environment": "test"}, "invalid_request"),
        ({"allowed_origins": ["https://a.example"]}, "origins_not_for_type"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expiry_in_past"),
        ({"expires_at": "2200-01-01T00:00:00"}, "invalid_time"),
        ({"name": ""}, "invalid_name"),
        ({"metadata": {"far": 1e300}}, "invalid_metadata"),
        ({"metadata": {"deep": [[[[[]]]]]}}, "invalid_metadata"),
    ],
)
def test_400_an_invalid_change_has_no_effect(
    owner: httpx.Client, body: dict[str, object], code: str
) -> None:
    before = issue(owner)["key"]
    answer = owner.patch(f"/v2/keys/{before['id']}", json={"description": "new", **body})
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert owner.get(f"/v2/keys/{before['id']}").json() == before
