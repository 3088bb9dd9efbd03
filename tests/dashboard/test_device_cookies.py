"""Strangers' guesses never lock out a browser in which the account signed in before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from itertools import count

import httpx2 as httpx
import pytest

from tests.dashboard.test_links import member, new_person, setup_path, token_in
from tests.support.server import PASSWORD, Server, running
from wardkey.dashboard.shell.auth import COOKIE, DEVICE_COOKIE

WRONG = "a wrong password"
OTHER = "moss on a northern roof"
HOSTS = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Behind a proxy, so strangers can use many addresses.
    with running(tmp_path_factory.mktemp("server") / "data", workers=2, behind_proxy=1) as up:
        up.owner().close()
        yield up


class Browser:
    """Keeps Secure cookies and sends them over plain HTTP, as browsers do to localhost."""

    def __init__(self, server: Server, address: str = "") -> None:
        self.server, self.cookies = server, dict[str, str]()
        host = next(HOSTS)
        self.address = address or f"10.0.{host >> 8}.{host & 255}"

    def send(self, method: str, path: str, data: dict[str, str] | None = None) -> httpx.Response:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        with self.server.client(Cookie=cookie, X_Forwarded_For=self.address) as client:
            answer = client.request(method, path, data=data)
        for line in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies.pop(name, None)
                if morsel.value:
                    self.cookies[name] = morsel.value
        return answer

    def sign_in(self, email: str, password: str = PASSWORD) -> int:
        self.cookies.pop(COOKIE, None)
        return self.send("POST", "/sign-in", {"email": email, "password": password}).status_code


@pytest.fixture
def email(server: Server) -> str:
    """Return the address of a new member."""
    return member(server, f"device-{next(HOSTS)}")


@pytest.fixture
def known(server: Server, email: str) -> Browser:
    """Return a browser in which the member signed in once."""
    browser = Browser(server)
    assert browser.sign_in(email) == 303
    return browser


def lock(server: Server, email: str, address: str = "") -> None:
    """Guess the password until strangers are throttled."""
    codes = [Browser(server, address).sign_in(email, WRONG) for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2


def test_a_known_browser_signs_in_despite_strangers_guesses(
    server: Server, email: str, known: Browser
) -> None:
    lock(server, email)
    assert Browser(server).sign_in(email) == 429
    assert [known.sign_in(email) for _ in range(12)] == [303] * 12
    # Strangers may even share the member's address.
    lock(server, "nobody@acme.example", known.address)
    assert known.sign_in(email) == 303
    # A typo does not lock the member out either.
    assert known.sign_in(email, WRONG) == 401
    assert known.sign_in(email) == 303


def test_a_known_browser_changes_the_password_despite_strangers_guesses(
    server: Server, email: str, known: Browser
) -> None:
    lock(server, email)
    page = known.send("GET", "/account")
    change = {"csrf": token_in(page), "current_password": PASSWORD, "password": OTHER}
    assert known.send("POST", "/account/password", change).status_code == 303
    # The browser stays known after the change.
    assert known.sign_in(email, OTHER) == 303


def test_429_a_known_browser_has_ten_guesses_of_its_own(
    server: Server, email: str, known: Browser
) -> None:
    assert [known.sign_in(email, WRONG) for _ in range(12)] == [401] * 10 + [429] * 2
    assert known.sign_in(email) == 429
    # Other browsers are not throttled.
    assert Browser(server).sign_in(email) == 303


def test_a_forged_or_another_accounts_cookie_is_ignored(
    server: Server, email: str, known: Browser
) -> None:
    text = known.cookies[DEVICE_COOKIE]
    other = member(server, f"other-{next(HOSTS)}")
    lock(server, other)
    assert known.sign_in(other) == 429
    lock(server, email)
    flipped = text[:-1] + ("0" if text[-1] != "0" else "1")
    for odd in (flipped, "A" * 22 + text[22:], text[:-1], f"{text}0", "x" * 9_000):
        forger = Browser(server)
        forger.cookies[DEVICE_COOKIE] = odd
        assert forger.sign_in(email) == 429, odd


def test_a_set_up_link_or_a_new_password_invalidates_device_cookies(
    server: Server, email: str, known: Browser
) -> None:
    before = dict(known.cookies)
    page = known.send("GET", "/account")
    change = {"csrf": token_in(page), "current_password": PASSWORD, "password": OTHER}
    assert known.send("POST", "/account/password", change).status_code == 303
    changed = dict(known.cookies)
    assert changed[DEVICE_COOKIE] != before[DEVICE_COOKIE]
    setting_up = Browser(server)
    done = setting_up.send("POST", setup_path(server, email), {"password": PASSWORD})
    assert done.status_code == 303
    lock(server, email)
    for cookies in (before, changed):
        old = Browser(server)
        old.cookies = cookies
        assert old.sign_in(email) == 429
    assert setting_up.sign_in(email) == 303


def test_the_device_cookie_is_opaque_and_outlives_the_session(
    server: Server, email: str, known: Browser
) -> None:
    accepted = Browser(server)
    path = new_person(server, f"new-{next(HOSTS)}")
    answer = accepted.send("POST", path, {"password": PASSWORD})
    (line,) = [
        header
        for header in answer.headers.get_list("set-cookie")
        if header.startswith(DEVICE_COOKIE)
    ]
    for attribute in ("HttpOnly", "Secure", "Path=/", "SameSite=lax", f"Max-Age={400 * 86_400}"):
        assert attribute in line
    assert "Domain" not in line
    text = known.cookies[DEVICE_COOKIE]
    assert re.fullmatch(r"[\w-]{22}\.[0-9a-f]{64}", text)
    assert known.sign_in(email) == 303
    assert known.cookies[DEVICE_COOKIE] == text
    csrf = {"csrf": token_in(known.send("GET", "/account"))}
    known.send("POST", "/sign-out", csrf)
    assert set(known.cookies) == {DEVICE_COOKIE}
    # The device cookie alone gives no access.
    assert known.send("GET", "/account").status_code == 303
    assert known.sign_in(email) == 303
    csrf = {"csrf": token_in(known.send("GET", "/account"))}
    known.send("POST", "/sign-out", {**csrf, "everywhere": "1"})
    assert known.cookies == {}
