"""The live-topics grant and its open session end with the member's access."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest

from tests.support.people import Json, is_let_in, online
from tests.support.server import PASSWORD, Server, running, wait_until

# The session is closed before the call returns; the socket's end reaches paho's thread later.
AT_ONCE_S = 1.5


class Member:
    """A member who is signed in with a browser and with a user token."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name, self.email = server, name, f"{name}@acme.example"
        with server.owner() as owner:
            made = owner.post("/v2/invitations", json={"email": self.email, "role": "admin"})
        link = made.json()["link"].rpartition("/")[2]
        with server.client() as anyone:
            taken = anyone.post(
                "/v2/invitations/accept", json={"token": link, "password": PASSWORD}
            ).json()
            signed_in = anyone.post("/sign-in", data={"email": self.email, "password": PASSWORD})
        self.token: str = taken["token"]
        self.cookie = signed_in.headers["set-cookie"].partition(";")[0]
        with self.browser() as browser:
            match = re.search(r'name="csrf" value="([^"]+)"', browser.get("/account").text)
        assert match is not None
        self.csrf = match.group(1)

    def browser(self) -> httpx.Client:
        return self.server.client(Cookie=self.cookie)

    def post(self, path: str, **fields: str) -> httpx.Response:
        with self.browser() as browser:
            return browser.post(path, data={"csrf": self.csrf, **fields})

    def watch(self) -> Json:
        """Return the grant of a live-topics page in the form of an exchange response."""
        made = self.post("/o/acme/live/messaging/topics/grant")
        assert made.status_code == 200, made.text
        body = made.json()
        return {"mqtt_username": body["username"], "mqtt_password": body["password"]}

    def refresh(self, grant: Json) -> int:
        kid = grant["mqtt_password"].split("_")[1]
        body = {"token_id": f"tok_{kid}", "current_token_password": grant["mqtt_password"]}
        with self.server.client() as anyone:
            return anyone.post("/v2/tokens/refresh", json=body).status_code

    @property
    def user_id(self) -> str:
        with self.server.owner() as owner:
            members = owner.get("/v2/members").json()["members"]
        return str(next(member["user_id"] for member in members if member["email"] == self.email))


def remove(member: Member) -> None:
    with member.server.owner() as owner:
        done = owner.delete(f"/v2/members/{member.user_id}")
    assert done.status_code == 204, done.text


def demote(member: Member) -> None:
    with member.server.owner() as owner:
        done = owner.patch(f"/v2/members/{member.user_id}", json={"role": "viewer"})
    assert done.status_code == 200, done.text


def recover(member: Member) -> None:
    made = member.server.cli_here("setup-link", member.email)
    link = made.stdout.strip().rpartition("/")[2]
    body = {"token": link, "password": "another correct horse"}
    with member.server.client() as anyone:
        done = anyone.post("/v2/setup", json=body)
    assert done.status_code == 201, done.text


def change_password(member: Member) -> None:
    done = member.post(
        "/account/password", current_password=PASSWORD, password="another correct horse"
    )
    assert done.status_code == 303, done.text


def sign_out_everywhere(member: Member) -> None:
    done = member.post("/sign-out", everywhere="1")
    assert done.status_code == 303, done.text


CHANGES = (remove, demote, recover, change_password, sign_out_everywhere)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("live-topics") / "data"
    with running(data, no_messaging=0, workers=2) as up, up.owner() as owner:
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield up


@pytest.mark.parametrize("change", CHANGES)
def test_ending_a_members_access_ends_their_live_topics(
    server: Server, change: Callable[[Member], None]
) -> None:
    member = Member(server, change.__name__.replace("_", "-"))
    grant = member.watch()
    with online(server, grant, f"{member.name}-1") as client:
        assert client.code == 0
        change(member)
        wait_until(lambda: client.ended_at, AT_ONCE_S)
    assert not is_let_in(server, grant, f"{member.name}-2")
    assert member.refresh(grant) == 401


def test_live_topics_of_a_member_who_keeps_the_permission_stay_open(server: Server) -> None:
    member = Member(server, "still-a-member")
    grant = member.watch()
    with online(server, grant, "still-1") as client, server.owner() as owner:
        done = owner.patch(f"/v2/members/{member.user_id}", json={"role": "member"})
        assert done.status_code == 200, done.text
        assert is_let_in(server, grant, "still-2")
        assert not client.ended_at
    assert member.refresh(grant) == 200


def test_signing_out_everywhere_ends_user_tokens(server: Server) -> None:
    member = Member(server, "with-a-token")
    with server.client(member.token) as api:
        assert api.get("/v2/members").status_code == 200
        sign_out_everywhere(member)
        assert api.get("/v2/members").status_code == 401
