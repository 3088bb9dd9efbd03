from __future__ import annotations

import json

import httpx2 as httpx
import pytest

from tests.support.server import PASSWORD, Server
from wardkey.domain.permissions import Permission

METHODS = ("get", "post", "put", "patch", "delete")
OUR_ROUTES = {
    # Without messaging; tests/messaging/test_sessions.py covers the rest.
    ("delete", "/v2/sessions/{session_id}"): "messaging_off",
    ("get", "/v2/sessions/receipts/{receipt_id}"): "receipt_not_found",
    ("get", "/v2/keys/{key_id}"): "key_not_found",
    ("patch", "/v2/keys/{key_id}"): "key_not_found",
    ("delete", "/v2/keys/{key_id}"): "key_not_found",
    ("post", "/v2/keys/{key_id}/disable"): "key_not_found",
    ("post", "/v2/keys/{key_id}/enable"): "key_not_found",
    ("post", "/v2/keys/{key_id}/rotate"): "key_not_found",
    ("post", "/v2/keys/{key_id}/revoke"): "key_not_found",
    ("get", "/v2/keys/{key_id}/callers"): "key_not_found",
    ("post", "/v2/keys/{key_id}/finish"): "key_not_found",
    ("post", "/v2/keys/{key_id}/secrets/{kid}/revoke"): "key_not_found",
    ("get", "/v2/receipts/{receipt_id}"): "receipt_not_found",
    ("delete", "/v2/import-prefixes/{prefix}"): "prefix_not_found",
    ("patch", "/v2/scopes/{name}"): "scope_not_found",
    ("delete", "/v2/scopes/{name}"): "scope_not_found",
    ("get", "/v2/clients/{client_id}"): "client_not_found",
    ("patch", "/v2/clients/{client_id}"): "client_not_found",
    ("delete", "/v2/clients/{client_id}"): "client_not_found",
    ("post", "/v2/clients/{client_id}/disable"): "client_not_found",
    ("post", "/v2/clients/{client_id}/enable"): "client_not_found",
    ("post", "/v2/clients/{client_id}/password"): "client_not_found",
    ("patch", "/v2/members/{user_id}"): "member_not_found",
    ("delete", "/v2/members/{user_id}"): "member_not_found",
    ("delete", "/v2/invitations/{invitation_id}"): "invitation_not_found",
    ("get", "/v2/auth-providers/{provider_id}"): "provider_not_found",
    ("patch", "/v2/auth-providers/{provider_id}"): "provider_not_found",
    ("delete", "/v2/auth-providers/{provider_id}"): "provider_not_found",
    ("post", "/v2/auth-providers/{provider_id}/enable"): "provider_not_found",
    ("post", "/v2/auth-providers/{provider_id}/disable"): "provider_not_found",
    ("post", "/v2/auth-providers/{provider_id}/test"): "provider_not_found",
    ("post", "/v2/auth-providers/{provider_id}/purge-keys"): "provider_not_found",
    ("get", "/v2/tokens/{token_id}"): "grant_not_found",
    ("delete", "/v2/tokens/{token_id}"): "grant_not_found",
    ("get", "/v2/acl/rules/{rule_id}"): "acl_rule_not_found",
    ("patch", "/v2/acl/rules/{rule_id}"): "acl_rule_not_found",
    ("delete", "/v2/acl/rules/{rule_id}"): "acl_rule_not_found",
}
BODIES = {
    ("patch", "/v2/keys/{key_id}"): {"description": "taken"},
    ("patch", "/v2/clients/{client_id}"): {"enabled": False},
    ("patch", "/v2/scopes/{name}"): {"description": "taken"},
    ("patch", "/v2/members/{user_id}"): {"role": "viewer"},
    ("patch", "/v2/acl/rules/{rule_id}"): {"effect": "deny"},
    ("patch", "/v2/auth-providers/{provider_id}"): {"name": "taken"},
}
EVERY = [*Permission]
OURS = (
    "/v2/keys/{key_id}",
    "/v2/clients/{client_id}",
    "/v2/acl/rules/{rule_id}",
    "/v2/auth-providers/{provider_id}",
    "/v2/tokens/{token_id}",
)


def _ids(owner: httpx.Client) -> dict[str, str]:
    key = owner.post("/v2/keys", json={"name": "live-theirs", "type": "secret"}).json()["key"]
    gone = owner.post("/v2/keys", json={"name": "live-gone", "type": "secret"}).json()["key"]
    receipt = owner.delete(f"/v2/keys/{gone['id']}").json()["id"]
    client = owner.post("/v2/clients", json={"username": "theirs"}).json()["client"]
    assert owner.post("/v2/import-prefixes", json={"prefix": "theirs_"}).status_code == 201
    assert owner.post("/v2/scopes", json={"name": "theirs:read"}).status_code == 201
    invited = owner.post(
        "/v2/invitations", json={"email": "guest@acme.example", "role": "viewer"}
    ).json()
    everything = {"priority": 1, "filter": "#", "action": "both", "effect": "allow"}
    rule = owner.post("/v2/acl/rules", json={**everything, "subject": {"kind": "everyone"}}).json()
    trusted = {"kind": "firebase", "project_id": "acme-app-1"}
    provider = owner.post("/v2/auth-providers", json=trusted).json()
    grant = owner.post("/v2/tokens/create", json={"user_email": "guest@acme.example"}).json()
    return {
        "rule_id": rule["id"],
        "provider_id": provider["id"],
        "token_id": grant["token_id"],
        "session_id": f"ses_{'N' * 56}_1",
        "key_id": key["id"],
        "kid": key["secrets"][0]["kid"],
        "receipt_id": receipt,
        "prefix": "theirs_",
        "name": "theirs:read",
        "client_id": client["id"],
        "user_id": owner.get("/v2/me").json()["id"],
        "invitation_id": invited["invitation"]["id"] if "invitation" in invited else invited["id"],
    }


@pytest.fixture(scope="module")
def ids(server: Server) -> dict[str, str]:
    """Create one object of each kind in live; return their ids."""
    with server.owner() as owner:
        return _ids(owner)


def _second_owner(server: Server) -> httpx.Client:
    made = server.cli("org", "create", "Globex", "--owner", "admin@globex.example", "--json")
    assert made.returncode == 0, made.stderr
    token = made.stdout.partition("/setup/")[2].partition('"')[0].strip()
    with server.client() as anonymous:
        answer = anonymous.post("/v2/setup", json={"token": token, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return server.client(answer.json()["token"])


def test_404_no_route_reads_or_changes_another_organizations_data(
    server: Server, ids: dict[str, str]
) -> None:
    with server.owner() as ours:
        before = [ours.get(path.format(**ids)).json() for path in OURS]
        document = ours.get("/v2/openapi.json").json()
    with _second_owner(server) as theirs:
        for path, item in document["paths"].items():
            for method in METHODS:
                if "{" not in path or method not in item or not path.startswith("/v2/"):
                    continue
                expected = OUR_ROUTES.get((method, path))
                assert expected, f"{method} {path} is new: say here what a stranger gets"
                answer = theirs.request(
                    method.upper(), path.format(**ids), json=BODIES.get((method, path))
                )
                assert (answer.status_code, answer.json()["code"]) == (404, expected), path
        for path in (
            "/v2/keys",
            "/v2/clients",
            "/v2/members",
            "/v2/invitations",
            "/v2/import-prefixes",
            "/v2/scopes",
            "/v2/acl/rules",
            "/v2/auth-providers",
            "/v2/tokens",
            "/v2/audit-events",
            "/v2/audit-events/export",
        ):
            shown = theirs.get(path)
            assert shown.status_code == 200, path
            hidden = set(ids.values()) - {ids["prefix"], ids["session_id"]}
            assert not [object_id for object_id in hidden if object_id in shown.text], path
    with server.owner() as ours:
        assert [ours.get(path.format(**ids)).json() for path in OURS] == before


# Shared by both environments: out of reach of a test key, whatever its permissions.
SHARED = {
    ("patch", "/v2/organization"): {"slug": "taken"},
    ("get", "/v2/members"): None,
    ("patch", "/v2/members/{user_id}"): {"role": "viewer"},
    ("delete", "/v2/members/{user_id}"): None,
    ("get", "/v2/invitations"): None,
    ("post", "/v2/invitations"): {"email": "intruder@acme.example", "role": "admin"},
    ("delete", "/v2/invitations/{invitation_id}"): None,
    ("post", "/v2/import-prefixes"): {"prefix": "taken_"},
    ("delete", "/v2/import-prefixes/{prefix}"): None,
    ("post", "/v2/scopes"): {"name": "taken:read"},
    ("patch", "/v2/scopes/{name}"): {"description": "taken"},
    ("delete", "/v2/scopes/{name}"): None,
    ("get", "/v2/audit-events/verify"): None,
}
# Routes that stay in the caller's environment, return the public part, or need no key.
CONFINED = {
    *(
        ("get", f"/v2/{scope}")
        for scope in ("keys", "clients", "acl/rules", "acl/presets", "tokens")
    ),
    *(("get", f"/v2/{scope}") for scope in ("auth-providers", "sessions", "presence", "retained")),
    *(("get", f"/v2/{scope}") for scope in ("audit-events", "audit-events/export")),
    *(
        ("get", f"/v2/{scope}")
        for scope in ("organization", "import-prefixes", "scopes", "me", "auth")
    ),
    *(("post", f"/v2/{scope}") for scope in ("keys", "keys/import", "clients", "acl/rules")),
    *(("post", f"/v2/{scope}") for scope in ("acl/presets", "acl/simulate", "auth-providers")),
    *(("post", f"/v2/{scope}") for scope in ("auth-providers/test", "keys/verify")),
    *(("post", f"/v2/tokens/{verb}") for verb in ("create", "exchange", "refresh", "revoke")),
    ("post", "/v2/keys/verify-batch"),
    ("put", "/v2/acl/rules"),
    ("delete", "/v2/retained"),
    # See tests/messaging/test_client_ids.py.
    ("get", "/v2/client-ids"),
    ("delete", "/v2/client-ids"),
    ("post", "/v2/organization/transfer"),
    *(("post", f"/v2/{scope}") for scope in ("setup", "user-tokens", "invitations/accept")),
    ("delete", "/v2/user-tokens/current"),
    ("post", "/publish"),
    ("post", "/oauth/token"),
    ("get", "/metrics"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/problems/{code}"),
}


def test_no_route_lets_a_test_key_read_or_change_live_or_shared_data(
    server: Server, ids: dict[str, str]
) -> None:
    with server.owner() as owner:
        fields = {"name": "test-all", "type": "secret", "environment": "test"}
        text = owner.post("/v2/keys", json={**fields, "permissions": EVERY}).json()["secret"]
        document = owner.get("/v2/openapi.json").json()
        looks = [path.format(**ids) for path in (*OURS, "/v2/organization", "/v2/members")]
        before = [owner.get(path).json() for path in looks]
        with server.client(text) as key:
            for path, item in document["paths"].items():
                for method in METHODS:
                    operation = (method, path)
                    if method not in item or operation in CONFINED:
                        continue
                    body = SHARED.get(operation) or BODIES.get(operation)
                    answer = key.request(method.upper(), path.format(**ids), json=body)
                    if operation in SHARED:
                        expected: object = (403, "live_key_required")
                    else:
                        assert operation in OUR_ROUTES, f"{operation} is new: does it stay in test?"
                        expected = (404, OUR_ROUTES[operation])
                    said = answer.status_code, answer.json().get("code")
                    assert said == expected, operation
            shared = {ids["prefix"], ids["name"], ids["session_id"], ids["user_id"]}
            hidden = set(ids.values()) - shared
            for method, path in CONFINED:
                if method == "get":
                    shown = key.get(path.format(code="revoked")).text
                    assert not [object_id for object_id in hidden if object_id in shown], path
            transferred = key.post("/v2/organization/transfer", json={"user_id": ids["user_id"]})
            assert transferred.json()["code"] == "owner_only"
        assert [owner.get(path).json() for path in looks] == before


def test_a_test_key_reads_only_test_events(server: Server) -> None:
    with server.owner() as owner, server.owner(Wardkey_Environment="test") as in_test:
        body = {"name": "test-audit", "type": "secret", "environment": "test"}
        made = owner.post("/v2/keys", json={**body, "permissions": ["audit:read"]}).json()
        # A user working in test still changes data that both environments share.
        invited = in_test.post(
            "/v2/invitations", json={"email": "seen@acme.example", "role": "viewer"}
        )
        assert invited.status_code == 201
        live = owner.post("/v2/keys", json={"name": "live-audit", "type": "secret"}).json()
        everything = owner.get("/v2/audit-events?limit=200").text
    with server.client(made["secret"]) as key:
        listed = key.get("/v2/audit-events?limit=200")
        exported = key.get("/v2/audit-events/export")
    assert listed.status_code == exported.status_code == 200
    for text in (listed.text, exported.text):
        assert made["key"]["id"] in text
        assert live["key"]["id"] not in text
        assert "seen@acme.example" not in text
    assert {event["environment"] for event in listed.json()["events"]} == {"test"}
    assert all(item in everything for item in (live["key"]["id"], "seen@acme.example"))


ALLOWED = {"owner": 201, "admin": 201, "member": 403, "viewer": 403}


@pytest.mark.parametrize("role", ALLOWED)
def test_403_members_and_viewers_cannot_issue_keys(server: Server, role: str) -> None:
    client = server.owner() if role == "owner" else server.person(role)
    with client:
        answer = client.post("/v2/keys", json={"name": f"live-by-{role}", "type": "secret"})
        assert answer.status_code == ALLOWED[role], answer.text
        assert client.get("/v2/keys").status_code == 200
        if answer.status_code == 403:
            assert answer.json()["code"] == "not_permitted"
            assert "insufficient_scope" in answer.headers["www-authenticate"]


def test_the_audit_chain_is_intact_at_the_end(server: Server) -> None:
    with server.owner() as owner:
        state = owner.get("/v2/audit-events/verify").json()
        assert state["holds"], json.dumps(state)
