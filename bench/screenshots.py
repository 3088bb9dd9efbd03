"""Writes docs/pictures/: the main pages of a deployment with realistic data."""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx2 as httpx
from playwright.sync_api import sync_playwright

from demo.__main__ import deployment
from wardkey.config import load_config
from wardkey.db.schema import callers, hours, keys, last_used, secrets
from wardkey.deployment import open_deployment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize
    from sqlalchemy import Connection

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
PASSWORD = "a password of some length"
MOST_BYTES = 160 * 1024
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
WIDE: ViewportSize = {"width": 1280, "height": 800}
TALL: ViewportSize = {"width": 1280, "height": 1150}
NARROW: ViewportSize = {"width": 390, "height": 844}
SCOPE_PATH = "/o/acme/live"
KEYS = f"{SCOPE_PATH}/settings/api-keys"

# Name, type, age in days, requests a day, last address.
SAMPLE_KEYS = (
    ("live-billing-webhooks", "secret", 34, 900, "203.0.113.7"),
    ("live-shop-frontend", "publishable", 61, 2400, "198.51.100.23"),
    ("live-ci-deploys", "secret", 97, 40, "203.0.113.90"),
    ("live-warehouse-sync", "secret", 12, 310, "203.0.113.18"),
    ("live-mobile-app", "publishable", 80, 1500, "198.51.100.77"),
    ("live-reports-nightly", "secret", 45, 24, "203.0.113.41"),
    ("live-support-desk", "secret", 28, 130, "203.0.113.66"),
)


def main() -> None:
    """Start a deployment, fill it and take the pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with deployment(data) as (_, output), sync_playwright() as playwright:
            url = find(r"listens on (\S+)", output)
            with httpx.Client(base_url=url, timeout=30) as anonymous:
                link = {"token": find(r"/setup/(\w+)", output), "password": PASSWORD}
                token = post(anonymous, "/v2/setup", link)["token"]
                form = {"email": "owner@acme.example", "password": PASSWORD, "next": "/"}
                cookie = anonymous.post("/sign-in", data=form).headers["set-cookie"]
            issued = fill(url, token, data)
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            try:
                take_pictures(browser, url, cookie.partition(";")[0], issued)
            finally:
                browser.close()


def take_pictures(browser: Browser, url: str, cookie: str, issued: dict[str, Any]) -> None:
    """Open each page and save a picture of it."""
    key = f"{KEYS}/{issued['live-billing-webhooks']['key']['id']}"
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for theme in themes:
        with signed_in_page(browser, cookie, theme, WIDE) as page:
            for name, path in (
                ("overview", f"{SCOPE_PATH}/overview"),
                ("keys", KEYS),
                ("key", key),
                ("usage", f"{SCOPE_PATH}/usage"),
                ("audit-log", f"{SCOPE_PATH}/audit-log"),
            ):
                page.set_viewport_size(TALL if name == "overview" else WIDE)
                page.goto(f"{url}{path}")
                save_picture(page, f"{name}-{theme}")
    with signed_in_page(browser, cookie, "light", WIDE) as page:
        for dialog in ("rotate", "revoke"):
            page.goto(f"{url}{key}?dialog={dialog}")
            save_picture(page, f"{dialog}-light", "dialog[open]")
        page.goto(f"{url}{KEYS}?dialog=create")
        page.fill("#name", "live-invoices-export")
        save_picture(page, "create-light", "dialog[open]")
        page.get_by_role("button", name="Create key").click()
        page.wait_for_selector("#secret")
        save_picture(page, "shown-once-light", "dialog[open]")
    with signed_in_page(browser, cookie, "light", NARROW) as page:
        page.goto(f"{url}{KEYS}")
        save_picture(page, "keys-phone")


@contextmanager
def signed_in_page(
    browser: Browser,
    cookie: str,
    theme: Literal["light", "dark"],
    size: ViewportSize,
) -> Iterator[Page]:
    context = browser.new_context(
        viewport=size, color_scheme=theme, timezone_id="UTC", reduced_motion="reduce"
    )
    name, _, value = cookie.partition("=")
    attributes = {"domain": "127.0.0.1", "path": "/", "secure": True, "httpOnly": True}
    context.add_cookies([{"name": name, "value": value, **attributes}])  # type: ignore[typeddict-item]
    page = context.new_page()
    try:
        yield page
    finally:
        context.close()


def save_picture(page: Page, name: str, part: str = "") -> None:
    page.evaluate("document.fonts.ready")
    # Icons must be loaded.
    page.wait_for_load_state("networkidle")
    file = PICTURES / f"{name}.png"
    if part:
        page.locator(part).screenshot(path=file)
    else:
        page.screenshot(path=file)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}: {size / 1024:.0f} KiB")
    if size > MOST_BYTES:
        sys.exit(f"{file.name} is too large")


def fill(url: str, token: str, data: Path) -> dict[str, Any]:
    """Create keys and rules, and write the usage of the last weeks."""
    issued = {}
    with httpx.Client(
        base_url=url,
        timeout=30,
        headers={"Authorization": f"Bearer {token}", "Wardkey-Organization": "acme"},
    ) as program:
        for name, kind, *_ in SAMPLE_KEYS:
            issued[name] = post(program, "/v2/keys", {"name": name, "type": kind})
        billing = issued["live-billing-webhooks"]["key"]["id"]
        changes = {"description": "Tells the shop about payments"}
        assert program.patch(f"/v2/keys/{billing}", json=changes).status_code == 200
        ended = post(program, "/v2/keys", {"name": "live-old-importer", "type": "secret"})
        (first,) = program.get("/v2/keys?search=bootstrap").json()["keys"]
        for key in (ended["key"], first):
            program.post(f"/v2/keys/{key['id']}/revoke", json={"reason": "superseded"})
        rule = {"priority": 1, "filter": "news/#", "action": "subscribe", "effect": "allow"}
        post(program, "/v2/acl/rules", {**rule, "subject": {"kind": "everyone"}})
    with open_deployment(load_config({}, {"data_dir": data})) as runner:
        now = runner.database.clock()
        with runner.database.writer.begin() as connection:
            for name, _, age, *_ in SAMPLE_KEYS:
                then = now - age * DAY_MS
                values = {"created_at": then, "rotated_at": then}
                connection.execute(keys.update().where(keys.c.name == name).values(values))
                of_key = secrets.c.key_id == issued[name]["key"]["id"]
                connection.execute(secrets.update().where(of_key).values(created_at=then))
            ended_names = ("live-old-importer", first["name"])
            values = {"created_at": now - 120 * DAY_MS}
            connection.execute(keys.update().where(keys.c.name.in_(ended_names)).values(values))
        with runner.database.counting() as connection:
            write_usage(connection, issued, now)
    return issued


def write_usage(connection: Connection, issued: dict[str, Any], now: int) -> None:
    """Write the counters of the last 85 days."""
    drawn = random.Random(6)
    for name, _, age, a_day, address in SAMPLE_KEYS:
        key = issued[name]["key"]
        row = {"kid": key["secrets"][0]["kid"], "key_id": key["id"]}
        days = range(min(age, 85))
        for day in days:
            weekend = 0.5 if time.gmtime((now - day * DAY_MS) / 1000).tm_wday > 4 else 1
            hour = (now - day * DAY_MS) // HOUR_MS
            count = int(a_day * weekend * drawn.uniform(0.75, 1.25)) + 1
            counts = {"valid": count, "not_permitted": count // 60, "rate_limited": count // 200}
            for code, times in counts.items():
                if times:
                    values = {**row, "hour": hour, "code": code, "count": times}
                    connection.execute(hours.insert().values(values))
        last_use = {"at": now - drawn.randrange(20, 5_000) * 1000, "address": address}
        details = {"user_agent": "acme/2.1", "verifications": a_day * len(days)}
        caller = {"address": address, "product": "acme/2.1", "route": "verify"}
        counted = {
            "first_at": now - age * DAY_MS,
            "last_at": last_use["at"],
            "count": a_day * len(days),
        }
        connection.execute(callers.insert().values({**row, **caller, **counted}))
        connection.execute(last_used.insert().values({**row, **last_use, **details}))


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    answer = client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def find(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    if match is None:
        sys.exit(f"the deployment did not print {pattern}")
    return match[1]


main()
