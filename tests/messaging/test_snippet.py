"""The example page of the token exchange guide, run in Chromium."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from demo.issuer import Issuer
from tests.messaging.test_foreign import NODE, Site
from tests.support.people import People
from tests.support.ports import free_addresses
from tests.support.server import Server, running, wait_until

if TYPE_CHECKING:  # takes a second to import
    from playwright.sync_api import Page, Request

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "exchange.md"
MQTT_JS = NODE / "node_modules" / "mqtt" / "dist" / "mqtt.esm.js"


class Stage(NamedTuple):
    server: Server
    people: People
    site: str


def snippet(**replaced: str) -> str:
    """Return the guide's script with its addresses and key replaced by those of the test."""
    (script,) = re.findall(r'<script type="module">\n(.*?)</script>', GUIDE.read_text(), re.DOTALL)
    for old, new in replaced.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    return str(script)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    data, issuer = tmp_path_factory.mktemp("snippet") / "data", Issuer()
    files: dict[str, tuple[str, bytes]] = {}
    names = ("listen", "mqtt_listen", "websocket_listen")
    addresses = dict(zip(names, free_addresses(3), strict=True))
    with (
        running(data, no_messaging=0, private_issuers=1, **addresses) as server,
        server.owner() as owner,
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, files)) as site,
    ):
        threading.Thread(target=site.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{site.server_address[1]}"
        people = People(server, issuer, "oidc")
        rule = {
            "priority": 1,
            "subject": {"kind": "everyone"},
            "filter": "people/{claim.user_id}/#",
            "action": "both",
            "effect": "allow",
        }
        assert owner.post("/v2/acl/rules", json=rule).status_code == 201
        body = {"name": "live-page", "type": "publishable", "allowed_origins": [origin]}
        key = owner.post("/v2/keys", json=body).json()["secret"]
        script = snippet(
            **{
                "https://keys.acme.example": server.url,
                "pk_live_…": key,
                # The shortest life that a grant can have.
                'provider: "oidc", token': 'provider: "oidc", token, ttl: 30',
                "wss://keys.acme.example:8984/mqtt": f"ws://127.0.0.1:{server.websocket_port}/mqtt",
            }
        )
        # A module's declarations are private, so the module itself exposes them to the test.
        page = f"""<!doctype html><link rel="icon" href="data:,"><script>
            const signedInToken = async () => {people.token("ada")!r};
            </script><script type="module">{script}
            Object.assign(window, {{ client, credentials, signedInToken }});</script>"""
        files["/"] = ("text/html; charset=utf-8", page.encode())
        files["/mqtt.esm.js"] = ("text/javascript", MQTT_JS.read_bytes())
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield Stage(server, people, origin)
        site.shutdown()
    issuer.close()


@pytest.mark.browser
def test_the_guides_page_signs_in_subscribes_and_limits_its_requests(
    stage: Stage, page: Page
) -> None:
    console: list[str] = []
    requests: list[Request] = []
    page.on("console", lambda message: console.append(message.text))
    page.on(
        "request", lambda request: requests.append(request) if request.method == "POST" else None
    )
    page.goto(stage.site)
    page.wait_for_function("window.client && window.client.connected")
    with stage.server.owner() as owner:

        def listening() -> list[dict[str, str]]:
            live = owner.get("/v2/sessions").json()["sessions"]
            return [session for session in live if session["subscriptions"]]

        (session,) = wait_until(listening)
        assert session["username"].startswith("ada_")
    message = {"topic": "people/ada/seat", "payload": "4", "qos": 1}
    with stage.server.client(stage.server.first_key) as key:
        assert key.post("/publish", json=message).status_code == 200
    # Console messages are delivered only during a call to the page.
    wait_until(lambda: page.evaluate("1") and "people/ada/seat 4" in console)
    assert len(requests) == 1
    result = page.evaluate("""async () => {
        const token = await signedInToken();
        const [one, two] = await Promise.all([credentials(token), credentials(token)]);
        return [one.token_id === two.token_id, one.mqtt_username];
    }""")
    assert result == [True, session["username"]]
    assert len(requests) == 2
    first, second = (request.timing["startTime"] for request in requests)
    # Five seconds by the page's clock; Chromium may start the first request a little later.
    assert second - first >= 4_500
    # A page can also read the reason for a refusal.
    wrong = page.evaluate("credentials('no token').catch((fault) => fault.message)")
    assert wrong.startswith("invalid_token: ")


CONNECTED = "window.client && window.client.connected"


def wait_for_message(stage: Stage, page: Page, word: str) -> None:
    """Send a message repeatedly until the page has shown it."""
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    message = {"topic": "people/ada/seat", "payload": word, "qos": 1}

    def is_heard() -> bool:
        with stage.server.client(stage.server.first_key) as key:
            assert key.post("/publish", json=message).status_code == 200
        page.wait_for_timeout(100)
        return f"people/ada/seat {word}" in console

    wait_until(is_heard, 30)


@pytest.mark.browser
def test_the_guides_page_reconnects_after_its_grant_expires_and_after_a_restart(
    stage: Stage, page: Page
) -> None:
    page.goto(stage.site)
    page.wait_for_function(CONNECTED)
    wait_for_message(stage, page, "first")
    # The grant expires while the page cannot get another, as after sleep without a network.
    page.route("**/v2/tokens/exchange", lambda route: route.abort())
    page.evaluate("""() => { window.refused = false;
        client.on("error", (error) => { if (error.code === 5) window.refused = true; }); }""")
    page.wait_for_function("window.refused", timeout=60_000)
    page.unroute("**/v2/tokens/exchange")
    page.wait_for_function(CONNECTED, timeout=60_000)
    wait_for_message(stage, page, "after the end")
    assert stage.server.stop() == 0
    page.wait_for_function("!client.connected")
    stage.server.start()
    page.wait_for_function(CONNECTED, timeout=60_000)
    wait_for_message(stage, page, "after a restart")
