"""Every form rejects a malformed body without a server error."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute

from tests.support.server import Server, running
from wardkey.app import create_app

BODIES = {
    "multipart without a boundary": ("multipart/form-data", b"x"),
    "multipart of noise": ("multipart/form-data; boundary=a", b"--a\r\n\r\n\xff--b"),
    "a file": (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--a--\r\n',
    ),
    "many fields": ("application/x-www-form-urlencoded", b"a=b&" * 100_000),
    "not UTF-8": ("application/x-www-form-urlencoded", b"csrf=\xff\xfe&email=%ff"),
    "JSON": ("application/json", b'{"csrf": 1}'),
    "no type": ("", b"csrf=1"),
    "an odd type": ("application/x-www-form-urlencoded; charset=é", b"csrf"),
}


def form_paths() -> list[str]:
    """Return the path of every dashboard form, with ids that do not exist."""
    routes = [route for route in create_app().routes if isinstance(route, APIRoute)]
    paths = {
        route.path
        for route in routes
        if "POST" in (route.methods or ()) and not route.path.startswith(("/v2/", "/hooks"))
    }
    own = {"/publish", "/oauth/token", "/csp-reports"}
    return sorted(re.sub(r"\{[^}]+\}", "nowhere", path) for path in paths - own)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


@pytest.mark.parametrize("name", BODIES)
def test_every_form_rejects_a_malformed_body(single: Server, name: str) -> None:
    kind, body = BODIES[name]
    headers = {b"Content-Type": kind.encode("latin-1")} if kind else {}
    paths = form_paths()
    assert len(paths) > 50
    with single.client() as browser:
        for path in paths:
            answer = browser.post(path, content=body, headers=headers)
            assert 300 <= answer.status_code < 500, (path, answer.status_code)
    assert "Traceback" not in single.output
