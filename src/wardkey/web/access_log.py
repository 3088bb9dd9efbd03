"""The optional access log: one record for each HTTP request."""

from __future__ import annotations

import logging
from time import perf_counter

log = logging.getLogger("wardkey.access")


def log_access(
    method: str, path: str, status: int, began: float, *, client: str, request_id: str
) -> None:
    """Log an answered request; `path` without its query, `began` in seconds of `perf_counter`."""
    duration_ms = round((perf_counter() - began) * 1000, 2)
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": duration_ms,
        "client": client,
    }
    log.info(
        "%s %s %d %.2f ms %s",
        method,
        path,
        status,
        duration_ms,
        client,
        extra={"access": fields, "request_id": request_id},
    )
