from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import Enter, Site, hidden_part, passes, site_in
from tests.support.mqtt import connected
from tests.support.server import wait_until

pytestmark = pytest.mark.browser

ACL = "/o/acme/live/messaging/acl"
RULE = {
    "priority": "100",
    "subject_kind": "everyone",
    "subject": "",
    "filter": "agents/#",
    "action": "both",
    "effect": "allow",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("acl"), no_messaging=0) as there:
        wait_until(lambda: there.api.get("/v2/sessions").status_code == 200)
        yield there


@pytest.fixture(autouse=True)
def no_rules(site: Site) -> None:
    assert site.api.put("/v2/acl/rules", json={"rules": []}).status_code == 200


def rules(site: Site) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = site.api.get("/v2/acl/rules").json()["rules"]
    return rows


def put(site: Site, *new_rules: dict[str, Any]) -> list[dict[str, Any]]:
    base = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}
    sent = {"rules": [{**base, **rule} for rule in new_rules]}
    answer = site.api.put("/v2/acl/rules", json=sent)
    assert answer.status_code == 200, answer.text
    return rules(site)


def test_a_preset_is_previewed_and_applied_with_one_click(site: Site, enter: Enter) -> None:
    page = enter("owner", ACL)
    page.wait_for_selector("text=No rules yet")
    passes(page)
    page.get_by_role("button", name="Choose a preset").click()
    chat = page.locator("section.preset", has_text="Chat")
    chat.locator("summary").click()
    assert "rooms/+/messages/{username}" in chat.inner_text()
    passes(page)
    chat.get_by_role("button", name="Apply preset").click()
    page.wait_for_selector("text=Preset applied.")
    assert rules(site)[0]["filter"] == "rooms/+/messages/{username}"
    page.get_by_role("button", name="Presets").click()
    allow_all = page.locator("section.preset", has_text="Allow all")
    allow_all.get_by_role("button", name="Replace current rules").click()
    page.wait_for_selector("text=Preset applied.")
    assert [rule["filter"] for rule in rules(site)] == ["#"]
    # A page loaded before there were rules must not replace them.
    answer = site.forms().post(f"{ACL}/presets", preset="chat")
    assert answer.status_code == 409
    assert [rule["filter"] for rule in rules(site)] == ["#"]


def test_a_rule_is_added_edited_and_deleted(site: Site, enter: Enter) -> None:
    page = enter("owner", ACL)
    page.get_by_role("button", name="Add rule").click()
    dialog = page.locator("#create")
    dialog.get_by_label("Topic filter").fill("agents/{username}/#")
    assert not dialog.get_by_label("Named").is_visible()
    dialog.get_by_label("For").select_option("username")
    dialog.get_by_label("Named").fill("agent-*")
    passes(page)
    dialog.get_by_role("button", name="Add").click()
    page.wait_for_selector("text=Rule added.")
    made = rules(site)[0]
    assert (made["filter"], made["subject"]) == (
        "agents/{username}/#",
        {"kind": "username", "value": "agent-*"},
    )
    page.get_by_role("button", name="Actions for rule").click()
    page.get_by_role("link", name="Edit…").click()
    page.locator("#edit").get_by_label("Priority").fill("7")
    page.locator("#edit").get_by_label("For").select_option("everyone")
    passes(page)
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Rule updated.")
    assert (rules(site)[0]["priority"], rules(site)[0]["subject"]["kind"]) == (7, "everyone")
    page.get_by_role("button", name="Actions for rule").click()
    page.get_by_role("link", name="Delete…").click()
    passes(page)
    page.get_by_role("button", name="Delete rule").click()
    page.wait_for_selector("text=No rules yet")
    assert rules(site) == []


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("filter", "agents/a+/x", r"(?i)position \d+"),
        ("filter", "agents/{user}/#", "position 8"),
        ("filter", "<b>{x}</b>", "position 4"),
        ("priority", "-1", "whole number"),
        ("priority", "100001", "whole number"),
        ("subject", "two words", "user name pattern"),
    ],
)
def test_an_invalid_value_is_reported_at_its_field(
    site: Site, field: str, value: str, expected: str
) -> None:
    kind = "username" if field == "subject" else "everyone"
    forms = site.forms()
    wrong = {**RULE, "once": forms.hidden("once", ACL), "subject_kind": kind, field: value}
    answer = forms.post(ACL, **wrong)
    assert answer.status_code == 400
    match = re.search(rf'id="new-{field}-fault"[^>]*>([^<]*)<', answer.text)
    assert match is not None
    assert re.search(expected, match[1])
    assert "<b>" not in match[1]
    assert rules(site) == []


def test_a_form_sent_twice_creates_one_rule(site: Site) -> None:
    forms = site.forms()
    once = forms.hidden("once", ACL)
    for _ in range(2):
        assert forms.post(ACL, **RULE, once=once).status_code == 303
    assert len(rules(site)) == 1


def test_a_rule_that_the_broker_cannot_hold_stays_in_the_form(site: Site, enter: Enter) -> None:
    put(site, {"priority": 50, "filter": "a/b"}, {"priority": 90, "filter": "#"})
    page = enter("owner", f"{ACL}?dialog=create")
    dialog = page.locator("#create")
    dialog.get_by_label("Effect").select_option("deny")
    dialog.get_by_label("Topic filter").fill("a/#")
    dialog.get_by_label("Priority").fill("60")
    dialog.get_by_role("button", name="Add").click()
    assert "broker can't enforce" in page.locator("#create [role=alert]").inner_text()
    assert dialog.get_by_label("Topic filter").input_value() == "a/#"
    passes(page)
    assert len(rules(site)) == 2


def test_the_simulator_shows_the_deciding_rule(site: Site, enter: Enter) -> None:
    put(
        site,
        {"priority": 5, "filter": "agents/secret/#", "effect": "deny"},
        {"priority": 10, "filter": "agents/{username}/#"},
        {"priority": 20, "filter": "teams/{claim.team}/#"},
    )
    page = enter("owner", ACL)
    page.fill("#username", "agent-01")
    page.fill("#topic", "agents/agent-01/state")
    page.get_by_role("button", name="Try it").click()
    assert "Allowed." in page.inner_text("form [role=status]")
    assert "agents/{username}/#" in page.inner_text("tr.decides")
    assert "Decides" in page.inner_text("tr.decides")
    passes(page)
    page.fill("#topic", "agents/secret/x")
    page.get_by_role("button", name="Try it").click()
    assert "Denied." in page.inner_text("form [role=status]")
    assert "agents/secret/#" in page.inner_text("tr.decides")
    page.fill("#topic", "elsewhere")
    page.get_by_role("button", name="Try it").click()
    assert "no rule matches" in page.inner_text("form [role=status]")
    assert page.locator("tr.decides").count() == 0
    page.locator("summary", has_text="Claims").or_(page.locator("form summary").first).first.click()
    page.select_option("#who", "grant")
    page.fill("#claims", "team=blue")
    page.fill("#topic", "teams/blue/x")
    page.get_by_role("button", name="Try it").click()
    assert "Allowed." in page.inner_text("form [role=status]")
    page.select_option("#act", "subscribe")
    page.fill("#topic", "teams/a+b")
    page.get_by_role("button", name="Try it").click()
    assert re.search(r"(?i)position \d+", page.inner_text("#topic-fault"))
    passes(page)


def test_a_rule_can_be_tried_before_it_is_saved(site: Site, enter: Enter) -> None:
    kept = put(
        site,
        {"priority": 5, "filter": "agents/secret/#", "effect": "deny"},
        {"priority": 10, "filter": "agents/#"},
    )
    page = enter("owner", f"{ACL}?dialog=create")
    dialog = page.locator("#create")
    dialog.get_by_label("Effect").select_option("deny")
    dialog.get_by_label("Topic filter").fill("agents/own/#")
    dialog.get_by_label("Priority").fill("7")
    dialog.get_by_label("Description").fill("<script>alert(1)</script>")
    dialog.locator("summary", has_text="Try it before you save").click()
    dialog.get_by_label("User name", exact=True).fill("<i>agent")

    def try_topic(topic: str) -> str:
        dialog.get_by_label("Topic", exact=True).fill(topic)
        dialog.get_by_role("button", name="Try it").click()
        comparison = dialog.get_by_role("group", name="What would change").filter(has_text=topic)
        comparison.wait_for()
        assert comparison.evaluate("one => one === document.activeElement")
        assert hidden_part(comparison) <= 0
        return comparison.inner_text()

    result = try_topic("agents/own/x")
    assert "changes the answer" in result
    assert re.search(rf"Now: Allowed\. <i>agent can .*{kept[1]['id']}", result)
    assert re.search(r"With this rule: Denied\. .*this rule \(priority 7\)", result)
    passes(page)
    result = try_topic("agents/secret/x")
    assert "doesn't change the answer" in result
    assert result.count(kept[0]["id"]) == 2
    assert "no rule matches" in try_topic("elsewhere")
    assert dialog.get_by_label("Description").input_value() == "<script>alert(1)</script>"
    dialog.get_by_label("Topic", exact=True).fill("a/#")
    dialog.get_by_role("button", name="Try it").click()
    page.wait_for_selector("#new-try-topic-fault")
    passes(page)
    assert rules(site) == kept
    # Enter saves, although the try button comes first in the form.
    dialog.get_by_label("Topic filter").press("Enter")
    page.wait_for_selector("text=Rule added.")
    assert len(rules(site)) == 3


def test_trying_an_edited_rule_replaces_the_saved_one(site: Site, enter: Enter) -> None:
    kept = put(site, {"priority": 10, "filter": "agents/#"})
    page = enter("owner", f"{ACL}/{kept[0]['id']}", viewport={"width": 390, "height": 844})
    dialog = page.locator("#edit")
    dialog.get_by_label("Topic filter").fill("others/#")
    dialog.locator("summary", has_text="Try it before you save").click()
    dialog.get_by_label("Topic", exact=True).fill("agents/x")
    dialog.get_by_role("button", name="Try it").click()
    result = dialog.get_by_role("group", name="What would change").inner_text()
    assert re.search(r"(?s)Now: Allowed\..*With this rule: Denied\. .*no rule matches", result)
    assert dialog.get_by_label("Topic filter").input_value() == "others/#"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    passes(page)
    assert rules(site) == kept


def test_an_invalid_rule_cannot_be_tried(site: Site) -> None:
    put(site, {"priority": 50, "filter": "a/b"}, {"priority": 90, "filter": "#"})
    forms = site.forms()
    path = f"{ACL}/compare"
    barred = {**RULE, "filter": "a/#", "effect": "deny", "priority": "60", "topic": "a/b"}
    for wrong, expected in (
        (barred, "enforce such an exception"),
        ({**RULE, "filter": "x" * 4_000, "topic": "a"}, 'id="new-filter-fault"'),
        ({**RULE, "topic": "x" * 4_000}, 'id="new-try-topic-fault"'),
        ({**RULE, "topic": ""}, 'id="new-try-topic-fault"'),
        ({**RULE, "topic": "a", "claims": "<b>"}, 'id="new-try-claims-fault"'),
        ({**RULE, "topic": "a", "act": "both"}, "Choose publish or subscribe"),
        ({**RULE, "topic": "a", "id": "cli_another"}, "No such client"),
    ):
        answer = forms.post(path, **wrong)
        assert answer.status_code in {400, 404, 409}, wrong
        assert expected in answer.text
        assert "With this rule" not in answer.text
    assert forms.post(f"{ACL}/acl_another/compare", **RULE, topic="a").status_code == 404
    assert forms.send(path, {**RULE, "csrf": "x"}).status_code == 403
    assert forms.get(path).headers["location"] == ACL
    assert len(rules(site)) == 2


def test_deleting_a_rule_ends_sessions_and_shows_the_receipt(site: Site, enter: Enter) -> None:
    put(site, {"priority": 10, "filter": "agents/#"})
    made = site.api.post("/v2/clients", json={"username": "agent-cut"}).json()
    name = made["client"]["mqtt_username"]
    with connected(site.server, name, made["password"], "cut-1") as session:
        assert session.subscribe("agents/#") == 1
        page = enter("owner", f"{ACL}/{rules(site)[0]['id']}?dialog=delete")
        page.get_by_role("button", name="Delete rule").click()
        page.wait_for_selector("text=1 live session ended")
        wait_until(lambda: session.ended_at)


def test_a_viewer_can_use_the_simulator_but_not_change_rules(site: Site, enter: Enter) -> None:
    made = put(site, {"priority": 10, "filter": "agents/#"})[0]
    phone = {"viewport": {"width": 390, "height": 844}}
    page = enter("viewer", f"{ACL}?username=agent-01&topic=agents/x", **phone)
    assert "Only members, admins and owners can do this." in page.inner_text("main")
    assert "Allowed." in page.inner_text("form [role=status]")
    assert page.get_by_role("button", name="Add rule").is_disabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    passes(page)
    forms = site.forms(site.cookie("viewer"))
    rule_path = f"{ACL}/{made['id']}"
    for path in (
        ACL,
        f"{ACL}/presets",
        f"{ACL}/compare",
        f"{rule_path}/edit",
        f"{rule_path}/compare",
    ):
        assert forms.post(path, **RULE, topic="a", preset="chat").status_code == 403
    for path in (f"{rule_path}/delete", f"{ACL}/presets"):
        assert forms.post(path, **RULE, preset="chat", replace="1").status_code == 403
    assert rules(site) == [made]
    assert site.forms().get(f"/o/acme/test/messaging/acl/{made['id']}").status_code == 404
