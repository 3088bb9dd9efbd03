from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser.conftest import Enter, Site, violations
from tests.browser.test_key import use
from tests.support.database import usage_of
from tests.support.server import wait_until
from wardkey.db.schema import hours

pytestmark = pytest.mark.browser

USAGE = "/o/acme/live/usage"
HOUR_MS = 3_600_000


def count(
    site: Site,
    key: Any,  # noqa: ANN401 - JSON
    code: str,
    times: int,
    days_ago: int = 0,
) -> None:
    """Store the number of verdicts as if they had been counted that many days ago."""
    (secret,) = key["secrets"]
    row = {"kid": secret["kid"], "key_id": key["id"], "code": code, "count": times}
    hour = int(time.time() * 1000) // HOUR_MS - 24 * days_ago
    with usage_of(site.server) as connection:
        connection.execute(hours.insert().values(**row, hour=hour))


def test_verdicts_are_counted_by_day_by_code_and_by_key(site: Site, enter: Enter) -> None:
    empty = enter("owner", USAGE)
    assert "No requests yet" in empty.inner_text("main")
    assert violations(empty) == []
    heavy, light = site.made("live-used-much"), site.made("live-used-little")
    count(site, heavy["key"], "valid", 1234, 1)
    count(site, heavy["key"], "not_permitted", 66, 1)
    count(site, heavy["key"], "expired", 500, 60)
    count(site, light["key"], "valid", 7, 2)
    page = enter("owner", USAGE)
    assert "Allowed 1,241" in page.inner_text("main")
    verdicts = page.get_by_role("region", name="By verdict")
    assert verdicts.locator("tbody tr").all_inner_texts()[1].split("\t")[1:] == ["66", "5.0 %"]
    assert "expired" not in verdicts.inner_text()
    by_key = page.get_by_role("region", name="By key").locator("tbody tr").all_inner_texts()
    assert [row.split("\t") for row in by_key] == [
        ["live-used-much", "1,300", "1,234", "66"],
        ["live-used-little", "7", "7", "0"],
    ]
    page.get_by_role("link", name="90 days").click()
    page.wait_for_url("**days=90")
    assert "Denied 566" in page.inner_text("main")
    page.get_by_role("link", name="live-used-little").click()
    page.wait_for_url("**key=key_**")
    assert "Allowed 7" in page.inner_text("main")
    page.get_by_text("Show the table").click()
    rows = page.get_by_role("region", name="Requests by day and verdict").locator("tbody tr")
    assert rows.count() == 90
    assert rows.nth(2).locator("td").all_inner_texts() == ["7"]
    # Screen readers get the chart as a table.
    assert page.get_by_role("table", name="Requests by day").locator("tbody tr").count() == 90


def test_new_requests_appear_on_the_page(site: Site, enter: Enter) -> None:
    made = site.made("live-used-now")
    page = enter("owner", f"{USAGE}?key={made['key']['id']}")
    use(site, made, 3)

    def counted() -> bool:
        page.reload()
        return "Allowed 3" in page.inner_text("main")

    # Other workers write their counts within half a second.
    wait_until(counted)


def test_usage_passes_axe_in_both_themes_and_on_a_phone(site: Site, enter: Enter) -> None:
    count(site, site.made("live-used-axe")["key"], "valid", 3)
    page = enter("member", f"{USAGE}?days=90", viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_text("Show the table").click()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []


def test_other_environments_and_organizations_do_not_see_a_keys_usage(site: Site) -> None:
    made = site.made("live-used-here")
    count(site, made["key"], "valid", 987_654)
    forms, key = site.forms(), made["key"]["id"]
    assert "987,654" in forms.get(USAGE).text
    elsewhere = forms.get("/o/acme/test/usage")
    assert elsewhere.status_code == 200
    assert "987,654" not in elsewhere.text
    for path in (f"/o/acme/test/usage?key={key}", f"/o/globex/live/usage?key={key}"):
        assert forms.get(path).status_code == 404
    assert forms.get(f"{USAGE}?key=%3Cscript%3E").status_code == 404
