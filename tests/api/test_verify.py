from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import Server, wait_until
from wardkey.domain.secret import ALPHABET, Environment, SecretKind, generate
from wardkey.domain.times import iso


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


def issue(owner: httpx.Client, name: str, **more: object) -> dict[str, Any]:
    answer = owner.post("/v2/keys", json={"name": name, "type": "secret", **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def verdict(server: Server, text: str, **fields: object) -> dict[str, Any]:
    with server.client(server.first_key) as client:
        answer = client.post("/v2/keys/verify", json={"key": text, **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_each_reason_has_its_code(server: Server, owner: httpx.Client) -> None:
    made = issue(
        owner,
        "live-verdict-reasons",
        permissions=["keys:verify"],
        allowed_addresses=["203.0.113.0/24", "2001:db8::/32"],
    )
    text, key_id = made["secret"], made["key"]["id"]
    here = {"address": "203.0.113.9"}
    assert verdict(server, text, **here)["code"] == "valid"
    assert verdict(server, text, address="2001:db8::7")["code"] == "valid"
    assert verdict(server, text, address="198.51.100.1")["code"] == "address_not_allowed"
    assert verdict(server, text)["code"] == "address_not_allowed"
    assert verdict(server, text, permissions=["acl:read"], **here)["code"] == "not_permitted"
    assert verdict(server, text, type="publishable", **here)["code"] == "not_permitted"
    result = verdict(server, text, origin="https://app.example.com", **here)
    assert result["code"] == "origin_not_allowed"
    assert "browser" in result["detail"]
    assert verdict(server, text[:-1])["code"] == "malformed"
    assert verdict(server, "")["code"] == "malformed"
    owner.post(f"/v2/keys/{key_id}/disable")
    assert verdict(server, text, **here)["code"] == "disabled"
    owner.post(f"/v2/keys/{key_id}/enable")
    assert verdict(server, text, **here)["code"] == "valid"
    owner.delete(f"/v2/keys/{key_id}")
    assert verdict(server, text, **here)["code"] == "revoked"


def test_an_unauthenticated_caller_cannot_detect_an_existing_kid(
    server: Server, owner: httpx.Client
) -> None:
    made = issue(owner, "live-verdict-kid")
    other = generate(SecretKind.SECRET, Environment.LIVE).text
    body = made["secret"][:21] + other[21:-6]
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    result = verdict(server, body + digits)
    assert set(result) == {"valid", "code", "detail", "as_of"}
    assert result["code"] == "unknown"


def test_expiry_and_grace_period_end_at_their_second(server: Server, owner: httpx.Client) -> None:
    end = int(time.time() * 1000) + 1_500
    expiring = issue(owner, "live-verdict-expiry", expires_at=iso(end))["secret"]
    rotating = issue(owner, "live-verdict-grace")
    answer = owner.post(f"/v2/keys/{rotating['key']['id']}/rotate", json={"grace": iso(end)}).json()
    assert verdict(server, expiring)["code"] == "valid"
    assert verdict(server, rotating["secret"])["code"] == "valid"

    def over() -> bool:
        now = int(time.time() * 1000)
        codes = {verdict(server, text)["code"] for text in (expiring, rotating["secret"])}
        assert now < end or codes == {"expired"}
        return codes == {"expired"}

    wait_until(over)
    assert int(time.time() * 1000) >= end
    assert verdict(server, answer["secret"])["code"] == "valid"


def test_a_publishable_key_is_limited_to_its_origins(server: Server, owner: httpx.Client) -> None:
    text = issue(
        owner,
        "live-verdict-page",
        type="publishable",
        allowed_origins=["https://app.example.com", "https://*.example.org"],
    )["secret"]
    assert verdict(server, text, origin="https://app.example.com")["code"] == "valid"
    assert verdict(server, text, origin="https://a.example.org")["code"] == "valid"
    for origin in ("https://evil.example.net", "https://example.org", "null", ""):
        assert verdict(server, text, origin=origin)["code"] == "origin_not_allowed", origin


def test_a_test_key_is_rejected_in_live_with_an_explanation(
    server: Server, owner: httpx.Client
) -> None:
    text = issue(owner, "test-verdict", environment="test")["secret"]
    result = verdict(server, text)
    assert result["code"] == "wrong_environment"
    assert "use the live key" in result["detail"]
    with server.client(text) as client:
        assert client.get("/v2/keys").json()["total"] == 1


def test_a_rate_limit_is_returned_with_the_wait(server: Server, owner: httpx.Client) -> None:
    text = issue(owner, "live-verdict-rate", rate_limit={"limit": 1, "period_s": 3600, "burst": 4})[
        "secret"
    ]
    # On PostgreSQL each of the two workers has half the burst, and a client can't choose one.
    codes = [verdict(server, text)["code"] for _ in range(40)]
    assert codes[:2] == ["valid", "valid"]
    assert codes.count("valid") <= 4
    result = next(result for _ in range(40) if (result := verdict(server, text))["code"] != "valid")
    assert result["limits"]["retry_after_s"] > 0
    with server.client(text) as client:
        refused = [client.get("/v2/auth") for _ in range(4)][-1]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["ratelimit-policy"] == '"key";q=1;w=3600'


def test_a_batch_is_answered_item_by_item(server: Server, owner: httpx.Client) -> None:
    text = issue(owner, "live-verdict-batch")["secret"]
    with server.client(server.first_key) as client:
        answer = client.post("/v2/keys/verify-batch", json={"items": [{"key": text}, {"key": "x"}]})
        assert [item["code"] for item in answer.json()["items"]] == ["valid", "malformed"]
        many = client.post("/v2/keys/verify-batch", json={"items": [{"key": text}] * 101})
    assert many.json()["code"] == "too_many_items"


IDENTITY = {
    "wardkey-verdict", "wardkey-key-id", "wardkey-kid", "wardkey-key-name", "wardkey-key-type",
    "wardkey-environment", "wardkey-organization", "wardkey-organization-slug",
    "wardkey-permissions", "wardkey-expires-at",
}  # fmt: skip


def test_forward_auth_always_sends_every_identity_header(
    server: Server, owner: httpx.Client
) -> None:
    text = issue(owner, "live-verdict-proxy")["secret"]
    browser = {"Sec-Fetch-Site": "cross-site"}
    forged = {"Wardkey-Key-Id": "key_forged"}
    with server.client() as client:
        bearer = {"Authorization": f"Bearer {text}"}
        cases = [
            (client.get("/v2/auth", headers=bearer | forged), 200, "valid"),
            (client.get("/v2/auth", headers={"wardkey-api-key": text}), 200, "valid"),
            (client.get("/v2/auth", headers=forged), 401, "missing_credentials"),
            (client.get("/v2/auth", headers=bearer | browser), 403, "origin_not_allowed"),
            (client.get("/v2/auth?environment=test", headers=bearer), 403, "wrong_environment"),
            (client.get("/v2/auth?type=publishable", headers=bearer), 403, "not_permitted"),
            (client.get("/v2/auth?permission=keys:write", headers=bearer), 403, "not_permitted"),
            (
                client.get("/v2/auth?organization=other", headers=bearer),
                404,
                "organization_not_found",
            ),
            (
                client.get("/v2/auth", headers=bearer | {"wardkey-api-key": server.first_key}),
                400,
                "ambiguous_credentials",
            ),
        ]
    for answer, status, code in cases:
        assert (answer.status_code, answer.headers["wardkey-verdict"]) == (status, code)
        assert set(answer.headers) >= IDENTITY
        assert answer.headers["wardkey-key-id"] != "key_forged"


def test_a_secret_key_from_a_browser_is_rejected_and_audited(
    server: Server, owner: httpx.Client
) -> None:
    made = issue(owner, "live-verdict-browser", permissions=["keys:read"])
    with server.client(made["secret"]) as client:
        answer = client.get("/v2/keys", headers={"Origin": "https://app.example.com"})
        assert (answer.status_code, answer.json()["code"]) == (403, "secret_key_in_browser")

    def is_audited() -> bool:
        events = owner.get("/v2/audit-events", params={"action": "key.exposed"}).json()["events"]
        return any(event["actor_id"] == made["key"]["id"] for event in events)

    wait_until(is_audited)


def test_a_rejected_attempt_is_audited_once_a_minute(server: Server, owner: httpx.Client) -> None:
    made = issue(owner, "live-verdict-refused", permissions=["keys:read"])
    with server.client(made["secret"]) as client:
        for _ in range(5):
            assert client.post("/v2/keys/verify", json={"key": "x"}).status_code == 403
    params = {"action": "attempt.refused", "actor_id": made["key"]["id"]}
    events = wait_until(lambda: owner.get("/v2/audit-events", params=params).json()["events"])
    assert 1 <= len(events) <= 2 * 2
    assert events[0]["details"]["what"] == "verify_key: not_permitted"


def test_a_service_key_can_only_verify_but_in_any_organization(server: Server) -> None:
    made = server.cli("service-key", "create", "probe", "--allow", "127.0.0.1")
    bound = server.cli("service-key", "create", "elsewhere", "--allow", "203.0.113.1")
    assert made.returncode == 0, made.stderr
    with server.client(made.stdout.strip()) as client:
        result = client.post("/v2/keys/verify", json={"key": server.first_key}).json()
        assert result["code"] == "valid"
        assert result["organization"]["name"] == "Acme"
        assert client.get("/v2/keys").status_code == 403
        assert client.post("/v2/keys", json={"name": "n", "type": "secret"}).status_code == 403
    with server.client(bound.stdout.strip()) as client:
        answer = client.post("/v2/keys/verify", json={"key": server.first_key})
        assert answer.json()["code"] == "address_not_allowed"
    kid = made.stdout.split("_")[1]
    assert server.cli("service-key", "revoke", kid).returncode == 0
    with server.client(made.stdout.strip()) as client:
        answer = client.post("/v2/keys/verify", json={"key": server.first_key})
        assert answer.json()["code"] == "revoked"


def test_a_key_in_the_url_and_a_mistyped_filter_are_rejected(server: Server) -> None:
    with server.client(server.first_key) as client:
        answer = client.get("/v2/keys", params={"api_key": server.first_key})
        assert answer.json()["code"] == "credential_in_url"
        answer = client.get("/v2/keys", params={"unused_for_days": "3"})
        assert answer.json()["code"] == "invalid_request"
        assert "unused_days" in answer.json()["detail"]


@pytest.mark.parametrize("prefix", ["eyJ", "eyJhbGciOiJ", "eyA", "ewo", "ew0K", "ewkJ"])
def test_a_prefix_that_json_web_tokens_start_with_is_rejected(
    owner: httpx.Client, prefix: str
) -> None:
    refusal = owner.post("/v2/import-prefixes", json={"prefix": prefix})
    assert refusal.json()["code"] == "invalid_prefix"
    assert "JSON Web Tokens" in refusal.json()["detail"]


@pytest.mark.parametrize("prefix", ["sk_", "pk_live", "ut_abc", "wht", "wsk_1", "tkn_"])
def test_a_prefix_that_conflicts_with_wardkeys_own_is_rejected(
    owner: httpx.Client, prefix: str
) -> None:
    refusal = owner.post("/v2/import-prefixes", json={"prefix": prefix})
    assert refusal.json()["code"] == "invalid_prefix"


def test_an_imported_key_keeps_working(server: Server, owner: httpx.Client) -> None:
    text = "acme_9f2c7d1e5b8a4036c7d1e5b8a40369f2"
    body = {
        "name": "live-legacy-reports",
        "environment": "live",
        "prefix": "acme_",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "entropy_bits": 128,
    }
    early = owner.post("/v2/keys/import", json=body)
    assert early.json()["code"] == "prefix_not_found"
    assert owner.post("/v2/import-prefixes", json={"prefix": "acme_"}).status_code == 201
    overlap = owner.post("/v2/import-prefixes", json={"prefix": "acme_x"})
    assert overlap.json()["code"] == "duplicate_prefix"
    weak = owner.post("/v2/keys/import", json=body | {"entropy_bits": 64})
    assert weak.json()["code"] == "weak_import"
    assert owner.post("/v2/keys/import", json=body).status_code == 201
    again = owner.post("/v2/keys/import", json=body | {"name": "live-legacy-two"})
    assert again.json()["code"] == "duplicate_import"
    assert verdict(server, text)["name"] == "live-legacy-reports"
    assert verdict(server, text + "x")["code"] == "malformed"
    in_use = owner.delete("/v2/import-prefixes/acme_")
    assert in_use.json()["code"] == "prefix_in_use"
