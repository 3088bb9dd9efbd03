from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.conftest import Enter, Site, passes, violations
from tests.support.server import Server
from wardkey.dashboard.shell.navigation import SETTINGS, SIDEBAR
from wardkey.domain.permissions import Role

pytestmark = pytest.mark.browser

PLACE = "/o/acme/live"
PAGES = [page.path for page in (*SIDEBAR, *SETTINGS) if page.path != "settings"]
# A role table without some read permissions; the real one grants them to every role.
NARROWED = """
from wardkey.domain.permissions import ROLE_TABLE, Role

for role, gone in {
    Role.VIEWER: ("audit:read", "usage:read"),
    Role.MEMBER: ("clients:read", "acl:read", "providers:read"),
    Role.ADMIN: ("keys:read", "members:read", "tokens:read", "organization:public"),
}.items():
    ROLE_TABLE[role] = ROLE_TABLE[role] - set(gone)
"""


@pytest.fixture
def narrowed(start: Callable[..., Server], tmp_path: Path) -> Site:
    """Run a deployment in which roles lack some read permissions."""
    (tmp_path / "sitecustomize.py").write_text(NARROWED)
    source = Path(__file__).parents[2] / "src"
    return Site(start(around={"PYTHONPATH": f"{tmp_path}:{source}"}))


@pytest.mark.parametrize("role", list(Role))
def test_every_role_can_read_every_listed_page(site: Site, role: Role) -> None:
    forms = site.forms(site.cookie(role))
    listed = forms.get(f"{PLACE}/settings/security").text
    for path in PAGES:
        assert f'href="{PLACE}/{path}"' in listed
        assert forms.get(f"{PLACE}/{path}").status_code == 200, path


@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER, Role.ADMIN])
def test_pages_that_a_role_cannot_read_are_unlisted_and_forbidden(
    narrowed: Site, role: Role
) -> None:
    forms = narrowed.forms(narrowed.cookie(role))
    listed = forms.get(f"{PLACE}/settings/security").text
    refused = []
    for path in PAGES:
        answer = forms.get(f"{PLACE}/{path}")
        if f'href="{PLACE}/{path}"' in listed:
            assert answer.status_code == 200, path
        else:
            refused.append(path)
            assert answer.status_code == 403, path
            assert "can see this page." in answer.text
            assert 'aria-label="Main"' in answer.text
            assert "nonce-" in answer.headers["content-security-policy"]
    assert len(refused) > 1
    first = forms.get(f"{PLACE}/settings").headers["location"]
    assert f'href="{first}"' in listed
    assert forms.get(first).status_code == 200


def test_a_forbidden_page_names_the_roles_that_can_see_it(narrowed: Site, enter: Enter) -> None:
    cookie = narrowed.cookie("viewer")
    page = enter("viewer", "/sign-in", cookie=cookie)
    for path, label in (("audit-log", "Audit log"), ("usage?days=90", "Usage")):
        response = page.goto(narrowed.url(f"{PLACE}/{path}"))
        assert response is not None
        assert response.status == 403
        assert page.inner_text("h1") == label
        assert "Only members, admins and owners can see this page." in page.inner_text("main")
        assert "Your role in Acme is viewer." in page.inner_text("main")
        assert page.get_by_role("navigation", name="Main").get_by_text(label).count() == 0
        passes(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(page) == []
    page.locator("main").get_by_role("link", name="Overview").click()
    page.wait_for_url("**/overview")
    assert page.locator("main").get_by_role("link", name="Usage").count() == 0
    forms = narrowed.forms(cookie)
    for path in ("audit-log/export.csv", "audit-log/export.jsonl", "usage?days=30"):
        assert forms.get(f"{PLACE}/{path}").status_code == 403
    # In the other environment, and in an organization the viewer does not belong to.
    assert "/o/acme/test/overview" in forms.get("/o/acme/test/audit-log").text
    assert "Audit log" not in forms.get("/o/another/live/audit-log").text


def test_a_forbidden_form_keeps_the_navigation(site: Site, enter: Enter) -> None:
    forms = site.forms(site.cookie("viewer"))
    for path in ("messaging/acl", "messaging/providers/test", "settings/rotation-policy"):
        answer = forms.post(f"{PLACE}/{path}", name="<script>alert(1)</script>" + "x" * 4_000)
        assert answer.status_code == 403, path
        assert "Nothing was changed." in answer.text
        assert "not_permitted" in answer.text
        assert 'aria-label="Main"' in answer.text
        assert "<script>alert" not in answer.text
    forged = forms.send(f"{PLACE}/messaging/acl", {"csrf": "x"})
    assert "forged_form" in forged.text
    assert "reload the page" in forged.text
    page = enter("viewer", f"{PLACE}/settings/general", viewport={"width": 390, "height": 844})
    page.evaluate(
        "path => { const form = document.querySelector('form[action=\"/sign-out\"]');"
        " form.action = path; form.submit(); }",
        f"{PLACE}/messaging/acl",
    )
    page.wait_for_selector("text=Only members, admins and owners can do this.")
    assert page.inner_text("h1") == "Not allowed"
    passes(page)
