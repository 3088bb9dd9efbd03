from __future__ import annotations

import pytest

from tests.support.server import PASSWORD, Server

ISSUE = {"type": "secret"}


@pytest.mark.parametrize(
    ("role", "status"), [("owner", 201), ("admin", 201), ("member", 403), ("viewer", 403)]
)
def test_403_members_and_viewers_cannot_issue_keys(server: Server, role: str, status: int) -> None:
    person = server.owner() if role == "owner" else server.person(role)
    with person:
        answer = person.post("/v2/keys", json={**ISSUE, "name": f"live-by-{role}"})
        assert answer.status_code == status, answer.text
        assert person.get("/v2/keys").status_code == 200
        if status == 403:
            assert answer.json()["code"] == "not_permitted"
            assert 'scope="keys:write"' in answer.headers["www-authenticate"]


def test_users_cannot_grant_permissions_they_do_not_hold(server: Server) -> None:
    with server.person("admin") as admin:
        answer = admin.post(
            "/v2/keys", json={**ISSUE, "name": "live-billing", "permissions": ["billing:read"]}
        )
        assert answer.json()["code"] == "exceeds_own_permissions"
        own = admin.post(
            "/v2/keys",
            json={
                **ISSUE,
                "name": "live-admins",
                "permissions": ["keys:write", "invoices:read"],
                "create_scopes": True,
            },
        )
        assert own.status_code == 201, own.text
    with server.client(own.json()["secret"]) as key:
        more = key.post(
            "/v2/keys", json={**ISSUE, "name": "live-more", "permissions": ["acl:read"]}
        )
        assert more.json()["code"] == "exceeds_own_permissions"
        same = key.post(
            "/v2/keys", json={**ISSUE, "name": "live-same", "permissions": ["invoices:read"]}
        )
        assert same.status_code == 201, same.text


def test_a_removed_member_keeps_no_key(server: Server) -> None:
    with server.owner() as owner:
        made = owner.post("/v2/invitations", json={"email": "l@acme.example", "role": "admin"})
        token = made.json()["link"].rpartition("/")[2]
        with server.client() as anyone:
            taken = anyone.post(
                "/v2/invitations/accept", json={"token": token, "password": PASSWORD}
            ).json()
            again = anyone.post(
                "/v2/invitations/accept", json={"token": token, "password": PASSWORD}
            )
            assert again.json()["code"] == "invalid_link"
        with server.client(taken["token"]) as leaver:
            key = leaver.post("/v2/keys", json={**ISSUE, "name": "live-of-leaver"}).json()
            gone = leaver.delete(f"/v2/members/{taken['user_id']}")
            assert gone.status_code == 204, gone.text
            assert leaver.get("/v2/keys").json()["code"] == "organization_not_found"
        with server.client(key["secret"]) as still:
            assert still.get("/v2/organization").status_code == 200


def test_the_last_owner_cannot_leave_or_be_demoted(server: Server) -> None:
    with server.owner() as owner, server.person("admin") as admin:
        me = owner.get("/v2/me").json()["id"]
        heir = admin.get("/v2/me").json()["id"]
        assert owner.delete(f"/v2/members/{me}").json()["code"] == "last_owner"
        demoted = owner.patch(f"/v2/members/{me}", json={"role": "viewer"})
        assert demoted.json()["code"] == "last_owner"
        crowned = owner.patch(f"/v2/members/{heir}", json={"role": "owner"})
        assert crowned.json()["code"] == "owner_only"
        taken = admin.post("/v2/organization/transfer", json={"user_id": heir})
        assert taken.json()["code"] == "owner_only"
        moved = owner.post("/v2/organization/transfer", json={"user_id": heir})
        assert moved.json()["role"] == "owner"
        back = admin.post("/v2/organization/transfer", json={"user_id": me})
        assert back.json()["role"] == "owner"
        roles = [m["role"] for m in owner.get("/v2/members").json()["members"]]
        assert roles.count("owner") == 1


def test_a_publishable_key_reads_only_the_public_part(server: Server) -> None:
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-page-key", "type": "publishable"})
        refused = owner.post(
            "/v2/keys",
            json={"name": "live-page-two", "type": "publishable", "permissions": ["acl:read"]},
        )
        assert refused.json()["code"] == "permission_not_for_type"
    with server.client(made.json()["secret"]) as page:
        body = page.get("/v2/organization").json()
        assert body["name"] == "Acme"
        assert body["created_at"] is None
        for path in ("/v2/keys", "/v2/members", "/v2/invitations", "/v2/audit-events"):
            assert page.get(path).json()["code"] == "secret_key_required", path


def test_password_guesses_are_throttled(server: Server) -> None:
    with server.client() as anyone:
        codes = [
            anyone.post(
                "/v2/user-tokens", json={"email": "nobody@acme.example", "password": f"guess {n}"}
            ).json()["code"]
            for n in range(24)
        ]
    assert codes[0] == "wrong_password"
    assert codes[-1] == "too_many_attempts"


def test_with_two_organizations_the_request_must_name_one(server: Server) -> None:
    made = server.cli("org", "create", "Second", "--owner", "owner@acme.example")
    assert made.returncode == 0, made.stderr
    with server.owner() as owner:
        assert owner.get("/v2/keys").json()["code"] == "organization_required"
        named = owner.get("/v2/keys", headers={"Wardkey-Organization": "second"})
        assert named.json()["total"] == 0
    with server.client(server.first_key) as proxy:
        assert proxy.get("/v2/auth").headers["wardkey-verdict"] == "organization_required"
        assert proxy.get("/v2/auth?organization=acme").status_code == 200
        assert proxy.get("/v2/auth?organization=second").status_code == 401
    stopped = server.cli("org", "suspend", "acme")
    assert stopped.returncode == 0, stopped.stderr
    with server.client(server.first_key) as key:
        assert key.get("/v2/keys").json()["code"] == "disabled"
    assert server.cli("org", "resume", "acme").returncode == 0
    with server.client(server.first_key) as key:
        assert key.get("/v2/keys").status_code == 200
    assert server.cli("org", "delete", "second", "--yes").returncode == 0


def test_a_secret_appears_only_in_its_own_response(server: Server) -> None:
    with server.owner(wardkey_organization="acme") as owner:
        made = owner.post("/v2/keys", json={**ISSUE, "name": "live-search-me"}).json()
        with server.client(made["secret"]) as key:
            key.get("/v2/keys")
        key_id = made["key"]["id"]
        later = [
            owner.get(f"/v2/keys/{key_id}").text,
            owner.get("/v2/keys", params={"search": "search-me"}).text,
            owner.get("/v2/audit-events/export").text,
        ]
    files = [path.read_bytes() for path in server.data_dir.iterdir() if path.is_file()]
    secret, password = made["secret"].encode(), PASSWORD.encode()
    for text in (*files, *(answer.encode() for answer in later)):
        assert secret not in text
        assert password not in text
    assert made["secret"] not in server.output
    assert server.output.count(server.first_key) == 1
