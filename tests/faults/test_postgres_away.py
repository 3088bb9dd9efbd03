from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest

from tests.support.postgres import Postgres, running_postgres
from tests.support.server import Server, wait_until

AWAY = {"storage_unreachable", "storage_busy", "verifier_unavailable"}


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with running_postgres() as own:
        yield own


def ask(client: httpx.Client, method: str, path: str, body: object = None) -> tuple[int, str]:
    answer = client.request(method, path, json=body)
    document = answer.json()
    return answer.status_code, document.get("code", "") if isinstance(document, dict) else ""


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_503_while_postgresql_is_down_and_nothing_is_half_done(
    start: Callable[..., Server], own_postgres: Postgres, how: str
) -> None:
    server = start(database_url=own_postgres.create_database(), workers=2)
    with server.client(server.first_key) as client, server.owner() as owner:
        made = client.post("/v2/keys", json={"name": "live-before", "type": "secret"}).json()
        key_id, text = made["key"]["id"], made["secret"]
        before = client.get(f"/v2/keys/{key_id}").json()
        (own_postgres.stop if how == "stop" else own_postgres.crash)()

        def away() -> bool:
            # An earlier lease may remain valid for its two seconds.
            return ask(client, "POST", "/v2/keys/verify", {"key": text})[0] == 503

        wait_until(away)
        asked = [
            ask(client, "POST", "/v2/keys", {"name": "live-while", "type": "secret"}),
            ask(client, "POST", f"/v2/keys/{key_id}/revoke"),
            ask(client, "PATCH", f"/v2/keys/{key_id}", {"description": "while away"}),
            ask(client, "GET", "/v2/keys"),
            ask(client, "GET", "/v2/auth"),
            ask(owner, "GET", "/v2/keys"),
            ask(owner, "POST", f"/v2/keys/{key_id}/rotate"),
            ask(owner, "GET", "/readyz"),
        ]
        assert {status for status, _ in asked} == {503}, asked
        assert {code for _, code in asked} <= AWAY, asked
        assert owner.get("/v2/keys").headers["retry-after"]
        assert owner.get("/healthz").status_code == 200

        own_postgres.start()

        def totals() -> list[int | None]:
            """Send requests on new connections, so both workers answer."""
            found = []
            for _ in range(8):
                with server.client(server.first_key) as fresh:
                    found.append(fresh.get("/v2/keys").json().get("total"))
            return found

        wait_until(lambda: None not in totals())
        assert set(totals()) == {2}
        after = owner.get(f"/v2/keys/{key_id}").json()
        for shown in (before, after):
            del shown["secrets"][0]["last_used"]
        assert after == before
        assert client.get("/v2/audit-events/verify").json()["holds"]
        again = client.post("/v2/keys", json={"name": "live-while", "type": "secret"})
        assert again.status_code == 201, again.text
        assert ask(client, "POST", f"/v2/keys/{key_id}/revoke")[0] == 200

        def verdict() -> str | None:
            """Return the code, or None while the database is too slow to answer in time."""
            code: str = client.post("/v2/keys/verify", json={"key": text}).json()["code"]
            return None if code == "verifier_unavailable" else code

        assert wait_until(verdict) == "revoked"
