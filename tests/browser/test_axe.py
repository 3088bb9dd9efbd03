from __future__ import annotations

import pytest

from tests.browser.conftest import KEYS, Enter, Site, passes

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    """Create keys in every state; return the path of one that is being rotated."""
    site.made("live-publishable", type="publishable", description="For the shop's page")
    ended = site.made("live-ended")
    site.api.post(f"/v2/keys/{ended['key']['id']}/revoke", json={"reason": "keyCompromise"})
    asleep = site.made("live-asleep")
    site.api.post(f"/v2/keys/{asleep['key']['id']}/disable")
    site.made("key1")
    made = site.made("live-rotated")
    with site.server.client(made["secret"], User_Agent="billing/2.1") as client:
        client.get("/v2/organization")
    site.api.post(f"/v2/keys/{made['key']['id']}/rotate", json={"grace": "24h"})
    return f"{KEYS}/{made['key']['id']}"


@pytest.mark.parametrize(
    "path",
    [
        KEYS,
        f"{KEYS}?dialog=create",
        f"{KEYS}?q=nothing-of-that-name",
        "/o/acme/test/settings/api-keys",
        "/o/acme/test/settings/api-keys?dialog=create",
        "/account",
        "/o/acme/live/nowhere",
        # Messaging is off in this deployment.
        "/o/acme/live/messaging/clients?dialog=create",
        "/o/acme/live/messaging/clients?connected=now",
        "/o/acme/live/messaging/topics",
    ],
)
def test_pages_pass_axe(site: Site, enter: Enter, key: str, path: str) -> None:  # noqa: ARG001
    passes(enter("owner", path))


@pytest.mark.parametrize("dialog", ["", "edit", "rotate", "finish", "revoke"])
def test_the_page_of_a_key_and_its_dialogs_pass_axe(enter: Enter, key: str, dialog: str) -> None:
    passes(enter("owner", f"{key}?dialog={dialog}"))


def test_a_new_secret_a_receipt_and_menus_pass_axe(enter: Enter, key: str) -> None:
    page = enter("owner", f"{KEYS}?dialog=create")
    page.fill("#name", "live-axe-checked")
    page.get_by_role("button", name="Create key").click()
    page.wait_for_selector("#secret")
    passes(page)
    page.get_by_role("radio", name="Python").check()
    page.click("text=I've saved the key")
    page.wait_for_selector("#unsaved[open]")
    passes(page)
    page.click("text=Close anyway")
    page.goto(f"{page.url}?dialog=revoke")
    page.fill("#confirmation", "live-axe-checked")
    page.get_by_role("button", name="Revoke key").click()
    page.wait_for_selector(".receipt")
    passes(page)
    for menu in ("me", "organizations"):
        page.click(f"[popovertarget={menu}]")
        passes(page)
    page.goto(page.url.partition("/o/")[0] + key + "?dialog=finish")
    page.locator("#finish").get_by_role("button", name="Finish rotation").click()
    page.wait_for_selector("#finish [role=alert]")
    passes(page)


def test_phone_and_signed_out_pages_pass_axe(site: Site, enter: Enter, key: str) -> None:
    page = enter("member", key, viewport={"width": 390, "height": 844})
    passes(page)
    page.goto(site.url(KEYS))
    passes(page)
    page.get_by_role("button", name="Menu").click()
    passes(page)
    stranger = enter("", "/sign-in")
    passes(stranger)
    link = site.server.cli_here("setup-link", "member@acme.example").stdout.strip()
    stranger.goto(site.url(f"/setup/{link.rpartition('/')[2]}"))
    passes(stranger)
    stranger.goto(site.url("/invitations/none"))
    passes(stranger)


WATCH = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) {
    const moved = one.sources.map((source) => source.node?.outerHTML);
    if (!one.hadRecentInput) window.shifts.push([one.value, moved]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_shifts_when_its_script_and_fonts_load(
    site: Site, enter: Enter, key: str, width: int
) -> None:
    # In another time zone the script rewrites every time on the page.
    page = enter("owner", "/account", viewport={"width": width, "height": 844},
                 timezone_id="Asia/Tokyo")  # fmt: skip
    page.add_init_script(WATCH)
    scope = "/o/acme/live"
    for path in (
        f"{scope}/overview", f"{scope}/usage", KEYS, f"{KEYS}?dialog=create", key,
        f"{scope}/messaging/clients", f"{scope}/messaging/acl", f"{scope}/messaging/providers",
        f"{scope}/audit-log", f"{scope}/settings/members", f"{scope}/settings/general", "/account",
    ):  # fmt: skip
        page.goto(site.url(path))
        page.evaluate("document.fonts.ready.then(() => new Promise(requestAnimationFrame))")
        shifts = page.evaluate("window.shifts")
        # A rewritten time may widen a table cell slightly; larger shifts fail.
        assert sum(value for value, _ in shifts) < 0.01, (path, shifts)
