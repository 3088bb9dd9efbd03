from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.conftest import Enter, Site, passes, site_in
from tests.support.mqtt import connected
from tests.support.server import wait_until

pytestmark = pytest.mark.browser

TOPICS = "/o/acme/live/messaging/topics"
RULE = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("topics"), no_messaging=0) as there:
        wait_until(lambda: there.api.get("/v2/sessions").status_code == 200)
        yield there


@pytest.fixture(scope="module")
def sender(site: Site) -> tuple[str, str]:
    """Create a client that may publish to every topic; return its user name and password."""
    made = site.api.post("/v2/clients", json={"username": "sender"}).json()
    rule = {**RULE, "subject": {"kind": "username", "value": "sender"}, "priority": 1}
    assert site.api.post("/v2/acl/rules", json={**rule, "filter": "#"}).status_code == 201
    return made["client"]["mqtt_username"], made["password"]


def test_the_page_says_that_no_rule_allows_the_subscription(site: Site, enter: Enter) -> None:
    page = enter("owner", TOPICS)
    assert "lets owner_acme_example_" in page.inner_text("main .note")
    passes(page)
    page.fill("#pattern", "private/#")
    page.get_by_role("button", name="Watch").click()
    page.wait_for_selector("text=The ACL rules don't let you subscribe to private/#.")
    assert site.api.get("/v2/tokens").json()["tokens"][0]["user_email"] == site.email("owner")


def test_messages_are_shown_as_text_and_limited_to_200(
    site: Site, enter: Enter, sender: tuple[str, str]
) -> None:
    rule = {**RULE, "priority": 20, "filter": "agents/#", "action": "subscribe"}
    made = site.api.post("/v2/acl/rules", json=rule)
    assert made.status_code == 201, made.text
    page = enter("member", TOPICS)
    assert page.input_value("#pattern") == "agents/#"
    page.get_by_role("button", name="Watch").click()
    page.wait_for_selector("text=Watching agents/#")
    with connected(site.server, *sender, "sender-1") as client:
        client.publish("agents/one/state", "<img src=x onerror=alert(1)>")
        page.wait_for_selector("#messages li")
        assert "<img src=x onerror=alert(1)>" in page.inner_text("#messages li")
        assert page.locator("#messages img").count() == 0
        passes(page)
        page.get_by_role("button", name="Pause").click()
        client.publish("agents/one/state", "unseen")
        page.wait_for_selector("text=Paused; 1 not shown")
        assert page.locator("#messages li").count() == 1
        page.get_by_role("button", name="Resume").click()
        for number in range(230):
            client.publish("agents/many", f"number {number}", qos=0)
    page.wait_for_selector("#messages li:first-child:has-text('number 229')")
    assert page.locator("#messages li").count() == 200
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#messages li").count() == 0
    assert page.get_by_text("No messages yet.").is_visible()


def test_the_grant_belongs_to_the_member_and_cannot_be_refreshed(site: Site) -> None:
    forms = site.forms(site.cookie("member"))
    made = forms.post(f"{TOPICS}/grant")
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    newest = site.api.get("/v2/tokens").json()["tokens"][0]
    assert newest["mqtt_username"] == made.json()["username"]
    assert newest["user_email"] == site.email("member")
    assert newest["expires_at"] == newest["refreshable_until"]
    assert forms.send(f"{TOPICS}/grant", {"csrf": "x"}).status_code == 403


def test_only_the_topics_page_may_open_a_websocket(site: Site, enter: Enter) -> None:
    forms = site.forms()
    socket = f"ws://127.0.0.1:{site.server.websocket_port}"
    watching = forms.get(TOPICS)
    assert f"connect-src 'self' {socket};" in watching.headers["content-security-policy"]
    other = forms.get("/o/acme/live/messaging/clients")
    assert "connect-src 'self';" in other.headers["content-security-policy"]
    assert "mqtt.min" in watching.text
    assert "mqtt.min" not in other.text
    page = enter("viewer", TOPICS, viewport={"width": 390, "height": 844})
    assert "Only members, admins and owners can do this." in page.inner_text("main")
    assert page.get_by_role("button", name="Watch").count() == 0
    passes(page)
    viewer = site.forms(site.cookie("viewer"))
    assert viewer.post(f"{TOPICS}/grant").status_code == 403
    phone = enter("owner", TOPICS, viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    passes(phone)
