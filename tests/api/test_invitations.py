from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.database import age
from tests.support.server import PASSWORD, Server
from wardkey.actions.accounts.members import INVITATION_MS
from wardkey.db.schema import invitations


@pytest.fixture
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


def invite(owner: httpx.Client, name: str, role: str = "viewer") -> Any:  # noqa: ANN401 - JSON
    answer = owner.post("/v2/invitations", json={"email": f"{name}@acme.example", "role": role})
    assert answer.status_code == 201, answer.text
    return answer.json()


def accept(server: Server, made: Any, password: str = PASSWORD) -> httpx.Response:  # noqa: ANN401 - JSON
    token = made["link"].rpartition("/")[2]
    with server.client() as anyone:
        return anyone.post("/v2/invitations/accept", json={"token": token, "password": password})


def status(owner: httpx.Client, made: Any) -> str:  # noqa: ANN401 - JSON
    listed = owner.get("/v2/invitations").json()["invitations"]
    result: str = next(
        invitation["status"] for invitation in listed if invitation["id"] == made["id"]
    )
    return result


def emails(owner: httpx.Client) -> list[str]:
    return [member["email"] for member in owner.get("/v2/members").json()["members"]]


def test_401_an_invitation_older_than_seven_days_is_rejected(
    server: Server, owner: httpx.Client
) -> None:
    made = invite(owner, "late")
    age(server, invitations, "expires_at", INVITATION_MS - 60_000, id=made["id"])
    assert status(owner, made) == "pending"
    age(server, invitations, "expires_at", 60_000, id=made["id"])
    assert status(owner, made) == "expired"
    answer = accept(server, made)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_link")
    assert made["email"] not in emails(owner)


def test_401_a_revoked_invitation_is_rejected(server: Server, owner: httpx.Client) -> None:
    made = invite(owner, "unwanted")
    for _ in range(2):
        taken = owner.delete(f"/v2/invitations/{made['id']}")
        assert (taken.status_code, taken.json()["status"]) == (200, "revoked")
    answer = accept(server, made)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_link")
    assert made["email"] not in emails(owner)


def test_401_an_invitation_cannot_be_used_twice(server: Server, owner: httpx.Client) -> None:
    made = invite(owner, "keen", "member")
    first = accept(server, made)
    assert first.status_code == 201, first.text
    answer = accept(server, made)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_link")
    assert emails(owner).count(made["email"]) == 1
    taken = owner.delete(f"/v2/invitations/{made['id']}")
    assert (taken.status_code, taken.json()["code"]) == (409, "invitation_used")
    again = owner.post("/v2/invitations", json={"email": made["email"], "role": "viewer"})
    assert (again.status_code, again.json()["code"]) == (409, "already_member")


def test_a_new_invitation_revokes_the_earlier_ones(server: Server, owner: httpx.Client) -> None:
    first, second = invite(owner, "asked.twice"), invite(owner, "asked.twice")
    assert accept(server, first).json()["code"] == "invalid_link"
    assert accept(server, second).status_code == 201


def known_elsewhere(owner: httpx.Client, server: Server, name: str) -> Any:  # noqa: ANN401 - JSON
    """Return an invitation for a former member, who still has an account."""
    user = accept(server, invite(owner, name)).json()
    assert owner.delete(f"/v2/members/{user['user_id']}").status_code == 204
    return {**invite(owner, name, "admin"), "user": user}


def test_409_an_invitation_link_with_a_password_never_signs_in_to_an_existing_account(
    server: Server, owner: httpx.Client
) -> None:
    made = known_elsewhere(owner, server, "known")
    answers = [accept(server, made, text) for text in ("another password, not hers", PASSWORD)]
    assert [answer.status_code for answer in answers] == [409, 409]
    problems = [{**answer.json(), "request_id": ""} for answer in answers]
    assert problems[0] == problems[1]
    assert problems[0]["code"] == "account_exists"
    assert status(owner, made) == "pending"


def test_a_user_with_an_account_accepts_with_a_user_token(
    server: Server, owner: httpx.Client
) -> None:
    made = known_elsewhere(owner, server, "returning")
    link = {"token": made["link"].rpartition("/")[2]}
    with server.client() as anyone:
        signed = anyone.post("/v2/user-tokens", json={"email": made["email"], "password": PASSWORD})
    token = signed.json()["token"]
    with server.client(token) as user:
        answer = user.post("/v2/invitations/accept", json=link)
        assert answer.status_code == 201, answer.text
        assert answer.json() == signed.json()
        assert user.get("/v2/organization").status_code == 200
        again = user.post("/v2/invitations/accept", json=link)
        assert (again.status_code, again.json()["code"]) == (401, "invalid_link")
    listed = owner.get("/v2/members").json()["members"]
    assert [
        invitation["role"] for invitation in listed if invitation["email"] == made["email"]
    ] == ["admin"]


def test_403_another_user_cannot_accept_an_invitation(server: Server, owner: httpx.Client) -> None:
    made = known_elsewhere(owner, server, "intended")
    link = {"token": made["link"].rpartition("/")[2]}
    new = invite(owner, "someone.new")
    for invitation in (link, {"token": new["link"].rpartition("/")[2]}):
        answer = owner.post("/v2/invitations/accept", json=invitation)
        assert (answer.status_code, answer.json()["code"]) == (403, "sign_in_not_allowed")
        with server.client(server.first_key) as key:
            answer = key.post("/v2/invitations/accept", json=invitation)
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_user_token")
    assert status(owner, made) == status(owner, new) == "pending"


def test_400_a_new_account_needs_a_password(server: Server, owner: httpx.Client) -> None:
    token = invite(owner, "hasty")["link"].rpartition("/")[2]
    with server.client() as anyone:
        for body in ({"token": token}, {"token": token, "password": None}):
            answer = anyone.post("/v2/invitations/accept", json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "weak_password")


def test_a_user_token_ends_when_its_user_signs_out(server: Server, owner: httpx.Client) -> None:
    token = accept(server, invite(owner, "leaving.today")).json()["token"]
    with server.client(token) as person:
        assert person.get("/v2/keys").status_code == 200
        assert person.delete("/v2/user-tokens/current").status_code == 204
        assert person.get("/v2/keys").json()["code"] == "invalid_user_token"


def test_a_new_invitation_ends_earlier_ones_regardless_of_address_case(
    server: Server, owner: httpx.Client
) -> None:
    earlier = invite(owner, "cased", "admin")
    invite(owner, "CASED", "viewer")
    assert status(owner, earlier) == "revoked"
    assert accept(server, earlier).json()["code"] == "invalid_link"
