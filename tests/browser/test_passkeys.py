from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from sqlalchemy import select

from tests.browser.conftest import KEYS, Enter, Site, passes
from tests.support.database import age, database_of
from tests.support.ports import free_ports
from tests.support.server import OWNER, PASSWORD, running
from wardkey.actions.accounts.browser_sessions import FRESH_MS
from wardkey.actions.accounts.passkeys import (
    CHALLENGE_MS,
    list_passkeys,
    new_challenge,
    register,
    remove,
    rename,
)
from wardkey.actions.core.runner import Runner
from wardkey.adapters.passkeys import Answer, read_credential_id
from wardkey.adapters.passkeys import Site as PasskeySite
from wardkey.db.schema import audit_events, browser_sessions, challenges, passkeys
from wardkey.domain.errors import (
    DuplicatePasskey,
    InvalidName,
    InvalidPasskey,
    PasskeyNotFound,
)
from wardkey.domain.principal import Principal, PrincipalKind

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


class NamedSite(Site):
    """A deployment at a host name: browsers reject passkeys for IP addresses."""

    def url(self, path: str) -> str:
        return f"{self.server.settings['public_url']}{path}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("named") / "data"
    where = {"listen": f"127.0.0.1:{port}", "public_url": f"http://localhost:{port}"}
    with running(folder, **where) as server:
        there = NamedSite(server)
        there.cookie()
        yield there
        there.api.close()
        assert "content security policy" not in server.output


def authenticator(page: Page) -> None:
    """Add a virtual authenticator to the page's browser."""
    cdp = page.context.new_cdp_session(page)
    cdp.send("WebAuthn.enable")
    cdp.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})


def sign_in(site: Site, page: Page, email: str = OWNER) -> None:
    page.goto(site.url("/sign-in?next=/account"))
    page.fill("#email", email)
    page.fill("#password", PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/account")


def add(page: Page, name: str) -> None:
    page.get_by_role("button", name="Add a passkey").click()
    page.fill("#name", name)
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("text=Passkey added")


def remove_all(site: Site) -> None:
    with database_of(site.server) as connection:
        connection.execute(passkeys.delete())


def test_a_passkey_is_added_renamed_used_and_removed(site: Site, enter: Enter) -> None:
    page = enter("", "/sign-in")
    passes(page)
    authenticator(page)
    sign_in(site, page)
    passes(page)
    page.get_by_role("button", name="Add a passkey").click()
    page.wait_for_selector("#name")
    passes(page)
    page.fill("#name", "<i>My laptop</i>")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("text=Passkey added")
    row = page.locator("section[aria-labelledby=passkeys]").locator("tbody tr")
    assert "<i>My laptop</i>" in row.inner_text()
    assert "Never" in row.inner_text()
    page.get_by_role("button", name="Rename the passkey <i>My laptop</i>").click()
    dialog = page.get_by_role("dialog", name="Rename <i>My laptop</i>")
    assert dialog.get_by_label("Name").input_value() == "<i>My laptop</i>"
    passes(page)
    dialog.get_by_label("Name").fill("   ")
    dialog.get_by_role("button", name="Save").click()
    page.wait_for_selector("text=The name is empty")
    passes(page)
    dialog.get_by_label("Name").fill("<b>Another</b>")
    dialog.get_by_role("button", name="Save").click()
    page.wait_for_selector("text=Passkey renamed")
    assert "<b>Another</b>" in row.inner_text()
    page.get_by_role("button", name="Rename the passkey <b>Another</b>").click()
    page.get_by_role("dialog").get_by_label("Name").fill("<i>My laptop</i>")
    page.get_by_role("dialog").get_by_label("Name").press("Enter")
    page.wait_for_selector("text=Passkey renamed")
    passes(page)
    page.click("text=Sign out everywhere")
    page.wait_for_url("**/sign-in**")
    page.goto(site.url(f"{KEYS}?q=billing"))
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url(f"**{KEYS}?q=billing")
    assert OWNER in page.inner_text("aside")
    page.goto(site.url("/account"))
    assert "just now" in row.inner_text()
    page.get_by_role("button", name="Remove the passkey <i>My laptop</i>").click()
    page.wait_for_selector("text=Passkey removed")
    assert row.count() == 0
    page.click("text=Sign out everywhere")
    page.wait_for_url("**/sign-in**")
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_selector("text=The passkey is not accepted")
    assert page.context.cookies() == []
    site._cookies.clear()


def test_signing_in_without_a_passkey_shows_an_error(site: Site, enter: Enter) -> None:
    page = enter("", "/sign-in")
    authenticator(page)
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_selector("#passkey-fault:visible")
    passes(page)
    page.get_by_role("link", name="Go back").click()
    page.wait_for_url("**/sign-in")
    assert site.forms("x").get("/sign-in/passkey").headers["location"] == "/sign-in"


def sign_in_with_passkey(site: Site, page: Page) -> Any:  # noqa: ANN401 - JSON
    """Sign in with the page's passkey; return the assertion that the form sent."""
    page.context.clear_cookies()
    page.goto(site.url("/sign-in"))
    with page.expect_request("**/sign-in/passkey/answer") as request:
        page.get_by_role("button", name="Sign in with a passkey").click()
    sent = parse_qs(request.value.post_data)
    page.wait_for_url("**/overview")
    return json.loads(sent["answer"][0])


def test_a_passkey_assertion_works_once_and_only_unaltered(site: Site, enter: Enter) -> None:
    remove_all(site)
    page = enter("", "/sign-in")
    authenticator(page)
    sign_in(site, page)
    add(page, "Once")
    assertion = sign_in_with_passkey(site, page)

    def is_rejected(answer: Any) -> bool:  # noqa: ANN401 - JSON
        text = answer if isinstance(answer, str) else json.dumps(answer)
        response = site.forms("x").send("/sign-in/passkey/answer", {"answer": text})
        assert "set-cookie" not in response.headers
        return response.status_code == 401 and "The passkey is not accepted" in response.text

    # Its challenge was already used.
    assert is_rejected(assertion)
    assert is_rejected("{}")
    with database_of(site.server) as connection:
        connection.execute(passkeys.update().values(sign_count=0))
    signature = assertion["response"]["signature"]
    flipped = signature[:20] + ("A" if signature[20] != "A" else "B") + signature[21:]
    assert is_rejected({**assertion, "response": {**assertion["response"], "signature": flipped}})
    assert is_rejected(
        {**assertion, "response": {**assertion["response"], "userHandle": "dXNlcl94"}}
    )


def test_a_sign_in_challenge_is_not_stored(site: Site) -> None:
    with database_of(site.server) as connection:
        before = connection.execute(challenges.select()).all()
    for _ in range(20):
        page = site.forms("x").send("/sign-in/passkey", {"next": "/"})
        assert page.status_code == 200
    with database_of(site.server) as connection:
        assert connection.execute(challenges.select()).all() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"id": 1}', "x" * 100_000])
def test_a_malformed_assertion_is_rejected(text: str) -> None:
    with pytest.raises(InvalidPasskey):
        read_credential_id(text)


def change_time(challenge: bytes) -> bytes:
    """Return the challenge with its expiry altered."""
    return challenge[:20] + bytes([challenge[20] + 1 & 255]) + challenge[21:]


@pytest.mark.parametrize("why", ["expired", "another user", "no user", "altered", "used", "empty"])
def test_a_challenge_works_once_in_time_and_only_for_its_subject(
    runner: Runner, owner: Principal, why: str
) -> None:
    keys, now = runner.database.vault, runner.database.clock()
    challenges_of = {
        "expired": new_challenge(keys, owner.id, now - CHALLENGE_MS),
        "another user": new_challenge(keys, "user_another", now),
        "no user": new_challenge(keys, "", now),
        "altered": change_time(new_challenge(keys, owner.id, now - CHALLENGE_MS)),
        "used": new_challenge(keys, owner.id, now),
        "empty": b"",
    }
    challenge = challenges_of[why]
    if why == "used":
        runner.write(register, owner, Answer(challenge, b"one device", 0, b"key"), "One")
    with pytest.raises(InvalidPasskey):
        runner.write(register, owner, Answer(challenge, b"a device", 0, b"key"), "Refused")
    valid = new_challenge(keys, owner.id, now - CHALLENGE_MS + 5_000)
    runner.write(register, owner, Answer(valid, b"another device", 0, b"key"), "In time")


def test_another_users_passkey_cannot_be_renamed_or_removed(site: Site, enter: Enter) -> None:
    remove_all(site)
    page = enter("", "/sign-in")
    authenticator(page)
    sign_in(site, page)
    add(page, "Kept")
    match = re.search(r"/account/passkeys/(pass_\w+)/remove", page.content())
    assert match is not None
    answer = site.forms(site.sign_in("member")).post(match[0])
    assert answer.status_code == 404
    assert "passkey_not_found" in answer.text
    assert site.forms().send(match[0], {}).status_code == 403
    assert site.forms().get(match[0]).headers["location"] == "/account"
    renaming = match[0].replace("/remove", "/rename")
    for name in ("Theirs", "", "x" * 4_000):
        answer = site.forms(site.cookie("member")).post(renaming, name=name)
        assert answer.status_code == 404
        assert "passkey_not_found" in answer.text
    assert site.forms().send(renaming, {"name": "Forged"}).status_code == 403
    assert site.forms().get(renaming).headers["location"] == "/account"
    for name in ("", "x" * 101, "x" * 4_000, "\u202eodd"):
        answer = site.forms().post(renaming, name=name)
        assert answer.status_code == 400
        assert 'class="fault"' in answer.text
    page.reload()
    assert page.locator("section[aria-labelledby=passkeys]").locator("bdi").inner_text() == "Kept"
    # An old sign-in must be confirmed, and a device cannot be registered twice.
    age(site.server, browser_sessions, "signed_in_at", FRESH_MS)
    page.get_by_role("button", name="Add a passkey").click()
    page.wait_for_selector("text=Confirm it's you")
    page.fill("#current_password", PASSWORD)
    page.get_by_role("button", name="Continue").click()
    page.fill("#name", "Twice")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("#passkey-fault:visible")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://keys.acme.example", "keys.acme.example"),
        ("https://keys.acme.example:8443", "keys.acme.example"),
        ("http://localhost:8787", "localhost"),
        ("http://keys.acme.example", ""),
        ("https://192.0.2.1", ""),
        ("http://[::1]:8787", ""),
    ],
)
def test_passkeys_are_offered_only_where_browsers_accept_them(url: str, host: str) -> None:
    site = PasskeySite.of(url)
    assert (site.host if site else "") == host
    assert not site or site.origin == url


def answer_of(runner: Runner, who: Principal) -> Answer:
    database = runner.database
    challenge = new_challenge(database.vault, who.id, database.clock())
    return Answer(challenge, b"the same device", 0, b"a public key")


def test_a_passkey_cannot_be_registered_twice(runner: Runner, owner: Principal) -> None:
    made = runner.write(register, owner, answer_of(runner, owner), "First")
    with pytest.raises(DuplicatePasskey):
        runner.write(register, owner, answer_of(runner, owner), "Second")
    (kept,) = runner.read(list_passkeys, owner)
    assert (kept.id, kept.name) == (made, "First")


def test_renaming_a_passkey_is_audited_and_fails_once_it_is_removed(
    runner: Runner, owner: Principal
) -> None:
    made = runner.write(register, owner, answer_of(runner, owner), "First")

    def events() -> list[Any]:
        with runner.database.read() as tx:
            statement = select(audit_events).where(audit_events.c.action == "passkey.renamed")
            return list(tx.connection.execute(statement.order_by(audit_events.c.seq)))

    runner.write(rename, owner, made, " Second ")
    runner.write(rename, owner, made, "Second")
    (event,) = events()
    assert (event.actor_id, event.target_id) == (owner.id, owner.id)
    assert json.loads(event.details) == {"passkey": made, "name": "Second", "old": "First"}
    with pytest.raises(InvalidName):
        runner.write(rename, owner, made, "")
    another = Principal(PrincipalKind.USER, "user_another", "another@acme.example")
    with pytest.raises(PasskeyNotFound):
        runner.write(rename, another, made, "Third")
    (kept,) = runner.read(list_passkeys, owner)
    assert kept.name == "Second"
    runner.write(remove, owner, made)
    with pytest.raises(PasskeyNotFound):
        runner.write(rename, owner, made, "Third")
    assert len(events()) == 1
