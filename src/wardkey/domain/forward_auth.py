"""Parses a proxy's forward-auth URL, separating the proxy's terms from the client's path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl

from wardkey.domain.errors import InvalidRequest
from wardkey.domain.permissions import KeyType, check_permission_names
from wardkey.domain.secret import Environment

LONGEST_ORGANIZATION = 64
# The organization in a URL that accepts keys of every organization.
ANY_ORGANIZATION = "any"
MOST_PERMISSIONS = 20
_PATH = re.compile(rb"(?:^|&)path=")
_ID_OR_SLUG = re.compile(r"org_[0-9A-Za-z]+|[a-z0-9-]+")


class Browser(StrEnum):
    """Whether a secret key is accepted in a request with browser headers."""

    REFUSE = "refuse"
    ALLOW = "allow"


class MethodSource(StrEnum):
    """Where a proxy puts the method of the client's request."""

    FORWARDED = "x-forwarded-method"
    ORIGINAL = "x-original-method"
    OWN = "method"


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions in a proxy's URL that a key must meet.

    `preflight` is the source of the original method if CORS preflights pass without a key.
    """

    organization: str = ""
    environment: Environment = Environment.LIVE
    type: KeyType = KeyType.SECRET
    permissions: tuple[str, ...] = ()
    browser: Browser = Browser.REFUSE
    preflight: MethodSource | None = None


def split_query(query: bytes) -> tuple[bytes, bytes]:
    """Return the parameters of a forward-auth URL, and the client's path and query after them.

    Proxies that append the client's path to a fixed prefix end that prefix with `path=`. Everything
    after its first occurrence comes from the client and is never read as a parameter.
    """
    if b"path=" not in query:
        return query, b""
    match = _PATH.search(query)
    return (query, b"") if match is None else (query[: match.start()], query[match.end() :])


def quotable(organization: str) -> str:
    """Return the organization in a URL for messages and logs, unless it might be a secret."""
    if _ID_OR_SLUG.fullmatch(organization):
        return f"“{organization}”"
    return "a text that is neither an id nor a slug"


# A proxy calls the same few URLs all the time.
@lru_cache(maxsize=1024)
def parse_terms(parameters: bytes) -> Terms:
    """Parse the parameters of a forward-auth URL; raises `InvalidRequest`, `UnknownPermission`."""
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(parameters.decode("latin-1"), keep_blank_values=True):
        values.setdefault(name, []).append(value)
    permissions = values.pop("permission", [])
    for name, items in values.items():
        # A prefix without `path=` lets the client append parameters, so the last must not win.
        if len(items) > 1:
            raise InvalidRequest(
                f"The proxy's URL has the parameter {name[:64]!r} twice; keep one of them."
            )
    try:
        return _Parameters(**{name: items[0] for name, items in values.items()}).terms(permissions)
    except (TypeError, ValueError):
        raise InvalidRequest(
            "The proxy's URL has a parameter or value that does not exist. It accepts organization "
            "(an id, a slug or any), environment (live or test), type (secret or publishable), "
            "permission (up to 20 times, such as invoices:read), browser (refuse or allow), "
            "preflight (x-forwarded-method, x-original-method or method) and, last, path.",
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
        check_permission_names(permissions, "permission")
        return Terms(
            self.organization,
            Environment(self.environment),
            KeyType(self.type),
            tuple(permissions),
            Browser(self.browser),
            MethodSource(self.preflight) if self.preflight else None,
        )
