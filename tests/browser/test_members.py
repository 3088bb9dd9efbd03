from __future__ import annotations

import pytest

from tests.browser.conftest import Enter, Site, passes, violations
from tests.support.database import database_of
from tests.support.server import PASSWORD
from wardkey.db.schema import members

pytestmark = pytest.mark.browser

MEMBERS = "/o/acme/live/settings/members"


def invitation_statuses(site: Site, email: str) -> list[str]:
    rows = site.api.get("/v2/invitations").json()["invitations"]
    return [row["status"] for row in rows if row["email"] == email]


def role_of(site: Site, email: str) -> str:
    rows = site.api.get("/v2/members").json()["members"]
    return next((row["role"] for row in rows if row["email"] == email), "")


def id_of(site: Site, email: str) -> str:
    rows = site.api.get("/v2/members").json()["members"]
    return str(next(row["user_id"] for row in rows if row["email"] == email))


def test_an_invitation_link_is_shown_once_and_works(site: Site, enter: Enter) -> None:
    page = enter("owner", MEMBERS)
    passes(page)
    page.get_by_role("button", name="Invite member").click()
    page.fill("#email", "new@acme.example")
    page.get_by_role("radio", name="Viewer").check()
    passes(page)
    page.get_by_role("button", name="Create link").click()
    link = page.inner_text("#secret")
    assert "/invitations/" in link
    passes(page)
    page.click("text=I've copied the link")
    page.wait_for_selector("#unsaved[open]")
    page.get_by_role("button", name="Go back").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_selector(".copied")
    assert page.evaluate("navigator.clipboard.readText()") == link
    page.click("text=I've copied the link")
    page.wait_for_selector("text=Pending invitations")
    assert link not in page.content()
    row = page.locator("section", has_text="Pending invitations").locator("tbody tr")
    assert "new@acme.example" in row.inner_text()
    assert "by owner@acme.example" in row.inner_text()
    passes(page)
    page.go_back()
    assert link not in page.content()
    stranger = enter("", f"/invitations/{link.rpartition('/')[2]}")
    stranger.fill("#password", PASSWORD)
    stranger.click("text=Set password")
    stranger.wait_for_url("**/overview")
    assert role_of(site, "new@acme.example") == "viewer"


def test_a_form_sent_twice_creates_one_invitation(site: Site) -> None:
    forms = site.forms()
    sent = {"email": "twice@acme.example", "role": "member", "once": "a" * 32}
    assert forms.post(MEMBERS, **sent).status_code == 200
    again = forms.post(MEMBERS, **sent)
    assert (again.status_code, again.headers["location"]) == (303, f"{MEMBERS}?done=invited-before")
    assert invitation_statuses(site, "twice@acme.example") == ["pending"]
    assert forms.get(f"{MEMBERS}/x/role").headers["location"] == MEMBERS
    odd = {**sent, "once": "b" * 32, "role": "king"}
    assert forms.post(MEMBERS, **odd).status_code == 400
    for email in ("not an address", "<b>@acme.example", "owner@acme.example"):
        refused = forms.post(MEMBERS, **{**sent, "once": "c" * 32, "email": email})
        assert refused.status_code in {400, 409}
        assert 'id="invite"' in refused.text
        assert 'role="alert"' in refused.text
        assert "<b>@" not in refused.text


def test_a_revoked_invitation_cannot_be_used(site: Site, enter: Enter) -> None:
    made = site.api.post(
        "/v2/invitations", json={"email": "gone@acme.example", "role": "member"}
    ).json()
    page = enter("owner", MEMBERS)
    page.get_by_role("button", name="Revoke the invitation of gone@acme.example").click()
    page.wait_for_selector("text=Invitation revoked")
    assert invitation_statuses(site, "gone@acme.example") == ["revoked"]
    with site.server.client() as anyone:
        assert anyone.get(f"/invitations/{made['link'].rpartition('/')[2]}").status_code == 401
    used = f"{MEMBERS}/{made['id']}/revoke"
    assert site.forms().post(used).status_code == 303


def test_a_role_is_changed_and_a_member_removed(site: Site, enter: Enter) -> None:
    cookie = site.cookie("viewer")
    page = enter("owner", MEMBERS)
    page.get_by_role("button", name="Actions for viewer@acme.example").click()
    page.get_by_role("link", name="Change role…").click()
    page.wait_for_selector("#role[open]")
    passes(page)
    page.locator("#role").get_by_role("radio", name="Admin").check()
    page.get_by_role("button", name="Change role").click()
    page.wait_for_selector("text=Role changed.")
    assert role_of(site, "viewer@acme.example") == "admin"
    page.get_by_role("button", name="Actions for viewer@acme.example").click()
    page.get_by_role("link", name="Remove…").click()
    page.wait_for_selector("#remove[open]")
    passes(page)
    page.get_by_role("button", name="Remove member").click()
    page.wait_for_selector("text=Member removed.")
    assert role_of(site, "viewer@acme.example") == ""
    assert site.forms(cookie).get(MEMBERS).status_code == 404


def test_the_owner_stays_until_ownership_is_transferred(site: Site, enter: Enter) -> None:
    admin = site.forms(site.cookie("admin"))
    owner = id_of(site, "owner@acme.example")
    page = enter("admin", f"{MEMBERS}?dialog=remove&who={owner}")
    assert page.locator("#remove").count() == 0
    for verb, fields in (("role", {"role": "viewer"}), ("remove", {})):
        answer = admin.post(f"{MEMBERS}/{owner}/{verb}", **fields)
        assert answer.status_code == 409
        assert "transfer ownership first" in answer.text
    heir = id_of(site, "admin@acme.example")
    assert admin.post(f"{MEMBERS}/{heir}/role", role="owner").status_code == 403
    page = enter("owner", f"{MEMBERS}?dialog=role&who={heir}")
    page.locator("#role").get_by_role("radio", name="Owner").check()
    page.get_by_role("button", name="Change role").click()
    page.wait_for_selector("text=Ownership transferred")
    assert role_of(site, "admin@acme.example") == "owner"
    assert role_of(site, "owner@acme.example") == "admin"
    assert admin.post(f"{MEMBERS}/{owner}/role", role="owner").status_code == 303


def test_members_see_the_member_list_but_cannot_change_it(site: Site, enter: Enter) -> None:
    site.api.post("/v2/invitations", json={"email": "seen@acme.example", "role": "member"})
    page = enter("member", f"{MEMBERS}?dialog=invite", viewport={"width": 390, "height": 844})
    assert "Only admins and owners can do this." in page.inner_text("main")
    assert page.get_by_role("button", name="Invite member").is_disabled()
    assert page.locator("dialog").count() == 0
    assert "seen@acme.example" in page.inner_text("main")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    passes(page)
    forms = site.forms(site.cookie("member"))
    owner = id_of(site, "owner@acme.example")
    (pending,) = [
        invitation["id"]
        for invitation in site.api.get("/v2/invitations").json()["invitations"]
        if invitation["email"] == "seen@acme.example"
    ]
    for path, fields in (
        (MEMBERS, {"email": "x@acme.example", "role": "viewer", "once": "0" * 32}),
        (f"{MEMBERS}/{owner}/role", {"role": "viewer"}),
        (f"{MEMBERS}/{owner}/remove", {}),
        (f"{MEMBERS}/{pending}/revoke", {}),
    ):
        answer = forms.post(path, **fields)
        assert answer.status_code == 403, path
        assert "not_permitted" in answer.text
    assert invitation_statuses(site, "seen@acme.example") == ["pending"]


def test_an_admin_whose_role_was_lowered_cannot_invite(site: Site, enter: Enter) -> None:
    site.cookie("admin")
    admin = id_of(site, "admin@acme.example")
    page = enter("admin", f"{MEMBERS}?dialog=invite")
    page.fill("#email", "late@acme.example")
    with database_of(site.server) as connection:
        connection.execute(members.update().where(members.c.user_id == admin).values(role="viewer"))
    page.get_by_role("button", name="Create link").click()
    page.wait_for_selector("text=not_permitted")
    assert violations(page) == []
    assert invitation_statuses(site, "late@acme.example") == []
