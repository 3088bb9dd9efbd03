"""A server with people in it, and pages in which they are signed in."""

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
    """One deployment for a module; `cookie` signs somebody in once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._cookies: dict[str, str] = {}

    @cached_property
    def api(self) -> httpx.Client:
        """The owner at the API."""
        return self.server.owner(Wardkey_Organization="acme")

    def url(self, path: str) -> str:
        return f"{self.server.url}{path}"

    def email(self, role: str) -> str:
        return OWNER if role == "owner" else f"{role}@acme.example"

    def sign_in(self, role: str) -> str:
        """Sign in as a person with that role; return the cookie's text."""
        client = self.server.owner() if role == "owner" else self.server.person(role)
        client.close()
        with self.server.client() as anyone:
            answer = anyone.post(
                "/sign-in", data={"email": self.email(role), "password": PASSWORD, "next": "/"}
            )
        assert answer.status_code == 303, answer.text
        found = re.match(rf"{COOKIE}=(\w+);", answer.headers["set-cookie"])
        assert found is not None
        return found[1]

    def cookie(self, role: str = "owner") -> str:
        if role not in self._cookies:
            self._cookies[role] = self.sign_in(role)
        return self._cookies[role]

    def forms(self, cookie: str = "") -> Forms:
        """Send forms as a browser with that cookie would, without one."""
        return Forms(self, cookie or self.cookie())

    def made(self, name: str, **more: object) -> Any:  # noqa: ANN401 - JSON
        answer = self.api.post("/v2/keys", json={"name": name, "type": "secret", **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def names(self) -> list[str]:
        return [one["name"] for one in self.api.get("/v2/keys?limit=200").json()["keys"]]


class Forms:
    """Pages and forms over plain HTTP, with a session's cookie and token."""

    def __init__(self, site: Site, cookie: str) -> None:
        self.site, self.cookie = site, cookie

    def get(self, path: str) -> httpx.Response:
        with self.site.server.client(Cookie=f"{COOKIE}={self.cookie}") as client:
            return client.get(path)

    def send(self, path: str, data: dict[str, Any], **headers: str) -> httpx.Response:
        """Post a form as it is, without the session's token."""
        with self.site.server.client(Cookie=f"{COOKIE}={self.cookie}", **headers) as client:
            return client.post(path, data=data)

    def hidden(self, name: str, path: str = KEYS) -> str:
        found = re.search(rf'name="{name}" value="(\w+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, **fields: Any) -> httpx.Response:  # noqa: ANN401 - texts or lists
        return self.send(path, {"csrf": self.hidden("csrf", "/account"), **fields})


Enter = Callable[..., "Page"]


@contextmanager
def site_in(folder: Path, **settings: object) -> Iterator[Site]:
    """Run a deployment whose pages try nothing that their policy forbids."""
    with running(folder / "data", metrics_token=TOKEN, **settings) as server:
        there = Site(server)
        yield there
        there.api.close()
        assert scraped(server).get(("wardkey_csp_reports_total", ""), 0) == 0
        # What came last may not be told as a metric yet.
        assert "content security policy" not in server.output


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as there:
        yield there


def hidden_part(found: Locator) -> float:
    """Return by how many pixels a dialog's footer covers what is found in it."""
    footer = found.locator("xpath=ancestor::dialog").locator("footer")
    top: float = footer.evaluate("one => one.getBoundingClientRect().top")
    bottom: float = found.evaluate("one => one.getBoundingClientRect().bottom")
    return bottom - top


def passes(page: Page) -> None:
    """Hold the page to axe in both themes, as it stands; only its colours differ in the second."""
    page.emulate_media(color_scheme="light")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page, "color-contrast") == []


@pytest.fixture
def enter(site: Site, browser: Browser) -> Iterator[Enter]:
    """Open pages in which somebody is signed in; what a page's console complains of fails."""
    contexts = []
    faults: list[str] = []

    def begin(role: str = "owner", path: str = KEYS, *, cookie: str = "", **options: Any) -> Page:  # noqa: ANN401 - Playwright's
        context = browser.new_context(**options)
        contexts.append(context)
        # Without a secure context it cannot be granted.
        with suppress(Exception):
            context.grant_permissions(["clipboard-read", "clipboard-write"])
        if role:
            named = {"name": COOKIE, "value": cookie or site.cookie(role)}
            where = {"domain": "127.0.0.1", "path": "/", "secure": True, "httpOnly": True}
            context.add_cookies([{**named, **where}])  # type: ignore[typeddict-item]
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda said: _note(faults, said.type, said.text))
        page.goto(site.url(path))
        return page

    yield begin
    for context in contexts:
        context.close()
    assert faults == []


def _note(faults: list[str], kind: str, text: str) -> None:
    # The status of a page that was refused on purpose is no fault of the page.
    if kind in {"error", "warning"} and not text.startswith("Failed to load resource"):
        faults.append(text)


def violations(page: Page, *only: str) -> list[str]:
    """Return what axe finds wrong with the page as it stands, by all its rules or by some."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    options = {"resultTypes": ["violations"], **({"runOnly": list(only)} if only else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
