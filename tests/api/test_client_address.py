"""A client's address is parsed from every proxy format, and clients can't forge it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server, running

RIGHT = [
    "203.0.113.7",
    "203.0.113.7:17085",
    " 203.0.113.7 ",
    '"203.0.113.7:80"',
    "::ffff:203.0.113.7",
    "[::ffff:203.0.113.7]:80",
    "2001:db8::1",
    "2001:DB8:0::1",
    "[2001:db8::1]",
    "[2001:db8::1]:443",
    '"[2001:db8::1]:443"',
]
WRONG = [
    "203.0.113.8:203",
    "203.0.113.7:x",
    "[203.0.113.7",
    "203.0.113.7]",
    "2001:db8::1:443",
    "[2001:db8::2]:443",
    "unknown",
    "_hidden",
    "[]",
    "203.0.113.7 203.0.113.7",
    "\x85203.0.113.7.example",
]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("proxied") / "data", workers=1, behind_proxy=1) as up:
        yield up


@pytest.fixture(scope="module")
def bound(proxied: Server) -> str:
    """Issue a key that is limited to two addresses."""
    spec = {
        "name": "live-bound",
        "type": "secret",
        "allowed_addresses": ["203.0.113.7", "2001:db8::1"],
    }
    with proxied.owner() as owner:
        made = owner.post("/v2/keys", json=spec)
    return str(made.json()["secret"])


@pytest.mark.parametrize("chain", ["{}", "192.0.2.9, {}", "192.0.2.9, {}, 127.0.0.1:4711, [::1]:9"])
@pytest.mark.parametrize("text", [*RIGHT, *WRONG])
def test_forwarded_addresses_are_read_from_the_right_without_ports(
    proxied: Server, bound: str, text: str, chain: str
) -> None:
    forwarded = chain.format(text).strip().encode("latin-1")
    with proxied.client() as client:
        answer = client.get(
            "/v2/auth",
            headers={b"Authorization": b"Bearer " + bound.encode(), b"X-Forwarded-For": forwarded},
        )
    expected = (200, "valid") if text in RIGHT else (403, "address_not_allowed")
    assert (answer.status_code, answer.headers["wardkey-verdict"]) == expected


@pytest.mark.parametrize("text", [*RIGHT, *WRONG])
def test_an_address_sent_by_a_service_is_parsed_the_same_way(
    proxied: Server, bound: str, text: str
) -> None:
    with proxied.client(proxied.first_key) as client:
        answer = client.post("/v2/keys/verify", json={"key": bound, "address": text})
    assert answer.json()["code"] == ("valid" if text in RIGHT else "address_not_allowed")
