"""Callers: who used a secret, named by address, user-agent product and route."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from wardkey.domain.secret import looks_like_ours

HOUR_MS = 3_600_000
MOST_CALLERS = 50
MOST_ADDRESS, MOST_AGENT, MOST_PRODUCT, MOST_ROUTE = 64, 200, 64, 100


@dataclass(frozen=True, slots=True)
class CallerRecord:
    """One caller of one secret; `count` may be too high where more callers came than are kept."""

    kid: str
    address: str
    product: str
    route: str
    first_at: int
    last_at: int
    count: int


# Few programs, addresses and routes make most of the uses.
@lru_cache(maxsize=4096)
def product_of(user_agent: str) -> str:
    """Return the first token of a user agent, such as `curl/8.5.0` (RFC 9110 §10.1.5)."""
    return (user_agent.split(maxsplit=1) or [""])[0][:MOST_PRODUCT]


def clip(text: str, most: int) -> str:
    """Return at most `most` characters, with a mark for those that a database cannot store."""
    short = text[:most]
    return short if short.isprintable() else "".join(c if c.isprintable() else "�" for c in short)


@lru_cache(maxsize=4096)
def clip_route(text: str, brand: str = "") -> str:
    """Return a route as it may be stored: short, without query and without any secret of ours."""
    path = text.partition("?")[0].partition("#")[0]
    parts = ("…" if looks_like_ours(part, brand=brand) else part for part in path.split("/"))
    return clip("/".join(parts), MOST_ROUTE)
