from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import KEYS, Enter, Site
from tests.browser.test_keys import NEW
from tests.support.server import PASSWORD, Server, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

pytestmark = pytest.mark.browser

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
PLACES = ("overview", "usage", "audit-log", "settings/api-keys")


def test_hostile_input_is_escaped_on_every_page(site: Site, enter: Enter) -> None:
    site.made("live-hostile", description=HOSTILE)
    made = site.made(f"x {HOSTILE}")
    site.api.delete(f"/v2/keys/{made['key']['id']}", params={"comment": HOSTILE})
    agent = f"<b>{HOSTILE}"
    with site.server.owner(User_Agent=agent, Wardkey_Organization="acme") as client:
        client.patch(f"/v2/keys/{site.made('live-agent')['key']['id']}", json={"name": HOSTILE})
    page = enter("owner", "/o/acme/live/overview")
    messages: list[str] = []

    def note(dialog: Dialog) -> None:
        messages.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    for place in PLACES:
        page.goto(site.url(f"/o/acme/live/{place}"))
        assert page.locator("main script, main img, main b > script").count() == 0
        for name in ("q", "actor", "target", "action", "from", "key"):
            answer = site.forms().get(f"/o/acme/live/{place}?{name}=%22%3E%3Cscript%3Ealert(1)")
            assert "<script>alert" not in answer.text
    page.goto(site.url("/o/acme/live/audit-log"))
    page.locator("details summary").first.click()
    assert HOSTILE in page.inner_text("main")
    assert messages == []


@pytest.mark.parametrize("place", PLACES)
def test_long_and_odd_filters_never_fail(site: Site, place: str) -> None:
    for text in ("x" * 4_000, "%E2%80%AEdesrever", "%F0%9F%94%91", "'; DROP TABLE keys; --", "%25"):
        for name in ("q", "actor", "target", "action", "from", "to", "before", "page", "days"):
            answer = site.forms().get(f"/o/acme/live/{place}?{name}={text}")
            assert answer.status_code == 200, (name, text)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:9", "[::1]:9", "169.254.169.254"])
def test_testing_a_provider_never_requests_a_private_address(site: Site, host: str) -> None:
    form = {"kind": "oidc", "issuer": f"https://{host}", "audiences": "app", "user_id": "sub"}
    answer = site.forms().post("/o/acme/live/messaging/providers/test", **form)
    match = re.search(r'class="failed">.*?<small>(.*?)</small>', answer.text, re.DOTALL)
    assert match is not None
    assert "public" in match[1]


def test_a_right_to_left_name_is_isolated_from_the_text_around_it(site: Site, enter: Enter) -> None:
    made = site.made("חשבונות-live")
    page = enter("owner")
    cell = page.locator("tr", has_text="חשבונות-live").locator("bdi").first
    assert cell.inner_text() == "חשבונות-live"
    page.goto(site.url(f"{KEYS}/{made['key']['id']}"))
    assert page.locator("h1 bdi").inner_text() == "חשבונות-live"


def test_concurrent_submissions_of_a_form_create_one_key(site: Site) -> None:
    forms = site.forms()
    sent = {**NEW, "name": "live-double-click", "once": forms.hidden("once")}
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(forms.post(KEYS, **sent).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 303, 303, 303]
    assert site.names().count("live-double-click") == 1


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/%0d%0aLocation:%20https://evil.example",
        "javascript:alert(1)",
        "https:evil.example",
        "/@evil.example/../..//evil.example",
        "\t//evil.example",
    ],
)
def test_no_form_redirects_to_another_site(site: Site, enter: Enter, elsewhere: str) -> None:
    with site.server.client() as anyone:
        form = {"email": site.email("owner"), "password": PASSWORD, "next": elsewhere}
        for path, sent in (("/sign-in", form), ("/theme", {"theme": "dark", "next": elsewhere})):
            answer = anyone.post(path, data=sent)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/")
            assert not answer.headers["location"].startswith(("//", "/\\"))
            assert "\n" not in answer.headers["location"]
    page = enter("")
    page.goto(site.url("/sign-in"))
    page.goto(page.url + f"?next={elsewhere}")
    assert page.url.startswith(site.server.url)


class Frames(BaseHTTPRequestHandler):
    """A page of another site that embeds a dashboard page in a frame."""

    inside = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"<iframe src='{self.inside}'></iframe>".encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_other_sites_cannot_frame_a_page(
    site: Site, browser: Browser, start: Callable[..., Server]
) -> None:
    for place in (*PLACES, "nowhere"):
        headers = site.forms().get(f"/o/acme/live/{place}").headers
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
    # Its own server: the browser's CSP report would fail the shared one.
    server = start()
    Frames.inside = f"{server.url}/sign-in"
    with ThreadingHTTPServer(("127.0.0.1", 0), Frames) as other_site:
        threading.Thread(target=other_site.serve_forever).start()
        page = browser.new_page()
        page.goto(f"http://localhost:{other_site.server_port}/")
        wait_until(lambda: '"violated-directive":"frame-ancestors"' in server.output)
        assert "Sign in" not in (page.frames[1].locator("body").text_content() or "")
        page.close()
        other_site.shutdown()


def test_every_page_redirects_an_ended_session_to_sign_in(site: Site, enter: Enter) -> None:
    cookie = site.sign_in("admin")
    page = enter("admin", "/o/acme/live/audit-log", cookie=cookie)
    page.goto(site.url("/account"))
    page.get_by_role("button", name="Sign out everywhere").click()
    page.wait_for_url("**/sign-in**")
    for place in PLACES:
        page.goto(site.url(f"/o/acme/live/{place}"))
        assert "/sign-in?next=%2Fo%2Facme%2Flive" in page.url
    answer = site.forms(cookie).send("/o/acme/live/audit-log/check", {"csrf": "x"})
    assert answer.status_code == 303
    assert "signed-out-midway" in answer.headers["location"]


def test_413_a_page_on_another_origin_can_read_the_error(site: Site, browser: Browser) -> None:
    page = browser.new_page()
    try:
        result = page.evaluate(
            """async url => {
                const body = 'x'.repeat(3_000_000)
                const answer = await fetch(url, {method: 'POST', body})
                return [answer.status, (await answer.json()).code]
            }""",
            site.url("/publish"),
        )
    finally:
        page.close()
    assert result == [413, "body_too_large"]
