from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.api.test_isolation import _ids
from tests.browser.conftest import Forms, Site
from wardkey.app import create_app

SCOPE_PATH = "/o/{slug}/{environment}"
# Valid values for every form, so only the id can be the reason for a refusal.
FIELDS = {
    "once": "3" * 32,
    "name": "taken",
    "expires": "keep",
    "grace": "now",
    "reason": "unspecified",
    "confirmation": "taken",
    "role": "viewer",
    "username": "taken",
    "session": f"ses_{'N' * 56}_1",
    "effect": "deny",
    "action": "both",
    "filter": "#",
    "subject_kind": "everyone",
    "priority": "7",
    "who": "client",
    "client_id": "any",
    "topic": "any",
    "project_id": "acme-app-2",
}


def routes(part: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Yield the method and path of every route of the application."""
    for route in part:
        for method in getattr(route, "methods", None) or ():
            yield method, route.path
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner.routes)


ROUTES = sorted(
    {(method, path) for method, path in routes(create_app().routes) if SCOPE_PATH in path}
)


@pytest.fixture(scope="module")
def theirs(site: Site) -> Forms:
    """Return the forms of another organization's owner."""
    done = site.server.cli_here("org", "create", "Globex", "--owner", "admin@globex.example")
    token = re.search(r"/setup/(\w+)", done.output)
    assert token is not None
    with site.server.client() as anyone:
        answer = anyone.post(f"/setup/{token[1]}", data={"password": "a password of hers"})
    match = re.match(r"[\w-]+=(\w+);", answer.headers["set-cookie"])
    assert match is not None
    return site.forms(match[1])


@pytest.fixture(scope="module")
def ids(site: Site) -> dict[str, str]:
    own_ids = _ids(site.api)
    return {**own_ids, "some_id": own_ids["user_id"], "verb": "edit"}


def events(site: Site) -> int:
    return len(site.api.get("/v2/audit-events?limit=200").json()["events"])


def test_404_for_pages_and_forms_under_another_organizations_slug(
    site: Site, theirs: Forms, ids: dict[str, str]
) -> None:
    assert len(ROUTES) > 60
    before = events(site)
    csrf = theirs.hidden("csrf", "/account")
    for method, path in ROUTES:
        there = path.format(slug="acme", environment="live", **ids)
        if method == "POST":
            answer = theirs.send(there, {"csrf": csrf, **FIELDS})
        else:
            answer = theirs.get(there)
        # Short paths redirect non-members without revealing anything.
        if answer.status_code == 303 and path.count("/") <= 3:
            continue
        assert (answer.status_code, "organization_not_found" in answer.text) == (404, True), there
    assert events(site) == before


def test_404_for_pages_and_forms_with_another_organizations_ids(
    site: Site, theirs: Forms, ids: dict[str, str]
) -> None:
    before = events(site)
    csrf = theirs.hidden("csrf", "/account")
    for method, path in ROUTES:
        there = path.format(slug="globex", environment="live", **ids)
        named = re.findall(r"{(\w+_id)}", path)
        if not named:
            continue
        if method == "POST":
            answer = theirs.send(there, {"csrf": csrf, **FIELDS})
        else:
            answer = theirs.get(there)
        if path.endswith("/members/{user_id}/remove"):
            # Removing a non-member succeeds, as for a member removed in another tab.
            assert answer.status_code == 303
            continue
        if method == "GET" and answer.status_code == 303:
            # A redirect to the page, which must not exist either.
            answer = theirs.get(answer.headers["location"])
            if answer.status_code == 200:
                assert ids[named[0]] not in answer.text
                continue
        assert answer.status_code == 404, (method, there, answer.text[-600:])
        assert re.search(r"<code>\w+_not_found</code>", answer.text), there
    assert events(site) == before
