"""Deployments with members, and browser pages signed in as them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from tests.api.test_metrics import TOKEN, scraped
from tests.support.server import OWNER, PASSWORD, Server, running
from wardkey.dashboard.shell.auth import COOKIE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

AXE = Path(__file__).parents[1] / "node" / "node_modules" / "axe-core" / "axe.min.js"
KEYS = "/o/acme/live/settings/api-keys"


class Site:
    """A deployment shared by a module; `cookie` signs each role in once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._cookies: dict[str, str] = {}

    @cached_property
    def api(self) -> httpx.Client:
        """An API client signed in as the owner."""
        return self.server.owner(Wardkey_Organization="acme")

    def url(self, path: str) -> str:
        return f"{self.server.url}{path}"

    def email(self, role: str) -> str:
        return OWNER if role == "owner" else f"{role}@acme.example"

    def sign_in(self, role: str) -> str:
        """Sign in as a member with the role; return the session cookie's value."""
        client = self.server.owner() if role == "owner" else self.server.person(role)
        client.close()
        with self.server.client() as anyone:
            answer = anyone.post(
                "/sign-in", data={"email": self.email(role), "password": PASSWORD, "next": "/"}
            )
        assert answer.status_code == 303, answer.text
        match = re.match(rf"{COOKIE}=(\w+);", answer.headers["set-cookie"])
        assert match is not None
        return match[1]

    def cookie(self, role: str = "owner") -> str:
        if role not in self._cookies:
            self._cookies[role] = self.sign_in(role)
        return self._cookies[role]

    def forms(self, cookie: str = "") -> Forms:
        """Return a client that sends forms with the cookie, without a browser."""
        return Forms(self, cookie or self.cookie())

    def made(self, name: str, **more: object) -> Any:  # noqa: ANN401 - JSON
        answer = self.api.post("/v2/keys", json={"name": name, "type": "secret", **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def names(self) -> list[str]:
        return [key["name"] for key in self.api.get("/v2/keys?limit=200").json()["keys"]]


class Forms:
    """Fetches pages and sends forms over plain HTTP, with a session cookie and CSRF token."""

    def __init__(self, site: Site, cookie: str) -> None:
        self.site, self.cookie = site, cookie

    def get(self, path: str) -> httpx.Response:
        with self.site.server.client(Cookie=f"{COOKIE}={self.cookie}") as client:
            return client.get(path)

    def send(self, path: str, data: dict[str, Any], **headers: str) -> httpx.Response:
        """Post the form unchanged, without adding the CSRF token."""
        with self.site.server.client(Cookie=f"{COOKIE}={self.cookie}", **headers) as client:
            return client.post(path, data=data)

    def hidden(self, name: str, path: str = KEYS) -> str:
        match = re.search(rf'name="{name}" value="(\w+)"', self.get(path).text)
        assert match is not None
        return match[1]

    def post(self, path: str, **fields: Any) -> httpx.Response:  # noqa: ANN401 - texts or lists
        return self.send(path, {"csrf": self.hidden("csrf", "/account"), **fields})


Enter = Callable[..., "Page"]


@contextmanager
def site_in(folder: Path, **settings: object) -> Iterator[Site]:
    """Run a deployment and check that no page violated its content security policy."""
    with running(folder / "data", metrics_token=TOKEN, **settings) as server:
        there = Site(server)
        yield there
        there.api.close()
        assert scraped(server).get(("wardkey_csp_reports_total", ""), 0) == 0
        # The metric may lag behind the latest reports; the log does not.
        assert "content security policy" not in server.output


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as there:
        yield there


def hidden_part(locator: Locator) -> float:
    """Return how many pixels of the element the dialog's footer covers."""
    footer = locator.locator("xpath=ancestor::dialog").locator("footer")
    top: float = footer.evaluate("one => one.getBoundingClientRect().top")
    bottom: float = locator.evaluate("one => one.getBoundingClientRect().bottom")
    return bottom - top


def passes(page: Page) -> None:
    """Check the page with axe in both themes; the dark theme differs only in its colours."""
    page.emulate_media(color_scheme="light")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page, "color-contrast") == []


@pytest.fixture
def enter(site: Site, browser: Browser) -> Iterator[Enter]:
    """Open signed-in pages; errors and warnings in their consoles fail the test."""
    contexts = []
    faults: list[str] = []

    def begin(role: str = "owner", path: str = KEYS, *, cookie: str = "", **options: Any) -> Page:  # noqa: ANN401 - Playwright's
        context = browser.new_context(**options)
        contexts.append(context)
        # Granting fails outside a secure context.
        with suppress(Exception):
            context.grant_permissions(["clipboard-read", "clipboard-write"])
        if role:
            named = {"name": COOKIE, "value": cookie or site.cookie(role)}
            where = {"domain": "127.0.0.1", "path": "/", "secure": True, "httpOnly": True}
            context.add_cookies([{**named, **where}])  # type: ignore[typeddict-item]
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda message: _note(faults, message.type, message.text))
        page.goto(site.url(path))
        return page

    yield begin
    for context in contexts:
        context.close()
    assert faults == []


def _note(faults: list[str], kind: str, text: str) -> None:
    # The console also reports error statuses that a test expects.
    if kind in {"error", "warning"} and not text.startswith("Failed to load resource"):
        faults.append(text)


def violations(page: Page, *only: str) -> list[str]:
    """Return axe's violations on the page, for all rules or only the given ones."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    options = {"resultTypes": ["violations"], **({"runOnly": list(only)} if only else {})}
    results = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for violation in results["violations"]
        for node in violation["nodes"]
    ]
