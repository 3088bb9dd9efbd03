"""What this process remembers of secrets, bounded, and how the change feed corrects it."""

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

# Measured with tracemalloc over 100,000 rows: the record, its dict entry, its own strings.
_BYTES_EACH = 1_150
_MOST_STRANGERS = 10_000
_MOST_SERVICES = 10_000
_MOST_REFERENCES = 10_000


@dataclass(frozen=True, slots=True)
class KnownServiceKey:
    """What a decision needs of one of the operator's service keys."""

    kid: str
    name: str
    digest: bytes
    pepper_version: int
    networks: tuple[Network, ...]
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the change feed; `kids` are a key's secrets, looked up with it."""

    subject: str
    subject_id: str
    org_id: str
    kids: tuple[str, ...] = ()


class Memory:
    """Known secrets by kid up to a number of bytes, true at `epoch` and `revision`.

    The caller holds a lock. What was read before a change must not come back after it, so a row
    is kept only if no change was applied since the reading began (`state` is still the same).
    """

    def __init__(self, most_bytes: int) -> None:
        self.secrets: dict[str, KnownSecret] = {}
        self.services: dict[str, KnownServiceKey] = {}
        self.strangers: dict[str, None] = {}
        self.prefixes: tuple[str, ...] | None = None
        self.has_one: bool | None = None
        # Ids by what proxies' URLs name: an id or a slug. None where no organization fits.
        self.organizations: dict[str, str | None] = {}
        self.epoch, self.revision = "", -1
        self.most_bytes = most_bytes
        self.held_bytes = 0

    @property
    def state(self) -> tuple[str, int]:
        """Epoch and revision of what is remembered."""
        return self.epoch, self.revision

    def keep(self, kid: str, known: KnownSecret | None, began: tuple[str, int]) -> None:
        """Remember a secret, or that there is none, whose reading began at state `began`."""
        if began != self.state:
            return
        if known is None:
            while len(self.strangers) >= _MOST_STRANGERS:
                del self.strangers[next(iter(self.strangers))]
            self.strangers[kid] = None
            return
        self._drop(kid)
        self.held_bytes += _size(known)
        while self.held_bytes > self.most_bytes and self.secrets:
            self._drop(next(iter(self.secrets)))
        self.secrets[kid] = known

    def keep_service(self, known: KnownServiceKey, began: tuple[str, int]) -> None:
        """Remember a service key whose reading began at state `began`."""
        if began != self.state:
            return
        while len(self.services) >= _MOST_SERVICES:
            del self.services[next(iter(self.services))]
        self.services[known.kid] = known

    def keep_organization(self, reference: str, org_id: str | None, began: tuple[str, int]) -> None:
        """Remember which organization a reference names, read since state `began`."""
        if began != self.state:
            return
        while len(self.organizations) >= _MOST_REFERENCES:
            del self.organizations[next(iter(self.organizations))]
        self.organizations[reference] = org_id

    def forget(self, kid: str) -> None:
        """Drop what is known of one secret, so that it is read again."""
        self._drop(kid)
        self.services.pop(kid, None)

    def catch_up(
        self,
        epoch: str,
        revision: int,
        oldest: int | None,
        told: Iterable[Change],
    ) -> None:
        """Correct what is remembered by the changes since `self.revision`.

        `oldest` is the oldest revision that the feed still holds, read after `told`. Another
        epoch, a rewound feed or one with a gap empties the memory.
        """
        passed_over = revision != self.revision and (oldest is None or oldest > self.revision + 1)
        if epoch != self.epoch or revision < self.revision or passed_over:
            self.clear()
        else:
            for change in told:
                self._apply(change)
        self.strangers.clear()
        self.epoch, self.revision = epoch, revision

    def clear(self) -> None:
        """Forget everything."""
        self.secrets.clear()
        self.services.clear()
        self.strangers.clear()
        self.prefixes = self.has_one = None
        self.organizations.clear()
        self.held_bytes = 0

    def _apply(self, change: Change) -> None:
        match change.subject:
            case "key":
                for kid in change.kids:
                    self._drop(kid)
            case "organization":
                self.has_one = None
                self.organizations.clear()
                mine = [k for k, known in self.secrets.items() if known.org_id == change.org_id]
                for kid in mine:
                    self._drop(kid)
            case "service_key":
                self.services.pop(change.subject_id, None)
            case "import_prefix":
                self.prefixes = None

    def _drop(self, kid: str) -> None:
        known = self.secrets.pop(kid, None)
        if known is not None:
            self.held_bytes -= _size(known)


def known_secret(row: Mapping[str, Any]) -> KnownSecret:
    """Return the record of a row; what keys have in common is shared between records."""
    return KnownSecret(
        kid=row["kid"],
        key_id=row["key_id"],
        org_id=sys.intern(row["org_id"]),
        org_name=sys.intern(row["org_name"]),
        org_slug=sys.intern(row["org_slug"]),
        org_slugs=_slugs(row["org_slugs"] or ""),
        environment=Environment(row["environment"]),
        type=KeyType(row["type"]),
        name=row["name"],
        prefix=row["prefix"],
        digest=bytes(row["digest"]),
        pepper_version=row["pepper_version"],
        imported=bool(row["imported"]),
        permissions=_shared(_permissions, row["permissions"]),
        metadata=_json(row["metadata"]),
        networks=_shared(_networks, row["allowed_addresses"]),
        origins=_shared(_origins, row["allowed_origins"]),
        allow_native=bool(row["allow_native"]),
        rate=_shared(_rate, row["rate_limit"]) if row["rate_limit"] else None,
        secret_expires_at=row["secret_expires_at"],
        secret_revoked_at=row["secret_revoked_at"],
        superseded_at=row["superseded_at"],
        key_expires_at=row["key_expires_at"],
        key_disabled_at=row["key_disabled_at"],
        key_revoked_at=row["key_revoked_at"],
        org_stopped=row["org_suspended_at"] is not None or row["org_deleted_at"] is not None,
        rendered_fields=_told(row),
    )


def _told(row: Mapping[str, Any]) -> bytes:
    expiry, grace = row["key_expires_at"], row["secret_expires_at"]
    said = {
        "key_id": row["key_id"],
        "kid": row["kid"],
        "name": row["name"],
        "type": row["type"],
        "environment": row["environment"],
        "organization": {"id": row["org_id"], "slug": row["org_slug"], "name": row["org_name"]},
        "permissions": sorted(_shared(_permissions, row["permissions"])),
        "metadata": _json(row["metadata"]),
        "expires_at": None if expiry is None else iso(expiry),
        "grace_ends_at": None if grace is None else iso(grace),
    }
    return msgspec.json.encode(said)[1:-1]


def known_service(row: Mapping[str, Any]) -> KnownServiceKey:
    """Return the record of a service key's row."""
    return KnownServiceKey(
        row["kid"],
        row["name"],
        bytes(row["digest"]),
        row["pepper_version"],
        parse_networks(_json(row["allowed_addresses"])),
        row["revoked_at"],
    )


def _size(known: KnownSecret) -> int:
    told = len(known.rendered_fields) + len(known.name)
    own = told + 80 * _values(known.metadata) + 60 * len(known.networks)
    return _BYTES_EACH + own


def _values(value: Any) -> int:  # noqa: ANN401 - JSON values
    """Return how many values a JSON value holds."""
    if isinstance(value, dict):
        return sum(map(_values, value.values())) + len(value)
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1


def _shared(made: Callable[[str], Any], value: Any) -> Any:  # noqa: ANN401 - JSON values
    return made(value if isinstance(value, str) else json.dumps(value))


@lru_cache(maxsize=4096)
def _permissions(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))


@lru_cache(maxsize=4096)
def _slugs(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}


@lru_cache(maxsize=4096)
def _networks(text: str) -> tuple[Network, ...]:
    return parse_networks(json.loads(text))


@lru_cache(maxsize=4096)
def _origins(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=4096)
def _rate(text: str) -> RateLimit:
    rate = json.loads(text)
    return RateLimit(rate["limit"], rate["period_s"] * 1000, rate["burst"])


def _json(value: Any) -> Any:  # noqa: ANN401 - whatever the column holds
    return json.loads(value) if isinstance(value, str) else value
