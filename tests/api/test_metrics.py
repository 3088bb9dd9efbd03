"""Metrics cover every worker and require the token."""

from __future__ import annotations

from collections.abc import Callable

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.server import Server, wait_until

TOKEN = "scraped-by-the-test-only"


def samples(server: Server) -> list[Sample]:
    """Return the samples of one scrape."""
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return [sample for family in families for sample in family.samples]


def scraped(server: Server) -> dict[tuple[str, str], float]:
    """Return each sample summed over all verifiers, by its name and its other label."""
    sums: dict[tuple[str, str], float] = {}
    for sample in samples(server):
        name = (sample.name, sample.labels.get("code") or sample.labels.get("what") or "")
        sums[name] = sums.get(name, 0) + sample.value
    return sums


def verifiers(server: Server) -> set[str]:
    """Return the verifiers that the metrics name."""
    return {sample.labels["verifier"] for sample in samples(server) if "verifier" in sample.labels}


def test_metrics_cover_every_worker_and_need_the_token(
    start: Callable[..., Server], storage_url: str
) -> None:
    server = start(database_url=storage_url, workers=2, metrics_token=TOKEN)
    # New connections, so both workers get some of them.
    for _ in range(20):
        with server.client(server.first_key) as client:
            assert client.post("/v2/keys/verify", json={"key": "sk_live_none"}).is_success
    # One connection, which caches its caller: each of its verdicts still counts.
    with server.client(server.first_key) as client:
        for _ in range(10):
            assert client.post("/v2/keys/verify", json={"key": "sk_live_none"}).is_success
    wait_until(lambda: scraped(server).get(("wardkey_verdicts_total", "malformed")) == 30)
    # A worker appears once it has reported its own metrics.
    wait_until(lambda: len(verifiers(server)) == 2)
    seen = scraped(server)
    assert seen["wardkey_verdicts_total", "valid"] == 30
    assert seen["wardkey_verifiers", ""] == 2
    assert seen["wardkey_seconds_count", "POST /v2/keys/verify"] == 30
    # A worker without requests still catches up with the newest commit.
    wait_until(lambda: scraped(server)["wardkey_feed_lag", ""] == 0)
    assert seen["wardkey_directory_secrets", ""] >= 1
    # A killed worker's last report expires once it is older than any live worker's.
    before = verifiers(server)
    server.kill_one_worker()
    wait_until(lambda: len(verifiers(server) & before) == 1 and len(verifiers(server)) == 2, 30)


def test_metrics_require_the_right_token(start: Callable[..., Server]) -> None:
    server = start(metrics_token=TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = httpx.get(f"{server.url}/metrics", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "wrong_metrics_token")


def test_metrics_are_off_without_a_token(start: Callable[..., Server]) -> None:
    refused = httpx.get(f"{start().url}/metrics")
    assert (refused.status_code, refused.json()["code"]) == (404, "metrics_off")
