from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from tests.support.server import Server, wait_until

BAD = {
    "nul": ('{"name":"a\\u0000b","type":"secret"}', 400, "invalid_name"),
    "surrogate": ('{"name":"a\\ud800b","type":"secret"}', 400, "invalid_name"),
    "surrogate text": (
        '{"name":"bad-1","type":"secret","description":"\\ud800"}',
        400,
        "invalid_text",
    ),
    "nul metadata": (
        '{"name":"bad-1","type":"secret","metadata":{"a":"\\u0000"}}',
        400,
        "invalid_metadata",
    ),
    "no JSON": ("{", 400, "malformed_json"),
    "no UTF-8": (b'{"name":"\xff"}', 400, "malformed_json"),
    "deep": ("[" * 100_000, 400, "malformed_json"),
    "huge number": ('{"name":1' + "0" * 5000 + "}", 400, "malformed_json"),
    "unknown field": ('{"name":"bad-1","type":"secret","typo":1}', 400, "invalid_request"),
    "too large": ('{"name":"' + "a" * 1_100_000 + '"}', 413, "body_too_large"),
    "past": (
        '{"name":"bad-1","type":"secret","expires_at":"2001-01-01T00:00:00Z"}',
        400,
        "expiry_in_past",
    ),
    "CIDR": (
        '{"name":"bad-1","type":"secret","allowed_addresses":["1.2.3.4/99"]}',
        400,
        "invalid_address",
    ),
    "permission": (
        '{"name":"bad-1","type":"secret","permissions":["nope"]}',
        400,
        "unknown_permission",
    ),
}


@pytest.mark.parametrize(("body", "status", "code"), BAD.values(), ids=BAD)
def test_bad_input_returns_a_problem_and_creates_nothing(
    server: Server, body: str | bytes, status: int, code: str
) -> None:
    with server.owner() as owner:
        before = owner.get("/v2/keys").json()["total"]
        answer = owner.post("/v2/keys", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert owner.get("/v2/keys").json()["total"] == before


def test_409_of_concurrent_duplicates_only_one_is_created(server: Server) -> None:
    def issue(_: int) -> httpx.Response:
        with server.owner() as owner:
            return owner.post("/v2/keys", json={"name": "live-twin", "type": "secret"})

    server.owner().close()
    with ThreadPoolExecutor(16) as pool:
        statuses = sorted(answer.status_code for answer in pool.map(issue, range(16)))
    assert statuses == [201] + [409] * 15


def test_an_idempotency_key_gives_concurrent_duplicates_the_same_response(server: Server) -> None:
    text = secrets.token_hex(32)

    def issue(_: int) -> httpx.Response:
        with server.owner(Idempotency_Key=text) as owner:
            return owner.post("/v2/keys", json={"name": "live-once", "type": "secret"})

    server.owner().close()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(issue, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    with server.owner(Idempotency_Key=text) as owner:
        other = owner.post("/v2/keys", json={"name": "live-other", "type": "secret"})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    with server.owner(Idempotency_Key="weak") as owner:
        weak = owner.post("/v2/keys", json={"name": "live-weak", "type": "secret"})
        assert (weak.status_code, weak.json()["code"]) == (400, "weak_idempotency_key")


def test_paging_while_keys_are_added_repeats_none(server: Server) -> None:
    with server.owner() as owner:
        for n in range(6):
            owner.post("/v2/keys", json={"name": f"live-page-{n}", "type": "publishable"})
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            params = {"search": "live-page", "limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = owner.get("/v2/keys", params=params).json()
            seen += [key["name"] for key in page["keys"]]
            name = f"live-page-late-{len(seen)}"
            owner.post("/v2/keys", json={"name": name, "type": "publishable"})
            cursor = page["next_cursor"]
        assert seen == [f"live-page-{n}" for n in reversed(range(6))]
        answer = owner.get("/v2/keys", params={"cursor": "AAAA"})
        assert answer.json()["code"] == "invalid_cursor"


def test_a_revoked_key_frees_its_name_and_cannot_be_rotated(server: Server) -> None:
    with server.owner() as owner:
        body = {"name": "live-again", "type": "secret"}
        first = owner.post("/v2/keys", json=body).json()["key"]["id"]
        twin = owner.post("/v2/keys", json=body | {"name": "LIVE-again"})
        assert (twin.status_code, twin.json()["code"]) == (409, "duplicate_name")
        receipt = owner.post(f"/v2/keys/{first}/revoke", json={"reason": "keyCompromise"}).json()
        # `took_ms`, the time until every verifier knew, differs in each response.
        again = owner.delete(f"/v2/keys/{first}").json()
        record = owner.get(f"/v2/receipts/{receipt['id']}").json()
        assert again | {"took_ms": 0} == record | {"took_ms": 0} == receipt | {"took_ms": 0}
        rotated = owner.post(f"/v2/keys/{first}/rotate", json={"grace": "now"})
        assert (rotated.status_code, rotated.json()["code"]) == (409, "key_revoked")
        assert owner.post("/v2/keys", json=body).status_code == 201


def test_no_worker_accepts_a_key_once_its_revocation_returned(server: Server) -> None:
    with server.owner() as owner, server.client(server.first_key) as asking:
        for n in range(20):
            made = owner.post("/v2/keys", json={"name": f"live-round-{n}", "type": "secret"}).json()
            secret = made["secret"]
            assert asking.post("/v2/keys/verify", json={"key": secret}).json()["valid"]
            owner.delete(f"/v2/keys/{made['key']['id']}")
            for _ in range(4):  # a fresh connection may land on either worker
                with server.client(secret) as fresh:
                    assert fresh.get("/v2/me").json()["code"] == "revoked"


def test_last_use_is_reported_within_two_seconds(server: Server) -> None:
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-used", "type": "secret"}).json()
        with server.client(made["secret"], User_Agent="probe/1") as used:
            assert used.get("/v2/me").status_code == 200
        where = f"/v2/keys/{made['key']['id']}"
        use = wait_until(lambda: owner.get(where).json()["secrets"][0]["last_used"], 2)
        assert (use["address"], use["user_agent"]) == ("127.0.0.1", "probe/1")
