"""What breaks where nobody expected it is told as a page to a browser, as JSON to a program."""

from __future__ import annotations

import re
from collections.abc import Callable

from sqlalchemy import text

from tests.support.database import database_of
from tests.support.server import OWNER, PASSWORD, Server


def test_500_an_unexpected_fault_is_a_page_that_names_its_line_in_the_log(
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
    # Nothing of the session, nor of what broke.
    assert OWNER not in broken.text
    assert "passkeys" not in broken.text
    (reference,) = re.findall(r"<code>(req_[0-9a-f]{16})</code>", broken.text)
    assert reference == broken.headers["wardkey-request-id"]
    assert f"request {reference} failed" in server.output
    with server.client(server.first_key) as program:
        told = program.get("/v2/receipts/rcp_any")
    assert (told.status_code, told.headers["content-type"]) == (500, "application/problem+json")
