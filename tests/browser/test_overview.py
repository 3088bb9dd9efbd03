from __future__ import annotations

import re

import pytest

from tests.browser.conftest import Enter, Site, violations
from tests.support.server import wait_until
from wardkey.dashboard.shell.auth import COOKIE

pytestmark = pytest.mark.browser

OVERVIEW = "/o/acme/live/overview"


def test_signing_in_opens_the_overview_and_its_checklist_fills_up(site: Site, enter: Enter) -> None:
    page = enter("owner", "/")
    assert page.url.endswith(OVERVIEW)
    first = page.get_by_role("region", name="Get started")
    assert "0 of 4 done" in first.inner_text()
    assert "curl" in first.inner_text()
    # The master key concerns the operator, who has no role in the dashboard.
    assert "Master key" not in page.inner_text("main")
    assert re.search(r"\d verifiers? running", page.inner_text("main"))
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    first.get_by_role("link", name="Create API key").click()
    page.wait_for_selector("dialog[open] #name")
    made = site.made("live-overview-first")
    with site.server.client(made["secret"]) as client:
        assert client.get("/v2/organization").status_code == 200
    page.goto(site.url(OVERVIEW))

    def says(text: str) -> bool:
        # Other workers write their counts twice a second.
        page.reload()
        return text in page.inner_text("main")

    wait_until(lambda: says("2 of 4 done"))
    rule = {"subject": {"kind": "everyone"}, "filter": "news/#", "action": "subscribe"}
    body = {**rule, "priority": 1, "effect": "allow"}
    answer = site.api.post("/v2/acl/rules", json=body)
    assert answer.status_code == 201, answer.text
    page.reload()
    assert "3 of 4 done" in first.inner_text()
    invited = site.api.post(
        "/v2/invitations", json={"email": "admin@acme.example", "role": "admin"}
    )
    assert invited.status_code == 201, invited.text
    page.reload()
    assert first.count() == 0
    assert "invited a member" in page.get_by_role("region", name="Latest changes").inner_text()
    assert says("Allowed 1")


def test_the_overview_lists_keys_that_need_attention(site: Site, enter: Enter) -> None:
    site.made("key1")
    page = enter("owner", OVERVIEW)
    page.get_by_role("link", name="Rename").click()
    page.wait_for_selector("#edit[open]")


def test_a_member_sees_the_overview_without_actions_they_cannot_take(
    site: Site, enter: Enter
) -> None:
    page = enter("member", OVERVIEW, viewport={"width": 390, "height": 844})
    assert page.get_by_role("link", name="Create API key").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(page) == []
    with site.server.client(Cookie=f"{COOKIE}={site.cookie('member')}") as client:
        assert client.get("/o/globex/live/overview").status_code == 404
