from __future__ import annotations

import re

import httpx2 as httpx
import pytest

from tests.support.database import age
from tests.support.server import PASSWORD, Server
from wardkey.actions.accounts.people import LINK_MS
from wardkey.db.schema import invitations, setup_links

INVALID_LINK = "This link doesn't work"


def new_person(server: Server, name: str) -> str:
    """Invite a new user through the API; return the path of the invitation page."""
    with server.owner() as owner:
        made = owner.post(
            "/v2/invitations", json={"email": f"{name}@acme.example", "role": "viewer"}
        )
    assert made.status_code == 201, made.text
    return f"/invitations/{made.json()['link'].rpartition('/')[2]}"


def setup_path(server: Server, email: str) -> str:
    """Create a set-up link as the operator; return its path."""
    done = server.cli("setup-link", email)
    assert done.returncode == 0, done.stderr
    return f"/setup/{done.stdout.strip().rpartition('/')[2]}"


def member(server: Server, name: str) -> str:
    """Return the address of a new member with a password."""
    path = new_person(server, name)
    with server.client() as anyone:
        taken = anyone.post(path, data={"password": PASSWORD})
    assert taken.status_code == 303, taken.text
    return f"{name}@acme.example"


def token_in(page: httpx.Response) -> str:
    """Return the CSRF token of the page's forms."""
    match = re.search(r'name="csrf" value="(\w+)"', page.text)
    assert match is not None
    return match[1]


def signs_in(server: Server, email: str, password: str) -> bool:
    with server.client() as anyone:
        answer = anyone.post("/v2/user-tokens", json={"email": email, "password": password})
    return answer.status_code == 201


def is_safe(answer: httpx.Response) -> bool:
    headers = answer.headers
    return (
        "script-src 'nonce-" in headers["content-security-policy"]
        and "frame-ancestors 'none'" in headers["content-security-policy"]
        and headers["referrer-policy"] == "same-origin"
        and headers["cache-control"] == "no-store"
        and headers["x-content-type-options"] == "nosniff"
        and "set-cookie" not in headers
        and answer.text.count("<script") == 1
        and "style=" not in answer.text
    )


def test_a_set_up_link_works_once(server: Server) -> None:
    email = member(server, "once")
    path = setup_path(server, email)
    with server.client() as anyone:
        for _ in range(2):  # opening the link does not use it up
            page = anyone.get(path)
            assert page.status_code == 200
            assert email in page.text
            assert "passkeys and linked issuers are removed" in page.text
            assert is_safe(page)
        done = anyone.post(path, data={"password": "a new password, longer"})
        assert (done.status_code, done.headers["location"]) == (303, "/")
        assert done.headers["set-cookie"].startswith("__Host-wardkey=")
        assert done.text == ""
        anyone.cookies.clear()
        for answer in (anyone.get(path), anyone.post(path, data={"password": PASSWORD})):
            assert answer.status_code == 401
            assert INVALID_LINK in answer.text
            assert email not in answer.text
            assert is_safe(answer)
    assert signs_in(server, email, "a new password, longer")
    assert not signs_in(server, email, PASSWORD)


def test_a_new_password_ends_earlier_sessions(server: Server) -> None:
    email = member(server, "before")
    with server.client() as anyone:
        token = anyone.post("/v2/user-tokens", json={"email": email, "password": PASSWORD}).json()[
            "token"
        ]
        anyone.post(setup_path(server, email), data={"password": "a new password, longer"})
    with server.client(token) as before:
        assert before.get("/v2/me").json()["code"] == "invalid_user_token"


def test_401_a_set_up_link_older_than_seven_days_or_replaced(server: Server) -> None:
    email = member(server, "late")
    replaced, path = setup_path(server, email), setup_path(server, email)
    age(server, setup_links, "expires_at", LINK_MS - 60_000)
    with server.client() as anyone:
        assert anyone.get(replaced).status_code == 401
        assert anyone.get(path).status_code == 200
        age(server, setup_links, "expires_at", 60_000)
        assert anyone.get(path).status_code == 401
        assert anyone.post(path, data={"password": "a new password, longer"}).status_code == 401
    assert signs_in(server, email, PASSWORD)


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("elevenchars", "12 to 256 characters"),
        ("x" * 257, "12 to 256 characters"),
        ("abababababab", "repeats itself"),
        ("password1234!", "a very common one"),
        ("", ""),
        ("x" * 1025, ""),
    ],
)
def test_400_a_weak_password_does_not_use_up_the_link(
    server: Server, password: str, expected: str
) -> None:
    path = setup_path(server, "owner@acme.example")
    with server.client() as anyone:
        answer = anyone.post(path, data={"password": password})
        assert answer.status_code == 400, answer.text
        if expected:
            assert expected in answer.text
            assert 'role="alert"' in answer.text
            assert is_safe(answer)
            assert password not in answer.text
        assert anyone.get(path).status_code == 200
        assert anyone.post(path).status_code == 400
        assert anyone.get(path).status_code == 200


def test_an_existing_account_signs_in_before_it_accepts_an_invitation(server: Server) -> None:
    email = member(server, "known")
    # A former member keeps the account and is invited again.
    with server.owner() as owner:
        listed = owner.get("/v2/members").json()["members"]
        (user_id,) = [row["user_id"] for row in listed if row["email"] == email]
        owner.delete(f"/v2/members/{user_id}")
    path = new_person(server, "known")
    with server.client() as anyone:
        page = anyone.get(path)
        assert is_safe(page)
        assert 'name="password"' not in page.text
        for password in (PASSWORD, "not the password of theirs"):
            refused = anyone.post(path, data={"password": password})
            assert refused.status_code == 409
            assert "already has an account" in refused.text
            assert is_safe(refused)
        to_sign_in = f"/sign-in?next={path}"
        assert f'href="{to_sign_in}"' in page.text
        assert f'name="next" value="{path}"' in anyone.get(to_sign_in).text
        back = anyone.post("/sign-in", data={"email": email, "password": PASSWORD, "next": path})
        assert (back.status_code, back.headers["location"]) == (303, path)
        # httpx would not send the Secure cookie over plain HTTP.
        cookie = back.headers["set-cookie"].partition(";")[0]
        accepting = f"{path}/accept"
        with server.client(Cookie=cookie) as user:
            page = user.get(path)
            assert is_safe(page)
            assert f'action="{accepting}"' in page.text
            assert user.post(accepting, data={"csrf": "forged"}).status_code == 403
            csrf = {"csrf": token_in(page)}
            done = user.post(accepting, data=csrf)
            assert done.status_code == 303, done.text
            assert "Acme" in user.get(done.headers["location"]).text
            again = user.post(accepting, data=csrf)
            assert again.status_code == 401
            assert INVALID_LINK in again.text
            back = user.get(accepting)
            assert (back.status_code, back.headers["location"]) == (303, path)


def test_an_account_cannot_accept_an_invitation_for_another_address(server: Server) -> None:
    email = member(server, "somebody")
    path = new_person(server, "else")
    with server.client() as anyone:
        signed = anyone.post("/sign-in", data={"email": email, "password": PASSWORD})
    with server.client(Cookie=signed.headers["set-cookie"].partition(";")[0]) as user:
        csrf = {"csrf": token_in(user.get("/account"))}
        assert user.post(f"{path}/accept", data=csrf).status_code == 403
    with server.client() as anyone:
        midway = anyone.post(
            f"{path}/accept", data=csrf, headers={"Referer": f"{server.url}{path}"}
        )
        assert midway.headers["location"].startswith("/sign-in?next=%2Finvitations%2F")
        assert "Choose a password" in anyone.get(path).text


def test_401_an_invitation_that_expired_or_never_existed(server: Server) -> None:
    path = new_person(server, "expired")
    age(server, invitations, "expires_at", LINK_MS, email="expired@acme.example")
    with server.client() as anyone:
        for link in (path, "/invitations/nothing", "/setup/nothing", "/setup/%ED%A0%80"):
            answer = anyone.get(link)
            assert answer.status_code == 401, link
            assert INVALID_LINK in answer.text
            assert is_safe(answer)


def test_the_address_in_an_invitation_is_escaped(server: Server) -> None:
    email = "a'b&c@acme.example"
    with server.owner() as owner:
        made = owner.post("/v2/invitations", json={"email": email, "role": "viewer"})
    assert made.status_code == 201, made.text
    with server.client() as anyone:
        page = anyone.get(f"/invitations/{made.json()['link'].rpartition('/')[2]}")
    assert email not in page.text
    assert "a&#39;b&amp;c@acme.example" in page.text


def test_429_link_guesses_are_throttled(server: Server) -> None:
    with server.client() as anyone:
        responses = [
            anyone.post(f"/setup/guess{n}", data={"password": PASSWORD}) for n in range(24)
        ]
    assert responses[0].status_code == 401
    assert responses[-1].status_code == 429
    assert is_safe(responses[-1])
