"""The Prometheus metrics of this machine's verifiers."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from wardkey.db.leases import node_metrics
from wardkey.db.maintenance import feed_revision
from wardkey.domain.errors import MetricsOff, WrongMetricsToken
from wardkey.verify.metrics import BOUNDS, read_snapshot
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["health"])

_GAUGES = {
    "directory_secrets": "Secrets in memory.",
    "directory_bytes": "Estimated bytes that the secrets in memory take.",
    "lease_age_seconds": "Time since the last renewal began; 0 on SQLite.",
    "rate_limit_parts": "Verifiers that share the rate limits.",
}
_COUNTERS = {
    "directory_hits": "Lookups answered from memory.",
    "directory_misses": "Lookups read from the database.",
    "usage_lost": "Uses not counted, because memory was full or the database unavailable.",
    "stale": "Verdicts that may have missed the newest commits (--max-staleness).",
    "csp_reports": "Reports of Content-Security-Policy violations, as logged.",
}


class _SnapshotCollector:
    """Collects the snapshots of this machine's verifiers for Prometheus."""

    def __init__(self, snapshots: Mapping[str, dict[str, Any]], revision: int) -> None:
        self.snapshots = snapshots
        self.revision = revision

    def collect(self) -> Iterator[Metric]:
        """Yield each family, with a series for each verifier."""
        verdicts = CounterMetricFamily(
            "wardkey_verdicts", "Verdicts by code.", labels=("verifier", "code")
        )
        seconds = HistogramMetricFamily(
            "wardkey_seconds",
            "Time of a request by route, and of a change until all verifiers know it (`confirm`).",
            labels=("verifier", "what"),
        )
        lag = GaugeMetricFamily(
            "wardkey_feed_lag", "Changes that a verifier has not read yet.", labels=("verifier",)
        )
        for name, snapshot in self.snapshots.items():
            for code, count in snapshot["verdicts"].items():
                verdicts.add_metric((name, code), count)
            for what, (*counts, total) in snapshot["seconds"].items():
                sums = [*accumulate(counts)]
                bounds = [*map(str, BOUNDS), "+Inf"]
                seconds.add_metric((name, what), list(zip(bounds, sums, strict=True)), total)
            lag.add_metric((name,), max(0, self.revision - snapshot["revision"]))
        yield from (verdicts, seconds, lag)
        for family_class, help_texts in (
            (GaugeMetricFamily, _GAUGES),
            (CounterMetricFamily, _COUNTERS),
        ):
            for what, help_text in help_texts.items():
                family = family_class(f"wardkey_{what}", help_text, labels=("verifier",))
                for name, snapshot in self.snapshots.items():
                    # A process of an older version that still runs may not have this value.
                    family.add_metric((name,), snapshot.get(what, 0))
                yield family
        yield GaugeMetricFamily(
            "wardkey_verifiers", "Verifiers of this machine.", value=len(self.snapshots)
        )


@router.get(
    "/metrics",
    responses=problem_responses(MetricsOff, WrongMetricsToken, anonymous=True),
    response_class=Response,
    openapi_extra={"security": [{"metricsToken": []}]},
)
def metrics(request: Request, ctx: CurrentContext) -> Response:
    """Return the metrics of this machine's verifiers, up to half a second old."""
    if not ctx.metrics_token:
        raise MetricsOff
    token = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(token, ctx.metrics_token.encode()):
        raise WrongMetricsToken
    database = ctx.runner.database
    snapshots = {
        name: read_snapshot(text)
        for name, text in node_metrics(database, ctx.verifier.identity.node).items()
    }
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshots, feed_revision(database)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
