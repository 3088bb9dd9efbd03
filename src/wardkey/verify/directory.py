"""What this process knows of secrets, and how it stays as fresh as the last commit."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from wardkey.db.engine import Database, connect_sqlite
from wardkey.domain.addresses import Network, parse_networks
from wardkey.domain.permissions import KeyType
from wardkey.domain.rate import RateLimit
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import KnownSecret

MOST_KNOWN = 200_000

_COLUMNS = """
  s.kid, s.key_id, s.org_id, o.name AS org_name, o.slug AS org_slug, s.environment, k.type,
  k.name, s.prefix, s.digest, s.pepper_version, s.imported, k.permissions, k.metadata,
  k.allowed_addresses, k.allowed_origins, k.allow_native, k.rate_limit,
  s.expires_at AS secret_expires_at, s.revoked_at AS secret_revoked_at,
  k.expires_at AS key_expires_at, k.disabled_at AS key_disabled_at,
  k.revoked_at AS key_revoked_at, o.suspended_at AS org_suspended_at,
  o.deleted_at AS org_deleted_at
"""
_FROM = """
  FROM secrets s JOIN keys k ON k.id = s.key_id JOIN organizations o ON o.id = s.org_id
"""
_BY_KID = f"SELECT {_COLUMNS} {_FROM} WHERE s.kid = :kid"
_BY_DIGEST = f"""SELECT {_COLUMNS} {_FROM}
  JOIN imported i ON i.kid = s.kid WHERE i.digest = :digest"""
_SERVICE = """SELECT kid, name, prefix, digest, pepper_version, allowed_addresses, revoked_at
  FROM service_keys WHERE kid = :kid"""
_ORGANIZATIONS = "SELECT id FROM organizations WHERE deleted_at IS NULL LIMIT 2"
_PREFIXES = "SELECT prefix FROM import_prefixes"
_FEED = "SELECT epoch, revision FROM feed"
_OLDEST = "SELECT min(revision) AS oldest FROM changes"
_CHANGES = "SELECT subject, subject_id, org_id FROM changes WHERE revision > :revision"


@dataclass(frozen=True, slots=True)
class KnownServiceKey:
    """What a decision needs of one of the operator's service keys."""

    kid: str
    name: str
    digest: bytes
    pepper_version: int
    networks: tuple[Network, ...]
    revoked_at: int | None


class Directory:
    """Known secrets by kid, each answer as fresh as the newest commit.

    On SQLite memory serves, and `PRAGMA data_version` on a connection that never writes tells
    before each answer whether anything was committed since; then the change feed says what to
    forget. On PostgreSQL each answer is one indexed read of the primary.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._secrets: dict[str, KnownSecret] = {}
        self._services: dict[str, KnownServiceKey] = {}
        self._prefixes: tuple[str, ...] | None = None
        self._one: bool | None = None
        self._raw: Any = None
        self._data_version = -1
        self._epoch, self._revision = "", -1
        # Reads of PostgreSQL share nothing, so they need not wait for each other.
        self._lock: AbstractContextManager[object] = nullcontext()
        if database.kind == "sqlite":
            self._lock = threading.Lock()
            path = Path(database.url.database or "")
            self._raw = connect_sqlite(path, database.keys.master.database_key)

    def find(self, kid: str) -> KnownSecret | None:
        """Return what is known of a secret now, or None; raises `Unavailable` failures."""
        with self._lock:
            self._refresh()
            known = self._secrets.get(kid)
            if known is None:
                rows = self._rows(_BY_KID, {"kid": kid})
                known = _known(rows[0]) if rows else None
                self._keep(self._secrets, kid, known)
            return known

    def find_imported(self, digest: bytes) -> KnownSecret | None:
        """Return the imported secret with that digest of its hash, or None."""
        with self._lock:
            rows = self._rows(_BY_DIGEST, {"digest": digest})
            return _known(rows[0]) if rows else None

    def find_service(self, kid: str) -> KnownServiceKey | None:
        """Return one of the operator's service keys, or None."""
        with self._lock:
            self._refresh()
            known = self._services.get(kid)
            if known is None:
                rows = self._rows(_SERVICE, {"kid": kid})
                known = _known_service(rows[0]) if rows else None
                self._keep(self._services, kid, known)
            return known

    def import_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes under which keys from elsewhere were imported."""
        with self._lock:
            self._refresh()
            prefixes = self._prefixes
            if prefixes is None:
                prefixes = tuple(row["prefix"] for row in self._rows(_PREFIXES, {}))
                self._prefixes = prefixes if self._raw is not None else None
            return prefixes

    def has_one_organization(self) -> bool:
        """Tell whether no key of another organization could be meant."""
        with self._lock:
            self._refresh()
            if self._one is not True or self._raw is None:
                # Only this answer is kept: a deployment that has two rarely gets back to one.
                self._one = len(self._rows(_ORGANIZATIONS, {})) == 1
            return self._one

    def forget(self, kid: str) -> None:
        """Drop what is known of one secret, so that it is read again."""
        with self._lock:
            self._secrets.pop(kid, None)
            self._services.pop(kid, None)

    def close(self) -> None:
        """Close the watching connection."""
        if self._raw is not None:
            self._raw.close()

    def _keep(self, into: dict[str, Any], kid: str, known: object | None) -> None:
        if self._raw is None or known is None:
            return
        while len(into) >= MOST_KNOWN:
            del into[next(iter(into))]
        into[kid] = known

    def _refresh(self) -> None:
        if self._raw is None:
            return
        version = self._raw.execute("PRAGMA data_version").fetchall()[0][0]
        if version == self._data_version:
            return
        # The feed is read after data_version: a commit in between is seen now and told again.
        feed = self._rows(_FEED, {})[0]
        told = self._rows(_CHANGES, {"revision": self._revision})
        # Read last, so that a clean-up between the reads is noticed.
        oldest = self._rows(_OLDEST, {})[0]["oldest"]
        moved = feed["revision"] != self._revision
        passed_over = moved and (oldest is None or oldest > self._revision + 1)
        if feed["epoch"] != self._epoch or feed["revision"] < self._revision or passed_over:
            self._secrets.clear()
            self._services.clear()
            self._prefixes = self._one = None
        else:
            for change in told:
                self._apply(change["subject"], change["subject_id"], change["org_id"])
        self._epoch, self._revision = feed["epoch"], feed["revision"]
        self._data_version = version

    def _apply(self, subject: str, subject_id: str, org_id: str) -> None:
        match subject:
            case "key":
                gone = [k for k, known in self._secrets.items() if known.key_id == subject_id]
            case "organization":
                self._one = None
                gone = [k for k, known in self._secrets.items() if known.org_id == org_id]
            case "service_key":
                self._services.pop(subject_id, None)
                return
            case "import_prefix":
                self._prefixes = None
                return
            case _:
                return
        for kid in gone:
            del self._secrets[kid]

    def _rows(self, statement: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        if self._raw is not None:
            cursor = self._raw.execute(statement, values)
            names = [column[0] for column in cursor.description]
            # Every cursor is exhausted: an open one would hide commits from data_version.
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        with self._database.reader.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]


def _known(row: Mapping[str, Any]) -> KnownSecret:
    rate = _json(row["rate_limit"])
    return KnownSecret(
        kid=row["kid"],
        key_id=row["key_id"],
        org_id=row["org_id"],
        org_name=row["org_name"],
        org_slug=row["org_slug"],
        environment=Environment(row["environment"]),
        type=KeyType(row["type"]),
        name=row["name"],
        prefix=row["prefix"],
        digest=bytes(row["digest"]),
        pepper_version=row["pepper_version"],
        imported=bool(row["imported"]),
        permissions=frozenset(_json(row["permissions"])),
        metadata=_json(row["metadata"]),
        networks=parse_networks(_json(row["allowed_addresses"])),
        origins=tuple(_json(row["allowed_origins"])),
        allow_native=bool(row["allow_native"]),
        rate=RateLimit(rate["limit"], rate["period_s"] * 1000, rate["burst"]) if rate else None,
        secret_expires_at=row["secret_expires_at"],
        secret_revoked_at=row["secret_revoked_at"],
        key_expires_at=row["key_expires_at"],
        key_disabled_at=row["key_disabled_at"],
        key_revoked_at=row["key_revoked_at"],
        org_stopped=row["org_suspended_at"] is not None or row["org_deleted_at"] is not None,
    )


def _known_service(row: Mapping[str, Any]) -> KnownServiceKey:
    networks = parse_networks(_json(row["allowed_addresses"]))
    return KnownServiceKey(
        row["kid"],
        row["name"],
        bytes(row["digest"]),
        row["pepper_version"],
        networks,
        row["revoked_at"],
    )


def _json(value: Any) -> Any:  # noqa: ANN401 - whatever the column holds
    return json.loads(value) if isinstance(value, str) else value
