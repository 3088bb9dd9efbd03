"""What a proxy's forward-auth URL states, and what the client's request can never change in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl

from wardkey.domain.errors import InvalidRequest
from wardkey.domain.permissions import KeyType, require_askable
from wardkey.domain.secret import Environment

LONGEST_ORGANIZATION = 64
# What a URL names where it takes keys of every organization.
ANY_ORGANIZATION = "any"
MOST_PERMISSIONS = 20
_PATH = re.compile(rb"(?:^|&)path=")
_ID_OR_SLUG = re.compile(r"org_[0-9A-Za-z]+|[a-z0-9-]+")


class Browser(StrEnum):
    """Whether a secret key may come with the header fields that browsers send."""

    REFUSE = "refuse"
    ALLOW = "allow"


class MethodSource(StrEnum):
    """Where a proxy puts the method of the request that it holds up."""

    FORWARDED = "x-forwarded-method"
    ORIGINAL = "x-original-method"
    OWN = "method"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the proxy's URL states: whose keys open this, and which.

    `preflight` is where the original method is found if CORS preflights pass without a key.
    """

    organization: str = ""
    environment: Environment = Environment.LIVE
    type: KeyType = KeyType.SECRET
    permissions: tuple[str, ...] = ()
    browser: Browser = Browser.REFUSE
    preflight: MethodSource | None = None


def split_query(query: bytes) -> tuple[bytes, bytes]:
    """Return the parameters of a forward-auth URL, and the original path and query behind them.

    Proxies that append the client's path to a fixed prefix end that prefix with `path=`. All that
    follows its first occurrence is the client's and is never read as a parameter.
    """
    if b"path=" not in query:
        return query, b""
    found = _PATH.search(query)
    return (query, b"") if found is None else (query[: found.start()], query[found.end() :])


def quotable(organization: str) -> str:
    """Return what a URL named for sentences and logs, unless it may be something to keep secret."""
    if _ID_OR_SLUG.fullmatch(organization):
        return f"“{organization}”"
    return "a text that is neither an id nor a slug"


# A proxy asks with the same few URLs all the time.
@lru_cache(maxsize=1024)
def terms_of(parameters: bytes) -> Terms:
    """Read the parameters of a forward-auth URL; raises `InvalidRequest`, `UnknownPermission`."""
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(parameters.decode("latin-1"), keep_blank_values=True):
        values.setdefault(name, []).append(value)
    permissions = values.pop("permission", [])
    for name, given in values.items():
        # A prefix without `path=` lets the client append parameters, so the last must not win.
        if len(given) > 1:
            raise InvalidRequest(f"The proxy's URL has the parameter {name[:64]!r} twice.")
    try:
        return _Parameters(**{name: given[0] for name, given in values.items()}).terms(permissions)
    except (TypeError, ValueError):
        raise InvalidRequest(
            "The proxy's URL takes organization (an id, a slug or any), environment (live or test),"
            " type (secret or publishable), up to 20 times permission, such as invoices:read, "
            "browser (refuse or allow), preflight (x-forwarded-method, x-original-method or "
            "method) and, as its last, path.",
        ) from None


@dataclass(frozen=True, slots=True)
class _Parameters:
    organization: str = ""
    environment: str = Environment.LIVE
    type: str = KeyType.SECRET
    browser: str = Browser.REFUSE
    preflight: str = ""

    def terms(self, permissions: list[str]) -> Terms:
        if len(self.organization) > LONGEST_ORGANIZATION or len(permissions) > MOST_PERMISSIONS:
            raise ValueError
        require_askable(permissions, "permission")
        return Terms(
            self.organization,
            Environment(self.environment),
            KeyType(self.type),
            tuple(permissions),
            Browser(self.browser),
            MethodSource(self.preflight) if self.preflight else None,
        )
