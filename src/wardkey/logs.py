"""Logging to stderr, as text or JSON lines: time, level, request id, message."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from wardkey.config import Config
from wardkey.web.raw_http import current_request_id

# Their info records are frequent and don't help operators.
_QUIET = ("alembic", "httpx", "httpcore", "asyncio")


class RequestId(logging.Filter):
    """Adds the current request's id to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id, and keep the record."""
        record.request_id = getattr(record, "request_id", "") or current_request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO message [req_…]`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text; a traceback follows on separate lines."""
        line = f"{_time(record)} {record.levelname} {super().format(record)}"
        request_id: str = getattr(record, "request_id", "")
        if not request_id:
            return line
        first, newline, rest = line.partition("\n")
        return f"{first} [{request_id}]{newline}{rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with `exception` if there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", ""):
            fields["request_id"] = request_id
        fields |= getattr(record, "access", {})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(config: Config) -> None:
    """Log this process's records to stderr in the configured format and level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    handler.addFilter(RequestId())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # At info, uvicorn logs each worker's start and stop.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    created = datetime.fromtimestamp(record.created, UTC)
    return created.isoformat(timespec="milliseconds").replace("+00:00", "Z")
