from __future__ import annotations

import pytest

from tests.browser.conftest import KEYS, Enter, Site, passes

pytestmark = pytest.mark.browser

SCOPES = "/o/acme/live/settings/scopes"


def test_a_scope_is_added_described_and_deleted(site: Site, enter: Enter) -> None:
    page = enter("owner", SCOPES)
    assert "No scopes yet" in page.inner_text("main")
    passes(page)
    page.locator(".empty").get_by_role("button", name="Add scope").click()
    page.fill("#name", "Shop:Read")
    passes(page)
    page.locator("#create").get_by_role("button", name="Add scope").click()
    page.wait_for_selector("#create[open] [role=alert]")
    assert "Did you mean shop:read?" in page.inner_text("#create [role=alert]")
    passes(page)
    page.fill("#name", "shop:read")
    page.fill("#description", "Read <b>the</b> shop")
    page.locator("#create").get_by_role("button", name="Add scope").click()
    page.wait_for_selector("text=Scope added.")
    assert "Read <b>the</b> shop" in page.inner_text("table")
    passes(page)
    page.get_by_role("button", name="Actions for shop:read").click()
    page.get_by_role("link", name="Edit description…").click()
    passes(page)
    page.fill("#new-description", "Read all products")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Scope updated.")
    assert "Read all products" in page.inner_text("table")
    made = site.made("live-shop", permissions=["shop:read"])
    page.goto(site.url(f"{SCOPES}/shop:read?dialog=delete"))
    assert "1 key holds this scope" in page.inner_text("#delete")
    passes(page)
    page.get_by_role("button", name="Delete scope").click()
    page.wait_for_selector("#delete[open] [role=alert]")
    passes(page)
    site.api.delete(f"/v2/keys/{made['key']['id']}")
    page.get_by_role("button", name="Delete scope").click()
    page.wait_for_selector("text=Scope deleted.")


def test_a_new_key_takes_catalogue_scopes_and_confirmed_new_ones(site: Site, enter: Enter) -> None:
    body = {"name": "desk:read", "description": "Read all tickets"}
    assert site.api.post("/v2/scopes", json=body).status_code == 201
    page = enter("owner", f"{KEYS}?dialog=create")
    page.fill("#name", "live-desk")
    form = page.locator("#create")
    assert "Read all tickets" in form.inner_text()
    passes(page)
    form.get_by_label("desk:read").check()
    page.fill("#scopes", "desk:raed")
    form.get_by_role("button", name="Create key").click()
    page.wait_for_selector("#create[open] [role=alert]")
    assert "Did you mean desk:read?" in page.inner_text("#create [role=alert]")
    assert form.get_by_label("desk:read", exact=True).is_checked()
    passes(page)
    page.fill("#scopes", "desk:write")
    form.get_by_label("Add desk:raed to this organization's scopes").check()
    form.get_by_role("button", name="Create key").click()
    # The confirmation was for another scope, so this one needs its own.
    form.get_by_label("Add desk:write to this organization's scopes").check()
    form.get_by_role("button", name="Create key").click()
    page.wait_for_selector("#secret")
    (made,) = site.api.get("/v2/keys?search=live-desk").json()["keys"]
    assert made["permissions"] == ["desk:read", "desk:write"]
    page.goto(site.url(f"{KEYS}/{made['id']}?dialog=edit"))
    passes(page)
    page.locator("#edit").get_by_label("desk:write").uncheck()
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Key updated")
    assert site.api.get(f"/v2/keys/{made['id']}").json()["permissions"] == ["desk:read"]


def test_a_long_catalogue_is_searched_and_paged_and_read_only_for_members(
    site: Site, enter: Enter
) -> None:
    names = [f"paged:n{number:02}" for number in range(30)]
    site.made("live-paged", permissions=names, create_scopes=True)
    page = enter("member", SCOPES)
    assert page.locator("tbody tr").count() == 25
    assert page.get_by_role("button", name="Add scope").is_disabled()
    passes(page)
    page.fill("[name=q]", "paged:n2")
    page.press("[name=q]", "Enter")
    page.wait_for_url("**q=paged**")
    assert page.locator("tbody tr").count() == 10
    page.goto(site.url(f"{SCOPES}?q=nothing-like-it"))
    assert "No matching scope" in page.inner_text("main")
    passes(page)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(site.url(SCOPES))
    passes(page)
    refused = site.forms(site.cookie("member")).post(SCOPES, name="members:own")
    assert refused.status_code == 403
