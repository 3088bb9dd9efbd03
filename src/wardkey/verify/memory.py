"""A bounded in-memory cache of secrets, which the change feed keeps correct."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from wardkey.domain.addresses import Network, parse_networks
from wardkey.domain.permissions import KeyType
from wardkey.domain.rate import RateLimit
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import KnownSecret

# Measured with tracemalloc over 100,000 rows: the record, its dict entry and its own strings.
_BYTES_EACH = 1_150
_MOST_UNKNOWN_KIDS = 10_000
_MOST_SERVICES = 10_000
_MOST_REFERENCES = 10_000


@dataclass(frozen=True, slots=True)
class KnownServiceKey:
    """The fields of an operator's service key that verification needs."""

    kid: str
    name: str
    digest: bytes
    pepper_version: int
    networks: tuple[Network, ...]
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the change feed; `kids` are the key's secrets, read together with it."""

    subject: str
    subject_id: str
    org_id: str
    kids: tuple[str, ...] = ()


class Memory:
    """Secrets by kid, up to a number of bytes, correct as of `epoch` and `revision`.

    The caller holds a lock. A row read before a change must not be stored after it, so a row is
    stored only if `state` is the same as when the read started.
    """

    def __init__(self, max_bytes: int) -> None:
        self.secrets: dict[str, KnownSecret] = {}
        self.services: dict[str, KnownServiceKey] = {}
        self.unknown_kids: dict[str, None] = {}
        self.prefixes: tuple[str, ...] | None = None
        self.has_one_organization: bool | None = None
        # Organization ids by the id or slug in a proxy's URL; None if no organization matches.
        self.organizations: dict[str, str | None] = {}
        self.epoch, self.revision = "", -1
        self.max_bytes = max_bytes
        self.used_bytes = 0

    @property
    def state(self) -> tuple[str, int]:
        """The epoch and revision up to which memory is correct."""
        return self.epoch, self.revision

    def keep(self, kid: str, known: KnownSecret | None, start_state: tuple[str, int]) -> None:
        """Store a secret, or that the kid is unknown, read since `start_state`."""
        if start_state != self.state:
            return
        if known is None:
            while len(self.unknown_kids) >= _MOST_UNKNOWN_KIDS:
                del self.unknown_kids[next(iter(self.unknown_kids))]
            self.unknown_kids[kid] = None
            return
        self._drop(kid)
        self.used_bytes += _size(known)
        while self.used_bytes > self.max_bytes and self.secrets:
            self._drop(next(iter(self.secrets)))
        self.secrets[kid] = known

    def keep_service(self, known: KnownServiceKey, start_state: tuple[str, int]) -> None:
        """Store a service key read since `start_state`."""
        if start_state != self.state:
            return
        while len(self.services) >= _MOST_SERVICES:
            del self.services[next(iter(self.services))]
        self.services[known.kid] = known

    def keep_organization(
        self, reference: str, org_id: str | None, start_state: tuple[str, int]
    ) -> None:
        """Store the organization that a reference names, read since `start_state`."""
        if start_state != self.state:
            return
        while len(self.organizations) >= _MOST_REFERENCES:
            del self.organizations[next(iter(self.organizations))]
        self.organizations[reference] = org_id

    def forget(self, kid: str) -> None:
        """Drop one secret or service key, so it is read again."""
        self._drop(kid)
        self.services.pop(kid, None)

    def catch_up(
        self,
        epoch: str,
        revision: int,
        oldest: int | None,
        changes: Iterable[Change],
    ) -> None:
        """Apply the changes since `self.revision`.

        `oldest` is the oldest revision still in the feed, read after `changes`. A new epoch, a
        rewound feed or a gap in it empties memory.
        """
        has_gap = revision != self.revision and (oldest is None or oldest > self.revision + 1)
        if epoch != self.epoch or revision < self.revision or has_gap:
            self.clear()
        else:
            for change in changes:
                self._apply(change)
        self.unknown_kids.clear()
        self.epoch, self.revision = epoch, revision

    def clear(self) -> None:
        """Drop everything."""
        self.secrets.clear()
        self.services.clear()
        self.unknown_kids.clear()
        self.prefixes = self.has_one_organization = None
        self.organizations.clear()
        self.used_bytes = 0

    def _apply(self, change: Change) -> None:
        match change.subject:
            case "key":
                for kid in change.kids:
                    self._drop(kid)
            case "organization":
                self.has_one_organization = None
                self.organizations.clear()
                kids = [k for k, known in self.secrets.items() if known.org_id == change.org_id]
                for kid in kids:
                    self._drop(kid)
            case "service_key":
                self.services.pop(change.subject_id, None)
            case "import_prefix":
                self.prefixes = None

    def _drop(self, kid: str) -> None:
        known = self.secrets.pop(kid, None)
        if known is not None:
            self.used_bytes -= _size(known)


def known_secret(row: Mapping[str, Any]) -> KnownSecret:
    """Return the record for a row; equal values are shared between records to save memory."""
    return KnownSecret(
        kid=row["kid"],
        key_id=row["key_id"],
        org_id=sys.intern(row["org_id"]),
        org_name=sys.intern(row["org_name"]),
        org_slug=sys.intern(row["org_slug"]),
        org_slugs=_parse_slugs(row["org_slugs"] or ""),
        environment=Environment(row["environment"]),
        type=KeyType(row["type"]),
        name=row["name"],
        prefix=row["prefix"],
        digest=bytes(row["digest"]),
        pepper_version=row["pepper_version"],
        imported=bool(row["imported"]),
        permissions=_parse_shared(_parse_permissions, row["permissions"]),
        metadata=_load_json(row["metadata"]),
        networks=_parse_shared(_parse_network_list, row["allowed_addresses"]),
        origins=_parse_shared(_parse_origins, row["allowed_origins"]),
        allow_native=bool(row["allow_native"]),
        rate=_parse_shared(_parse_rate, row["rate_limit"]) if row["rate_limit"] else None,
        secret_expires_at=row["secret_expires_at"],
        secret_revoked_at=row["secret_revoked_at"],
        superseded_at=row["superseded_at"],
        key_expires_at=row["key_expires_at"],
        key_disabled_at=row["key_disabled_at"],
        key_revoked_at=row["key_revoked_at"],
        org_stopped=row["org_suspended_at"] is not None or row["org_deleted_at"] is not None,
        rendered_fields=_render_fields(row),
    )


def _render_fields(row: Mapping[str, Any]) -> bytes:
    expiry, grace = row["key_expires_at"], row["secret_expires_at"]
    fields = {
        "key_id": row["key_id"],
        "kid": row["kid"],
        "name": row["name"],
        "type": row["type"],
        "environment": row["environment"],
        "organization": {"id": row["org_id"], "slug": row["org_slug"], "name": row["org_name"]},
        "permissions": sorted(_parse_shared(_parse_permissions, row["permissions"])),
        "metadata": _load_json(row["metadata"]),
        "expires_at": None if expiry is None else iso(expiry),
        "grace_ends_at": None if grace is None else iso(grace),
    }
    return msgspec.json.encode(fields)[1:-1]


def known_service(row: Mapping[str, Any]) -> KnownServiceKey:
    """Return the record for a row of `service_keys`."""
    return KnownServiceKey(
        row["kid"],
        row["name"],
        bytes(row["digest"]),
        row["pepper_version"],
        parse_networks(_load_json(row["allowed_addresses"])),
        row["revoked_at"],
    )


def _size(known: KnownSecret) -> int:
    texts = len(known.rendered_fields) + len(known.name)
    objects = 80 * _count_values(known.metadata) + 60 * len(known.networks)
    return _BYTES_EACH + texts + objects


def _count_values(value: Any) -> int:  # noqa: ANN401 - JSON values
    """Return the number of values and member names in a JSON value."""
    if isinstance(value, dict):
        return sum(map(_count_values, value.values())) + len(value)
    return 1 + sum(map(_count_values, value)) if isinstance(value, list) else 1


def _parse_shared(parse: Callable[[str], Any], value: Any) -> Any:  # noqa: ANN401 - JSON values
    return parse(value if isinstance(value, str) else json.dumps(value))


@lru_cache(maxsize=4096)
def _parse_permissions(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))


@lru_cache(maxsize=4096)
def _parse_slugs(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


@lru_cache(maxsize=4096)
def _parse_network_list(text: str) -> tuple[Network, ...]:
    return parse_networks(json.loads(text))


@lru_cache(maxsize=4096)
def _parse_origins(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=4096)
def _parse_rate(text: str) -> RateLimit:
    rate = json.loads(text)
    return RateLimit(rate["limit"], rate["period_s"] * 1000, rate["burst"])


def _load_json(value: Any) -> Any:  # noqa: ANN401 - text on SQLite, decoded on PostgreSQL
    return json.loads(value) if isinstance(value, str) else value
