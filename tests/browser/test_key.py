from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser.conftest import KEYS, Enter, Site
from tests.support.database import database_of
from wardkey.db.schema import secrets

pytestmark = pytest.mark.browser


def use(site: Site, made: Any, times: int = 1) -> None:  # noqa: ANN401 - JSON
    """Make requests with the key's secret, so it has a known caller."""
    with site.server.client(made["secret"], User_Agent="billing/2.1") as client:
        for _ in range(times):
            assert client.get("/v2/organization").status_code == 200


def page_of(made: Any, query: str = "") -> str:  # noqa: ANN401 - JSON
    return f"{KEYS}/{made['key']['id']}{query}"


def test_a_rotation_from_start_to_finish(site: Site, enter: Enter) -> None:
    made = site.made("live-billing-rotated")
    use(site, made, 3)
    page = enter("owner", page_of(made))
    row = (
        page.locator("section", has_text=made["key"]["secrets"][0]["prefix"])
        .locator("tbody tr")
        .first
    )
    assert "127.0.0.1" in row.inner_text()
    assert "billing/2.1" in row.inner_text()
    page.get_by_role("button", name="Rotate").click()
    assert "In use: 3 requests" in page.inner_text("#rotate")
    assert page.get_by_role("radio", name="24 hours").is_checked()
    page.get_by_role("button", name="Rotate key").click()
    text = page.inner_text("#secret")
    assert text.startswith("sk_live_")
    assert text != made["secret"]
    page.click("dialog[open] .shown-once button")
    page.click("text=I've saved the key")
    page.wait_for_selector("text=Rotation in progress")
    assert text not in page.content()
    for secret in (text, made["secret"]):
        use(site, {"secret": secret})
    assert "Old, ends in 23 hours" in page.inner_text("main")
    # The old secret is still in use, so its callers are listed.
    page.get_by_role("button", name="Finish rotation").first.click()
    page.locator("#finish").get_by_role("button", name="Finish rotation").click()
    page.wait_for_selector("#finish [role=alert]")
    assert "billing/2.1" in page.inner_text("#finish tbody")
    page.keyboard.press("Escape")
    # The old secret can be revoked even while it is in use.
    page.get_by_role("button", name="Revoke this secret").click()
    page.get_by_role("button", name="Revoke secret", exact=True).click()
    page.wait_for_selector("text=Refused everywhere after")
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 401
    use(site, {"secret": text})
    assert page.locator("text=Rotation in progress").count() == 0


def test_a_rotation_finishes_when_the_old_secret_is_unused(site: Site, enter: Enter) -> None:
    made = site.made("live-idle-rotated")
    rotated = site.api.post(f"/v2/keys/{made['key']['id']}/rotate", json={"grace": "until_revoked"})
    page = enter("owner", page_of(made, "?dialog=finish"))
    page.locator("#finish").get_by_role("button", name="Finish rotation").click()
    page.wait_for_selector("text=Refused everywhere after")
    use(site, rotated.json())
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 401


def test_revoking_requires_the_name_and_shows_the_receipt(site: Site, enter: Enter) -> None:
    made = site.made("live-billing-revoked")
    page = enter("owner", page_of(made))
    page.get_by_role("button", name="Revoke", exact=True).click()
    button = page.get_by_role("button", name="Revoke key")
    assert button.is_disabled()
    page.fill("#confirmation", "live-billing-revoke")
    assert button.is_disabled()
    page.fill("#confirmation", "live-billing-revoked")
    page.get_by_label("Reason").first.select_option("keyCompromise")
    page.get_by_label("Comment").first.fill("found in a log")
    button.click()
    page.wait_for_selector("text=Refused everywhere after")
    match = re.search(r"rcpt_\w+", page.inner_text(".receipt"))
    assert match is not None
    proof = site.api.get(f"/v2/receipts/{match[0]}").json()
    assert (proof["key_id"], proof["reason"]) == (made["key"]["id"], "keyCompromise")
    assert "1 verifier confirmed it." in page.inner_text(".receipt")
    assert "found in a log" in page.inner_text("main")
    assert page.get_by_role("button", name="Rotate").count() == 0
    assert "revoked the key" in page.inner_text(".log")
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 401


def test_the_server_checks_the_confirmation_name_too(site: Site) -> None:
    made = site.made("live-not-revoked")
    for typed in ("", "live-not-revoke", "LIVE-NOT-REVOKED"):
        answer = site.forms().post(
            page_of(made, "/revoke"), reason="unspecified", comment="", confirmation=typed
        )
        assert answer.status_code == 400
        assert "That isn&#39;t the key&#39;s name" in answer.text
    wrong = {"confirmation": "live-not-revoked", "comment": ""}
    assert site.forms().post(page_of(made, "/revoke"), reason="x", **wrong).status_code == 400
    use(site, made)


def test_two_tabs_revoking_one_key_get_the_same_receipt(site: Site, enter: Enter) -> None:
    made = site.made("live-two-tabs")
    first = enter("owner", page_of(made, "?dialog=revoke"))
    second = enter("owner", page_of(made, "?dialog=revoke"))
    receipts = []
    for page in (first, second):
        page.fill("#confirmation", "live-two-tabs")
        page.get_by_role("button", name="Revoke key").click()
        page.wait_for_selector("text=Refused everywhere after")
        receipts += re.findall(r"rcpt_\w+", page.inner_text(".receipt"))
    assert len(receipts) == 2
    assert len(set(receipts)) == 1
    # Other actions that a stale tab still offers fail with a message.
    once = site.forms().hidden("once")
    for verb in ("rotate", "disable", "edit"):
        fields = {"grace": "now", "once": once, "name": "live-two-tabs", "expires": "keep"}
        answer = site.forms().post(page_of(made, f"/{verb}"), **fields)
        assert answer.status_code == 409, verb
        assert 'role="alert"' in answer.text


def test_a_key_is_disabled_and_enabled(site: Site, enter: Enter) -> None:
    made = site.made("live-switched")
    page = enter("owner", page_of(made))
    page.get_by_role("button", name="Disable").click()
    page.wait_for_selector("text=Key disabled")
    assert "done=" not in page.url
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 401
    page.get_by_role("button", name="Enable").click()
    page.wait_for_selector("text=Key enabled")
    use(site, made)


def test_editing_a_key_keeps_its_other_fields(site: Site, enter: Enter) -> None:
    made = site.made(
        "live-edited",
        permissions=["keys:verify", "invoices:read"],
        create_scopes=True,
        expires_at="2040-01-31T00:00:00Z",
    )
    page = enter("owner", page_of(made, "?dialog=edit"))
    page.fill("#name", "live-edited-by-hand")
    page.fill("#allowed_addresses", "203.0.113.0/24")
    page.get_by_role("group", name="Clients").get_by_label("Read").check()
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Key updated")
    key = site.api.get(f"/v2/keys/{made['key']['id']}").json()
    assert key["name"] == "live-edited-by-hand"
    assert key["permissions"] == ["clients:read", "invoices:read", "keys:verify"]
    assert key["allowed_addresses"] == ["203.0.113.0/24"]
    assert key["expires_at"] == made["key"]["expires_at"]
    page.get_by_role("button", name="Edit").click()
    page.fill("#allowed_addresses", "nowhere")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("#edit[open] [role=alert]")
    assert page.input_value("#name") == "live-edited-by-hand"
    assert page.input_value("#allowed_addresses") == "nowhere"


def test_a_dialog_shows_the_keys_values_after_an_empty_form(site: Site) -> None:
    made = site.made("live-filled-in", description="For the books")
    forms = site.forms()
    # Enough requests for each worker to render an empty form.
    for _ in range(8):
        assert forms.get(f"{KEYS}?dialog=create").status_code == 200
    for _ in range(8):
        rotate = " ".join(forms.get(page_of(made, "?dialog=rotate")).text.split())
        assert 'value="24h" checked' in rotate
        assert ">For the books</textarea>" in forms.get(page_of(made, "?dialog=edit")).text


def test_a_rotation_form_sent_twice_rotates_once(site: Site) -> None:
    made = site.made("live-rotated-once")
    forms = site.forms()
    once = forms.hidden("once", page_of(made))
    first = forms.post(page_of(made, "/rotate"), grace="24h", once=once)
    again = forms.post(page_of(made, "/rotate"), grace="24h", once=once)
    assert (first.status_code, again.status_code) == (200, 303)
    with database_of(site.server) as connection:
        rows = connection.execute(secrets.select().where(secrets.c.key_id == made["key"]["id"]))
        assert len(rows.all()) == 2
    assert forms.post(page_of(made, "/rotate"), grace="soon", once="1" * 32).status_code == 400
    # A GET of the form's URL redirects to the key's page.
    assert forms.get(page_of(made, "/rotate")).headers["location"] == page_of(made)


def test_404_for_another_organizations_keys_and_pages(site: Site) -> None:
    made = site.made("live-not-theirs")
    done = site.server.cli_here("org", "create", "Globex", "--owner", "admin@globex.example")
    token = re.search(r"/setup/(\w+)", done.output)
    assert token is not None
    with site.server.client() as anyone:
        answer = anyone.post(f"/setup/{token[1]}", data={"password": "a password of hers"})
    match = re.match(r"[\w-]+=(\w+);", answer.headers["set-cookie"])
    assert match is not None
    outsider = site.forms(match[1])
    key = made["key"]["id"]
    assert outsider.get("/o/globex/live/settings/api-keys").status_code == 200
    once = "2" * 32
    fields = {"name": "x", "expires": "keep", "grace": "now", "once": once, "reason": "unspecified"}
    for organization, code in (("globex", "key_not_found"), ("acme", "organization_not_found")):
        scope = f"/o/{organization}/live/settings/api-keys"
        assert code in outsider.get(f"{scope}/{key}").text
        for verb in ("edit", "disable", "enable", "rotate", "finish", "revoke"):
            answer = outsider.post(f"{scope}/{key}/{verb}", **fields)
            assert answer.status_code == 404, verb
            assert code in answer.text
        kid = made["key"]["secrets"][0]["kid"]
        assert outsider.post(f"{scope}/{key}/revoke", **fields, kid=kid).status_code == 404
    assert outsider.get("/o/acme/live/settings/api-keys").status_code == 404
    assert outsider.post("/o/acme/live/settings/api-keys", **fields).status_code == 404
    # A live key does not exist in the test environment.
    other = f"/o/acme/test/settings/api-keys/{key}"
    assert site.forms().get(other).status_code == 404
    for elsewhere in ("/o/acme/prod/settings/api-keys", f"/o/ACME/live/settings/api-keys/{key}"):
        assert site.forms().get(elsewhere).status_code == 404
    assert "live-not-theirs" not in outsider.get("/o/globex/live/settings/api-keys?q=live").text
    use(site, made)
