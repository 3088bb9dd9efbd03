from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.api.test_metrics import TOKEN, scraped
from tests.browser.conftest import KEYS, Enter, Site
from tests.support.database import age, database_of
from tests.support.server import OWNER, PASSWORD, Server, wait_until
from wardkey.actions.accounts.browser_sessions import FRESH_MS, LONGEST_MS
from wardkey.actions.core.common_passwords import is_common
from wardkey.dashboard.shell.auth import COOKIE
from wardkey.dashboard.shell.rendering import own_path
from wardkey.db.schema import browser_sessions
from wardkey.domain.times import SESSION_IDLE_MS

pytestmark = pytest.mark.browser


def test_signing_in_returns_to_the_requested_page(site: Site, enter: Enter) -> None:
    site.cookie()
    page = enter("", f"{KEYS}?q=billing")
    assert "/sign-in?next=" in page.url
    page.fill("#email", OWNER)
    page.fill("#password", "not the password of his")
    page.click("text=Sign in >> nth=-1")
    assert page.get_by_role("alert").inner_text().startswith("Wrong e-mail address")
    assert page.input_value("#email") == OWNER
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{KEYS}?q=billing")
    # The session cookie, and the device cookie that gives this browser its own throttle.
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    assert cookies.keys() == {COOKIE, f"{COOKIE}-device"}
    for cookie in cookies.values():
        assert cookie["httpOnly"]
        assert cookie["secure"]
        assert cookie["sameSite"] == "Lax"


def test_a_set_up_link_shows_the_password_strength_and_signs_in(site: Site, enter: Enter) -> None:
    site.server.person("admin").close()
    done = site.server.cli_here("setup-link", "admin@acme.example")
    page = enter("", f"/setup/{done.stdout.strip().rpartition('/')[2]}")
    page.fill("#password", "password123456")
    assert "Strength" in page.inner_text(".strength")
    page.click("text=Set password")
    assert "a very common one" in page.get_by_role("alert").inner_text()
    page.fill("#password", PASSWORD)
    page.click("text=Set password")
    page.wait_for_url("**/o/acme/live/overview")
    assert "admin@acme.example" in page.inner_text("aside")


def test_signing_in_again_replaces_the_browsers_session(site: Site) -> None:
    first = site.sign_in("owner")
    with site.server.client(Cookie=f"{COOKIE}={first}") as again:
        answer = again.post(
            "/sign-in", data={"email": OWNER, "password": PASSWORD, "next": "/account"}
        )
    assert answer.headers["location"] == "/account"
    assert first not in answer.headers["set-cookie"]
    assert site.forms(first).get("/account").status_code == 303


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "evil",
        "/%5cevil\r\nSet-Cookie: a=b",
        "",
    ],
)
def test_next_accepts_only_paths_of_the_dashboard(elsewhere: str) -> None:
    assert own_path(elsewhere) == "/"


def test_signing_out_ends_this_session_or_all_sessions(site: Site, enter: Enter) -> None:
    here, there = site.sign_in("viewer"), site.sign_in("viewer")
    page = enter("viewer", cookie=here)
    page.click("[popovertarget=me]")
    page.click("text=Sign out")
    page.wait_for_url("**/sign-in**")
    assert "You're signed out." in page.inner_text("main")
    assert page.context.cookies() == []
    assert site.forms(here).get("/account").status_code == 303
    page = enter("viewer", "/account", cookie=there)
    page.click("text=Sign out everywhere")
    page.wait_for_url("**/sign-in**")
    assert site.forms(there).get("/account").status_code == 303


def test_sessions_are_listed_and_ended(site: Site, enter: Enter) -> None:
    other = site.sign_in("member")
    page = enter("member", "/account")
    rows = page.locator("section[aria-labelledby=sessions]").locator("tbody tr")
    assert rows.count() == 2
    rows.filter(has_not_text="This session").get_by_role("button").click()
    page.wait_for_url("**/account**")
    assert "Session ended." in page.inner_text("main")
    assert rows.count() == 1
    assert site.forms(other).get("/account").status_code == 303
    owners_page = site.forms(site.cookie()).get("/account").text
    match = re.search(r"/account/sessions/(bses_\w+)/end", owners_page)
    assert match is not None
    answer = site.forms(site.cookie("member")).post(f"/account/sessions/{match[1]}/end")
    assert answer.status_code == 404
    assert "browser_session_not_found" in answer.text


def test_changing_the_password_ends_the_other_sessions(site: Site, enter: Enter) -> None:
    kept, other = site.sign_in("admin"), site.sign_in("admin")
    page = enter("admin", "/account", cookie=kept)
    page.fill("#current_password", "something else entirely")
    page.fill("#password", PASSWORD)
    page.click("text=Change password")
    assert "isn't your password" in page.get_by_role("alert").inner_text()
    page.fill("#current_password", PASSWORD)
    page.fill("#password", PASSWORD)
    page.click("text=Change password")
    page.wait_for_selector("text=Password changed")
    assert site.forms(kept).get("/account").status_code == 200
    assert site.forms(other).get("/account").status_code == 303


@pytest.mark.parametrize(
    ("column", "ms"), [("seen_at", SESSION_IDLE_MS), ("expires_at", LONGEST_MS)]
)
def test_a_session_expires(site: Site, column: str, ms: int) -> None:
    forms = site.forms(site.sign_in("viewer"))
    assert forms.get("/account").status_code == 200
    age(site.server, browser_sessions, column, ms, address="127.0.0.1")
    assert forms.get("/account").status_code == 303
    site._cookies.clear()


def test_a_forged_form_changes_nothing(site: Site) -> None:
    forms, others = site.forms(), site.forms(site.sign_in("viewer"))
    page = {"name": "forged", "type": "secret", "access": "usual", "expires": "never"}
    for token in ("", "x", "ü", others.hidden("csrf", "/account")):
        answer = forms.send(KEYS, {**page, "csrf": token, "once": forms.hidden("once")})
        assert answer.status_code == 403
        assert "forged_form" in answer.text
    right = {**page, "csrf": forms.hidden("csrf"), "once": forms.hidden("once")}
    for foreign in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        answer = forms.send(KEYS, right, **foreign)
        assert answer.status_code == 403
    assert "forged" not in site.names()
    with site.server.client() as anyone:
        signing = {"email": OWNER, "password": PASSWORD}
        evil = {"Origin": "https://evil.example"}
        assert anyone.post("/sign-in", data=signing, headers=evil).status_code == 403


def test_an_old_sign_in_is_confirmed_before_a_key_is_created(site: Site, enter: Enter) -> None:
    cookie = site.sign_in("owner")
    age(site.server, browser_sessions, "signed_in_at", FRESH_MS)
    page = enter("owner", f"{KEYS}?dialog=create", cookie=cookie)
    page.fill("#name", "live-billing-confirmed")
    page.click("text=Create key")
    page.wait_for_selector("text=Confirm it's you")
    assert "live-billing-confirmed" not in site.names()
    page.fill("#current_password", "another password")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("text=That isn't your password")
    page.fill("#current_password", PASSWORD)
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("#secret")
    assert site.names().count("live-billing-confirmed") == 1
    page.click("dialog[open] .shown-once button")
    site._cookies.clear()


def test_a_form_sent_after_the_session_ended_changes_nothing(site: Site, enter: Enter) -> None:
    cookie = site.sign_in("owner")
    page = enter("owner", f"{KEYS}?dialog=create", cookie=cookie)
    site.forms(cookie).post("/sign-out")
    page.fill("#name", "live-too-late")
    page.click("text=Create key")
    page.wait_for_url("**/sign-in**")
    assert "Nothing was changed" in page.inner_text("main")
    assert "live-too-late" not in site.names()


def test_pages_send_strict_security_headers(site: Site) -> None:
    for path in (KEYS, "/account", "/sign-in", "/o/acme/live/nowhere", "/setup/none"):
        answer = site.forms().get(path) if path != "/sign-in" else site.forms("x").get(path)
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "style=" not in answer.text
        assert not re.search(r"\son\w+=", answer.text)
    assert site.forms().get("/o/acme/live/nowhere").status_code == 404


def test_the_session_cookie_is_neither_stored_nor_logged(site: Site) -> None:
    cookie = site.cookie()
    with database_of(site.server) as connection:
        assert cookie not in repr(connection.execute(browser_sessions.select()).all())
    assert cookie not in site.server.output


def test_429_password_guesses_are_throttled(start: Callable[..., Server]) -> None:
    server = start()
    with server.client() as anyone:
        wrong = {"email": OWNER, "password": "a wrong password"}
        responses = [anyone.post("/sign-in", data=wrong) for _ in range(12)]
    assert responses[0].status_code == 401
    assert responses[-1].status_code == 429
    assert 'role="alert"' in responses[-1].text


def test_csp_reports_are_logged_and_counted_by_every_worker(
    start: Callable[..., Server],
) -> None:
    server = start(workers=2, metrics_token=TOKEN)
    statuses = []
    # A new connection per request, so both workers get some.
    for _ in range(40):
        with server.client() as anyone:
            statuses.append(anyone.post("/csp-reports", content=b'{"a": "\n\xff"}').status_code)
    assert set(statuses) == {204, 429}
    accepted = statuses.count(204)
    assert server.output.count("content security policy") == accepted
    wait_until(lambda: scraped(server).get(("wardkey_csp_reports_total", "")) == accepted)


@pytest.mark.parametrize(
    ("password", "common"),
    [
        ("password1234", True),
        ("PASSWORDpassword", True),
        ("12345-sunshine!", True),
        ("qwertyuiop", True),
        ("a password of some length", False),
        ("correct horse battery", False),
        ("1234567890123", False),
        ("", False),
    ],
)
def test_common_passwords_are_recognized(password: str, common: bool) -> None:  # noqa: FBT001
    assert is_common(password) is common
