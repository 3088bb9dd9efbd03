"""Log records on stderr, as lines of text or of JSON: time, level, request id, message."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from wardkey.config import Config
from wardkey.web.raw_http import current_request_id

# Chatty at info, and of no use to an operator.
_QUIET = ("alembic", "httpx", "httpcore", "asyncio")


class RequestId(logging.Filter):
    """Adds the id of the request that is being answered to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        record.request_id = getattr(record, "request_id", "") or current_request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO message [req_…]`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text; a traceback follows on lines of its own."""
        line = f"{_time(record)} {record.levelname} {super().format(record)}"
        request_id: str = getattr(record, "request_id", "")
        if not request_id:
            return line
        first, newline, rest = line.partition("\n")
        return f"{first} [{request_id}]{newline}{rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with `exception` where there is a traceback."""

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
    """Send the records of this process to stderr, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    handler.addFilter(RequestId())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # uvicorn speaks of each worker's start and stop at info.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
