"""The route that Prometheus scrapes: what every verifier of this machine counted."""

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
    "directory_secrets": "Secrets that memory holds.",
    "directory_bytes": "Bytes that they take, by estimate.",
    "lease_age_seconds": "Time since the start of the last renewal; 0 on SQLite.",
    "rate_limit_parts": "Verifiers among which rate limits are shared.",
}
_COUNTERS = {
    "directory_hits": "Look-ups that memory answered.",
    "directory_misses": "Look-ups that were read from the database.",
    "usage_lost": "Uses that were not counted, for want of room or database.",
    "stale": "Verdicts that may have missed the newest commits (--max-staleness).",
    "csp_reports": "Times a page tried what its policy forbids, as written to the log.",
}


class _Collected:
    """The snapshots of this machine's verifiers as Prometheus families."""

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
            "Time of a request by route, and of a change until every verifier knew it (`confirm`).",
            labels=("verifier", "what"),
        )
        lag = GaugeMetricFamily(
            "wardkey_feed_lag", "Changes that a verifier has not seen yet.", labels=("verifier",)
        )
        for name, told_here in self.snapshots.items():
            for code, count in told_here["verdicts"].items():
                verdicts.add_metric((name, code), count)
            for what, (*counts, total) in told_here["seconds"].items():
                sums = [*accumulate(counts)]
                bounds = [*map(str, BOUNDS), "+Inf"]
                seconds.add_metric((name, what), list(zip(bounds, sums, strict=True)), total)
            lag.add_metric((name,), max(0, self.revision - told_here["revision"]))
        yield from (verdicts, seconds, lag)
        for kind, wanted in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for what, help_text in wanted.items():
                family = kind(f"wardkey_{what}", help_text, labels=("verifier",))
                for name, told_here in self.snapshots.items():
                    # A process of the version before, still running, knows fewer.
                    family.add_metric((name,), told_here.get(what, 0))
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
    """Tell Prometheus what the verifiers of this machine counted, up to half a second ago."""
    if not ctx.metrics_token:
        raise MetricsOff
    shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(shown, ctx.metrics_token.encode()):
        raise WrongMetricsToken
    database = ctx.runner.database
    snapshots = {
        name: read_snapshot(text)
        for name, text in node_metrics(database, ctx.verifier.identity.node).items()
    }
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(snapshots, feed_revision(database)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
