"""Fixtures of a real deployment: an open runner, or a running server, on both storages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.server import Server, running
from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.config import Config, load_config
from wardkey.deployment import open_deployment
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment

if TYPE_CHECKING:  # the first here would keep pytest from rewriting its asserts; both take time
    from playwright.sync_api import Browser, Page

    from tests.support.postgres import Postgres

pytest_plugins = ["tests.support.postgres"]

# Where it is set, every process that a test starts would compile Wardkey anew, in 0.4 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

STORAGES = ("sqlite", "postgresql")
# Folders whose files take a second or two each, where others take up to a minute.
QUICK = ("domain", "docs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the quick files for the end, so that no process is alone with a long one then."""
    items.sort(key=lambda item: item.path.parent.name in QUICK)


@pytest.fixture(params=STORAGES)
def storage_url(request: pytest.FixtureRequest) -> str:
    """Give a database URL: empty for the embedded default, or a fresh PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create_database()


@pytest.fixture
def config(tmp_path: Path, storage_url: str) -> Config:
    """Give settings of a new deployment in a folder of its own."""
    return load_config({}, {"data_dir": tmp_path / "data", "database_url": storage_url})


@pytest.fixture
def runner(config: Config) -> Iterator[Runner]:
    """Open an empty deployment without any server."""
    with open_deployment(config) as opened:
        yield opened


@pytest.fixture
def owner(runner: Runner) -> Principal:
    """Give the owner of the organization Acme, made in that deployment."""
    made, user = runner.write(organizations.create, operator(), "Acme", "owner@acme.example")
    return member(
        user_id=user,
        email="owner@acme.example",
        org_id=made.id,
        role=Role.OWNER,
        environment=Environment.LIVE,
    )


@pytest.fixture(scope="module", params=STORAGES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Run `wardkey up` with two workers, shared by a module's tests."""
    url = ""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database()
    with running(tmp_path_factory.mktemp("server") / "data", database_url=url, workers=2) as up:
        yield up


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of a test's own, with any settings; all are stopped at its end."""
    started: list[Server] = []

    def begin(
        data_dir: Path | None = None, around: Mapping[str, str] | None = None, **settings: object
    ) -> Server:
        up = Server(data_dir or tmp_path / "data", around, **settings)
        started.append(up)
        up.start()
        return up

    yield begin
    for up in started:
        up.kill()


# Not for the session: while it is open, `asyncio.run` finds a loop running in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run Debian's Chromium, which finds nobody but this machine, for a module's tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-component-update",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a page without cookies of others; an error that its scripts do not catch fails."""
    faults: list[object] = []
    context = browser.new_context()
    opened = context.new_page()
    # Playwright leaves a mark on what it is given, which no method of a list takes.
    opened.on("pageerror", lambda fault: faults.append(fault))  # noqa: PLW0108
    yield opened
    context.close()
    assert faults == []
