"""What this process knows of secrets, each answer as fresh as its storage can promise."""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING

from wardkey.db.engine import Database
from wardkey.db.leases import VerifierIdentity
from wardkey.domain.verdict import KnownSecret
from wardkey.verify import queries
from wardkey.verify.memory import KnownServiceKey, Memory, known_secret, known_service
from wardkey.verify.sqlite_freshness import SqliteFreshness

if TYPE_CHECKING:
    from wardkey.verify.postgres_freshness import PostgresFreshness

MIB = 1_048_576


class Directory:
    """Known secrets by kid: from memory while it is fresh, else one indexed read.

    `hits` and `misses` count look-ups that memory could answer, and those that it could not.
    """

    def __init__(self, database: Database, me: VerifierIdentity, memory_mib: int = 256) -> None:
        self.memory = Memory(memory_mib * MIB)
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self.freshness: SqliteFreshness | PostgresFreshness
        self._leased = database.kind != "sqlite"
        if self._leased:
            # Late, because on SQLite nothing needs psycopg, which takes a tenth of a second.
            from wardkey.verify.postgres_freshness import PostgresFreshness

            self.freshness = PostgresFreshness(database, self.memory, self._lock, me)
        else:
            self.freshness = SqliteFreshness(database)
        self.stale_ms, self.close = self.freshness.stale_ms, self.freshness.close

    def remembered(self, kid: str, *, looked: bool = False) -> KnownSecret | None:
        """Return what memory knows of a secret, without any wait; None where it cannot tell.

        `looked` says that the same request asked before, so that memory is fresh enough for it.
        """
        if (looked and not self._leased) or self.freshness.is_fresh():
            known = self.memory.secrets.get(kid)
            if known is not None:
                self.hits += 1
            return known
        return None

    def find(self, kid: str) -> KnownSecret | None:
        """Return what is known of a secret now, or None; raises `Unavailable` failures."""
        memory = self.memory
        with self._lock:
            if self.freshness.serves(memory):
                known = memory.secrets.get(kid)
                if known is not None or kid in memory.strangers:
                    self.hits += 1
                    return known
            began = memory.state
            self.misses += 1
        rows = self.freshness.rows(queries.BY_KID, kid)
        known = known_secret(rows[0]) if rows else None
        with self._lock:
            memory.keep(kid, known, began)
        return known

    def holds(self, kid: str) -> bool:
        """Tell whether memory can answer for `kid` now, known or unknown."""
        memory = self.memory
        with self._lock:
            fresh = self.freshness.serves(memory)
            return fresh and (
                kid in memory.secrets or kid in memory.strangers or kid in memory.services
            )

    def find_imported(self, digest: bytes) -> KnownSecret | None:
        """Return the imported secret with that digest of its hash, or None."""
        rows = self.freshness.rows(queries.BY_DIGEST, digest)
        return known_secret(rows[0]) if rows else None

    def find_service(self, kid: str) -> KnownServiceKey | None:
        """Return one of the operator's service keys, or None."""
        memory = self.memory
        with self._lock:
            if self.freshness.serves(memory) and kid in memory.services:
                return memory.services[kid]
            began = memory.state
        rows = self.freshness.rows(queries.SERVICE, kid)
        if not rows:
            return None
        known = known_service(rows[0])
        with self._lock:
            memory.keep_service(known, began)
        return known

    def import_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes under which keys from elsewhere were imported, sorted."""
        memory = self.memory
        with self._lock:
            if self.freshness.serves(memory) and memory.prefixes is not None:
                return memory.prefixes
            began = memory.state
        prefixes = tuple(sorted(row["prefix"] for row in self.freshness.rows(queries.PREFIXES)))
        with self._lock:
            if memory.state == began:
                memory.prefixes = prefixes
        return prefixes

    def has_import_prefix(self, text: str) -> bool:
        """Return whether `text` starts with one of the import prefixes, which don't overlap."""
        prefixes = self.import_prefixes()
        at = bisect_right(prefixes, text)
        return at > 0 and text.startswith(prefixes[at - 1])

    def has_one_organization(self) -> bool:
        """Tell whether no key of another organization could be meant."""
        memory = self.memory
        if self.freshness.is_fresh() and (known := memory.has_one) is not None:
            return known
        with self._lock:
            if self.freshness.serves(memory) and memory.has_one is not None:
                return memory.has_one
            began = memory.state
        has_one = len(self.freshness.rows(queries.TWO_ORGANIZATIONS)) == 1
        with self._lock:
            if memory.state == began:
                memory.has_one = has_one
        return has_one

    def find_organization(self, reference: str) -> str | None:
        """Return the id of the organization with that id or slug, present or former, or None."""
        memory = self.memory
        if self.freshness.is_fresh() and (known := memory.organizations.get(reference)):
            return known
        with self._lock:
            if self.freshness.serves(memory) and reference in memory.organizations:
                return memory.organizations[reference]
            began = memory.state
        rows = self.freshness.rows(queries.ORGANIZATION, reference)
        org_id = rows[0]["id"] if rows else None
        with self._lock:
            memory.keep_organization(reference, org_id, began)
        return org_id

    def revision(self) -> int:
        """Return the newest revision that this process knows of; without a query if none came."""
        with self._lock:
            self.freshness.serves(self.memory)
            return self.memory.revision

    def forget(self, kid: str) -> None:
        """Drop what is known of one secret, so that it is read again."""
        with self._lock:
            self.memory.forget(kid)
