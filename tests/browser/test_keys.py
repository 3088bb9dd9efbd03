from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import KEYS, Enter, Site, passes
from tests.support.database import database_of
from wardkey.dashboard.shell.auth import COOKIE
from wardkey.db.schema import keys, members
from wardkey.domain.permissions import Permission

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

NEW = {"type": "secret", "access": "usual", "expires": "never"}


def create(page: Page, name: str) -> str:
    """Create a key in the dialog; return the secret shown."""
    page.get_by_role("button", name="Create API key").first.click()
    page.fill("#name", name)
    page.get_by_role("button", name="Create key").click()
    return page.inner_text("#secret")


def test_a_new_key_is_shown_only_once(site: Site, enter: Enter) -> None:
    page = enter()
    text = create(page, "live-shop-orders")
    assert re.fullmatch(r"sk_live_\w+", text)
    assert "of Acme" in page.inner_text("#reveal header")
    with site.server.client(text) as client:
        assert client.get("/v2/organization").status_code == 200
    page.get_by_role("radio", name="Node").check()
    assert "process.env.WARDKEY_API_KEY" in page.inner_text(".snippet:visible")
    page.get_by_role("radio", name=".env").check()
    assert text in page.inner_text(".snippet:visible")
    # Closing before copying asks for confirmation.
    page.keyboard.press("Escape")
    page.wait_for_selector("text=You haven't copied the key")
    page.click("text=Go back")
    page.click("dialog[open] .shown-once button")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.click("text=I've saved the key")
    page.wait_for_selector("#reveal", state="detached")
    url = page.url
    assert re.fullmatch(rf".*{KEYS}/key_\w+", url)
    for step in (page.reload, page.go_back, page.go_forward, page.reload):
        step()
        assert text not in page.content()
    assert site.names().count("live-shop-orders") == 1


def test_a_reload_hides_a_new_key_that_was_not_saved_yet(site: Site, enter: Enter) -> None:
    page = enter()
    page.on("dialog", lambda dialog: dialog.accept())
    text = create(page, "live-reloaded-early")
    page.reload()
    assert text not in page.content()
    assert "live-reloaded-early" in page.inner_text("h1")
    assert site.names().count("live-reloaded-early") == 1


def test_a_form_sent_twice_creates_one_key(site: Site) -> None:
    forms = site.forms()
    once = forms.hidden("once")
    first = forms.post(KEYS, **NEW, name="live-twice-sent", once=once)
    again = forms.post(KEYS, **NEW, name="live-twice-sent-b", once=once)
    assert first.status_code == 200
    assert "no-store" in first.headers["cache-control"]
    assert again.status_code == 303
    assert again.headers["location"].endswith("?done=sent-before")
    assert "sk_live_" in first.text
    notice = forms.get(again.headers["location"])
    assert "was already sent" in notice.text
    match = re.search(r"sk_live_\w{20,}", first.text)
    assert match is not None
    assert match[0] not in notice.text
    assert "live-twice-sent-b" not in site.names()
    for nonce in ("", "short", "x" * 33, "ü" * 32):
        assert forms.post(KEYS, **NEW, name="live-no-nonce", once=nonce).status_code == 400


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("<script>alert(1)</script>", 200),
        ("\"quotes' &amp; <b>", 200),
        ("{{ 7 * 7 }} {% raw %}", 200),
        ("x" * 4000, 400),
        ("live-\u202ereversed", 400),
        ("   ", 400),
        ("", 400),
        ("key1", 200),
    ],
)
def test_any_name_is_shown_as_text_or_rejected(site: Site, name: str, status: int) -> None:
    forms = site.forms()
    answer = forms.post(KEYS, **NEW, name=name, once=forms.hidden("once"))
    assert answer.status_code == status
    assert "<script>alert" not in answer.text
    if "7 * 7" in name:
        assert "{{ 7 * 7 }} {% raw %}" in answer.text
    assert ('role="alert"' in answer.text) == (status == 400)
    if name == "key1":
        assert "does not say what the key is for" in answer.text


def test_a_rejected_form_keeps_its_values(enter: Enter) -> None:
    page = enter("owner", f"{KEYS}?dialog=create")
    page.fill("#name", "live-office-only")
    page.get_by_label("Publishable").check()
    page.click("summary")
    page.fill("#allowed_addresses", "203.0.113.7\nnot an address")
    page.fill("#allowed_origins", "https://app.acme.example")
    page.get_by_role("button", name="Create key").click()
    page.wait_for_selector("dialog[open] [role=alert]")
    assert page.input_value("#name") == "live-office-only"
    assert page.get_by_label("Publishable").is_checked()
    page.fill("#allowed_addresses", "203.0.113.7")
    page.get_by_role("button", name="Create key").click()
    assert page.inner_text("#secret").startswith("pk_live_")
    page.click("dialog[open] .shown-once button")


def test_a_key_gets_exactly_the_chosen_permissions(site: Site, enter: Enter) -> None:
    page = enter("owner", f"{KEYS}?dialog=create")
    page.fill("#name", "live-invoices-reader")
    page.get_by_label("Custom").check()
    page.get_by_role("group", name="API keys").get_by_label("Verify").check()
    page.fill("#scopes", "invoices:read, invoices:write")
    page.locator("summary").click()
    page.fill("[name=limit]", "600")
    page.get_by_role("button", name="Create key").click()
    page.get_by_label("Add invoices:read, invoices:write to this organization's scopes").check()
    page.get_by_role("button", name="Create key").click()
    page.click("dialog[open] .shown-once button")
    (made,) = site.api.get("/v2/keys?search=live-invoices-reader").json()["keys"]
    assert made["permissions"] == ["invoices:read", "invoices:write", "keys:verify"]
    assert made["rate_limit"]["limit"] == 600
    assert made["expires_at"] is not None


def test_the_form_offers_every_permission_in_use(enter: Enter) -> None:
    page = enter("owner", f"{KEYS}?dialog=create")
    boxes = page.locator(".secret-only [name=permissions]")
    values = boxes.evaluate_all("all => all.map(box => box.value)")
    offered = {str(value).removeprefix("secret/") for value in values}
    assert set(Permission) - offered == {
        Permission.PREVIEWS_READ,
        Permission.PREVIEWS_WRITE,
        Permission.BILLING_READ,
        Permission.BILLING_WRITE,
    }
    assert page.get_by_text("Preview URLs").count() == 0


def test_editing_a_key_keeps_permissions_that_the_form_does_not_offer(
    site: Site, enter: Enter
) -> None:
    made = site.made("live-with-unlisted", permissions=["previews:read", "keys:read"])
    page = enter("owner", f"{KEYS}/{made['key']['id']}?dialog=edit")
    page.fill("#description", "Edited")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Key updated")
    key = site.api.get(f"/v2/keys/{made['key']['id']}").json()
    assert (key["description"], set(key["permissions"])) == (
        "Edited", {"previews:read", "keys:read"},
    )  # fmt: skip


def test_keys_are_searched_filtered_sorted_and_paged(site: Site, enter: Enter) -> None:
    for number in range(30):
        site.made(f"live-paged-{number:02}", type="publishable" if number % 10 == 0 else "secret")
    page = enter("owner", f"{KEYS}?q=live-paged")
    names = page.locator("table.keys .title a")
    assert names.count() == 25
    assert "30 keys" in page.inner_text(".bar")
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("**page=2**")
    assert names.count() == 5
    page.go_back()
    page.get_by_role("link", name="Name", exact=True).click()
    page.wait_for_url("**sort=name**")
    assert names.first.inner_text() == "live-paged-00"
    page.get_by_role("link", name="Name", exact=True).click()
    page.wait_for_url("**sort=-name**")
    assert names.first.inner_text() == "live-paged-29"
    page.get_by_label("Type", exact=True).select_option("publishable")
    page.wait_for_url("**type=publishable**")
    assert names.all_inner_texts() == ["live-paged-20", "live-paged-10", "live-paged-00"]
    page.get_by_label("Status", exact=True).select_option("revoked")
    page.wait_for_selector("text=No matching keys")
    # Invalid values are ignored.
    page.goto(site.url(f"{KEYS}?page=-1&sort=z&type=x&status=<b>&q=live-paged-03"))
    assert names.all_inner_texts() == ["live-paged-03"]


def test_a_key_that_is_due_for_rotation_gets_a_note(site: Site, enter: Enter) -> None:
    due = site.made("live-long-unrotated")
    with database_of(site.server) as connection:
        connection.execute(
            keys.update()
            .where(keys.c.id == due["key"]["id"])
            .values(rotated_at=keys.c.rotated_at - 118 * 86_400_000)
        )
    page = enter()
    note = page.locator(".note", has_text="live-long-unrotated")
    assert "118 days ago" in note.inner_text()
    note.get_by_role("link", name="Rotate").click()
    page.wait_for_selector("#rotate[open]")


def test_members_see_keys_but_cannot_change_them(site: Site, enter: Enter) -> None:
    made = site.made("live-looked-at")
    page = enter("member")
    assert "Only admins and owners can do this." in page.inner_text("main")
    assert page.get_by_role("button", name="Create API key").is_disabled()
    page.goto(site.url(f"{KEYS}/{made['key']['id']}?dialog=revoke"))
    assert page.locator("dialog").count() == 0
    for name in ("Edit", "Disable", "Rotate", "Revoke"):
        button = page.get_by_role("button", name=name, exact=True)
        assert button.is_disabled()
        assert button.get_attribute("title") == "Only admins and owners can do this."
    forms = site.forms(site.cookie("member"))
    key = f"{KEYS}/{made['key']['id']}"
    once = "0" * 32
    for path, fields in (
        (KEYS, {**NEW, "name": "live-not-allowed", "once": once}),
        (f"{key}/rotate", {"grace": "now", "once": once}),
        (f"{key}/revoke", {"reason": "unspecified", "confirmation": "live-looked-at"}),
        (f"{key}/finish", {}),
        (f"{key}/disable", {}),
        (f"{key}/enable", {}),
        (f"{key}/edit", {"name": "live-renamed", "expires": "keep"}),
    ):
        answer = forms.post(path, **fields)
        assert answer.status_code == 403, path
        assert "not_permitted" in answer.text
    shown = site.api.get(f"/v2/keys/{made['key']['id']}").json()
    assert (shown["status"], shown["name"]) == ("active", "live-looked-at")


def test_a_lowered_role_applies_immediately(site: Site, enter: Enter) -> None:
    page = enter("admin", f"{KEYS}?dialog=create")
    page.fill("#name", "live-by-an-admin")
    with database_of(site.server) as connection:
        connection.execute(members.update().where(members.c.role == "admin").values(role="viewer"))
    page.get_by_role("button", name="Create key").click()
    page.wait_for_selector("text=not_permitted")
    assert "live-by-an-admin" not in site.names()


def test_live_and_test_have_separate_keys_and_different_colours(site: Site, enter: Enter) -> None:
    site.made("live-only-here")
    page = enter("owner", f"{KEYS}?q=live-only-here")
    live = page.locator("main .button.main").first.evaluate(
        "e => getComputedStyle(e).backgroundColor"
    )
    page.get_by_role("link", name="Test", exact=True).click()
    page.wait_for_url("**/o/acme/test/settings/api-keys")
    assert page.locator("html").get_attribute("data-environment") == "test"
    assert "No API keys yet" in page.inner_text("main")
    tested = page.locator("main .button.main").first.evaluate(
        "e => getComputedStyle(e).backgroundColor"
    )
    assert live != tested
    assert create(page, "test-shop-orders").startswith("sk_test_")
    page.click("dialog[open] .shown-once button")


def test_the_table_fits_a_laptop_screen(site: Site, enter: Enter) -> None:
    site.made("live-billing-webhooks-of-the-shop")
    page = enter("owner", viewport={"width": 1280, "height": 800})
    fits = "box => box.scrollWidth <= box.clientWidth"
    assert page.locator(".scroll", has=page.locator(".table.keys")).evaluate(fits)


def test_a_phone_shows_the_table_as_cards_and_the_sidebar_as_a_menu(enter: Enter) -> None:
    page = enter("owner", viewport={"width": 390, "height": 844}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert (
        page.locator("table.keys tr").nth(1).evaluate("e => getComputedStyle(e).display") == "grid"
    )
    assert page.get_by_role("navigation", name="Main").is_hidden()
    page.get_by_role("button", name="Menu").click()
    assert page.get_by_role("navigation", name="Main").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("navigation", name="Main").is_hidden()
    page.locator("table.keys .title a").first.click()
    page.wait_for_selector("text=Details")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_sorts_the_table_by_select_box_and_by_keyboard(site: Site, enter: Enter) -> None:
    for name in ("live-sorted-b", "live-sorted-a"):
        site.made(name)
    page = enter("owner", f"{KEYS}?q=live-sorted", viewport={"width": 390, "height": 844})
    names = page.locator("table.keys .title a")
    page.get_by_label("Sort", exact=True).select_option("By name, reversed")
    page.wait_for_url("**sort=-name**")
    assert names.all_inner_texts() == ["live-sorted-b", "live-sorted-a"]
    # The table heads are visually hidden until one gets the keyboard focus.
    head = page.get_by_role("link", name="Name", exact=True)
    head.focus()
    assert page.locator("table.keys thead").evaluate("e => getComputedStyle(e).clipPath") == "none"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    passes(page)
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=name**")
    assert names.all_inner_texts() == ["live-sorted-a", "live-sorted-b"]
    assert page.get_by_label("Sort", exact=True).input_value() == "name"


def test_a_key_can_be_created_with_the_keyboard_alone(site: Site, enter: Enter) -> None:
    page = enter()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.get_by_role("button", name="Create API key").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#create[open]")
    page.keyboard.type("live-by-keyboard")
    page.keyboard.press("Enter")
    page.wait_for_selector("#secret")
    # The copy button has the focus.
    page.keyboard.press("Enter")
    page.wait_for_selector(".copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#secret")
    assert "live-by-keyboard" in site.names()


def test_the_exact_time_in_the_viewers_time_zone_is_the_title(enter: Enter) -> None:
    page = enter("owner", "/account", timezone_id="Asia/Tokyo", locale="en-US")
    time_shown = page.locator("time").first
    assert "GMT+9" in str(time_shown.get_attribute("title"))


def test_without_javascript_a_key_is_created_and_shown_once(site: Site, enter: Enter) -> None:
    page = enter("owner", f"{KEYS}?dialog=create", java_script_enabled=False)
    page.fill("#name", "live-without-script")
    page.get_by_role("button", name="Create key").click()
    text = page.inner_text("#secret")
    page.get_by_role("radio", name="curl").check()
    assert page.locator(".snippet:visible").inner_text().startswith("curl")
    page.click("text=I've saved the key")
    page.wait_for_url("**/key_*")
    assert text not in page.content()
    assert site.names().count("live-without-script") == 1


def test_the_theme_survives_a_reload(enter: Enter) -> None:
    page = enter("owner", color_scheme="light")
    page.click("[popovertarget=me]")
    page.get_by_role("button", name="Dark").click()
    page.wait_for_selector("html[data-theme=dark]")
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(0, 0, 0)"
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_pages_are_small(site: Site) -> None:
    with site.server.client(Accept_Encoding="gzip") as client:

        def wire(path: str) -> int:
            with client.stream("GET", path) as answer:
                return sum(len(part) for part in answer.iter_raw())

        html = client.get("/sign-in").text
        assets = set(re.findall(r"/static/[\w.-]+", html))
        sizes = {path: wire(path) for path in assets}
        css = next(path for path in assets if path.endswith(".css"))
        fonts = re.findall(r"url\((geist[\w.-]+)\)", client.get(css).text)
        assert len(fonts) == 2
        total = wire("/sign-in") + sum(sizes.values()) + wire(f"/static/{fonts[1]}")
        assert total <= 100 * 1024
        assert sum(size for path, size in sizes.items() if path.endswith(".css")) <= 15 * 1024
        assert sum(size for path, size in sizes.items() if path.endswith(".js")) <= 50 * 1024
        headers = client.get(css).headers
        assert "immutable" in headers["cache-control"]
        assert client.get("/static/app.css").status_code == 404
        assert client.get("/static/..%2fframe.py").status_code == 404


def test_a_thousand_keys_load_about_as_fast_as_a_few(site: Site) -> None:
    def page_ms(cookie: str) -> float:
        with site.server.client(Cookie=f"{COOKIE}={cookie}") as client:
            took = []
            for _ in range(5):
                started = time.perf_counter()
                assert client.get(KEYS).status_code == 200
                took.append(time.perf_counter() - started)
        return statistics.median(took)

    few = page_ms(site.cookie())
    with database_of(site.server) as connection:
        row = connection.execute(keys.select().limit(1)).mappings().one()
        connection.execute(
            keys.insert(),
            [
                {**row, "id": f"key_many{n}", "name": f"live-many-{n}", "live_name": f"many {n}"}
                for n in range(1000)
            ],
        )
    assert page_ms(site.cookie()) <= 3 * few + 0.01


def test_vendored_files_ship_with_their_licences() -> None:
    static = Path(__file__).parents[2] / "src" / "wardkey" / "dashboard" / "static"
    assert {"LICENSE-geist", "LICENSE-lucide", "NOTICE"} <= {path.name for path in static.iterdir()}
