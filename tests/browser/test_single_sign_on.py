from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.conftest import Enter, Site, passes
from tests.browser.test_passkeys import NamedSite, add, authenticator
from tests.support.database import age, database_of
from tests.support.issuers import OidcProvider, oidc_provider
from tests.support.ports import free_addresses, free_ports
from tests.support.server import OWNER, PASSWORD, running
from wardkey.actions.accounts.browser_sessions import FRESH_MS
from wardkey.db.schema import audit_events, browser_sessions, identities, users

if TYPE_CHECKING:
    import httpx2 as httpx
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

AT_ISSUER = "a password at the issuer"
SECRET = "a client's secret of 32 characters and more"


def user(**claims: object) -> dict[str, object]:
    return {"password": AT_ISSUER, **claims}


USERS = {
    OWNER: user(),
    "new@acme.example": user(),
    "removed@acme.example": user(),
    "invited@acme.example": user(),
    "confirming@acme.example": user(),
    "changed@acme.example": user(sub="another-subject", email="new@acme.example"),
    "unverified@acme.example": user(email_verified=False),
    "somebody@elsewhere.example": user(),
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcProvider]:
    (port,) = free_ports(1)
    back = f"http://localhost:{port}/sign-in/oidc/callback"
    with oidc_provider(USERS, "wardkey", [back], client_secret=SECRET) as provider:
        yield provider


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, issuer: OidcProvider) -> Iterator[Site]:
    port = urlsplit(issuer.redirect_uri).port
    settings = {
        "listen": f"127.0.0.1:{port}",
        "public_url": f"http://localhost:{port}",
        "behind_proxy": 1,
        "oidc_issuer": issuer.url,
        "oidc_client_id": issuer.client_id,
        "oidc_client_secret": SECRET,
        "oidc_name": "Acme",
        "oidc_domains": "acme.example",
        "oidc_organization": "acme",
    }
    with running(tmp_path_factory.mktemp("sso") / "data", **settings) as server:
        there = NamedSite(server)
        there.cookie()
        yield there
        there.api.close()
        assert "content security policy" not in server.output


def at_issuer(page: Page, email: str) -> None:
    """Sign in on the issuer's page."""
    page.fill("[name=email]", email)
    page.fill("[name=password]", AT_ISSUER)
    page.get_by_role("button", name="Sign in").click()


def enter_as(page: Page, email: str) -> None:
    page.get_by_role("link", name="Sign in with Acme").click()
    at_issuer(page, email)


def role_of(site: Site, email: str) -> str:
    rows = site.api.get("/v2/members").json()["members"]
    return next((row["role"] for row in rows if row["email"] == email), "")


def test_a_new_user_at_an_allowed_domain_joins_with_the_default_role(
    site: Site, enter: Enter
) -> None:
    page = enter("", "/sign-in?next=/o/acme/test/settings/api-keys")
    passes(page)
    enter_as(page, "new@acme.example")
    page.wait_for_url("**/o/acme/test/settings/api-keys")
    assert role_of(site, "new@acme.example") == "viewer"
    cookies = {cookie["name"] for cookie in page.context.cookies(site.url("/"))}
    assert cookies == {"__Host-wardkey"}
    page.goto(site.url("/account"))
    assert "you sign in with Acme" in page.inner_text("main")
    row = page.locator("section", has_text="Single sign-on").locator("tbody tr")
    assert "Acme" in row.inner_text()
    assert "new@acme.example" in row.inner_text()
    passes(page)
    actions = [event["action"] for event in site.api.get("/v2/audit-events").json()["events"]]
    assert "member.joined" in actions
    # Signing in again reuses the account instead of adding one.
    page.get_by_role("button", name="Sign out everywhere").click()
    page.wait_for_url("**/sign-in**")
    page.get_by_role("link", name="Sign in with Acme").click()
    page.wait_for_url("**/overview")
    with database_of(site.server) as connection:
        assert len(connection.execute(users.select()).all()) == len(
            {member["email"] for member in site.api.get("/v2/members").json()["members"]}
        )


def test_a_removed_member_does_not_rejoin_by_signing_in(site: Site, enter: Enter) -> None:
    page = enter("", "/sign-in")
    enter_as(page, "removed@acme.example")
    page.wait_for_url("**/overview")
    rows = site.api.get("/v2/members").json()["members"]
    user_id = next(row["user_id"] for row in rows if row["email"] == "removed@acme.example")
    assert site.api.delete(f"/v2/members/{user_id}").status_code == 204
    page.goto(site.url("/account"))
    page.get_by_role("button", name="Sign out everywhere").click()
    page.wait_for_url("**/sign-in**")
    page.get_by_role("link", name="Sign in with Acme").click()
    page.wait_for_selector("text=No organization yet")
    assert role_of(site, "removed@acme.example") == ""


def test_a_known_address_is_linked_and_can_be_unlinked(site: Site, enter: Enter) -> None:
    page = enter("", "/sign-in?next=/account")
    enter_as(page, OWNER)
    page.wait_for_url("**/account")
    assert OWNER in page.inner_text("main")
    assert (
        page.locator("section[aria-labelledby=passwords]").locator("#current_password").count() == 1
    )
    page.get_by_role("button", name="Unlink").click()
    page.wait_for_selector("text=Account unlinked")
    assert "Not linked to Acme yet" in page.inner_text("main")
    assert role_of(site, OWNER) == "owner"
    again = site.forms().post("/account/identities/unlink", issuer="https://other.example")
    assert again.status_code == 404
    assert "identity_not_found" in again.text


@pytest.mark.parametrize(
    ("email", "sentence"),
    [
        ("unverified@acme.example", "has not verified your e-mail address"),
        ("somebody@elsewhere.example", "Addresses at elsewhere.example"),
        ("changed@acme.example", "now belongs to another account at the issuer"),
    ],
)
def test_403_an_address_that_may_not_join_is_rejected(
    site: Site, enter: Enter, email: str, sentence: str
) -> None:
    page = enter("", "/sign-in")
    enter_as(page, email)
    page.wait_for_selector(f"text={sentence}")
    passes(page)
    assert {cookie["name"] for cookie in page.context.cookies(site.url("/"))} == set()
    assert role_of(site, email) == ""


def invite(site: Site, email: str) -> str:
    made = site.api.post("/v2/invitations", json={"email": email, "role": "member"})
    assert made.status_code == 201, made.text
    return str(made.json()["link"]).rpartition("/")[2]


def test_an_invitation_is_accepted_only_with_the_invited_address(site: Site, enter: Enter) -> None:
    token = invite(site, "invited@acme.example")
    other = enter("", f"/invitations/{token}")
    passes(other)
    other.get_by_role("link", name="Accept with Acme").click()
    at_issuer(other, OWNER)
    other.wait_for_selector("text=The invitation is for invited@acme.example")
    page = enter("", f"/invitations/{token}")
    page.get_by_role("link", name="Accept with Acme").click()
    at_issuer(page, "invited@acme.example")
    page.wait_for_url("**/overview")
    assert role_of(site, "invited@acme.example") == "member"
    page.goto(site.url(f"/sign-in/oidc?invitation={token}"))
    page.wait_for_selector("text=The link is invalid, already used")


def test_409_an_invitation_cannot_set_the_password_of_an_account_without_one(
    site: Site, enter: Enter
) -> None:
    page = enter("", "/sign-in")
    enter_as(page, "confirming@acme.example")
    page.wait_for_url("**/overview")
    rows = site.api.get("/v2/members").json()["members"]
    user_id = next(row["user_id"] for row in rows if row["email"] == "confirming@acme.example")
    site.api.delete(f"/v2/members/{user_id}")
    token = invite(site, "confirming@acme.example")
    thief = enter("", f"/invitations/{token}")
    assert "no password" in thief.inner_text("main")
    assert thief.locator("#password").count() == 0
    passes(thief)
    sent = site.forms("x").send(f"/invitations/{token}", {"password": "a password of a thief"})
    assert sent.status_code == 409
    assert "set-cookie" not in sent.headers
    with site.server.client() as anyone:
        body = {"token": token, "password": "a password of a thief"}
        response = anyone.post("/v2/invitations/accept", json=body)
    assert (response.status_code, response.json()["code"]) == (409, "account_not_set_up")
    page.goto(site.url(f"/invitations/{token}"))
    passes(page)
    page.get_by_role("button", name="Accept").click()
    page.wait_for_selector("text=Invitation accepted.")
    assert role_of(site, "confirming@acme.example") == "member"


def test_a_user_without_a_password_confirms_at_the_issuer_or_with_a_passkey(
    site: Site, enter: Enter
) -> None:
    page = enter("", "/sign-in?next=/account")
    authenticator(page)
    enter_as(page, "new@acme.example")
    page.wait_for_url("**/account")
    add(page, "Mine")

    def confirm(way: str) -> Page:
        age(site.server, browser_sessions, "signed_in_at", FRESH_MS)
        page.goto(site.url("/account"))
        page.get_by_role("button", name="Remove the passkey Mine").click()
        page.wait_for_selector("text=Confirm it's you")
        assert page.locator("#current_password").count() == 0
        passes(page)
        # Continuing without a confirmation asks again.
        page.get_by_role("button", name="Continue").click()
        page.wait_for_selector("text=Confirm it's you")
        with page.expect_popup() as opened:
            page.get_by_role("link", name=way).click()
        return opened.value

    tab = confirm("Use Acme")
    at_issuer(tab, OWNER)
    tab.wait_for_selector(f"text={OWNER} is not your account")
    tab.goto(site.url("/sign-in/oidc/confirm"))
    at_issuer(tab, "new@acme.example")
    tab.wait_for_selector("text=Identity confirmed")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("text=Passkey removed")

    tab.close()
    add(page, "Mine")
    tab = confirm("Use a passkey")
    # The new tab has no virtual authenticator, so check only that its page asks for a passkey.
    tab.wait_for_selector("text=Your browser asks which passkey")
    passes(tab)
    tab.close()
    form = page.url
    page.goto(site.url("/account/confirm/passkey"))
    page.wait_for_selector("text=Identity confirmed")
    assert form.endswith("/remove")
    page.get_by_role("button", name="Remove the passkey Mine").click()
    page.wait_for_selector("text=Passkey removed")


class PlainBrowser:
    """A browser over plain HTTP that keeps the Secure cookies httpx would not send."""

    def __init__(self, site: Site, address: str) -> None:
        self.site, self.address, self.cookie = site, address, ""

    def get(self, path: str, query: dict[str, str]) -> httpx.Response:
        headers = {"X-Forwarded-For": self.address, "Cookie": self.cookie}
        with self.site.server.client(**headers) as client:
            return client.get(path, params=query)

    def begin(self, path: str = "/sign-in/oidc", **query: str) -> str:
        """Start signing in; return the issuer's URL that the browser is redirected to."""
        answer = self.get(path, query)
        assert answer.status_code == 303, answer.text
        match = re.match(r"(__Host-wardkey-oidc=[^;]+);", answer.headers["set-cookie"])
        assert match is not None
        self.cookie = match[1]
        return str(answer.headers["location"])

    def state(self) -> str:
        """Start signing in; return the `state` parameter."""
        return parse_qs(urlsplit(self.begin()).query)["state"][0]

    def back(self, **query: str) -> httpx.Response:
        """Return from the issuer to the callback."""
        return self.get("/sign-in/oidc/callback", query)


def assert_rejected(answer: httpx.Response, sentence: str) -> None:
    assert answer.status_code == 401, answer.text
    assert sentence in answer.text
    assert "__Host-wardkey=" not in answer.headers.get("set-cookie", "")


def test_the_issuer_is_asked_for_a_recent_sign_in(site: Site) -> None:
    browser = PlainBrowser(site, "192.0.2.5")
    query = parse_qs(urlsplit(browser.begin()).query)
    assert query["max_age"] == [str(FRESH_MS // 1000)]
    assert "prompt" not in query
    # An invalid invitation token is ignored, even if it names another purpose.
    browser.begin(invitation="confirm")
    assert ".enter." in browser.cookie


def test_401_a_callback_works_once_and_only_in_the_browser_that_started(
    site: Site, issuer: OidcProvider
) -> None:
    thief, victim = PlainBrowser(site, "192.0.2.6"), PlainBrowser(site, "192.0.2.7")
    state, me = victim.state(), {"iss": issuer.url}
    assert_rejected(thief.back(code="x", state=state, **me), "started in another browser")
    assert_rejected(victim.back(code="x", state="other", **me), "belongs to another sign-in")
    assert_rejected(
        victim.back(code="x", state=state, iss="https://other.example"), "another issuer"
    )
    assert_rejected(victim.back(code="x", state=state), "another issuer")
    denied = victim.back(error="<b>access_denied</b>", state=state, **me)
    assert_rejected(denied, "You didn&#39;t sign in at Acme")
    assert "<b>" not in denied.text
    assert_rejected(victim.back(state=state, **me), "sent no code")
    assert_rejected(victim.back(code="invented", state=state, **me), "invalid_grant")
    # A code works only with the sign-in that it was issued for.
    got = issuer.visit(victim.begin(), OWNER, AT_ISSUER)
    assert_rejected(thief.back(code=got["code"], state=thief.state(), **me), "invalid_grant")
    done = victim.back(**got)
    assert done.status_code == 303
    assert "__Host-wardkey=" in done.headers["set-cookie"]
    assert_rejected(victim.back(**got), "invalid_grant")
    victim.cookie = victim.cookie.replace(".enter.", ".confirm.")
    assert_rejected(victim.back(**got), "belongs to another sign-in")


def test_the_deployments_audit_log_records_how_a_user_signed_in(
    site: Site, issuer: OidcProvider
) -> None:
    browser = PlainBrowser(site, "192.0.2.12")
    done = browser.back(**issuer.visit(browser.begin(), OWNER, AT_ISSUER))
    assert done.status_code == 303
    site.sign_in("owner")
    with database_of(site.server) as connection:
        events = connection.execute(
            audit_events.select()
            .where(audit_events.c.action == "user.signed_in", audit_events.c.actor_label == OWNER)
            .order_by(audit_events.c.seq.desc())
            .limit(2)
        ).all()
    assert [json.loads(event.details)["way"] for event in events] == ["password", issuer.url]
    assert {event.address for event in events} == {"127.0.0.1", "192.0.2.12"}


def test_429_failures_at_the_issuer_count_as_guesses(site: Site) -> None:
    guesser = PlainBrowser(site, "192.0.2.9")
    statuses = [
        guesser.back(state=guesser.state(), error="access_denied").status_code for _ in range(12)
    ]
    assert statuses == [401] * 10 + [429] * 2


@pytest.mark.parametrize("next_", ["https://evil.example/", "//evil.example", "/\\evil.example"])
def test_signing_in_never_redirects_to_another_site(
    site: Site, issuer: OidcProvider, next_: str
) -> None:
    browser = PlainBrowser(site, "192.0.2.10")
    answer = browser.back(**issuer.visit(browser.begin(next=next_), OWNER, AT_ISSUER))
    assert answer.headers["location"] == "/"


def test_a_set_up_link_unlinks_the_accounts_issuer(site: Site, issuer: OidcProvider) -> None:
    browser = PlainBrowser(site, "192.0.2.11")
    done = browser.back(**issuer.visit(browser.begin(), OWNER, AT_ISSUER))
    assert done.status_code == 303
    made = site.server.cli("setup-link", "new@acme.example")
    token = re.search(r"/setup/(\w+)", made.stdout)
    assert token is not None

    def linked() -> set[str]:
        with database_of(site.server) as connection:
            return {row.email for row in connection.execute(identities.select())}

    assert {OWNER, "new@acme.example"} <= linked()
    done = site.forms("x").send(f"/setup/{token[1]}", {"password": PASSWORD})
    assert done.status_code == 303
    assert "new@acme.example" not in linked()
    assert OWNER in linked()


def test_503_passwords_still_work_while_the_issuer_is_unreachable(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    (nowhere,) = free_addresses(1)
    settings = {"oidc_issuer": f"http://{nowhere}", "oidc_client_id": "wardkey"}
    with running(tmp_path_factory.mktemp("away") / "data", **settings) as server:
        there = Site(server)
        with server.client() as client:
            answer = client.get("/sign-in/oidc")
        assert answer.status_code == 503
        assert "can&#39;t be reached" in answer.text
        assert there.sign_in("owner")


def test_404_single_sign_on_without_an_issuer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("none") / "data") as server, server.client() as client:
        assert "oidc" not in client.get("/sign-in").text
        assert client.get("/sign-in/oidc").status_code == 404
