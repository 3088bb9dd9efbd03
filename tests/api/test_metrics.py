"""Metrics: told to who has the token, of every worker."""

from __future__ import annotations

from collections.abc import Callable

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.server import Server, wait_until

TOKEN = "scraped-by-the-test-only"


def scraped(server: Server, token: str = TOKEN) -> dict[tuple[str, str], float]:
    """Return the sum over all verifiers of each sample, by its name and its other label."""
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            label = sample.labels.get("code") or sample.labels.get("what") or ""
            name = (sample.name, label)
            found[name] = found.get(name, 0) + sample.value
    return found


def test_verdicts_of_every_worker_are_told_to_who_has_the_token(
    start: Callable[..., Server], storage_url: str
) -> None:
    server = start(database_url=storage_url, workers=2, metrics_token=TOKEN)
    # New connections, so that both workers get some.
    for _ in range(20):
        with server.client(server.first_key) as client:
            assert client.post("/v2/keys/verify", json={"key": "sk_live_none"}).is_success
    wait_until(lambda: scraped(server).get(("wardkey_verdicts_total", "malformed")) == 20)
    seen = scraped(server)
    assert seen["wardkey_verdicts_total", "valid"] == 20
    assert seen["wardkey_verifiers", ""] == 2
    assert seen["wardkey_seconds_count", "POST /v2/keys/verify"] == 20
    assert seen["wardkey_feed_lag", ""] == 0
    assert seen["wardkey_directory_secrets", ""] >= 1


def test_metrics_are_told_to_nobody_else(start: Callable[..., Server]) -> None:
    server = start(metrics_token=TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = httpx.get(f"{server.url}/metrics", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "wrong_metrics_token")


def test_metrics_are_off_without_a_token(start: Callable[..., Server]) -> None:
    refused = httpx.get(f"{start().url}/metrics")
    assert (refused.status_code, refused.json()["code"]) == (404, "metrics_off")
