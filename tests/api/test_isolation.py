from __future__ import annotations

import json

import httpx2 as httpx
import pytest

from tests.server import PASSWORD, Server

METHODS = ("get", "post", "put", "patch", "delete")
OUR_ROUTES = {
    # Without messaging; with it see tests/messaging/test_sessions.py.
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
    ("patch", "/v2/members/{user_id}"): {"role": "viewer"},
    ("patch", "/v2/acl/rules/{rule_id}"): {"effect": "deny"},
    ("patch", "/v2/auth-providers/{provider_id}"): {"name": "taken"},
}
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
        "client_id": client["id"],
        "user_id": owner.get("/v2/me").json()["id"],
        "invitation_id": invited["invitation"]["id"] if "invitation" in invited else invited["id"],
    }


def _second_owner(server: Server) -> httpx.Client:
    made = server.cli("org", "create", "Globex", "--owner", "admin@globex.example", "--json")
    assert made.returncode == 0, made.stderr
    token = made.stdout.partition("/setup/")[2].partition('"')[0].strip()
    with server.client() as anonymous:
        answer = anonymous.post("/v2/setup", json={"token": token, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return server.client(answer.json()["token"])


def test_404_no_route_shows_or_changes_another_organizations_things(server: Server) -> None:
    with server.owner() as ours:
        ids = _ids(ours)
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
            "/v2/acl/rules",
            "/v2/auth-providers",
            "/v2/tokens",
            "/v2/audit-events",
            "/v2/audit-events/export",
        ):
            shown = theirs.get(path)
            assert shown.status_code == 200, path
            hidden = set(ids.values()) - {ids["prefix"], ids["session_id"]}
            assert not [one for one in hidden if one in shown.text], path
    with server.owner() as ours:
        assert [ours.get(path.format(**ids)).json() for path in OURS] == before


ALLOWED = {"owner": 201, "admin": 201, "member": 403, "viewer": 403}


@pytest.mark.parametrize("role", ALLOWED)
def test_403_members_and_viewers_cannot_issue(server: Server, role: str) -> None:
    client = server.owner() if role == "owner" else server.person(role)
    with client:
        answer = client.post("/v2/keys", json={"name": f"live-by-{role}", "type": "secret"})
        assert answer.status_code == ALLOWED[role], answer.text
        assert client.get("/v2/keys").status_code == 200
        if answer.status_code == 403:
            assert answer.json()["code"] == "not_permitted"
            assert "insufficient_scope" in answer.headers["www-authenticate"]


def test_the_audit_chain_holds_after_it_all(server: Server) -> None:
    with server.owner() as owner:
        state = owner.get("/v2/audit-events/verify").json()
        assert state["holds"], json.dumps(state)
