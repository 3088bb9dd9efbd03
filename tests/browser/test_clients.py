from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from tests.browser.conftest import Enter, Site, passes, site_in
from tests.support.mqtt import connected
from tests.support.server import wait_until
from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging import clients
from wardkey.actions.messaging.client_logins import VerifiedPasswords, find_login, mark_connected
from wardkey.actions.messaging.clients import ClientOrder
from wardkey.domain.clients import ClientSpec
from wardkey.domain.principal import Principal

pytestmark = pytest.mark.browser

CLIENTS = "/o/acme/live/messaging/clients"
RULE = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("clients"), no_messaging=0) as there:
        rule = {**RULE, "priority": 10, "filter": "agents/#"}
        assert there.api.post("/v2/acl/rules", json=rule).status_code == 201
        wait_until(lambda: there.api.get("/v2/sessions").status_code == 200)
        yield there


def create_client(site: Site, username: str, **more: object) -> dict[str, Any]:
    answer = site.api.post("/v2/clients", json={"username": username, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return {**made["client"], "password": made["password"]}


def logs_in(site: Site, username: str, password: str, mqtt_id: str) -> bool:
    with connected(site.server, username, password, mqtt_id) as client:
        return client.code == 0


def test_a_generated_password_is_shown_once_and_logs_in(site: Site, enter: Enter) -> None:
    page = enter("owner", CLIENTS)
    page.get_by_role("button", name="Create client").first.click()
    page.fill("#username", "agent-01")
    page.fill("#display_name", "Agent 1")
    page.fill("#tags", "agents, hall-b")
    passes(page)
    page.locator("#create").get_by_role("button", name="Create client").click()
    password = page.inner_text("#secret")
    username = page.inner_text("#mqtt-username")
    assert username.startswith("agent-01@org_")
    passes(page)
    for name in ("mosquitto", "paho", "MQTT.js"):
        page.get_by_role("radio", name=name).check()
        snippet = page.inner_text(".snippet:visible")
        assert username in snippet
        assert password not in snippet
        port = site.server.websocket_port if name == "MQTT.js" else site.server.mqtt_port
        assert str(port) in snippet
    assert logs_in(site, username, password, "agent-01")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=You haven't copied the password")
    page.click("text=Go back")
    page.get_by_role("button", name="Copy the password").click()
    page.click("text=I've saved the password")
    page.wait_for_selector("#reveal", state="detached")
    assert re.fullmatch(rf".*{CLIENTS}/cli_\w+", page.url)
    assert "hall-b" in page.inner_text("main")
    for step in (page.reload, page.go_back, page.go_forward):
        step()
        assert password not in page.content()
    page.goto(site.url(CLIENTS))
    assert "Agent 1" in page.inner_text("tr:has-text('agent-01')")


def test_a_given_password_is_never_shown(site: Site, enter: Enter) -> None:
    page = enter("owner", f"{CLIENTS}?dialog=create")
    page.fill("#username", "agent-given")
    page.get_by_label("Given").check()
    page.fill("#password", "short")
    page.locator("#create").get_by_role("button", name="Create client").click()
    assert "send 12 to 128" in page.inner_text("#password-fault")
    assert page.input_value("#username") == "agent-given"
    passes(page)
    page.fill("#password", "correct horse battery")
    page.locator("#create").get_by_role("button", name="Create client").click()
    page.wait_for_selector("text=Client created.")
    assert "correct horse battery" not in page.content()
    username = site.api.get("/v2/clients?search=agent-given").json()["clients"][0]["mqtt_username"]
    assert logs_in(site, username, "correct horse battery", "agent-given")


@pytest.mark.parametrize(
    ("username", "expected"),
    [
        ("<script>alert(1)</script>", "1 to 64 characters"),
        ("agent 07", "1 to 64 characters"),
        ("taken-name", "Another client"),
    ],
)
def test_a_rejected_name_is_reported_at_its_field(site: Site, username: str, expected: str) -> None:
    if username == "taken-name":
        create_client(site, username)
    forms = site.forms()
    answer = forms.post(CLIENTS, username=username, once=forms.hidden("once", CLIENTS))
    assert answer.status_code in {400, 409}
    match = re.search(r'id="username-fault"[^>]*>([^<]*)<', answer.text)
    assert match is not None
    assert expected in match[1]
    assert "<script>alert" not in answer.text


def test_a_form_sent_twice_creates_one_client(site: Site) -> None:
    forms = site.forms()
    once = forms.hidden("once", CLIENTS)
    first = forms.post(CLIENTS, username="sent-twice", once=once)
    again = forms.post(CLIENTS, username="sent-twice-b", once=once)
    assert first.status_code == 200
    assert again.status_code == 303
    assert again.headers["location"].endswith("?done=client-sent-before")
    assert site.api.get("/v2/clients?search=sent-twice").json()["total"] == 1


def test_live_sessions_are_listed_and_ended(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-live")
    path = f"{CLIENTS}/{client['id']}"
    with connected(site.server, client["mqtt_username"], client["password"], "live-1") as session:
        assert session.subscribe("agents/#") == 1
        page = enter("owner", f"{CLIENTS}?q=agent-live")
        assert "1 session" in page.inner_text("tbody tr")
        page.goto(site.url(path))
        table = page.get_by_role("table", name="Live sessions of agent-live")
        row = table.locator("tr:has-text('live-1')")
        assert "agents/#" in row.inner_text()
        passes(page)
        row.get_by_role("button", name="End session").click()
        page.wait_for_selector("text=Session ended.")
        wait_until(lambda: session.ended_at)


def test_client_ids_are_listed_and_freed(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-holds")
    login = client["mqtt_username"], client["password"]
    with connected(site.server, *login, "held-away", clean=False) as session:
        assert session.code == 0
    with connected(site.server, *login, "held-now", clean=False) as session:
        page = enter("owner", f"{CLIENTS}/{client['id']}")
        table = page.get_by_role("table", name="Client ids of agent-holds")
        assert "Connected" in table.locator("tr:has-text('held-now')").inner_text()
        row = table.locator("tr:has-text('held-away')")
        assert "Away" in row.inner_text()
        passes(page)
        row.get_by_role("button", name="Free held-away").click()
        page.wait_for_selector("text=Client id freed.")
        assert table.locator("tbody tr").count() == 1
        assert session.ended_at == 0
    events = site.api.get("/v2/audit-events?action=client_id.freed").json()["events"]
    assert [event["details"]["client_id"] for event in events] == ["held-away"]


def test_disabling_ends_sessions_and_shows_the_receipt(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-off")
    name, password = client["mqtt_username"], client["password"]
    page = enter("owner", f"{CLIENTS}/{client['id']}")
    with connected(site.server, name, password, "off-1") as session:
        assert session.code == 0
        page.get_by_role("button", name="Disable").click()
        page.wait_for_selector("text=1 live session ended")
    passes(page)
    assert not logs_in(site, name, password, "off-1")
    page.get_by_role("button", name="Enable").click()
    page.wait_for_selector("text=Client enabled")
    assert logs_in(site, name, password, "off-1")


def test_a_new_password_replaces_the_old_one(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-renewed")
    name, password = client["mqtt_username"], client["password"]
    page = enter("owner", f"{CLIENTS}/{client['id']}?dialog=password")
    passes(page)
    with connected(site.server, name, password, "renewed-1") as session:
        assert session.code == 0
        page.get_by_role("button", name="Set password").click()
        renewed = page.inner_text("#secret")
    page.get_by_role("button", name="Copy the password").click()
    assert logs_in(site, name, renewed, "renewed-1")
    assert not logs_in(site, name, password, "renewed-1")


def test_deleting_requires_the_name_and_shows_the_receipt(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-gone", display_name="To be deleted", tags=["old"])
    page = enter("owner", f"{CLIENTS}/{client['id']}?dialog=edit")
    page.fill("#display_name", "Soon deleted")
    passes(page)
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("h1 + p:has-text('Soon deleted')")
    name, password = client["mqtt_username"], client["password"]
    with connected(site.server, name, password, "gone-1") as session:
        assert session.code == 0
        page.get_by_role("button", name="Delete").click()
        button = page.get_by_role("button", name="Delete client")
        assert button.is_disabled()
        passes(page)
        page.fill("#confirmation", "agent-gone")
        button.click()
        page.wait_for_selector("text=1 live session ended")
    assert "agent-gone" not in page.inner_text("main table")
    assert site.forms().get(f"{CLIENTS}/{client['id']}").status_code == 404
    unnamed = create_client(site, "agent-kept")
    answer = site.forms().post(f"{CLIENTS}/{unnamed['id']}/delete", confirmation="agent")
    assert answer.status_code == 400
    assert site.forms().get(f"{CLIENTS}/{unnamed['id']}").status_code == 200


def test_clients_are_searched_filtered_sorted_and_paged(site: Site, enter: Enter) -> None:
    for number in range(27):
        create_client(site, f"many-{number:02}", tags=["many"], enabled=number != 3)
    page = enter("owner", CLIENTS)
    page.fill("[name=q]", "many")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=27 clients")
    assert page.locator("tbody tr").count() == 25
    page.get_by_role("link", name="Next").click()
    page.wait_for_selector("text=26–27 of 27")
    assert page.locator("tbody tr").count() == 2
    page.goto(site.url(f"{CLIENTS}?q=many"))
    names = page.locator("tbody .title a")
    page.get_by_role("link", name="User name").click()
    page.wait_for_url("**sort=username**")
    assert names.first.inner_text() == "many-00"
    page.get_by_role("link", name="User name").click()
    page.wait_for_url("**sort=-username**")
    assert names.first.inner_text() == "many-26"
    passes(page)
    page.select_option("[name=state]", "enabled")
    page.wait_for_selector("text=26 clients")
    assert "sort=-username" in page.url
    page.get_by_role("link", name="Next").click()
    page.wait_for_selector("text=26–26 of 26")
    assert names.all_inner_texts() == ["many-00"]
    page.goto(site.url(f"{CLIENTS}?q=many&sort=password_hash&page=-1"))
    assert names.first.inner_text() == "many-26"
    page.select_option("[name=state]", "disabled")
    page.wait_for_selector("text=1 client")
    assert "many-03" in page.inner_text("tbody")
    page.goto(site.url(f"{CLIENTS}?q=nothing-like-it"))
    page.get_by_text("No matching clients").wait_for()


def test_clients_can_be_filtered_to_the_connected_ones(site: Site, enter: Enter) -> None:
    rows = [create_client(site, f"here-{number}", tags=["here"]) for number in range(3)]
    page = enter("owner", f"{CLIENTS}?q=here-")
    page.get_by_label("Connection").select_option("now")
    page.get_by_text("No clients connected").wait_for()
    passes(page)
    with ExitStack() as stack:
        for number, row in enumerate(rows[:2]):
            name, password = row["mqtt_username"], row["password"]
            stack.enter_context(connected(site.server, name, password, f"here-{number}"))
        stack.enter_context(
            connected(site.server, rows[0]["mqtt_username"], rows[0]["password"], "here-again")
        )
        page.reload()
        page.wait_for_selector("text=2 clients")
        assert "2 sessions" in page.inner_text("tr:has-text('here-0')")
        assert "here-2" not in page.inner_text("tbody")
        passes(page)
        page.get_by_label("State").select_option("disabled")
        page.get_by_text("No clients connected").wait_for()
        assert "connected=now" in page.url
        page.goto(site.url(f"{CLIENTS}?q=here-1&connected=now"))
        page.wait_for_selector("text=1 client")
        page.goto(site.url("/o/acme/test/messaging/clients?connected=now"))
        page.get_by_text("No clients connected").wait_for()
        # An unknown value is ignored.
        page.goto(site.url(f"{CLIENTS}?q=here-&connected=%3Cscript%3E"))
        page.wait_for_selector("text=3 clients")


def test_clients_are_sorted_by_name_age_and_last_connection(
    runner: Runner, owner: Principal
) -> None:
    ticks = count(1_900_000_000_000, 1_000)
    runner.database.clock = lambda: next(ticks)
    made = {
        name: runner.write(clients.create, owner, ClientSpec(name, owner.environment))
        for name in ("bob", "Ada", "carl")
    }
    for new in (made["carl"], made["bob"]):
        verified, password = VerifiedPasswords(), new.password or ""
        login = find_login(runner.database, verified, new.client.mqtt_username, password)
        assert login is not None
        mark_connected(runner.database, [login])

    def usernames(order: ClientOrder) -> list[str]:
        query = clients.ClientQuery(order=order)
        return [client.username for client in runner.read(clients.list_clients, owner, query)]

    for up, down, expected in (
        (ClientOrder.USERNAME, ClientOrder.USERNAME_DOWN, ["Ada", "bob", "carl"]),
        (ClientOrder.CREATED, ClientOrder.CREATED_DOWN, ["bob", "Ada", "carl"]),
        (ClientOrder.CONNECTED, ClientOrder.CONNECTED_DOWN, ["Ada", "carl", "bob"]),
    ):
        assert usernames(up) == expected
        assert usernames(down) == expected[::-1]


def test_a_query_takes_any_number_of_usernames(runner: Runner, owner: Principal) -> None:
    for number in range(30):
        runner.write(clients.create, owner, ClientSpec(f"c-{number:02}", owner.environment))
    names = frozenset(f"c-{number:02}" for number in range(100_000) if number != 7)
    query = clients.ClientQuery("c-0", usernames=names, limit=5, offset=5)
    rows = runner.read(clients.list_clients, owner, query)
    assert [row.username for row in rows] == ["c-03", "c-02", "c-01", "c-00"]
    assert runner.read(clients.count_clients, owner, query) == 9
    empty = clients.ClientQuery(usernames=frozenset())
    assert runner.read(clients.count_clients, owner, empty) == 0
    odd = clients.ClientQuery(usernames=frozenset({"' OR 1=1 --", "c-01", ":x", "%(y)s"}))
    assert runner.read(clients.count_clients, owner, odd) == 1


def test_viewers_cannot_change_clients_and_pages_fit_a_phone(site: Site, enter: Enter) -> None:
    client = create_client(site, "agent-seen", tags=["agents"])
    phone = {"viewport": {"width": 390, "height": 844}}
    page = enter("viewer", f"{CLIENTS}?q=agent-seen", **phone)
    assert "Only members, admins and owners can do this." in page.inner_text("main")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("thead").bounding_box()["width"] <= 1  # type: ignore[index]
    passes(page)
    page.goto(site.url(f"{CLIENTS}/{client['id']}"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Edit", "New password", "Disable", "Delete"):
        assert page.get_by_role("button", name=name).is_disabled()
    passes(page)
    forms = site.forms(site.cookie("viewer"))
    for verb in (
        "edit",
        "password",
        "disable",
        "enable",
        "delete",
        "end-session",
        "free-client-id",
    ):
        assert forms.post(f"{CLIENTS}/{client['id']}/{verb}").status_code == 403
    assert forms.post(CLIENTS, username="agent-none", once="a" * 32).status_code == 403
    # The client does not exist in the other environment.
    assert site.forms().get(f"/o/acme/test/messaging/clients/{client['id']}").status_code == 404


# Keep this test last: it pauses the broker.
def test_the_page_says_that_the_broker_does_not_respond(site: Site, enter: Enter) -> None:
    create_client(site, "agent-unknown")
    page = enter("owner", f"{CLIENTS}?connected=now")
    site.server.pause_broker()
    try:
        wait_until(lambda: site.api.get("/v2/sessions").status_code == 503, 30)
        page.reload()
        page.get_by_text("The broker isn't responding").wait_for()
        assert page.locator("main .note").count() == 0
        passes(page)
        page.get_by_role("link", name="Show all clients").click()
        page.wait_for_selector("text=can't tell which clients are connected")
        assert page.locator("tbody tr").count() > 0
    finally:
        site.server.resume_broker()
