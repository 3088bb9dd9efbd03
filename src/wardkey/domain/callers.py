"""The callers of a secret, identified by address, user-agent product and route."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from wardkey.domain.secret import mask_secrets

MOST_CALLERS = 50
MOST_ADDRESS, MOST_AGENT, MOST_PRODUCT, MOST_ROUTE = 64, 200, 64, 100
# How much of a client's text is searched for secrets, which are masked before it is truncated.
MOST_TAKEN = 1_024


@dataclass(frozen=True, slots=True)
class CallerRecord:
    """A caller of a secret; `count` may be too high if there are more callers than are kept."""

    kid: str
    address: str
    product: str
    route: str
    first_at: int
    last_at: int
    count: int


# A few user agents cause most uses.
@lru_cache(maxsize=4096)
def product_of(user_agent: str) -> str:
    """Return the first token of a user agent, such as `curl/8.5.0` (RFC 9110 §10.1.5)."""
    return (user_agent.split(maxsplit=1) or [""])[0][:MOST_PRODUCT]


def clip(text: str, most: int) -> str:
    """Return at most `most` characters; those that a database can't store become U+FFFD."""
    short = text[:most]
    return short if short.isprintable() else "".join(c if c.isprintable() else "�" for c in short)


@lru_cache(maxsize=4096)
def storable(text: str, most: int, brand: str = "", prefixes: tuple[str, ...] = ()) -> str:
    """Return a client's text in a form that is safe to store or log: short, secrets masked.

    `prefixes` are the prefixes of imported keys.
    """
    return clip(mask_secrets(text[:MOST_TAKEN], brand=brand, prefixes=prefixes), most)


def storable_route(text: str, brand: str = "", prefixes: tuple[str, ...] = ()) -> str:
    """Return a route like `storable`, and without its query."""
    path = text.partition("?")[0].partition("#")[0]
    return storable(path, MOST_ROUTE, brand, prefixes)
