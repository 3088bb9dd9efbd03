"""A verification request only takes permissions that some key can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest

from tests.support.server import Server


@pytest.fixture(scope="module")
def key(server: Server) -> Iterator[httpx.Client]:
    """Return a client with the key created at first start."""
    with server.client(server.first_key) as client:
        yield client


@pytest.mark.parametrize("text", ["invoices-read", "nope", "Invoices:read", "keys:burn", ""])
def test_verifying_a_permission_that_no_key_can_hold_is_rejected(
    key: httpx.Client, text: str
) -> None:
    questions: list[Callable[[], httpx.Response]] = [
        lambda: key.post("/v2/keys/verify", json={"key": "x", "permissions": [text]}),
        lambda: key.post(
            "/v2/keys/verify-batch",
            json={"items": [{"key": "x"}, {"key": "x", "permissions": ["a:b", text]}]},
        ),
        lambda: key.get("/v2/auth", params={"permission": text}),
    ]
    for ask, field in zip(
        questions, ("permissions.0", "items.1.permissions.1", "permission.0"), strict=True
    ):
        answer = ask()
        assert (answer.status_code, answer.json()["code"]) == (400, "unknown_permission")
        assert answer.json()["errors"][0]["field"] == field
        if text == "invoices-read":
            assert "Did you mean invoices:read?" in answer.json()["detail"]


def test_a_scope_outside_the_catalogue_can_be_verified(server: Server, key: httpx.Client) -> None:
    body = {"key": server.first_key, "permissions": ["nowhere:read"]}
    verdict = key.post("/v2/keys/verify", json=body)
    assert (verdict.status_code, verdict.json()["code"]) == (200, "not_permitted")
