"""Parses and formats times and durations; times are integers of epoch milliseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
_UNITS = {"s": 1_000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = 253_402_300_799_999
_RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?"
    r"(Z|z|[+-][0-9]{2}:[0-9]{2})?"
)

# A browser session ends after this long without a request.
SESSION_IDLE_MS = 7 * DAY_MS


def iso(ms: int) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds, such as `2030-01-31T12:00:00.000Z`.

    Raises `OverflowError` beyond the years 1 to 9999.
    """
    seconds, thousandths = divmod(ms, 1000)
    return f"{_format_second(seconds)}.{thousandths:03d}Z"


# Most formatted times are in the same second.
@lru_cache(maxsize=1024)
def _format_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def parse_iso(text: str) -> int:
    """Return an RFC 3339 time as epoch milliseconds; fractions of a millisecond are truncated.

    Raises `ValueError` with a sentence for any other form, for a time without an offset, and for
    one before 1970 or after 9999. Leap seconds (`:60`) are rejected.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError("That is not a time; write it as 2030-01-31T12:00:00Z (RFC 3339).")
    day, clock, fraction, offset = match.groups()
    if offset is None:
        raise ValueError("The time has no offset; add one, such as Z or +02:00.")
    thousandths = int((fraction or "")[:3].ljust(3, "0"))
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{offset.upper()}")
    except ValueError:
        raise ValueError("That date or time of day does not exist; check its parts.") from None
    ms = (moment - _EPOCH) // timedelta(milliseconds=1) + thousandths
    if not 0 <= ms <= _LAST:
        raise ValueError("The time is out of range; use one from 1970 to 9999.")
    return ms


def parse_duration(text: str) -> int:
    """Return a duration such as `90s`, `30m`, `24h` or `7d` in ms; raises `ValueError`."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise ValueError("A duration must be a number and one of s, m, h, d, such as 24h.")
    return int(match[1]) * _UNITS[match[2]]
