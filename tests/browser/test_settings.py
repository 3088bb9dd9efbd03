from __future__ import annotations

import re

import pytest

from tests.browser.conftest import KEYS, Enter, Site, passes
from tests.support.database import database_of
from wardkey.db.schema import keys

pytestmark = pytest.mark.browser

PLACE = "/o/acme/live/settings"
GENERAL = f"{PLACE}/general"
ROTATION = f"{PLACE}/rotation-policy"


@pytest.fixture(scope="module", autouse=True)
def people(site: Site) -> None:
    """Sign every role in while the owner has only one organization."""
    for role in ("owner", "admin", "member", "viewer"):
        site.cookie(role)


def slugs_of(site: Site, role: str) -> list[str]:
    return re.findall(
        r'class="switcher" href="/o/([\w-]+)"',
        site.forms(site.cookie(role)).get("/organizations").text,
    )


def new_organization(site: Site, name: str, owner: str) -> str:
    """Create an organization with the owner; return its slug."""
    made = site.server.cli_here("org", "create", name, "--owner", owner)
    assert made.exit_code == 0, made.output
    return name.lower()


def test_settings_redirect_to_the_first_tab(site: Site) -> None:
    assert site.forms().get(PLACE).headers["location"] == KEYS


def test_renaming_an_organization_changes_its_urls(site: Site, enter: Enter) -> None:
    slug = new_organization(site, "Renamed", "owner@acme.example")
    page = enter("owner", f"/o/{slug}/live/settings/general")
    passes(page)
    assert page.locator("[data-copy^=org_]").count() == 1
    page.fill("#slug", "acme")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("main [role=alert]")
    assert page.locator("#slug").get_attribute("aria-invalid") == "true"
    passes(page)
    page.fill("#name", "<b>New & name</b>")
    page.fill("#slug", "new-name")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_url("**/o/new-name/live/settings/general**")
    assert "Organization updated." in page.inner_text("main")
    assert "<b>New & name</b>" in page.inner_text("aside")
    assert site.forms().get(f"/o/{slug}/live/settings/general").status_code == 404


def test_the_rotation_policy_decides_when_keys_are_due(site: Site, enter: Enter) -> None:
    due = site.made("live-ten-days-old")
    with database_of(site.server) as connection:
        connection.execute(
            keys.update()
            .where(keys.c.id == due["key"]["id"])
            .values(rotated_at=keys.c.rotated_at - 10 * 86_400_000)
        )
    page = enter("owner", ROTATION)
    passes(page)
    assert page.input_value("#rotation_days") == "90"
    page.fill("#rotation_days", "7")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Rotation policy updated.")
    page.goto(site.url(KEYS))
    assert "rotate secret keys every 7 days" in page.inner_text(".note >> nth=0")
    assert site.api.get("/v2/organization").json()["rotation_days"] == 7
    assert site.api.get(f"/v2/keys/{due['key']['id']}").json()["rotation_due"]
    for days in ("0", "3651", "-1", "1.5", "x", "", "99999999999", "\u0667"):
        answer = site.forms().post(ROTATION, rotation_days=days)
        assert answer.status_code == 400, days
        assert 'role="alert"' in answer.text
    changed = site.api.patch("/v2/organization", json={"rotation_days": 90})
    assert changed.json()["rotation_days"] == 90
    (event,) = site.api.get("/v2/audit-events?action=organization.updated&limit=1").json()["events"]
    assert event["details"]["old_rotation_days"] == 7


@pytest.mark.parametrize("width", [390, 1280])
def test_members_see_the_settings_but_cannot_change_them(
    site: Site, enter: Enter, width: int
) -> None:
    page = enter("member", GENERAL, viewport={"width": width, "height": 844})
    for path in (GENERAL, f"{PLACE}/security", ROTATION):
        page.goto(site.url(path))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        passes(page)
        for button in page.get_by_role("button", name="Save changes").all():
            assert button.is_disabled()
    page.goto(site.url(f"{GENERAL}?dialog=delete"))
    assert page.locator("#delete").count() == 0
    forms = site.forms(site.cookie("member"))
    for path, fields in (
        (GENERAL, {"name": "Taken", "slug": "taken"}),
        (f"{GENERAL}/delete", {"confirmation": "Acme"}),
        (ROTATION, {"rotation_days": "1"}),
    ):
        assert forms.post(path, **fields).status_code == 403, path
    shown = site.api.get("/v2/organization").json()
    assert (shown["name"], shown["rotation_days"]) == ("Acme", 90)


def test_a_member_can_leave_but_the_owner_cannot(site: Site, enter: Enter) -> None:
    answer = site.forms().post(f"{GENERAL}/leave")
    assert answer.status_code == 409
    assert "transfer ownership first" in answer.text
    page = enter("viewer", GENERAL)
    page.get_by_role("button", name="Leave", exact=True).click()
    passes(page)
    page.get_by_role("button", name="Leave organization").click()
    page.wait_for_url("**/organizations**")
    assert "You left" in page.inner_text("main")
    assert "No organization yet" in page.inner_text("main")
    passes(page)
    page.goto(site.url("/"))
    page.wait_for_url("**/organizations")
    assert site.forms(site.cookie("viewer")).get(KEYS).status_code == 404
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in**")


def test_deleting_an_organization_requires_its_name(site: Site, enter: Enter) -> None:
    slug = new_organization(site, "Ended", "owner@acme.example")
    general = f"/o/{slug}/live/settings/general"
    with site.server.owner(Wardkey_Organization=slug) as owner:
        made = owner.post("/v2/keys", json={"name": "live-ended-billing", "type": "secret"}).json()
    assert site.forms().post(f"{general}/delete", confirmation="ended").status_code == 400
    page = enter("owner", general)
    page.get_by_role("button", name="Delete", exact=True).click()
    passes(page)
    assert page.get_by_role("button", name="Delete organization").is_disabled()
    page.fill("#confirmation", "Ended")
    page.get_by_role("button", name="Delete organization").click()
    page.wait_for_url("**/organizations**")
    assert "Organization deleted" in page.inner_text("main")
    assert slug not in slugs_of(site, "owner")
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 401


def test_the_switcher_lists_only_the_users_organizations(site: Site, enter: Enter) -> None:
    slug = new_organization(site, "Second", "admin@acme.example")
    page = enter("admin", GENERAL)
    page.click("[popovertarget=organizations]")
    menu = page.locator("#organizations")
    assert menu.get_by_role("link", name="Acme").get_attribute("aria-current") == "true"
    passes(page)
    menu.get_by_role("link", name="Second").click()
    page.wait_for_url(f"**/o/{slug}/live/overview")
    page.click("[popovertarget=organizations]")
    page.get_by_role("link", name="All organizations").click()
    page.wait_for_url("**/organizations")
    passes(page)
    assert slugs_of(site, "admin") == ["acme", "second"]
    # Users see only organizations they belong to.
    assert slugs_of(site, "member") == ["acme"]
    assert (
        site.forms(site.cookie("member")).get(f"/o/{slug}/live/settings/general").status_code == 404
    )
    page.get_by_role("link", name="Acme").click()
    page.wait_for_url("**/o/acme/live/overview")
