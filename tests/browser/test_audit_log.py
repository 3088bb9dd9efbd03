from __future__ import annotations

import csv
import io
import json

import pytest
from sqlalchemy import select

from tests.browser.conftest import Enter, Site, violations
from tests.support.database import database_of
from wardkey.db.schema import audit_events
from wardkey.domain.times import iso

pytestmark = pytest.mark.browser

LOG = "/o/acme/live/audit-log"


def test_the_log_is_filtered_paged_and_opened(site: Site, enter: Enter) -> None:
    key = site.made("live-audited")["key"]["id"]
    for n in range(60):
        site.api.patch(f"/v2/keys/{key}", json={"description": f"turn {n}"})
    page = enter("owner", LOG)
    rows = page.locator("tbody tr")
    assert rows.count() == 50
    newest = rows.first.text_content()
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**before=*")
    assert rows.first.text_content() != newest
    page.get_by_role("link", name="Newest").click()
    page.wait_for_url(f"**{LOG}")
    assert rows.first.text_content() == newest
    page.get_by_label("Action").select_option("key.issued")
    page.wait_for_url("**action=key.issued**")
    page.locator("tr", has_text=key).get_by_role("link", name=key).click()
    page.wait_for_url(f"**target={key}**")
    assert rows.count() == 1
    page.locator("details summary").click()
    assert "live-audited" in page.inner_text("details pre")
    page.get_by_label("Actor").fill(site.email("owner"))
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**actor=owner**")
    assert rows.count() == 1
    page.goto(site.url(f"{LOG}?actor=nobody@acme.example"))
    assert "No matching events" in page.inner_text("main")
    page.goto(site.url(f"{LOG}?to=2001-01-01"))
    assert "No matching events" in page.inner_text("main")
    assert page.input_value("[name=to]") == "2001-01-01"


def test_times_are_in_the_viewers_time_zone(site: Site, enter: Enter) -> None:
    site.made("live-audited-zone")
    page = enter("owner", LOG, timezone_id="Asia/Tokyo")
    shown = page.locator("tbody time").first
    at = shown.get_attribute("datetime")
    assert "GMT+9" in (shown.get_attribute("title") or "")
    expression = f"new Date('{at}').toLocaleTimeString('en', {{timeStyle: 'short'}})"
    assert page.evaluate(expression) in shown.inner_text()


def test_exports_contain_only_the_filtered_events(site: Site, enter: Enter) -> None:
    made = site.made("=HYPERLINK(1)")
    page = enter("owner", f"{LOG}?target={made['key']['id']}")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as lines:
        page.get_by_role("link", name="JSON lines").click()
    assert lines.value.suggested_filename.startswith("audit-acme-")
    (event,) = [json.loads(line) for line in lines.value.path().read_text().splitlines()]
    assert (event["action"], event["target_id"]) == ("key.issued", made["key"]["id"])
    with database_of(site.server) as connection:
        of_key = audit_events.c.target_id == made["key"]["id"]
        at = connection.execute(select(audit_events.c.at).where(of_key)).scalar_one()
    assert event["at"] == iso(at)
    with page.expect_download() as table:
        page.get_by_role("link", name="CSV").click()
    (row,) = csv.DictReader(io.StringIO(table.value.path().read_text()))
    assert row["mac"] == event["mac"]
    assert json.loads(row["details"]) == event["details"]


def test_an_exported_cell_is_never_a_spreadsheet_formula(site: Site) -> None:
    agent = '=HYPERLINK("https://evil.example","open")'
    with site.server.owner(User_Agent=agent, Wardkey_Organization="acme") as client:
        made = client.post("/v2/keys", json={"name": "live-formula", "type": "secret"}).json()
    answer = site.forms().get(f"{LOG}/export.csv?target={made['key']['id']}")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["user_agent"] == f"'{agent}"
    assert answer.headers["cache-control"] == "no-store"


def test_checking_the_chain_reports_a_break(site: Site, enter: Enter) -> None:
    page = enter("owner", LOG)
    assert page.locator(".note").count() == 0
    page.get_by_role("button", name="Check the chain").click()
    page.wait_for_selector("text=Every link is intact.")
    assert violations(page) == []
    of_key = audit_events.c.target_id == site.made("live-broken")["key"]["id"]
    with database_of(site.server) as connection:
        connection.execute(audit_events.update().where(of_key).values(actor_label="nobody"))
    page.get_by_role("button", name="Check the chain").click()
    page.wait_for_selector("text=The chain is broken.")
    assert violations(page) == []
    assert site.forms().get(f"{LOG}/check").headers["location"] == LOG
    assert site.forms().send(f"{LOG}/check", {"csrf": "forged"}).status_code == 403
    label = site.email("owner")
    with database_of(site.server) as connection:
        connection.execute(audit_events.update().where(of_key).values(actor_label=label))


def test_the_log_passes_axe_in_both_themes_and_on_a_phone(site: Site, enter: Enter) -> None:
    site.made("live-audited-axe")
    page = enter("member", LOG, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    page.set_viewport_size({"width": 1280, "height": 800})
    page.locator("details summary").first.click()
    page.get_by_role("button", name="Export").click()
    assert violations(page) == []


def test_another_organizations_log_is_not_found(site: Site) -> None:
    for below in ("", "/export.csv", "/export.jsonl", "/check"):
        answer = site.forms().get(f"/o/globex/live/audit-log{below}")
        assert answer.status_code == 404
        assert "organization_not_found" in answer.text
    for odd in (
        "?before=x",
        "?before=99999999999999999999",
        "?from=x&to=2026-02-31",
    ):
        assert site.forms().get(LOG + odd).status_code == 200
