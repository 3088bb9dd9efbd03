"""Unexpected errors are a page for browsers and JSON for API clients."""

from __future__ import annotations

import re
from collections.abc import Callable

from sqlalchemy import text

from tests.support.database import database_of
from tests.support.server import OWNER, PASSWORD, Server


def test_500_an_unexpected_error_page_names_the_request_id_in_the_log(
    start: Callable[..., Server],
) -> None:
    server = start()
    server.owner().close()
    with server.client() as browser:
        signed_in = browser.post(
            "/sign-in", data={"email": OWNER, "password": PASSWORD, "next": "/account"}
        )
        cookie = signed_in.headers["set-cookie"].partition(";")[0]
    with server.client(Cookie=cookie) as browser:
        assert OWNER in browser.get("/account").text
        with database_of(server) as connection:
            connection.execute(text("DROP TABLE passkeys"))
            connection.execute(text("DROP TABLE receipts"))
        broken = browser.get("/account")
    assert broken.status_code == 500
    assert broken.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in broken.headers["content-security-policy"]
    assert 'href="/"' in broken.text
    # The page reveals neither the user nor the cause.
    assert OWNER not in broken.text
    assert "passkeys" not in broken.text
    (reference,) = re.findall(r"<code>(req_[0-9a-f]{16})</code>", broken.text)
    assert reference == broken.headers["wardkey-request-id"]
    assert f"request {reference} failed" in server.output
    with server.client(server.first_key) as program:
        problem = program.get("/v2/receipts/rcp_any")
    assert (problem.status_code, problem.headers["content-type"]) == (
        500,
        "application/problem+json",
    )
