"""Look-up of secrets by kid, from memory while it is fresh, else from the database."""

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
    """Finds secrets by kid: from memory while it is fresh, else by one indexed read.

    `hits` and `misses` count the look-ups that memory could and could not answer.
    """

    def __init__(
        self, database: Database, identity: VerifierIdentity, memory_mib: int = 256
    ) -> None:
        self.memory = Memory(memory_mib * MIB)
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self.freshness: SqliteFreshness | PostgresFreshness
        self._leased = database.kind != "sqlite"
        if self._leased:
            # Imported here, because SQLite does not need psycopg, which takes 0.1 s to import.
            from wardkey.verify.postgres_freshness import PostgresFreshness

            self.freshness = PostgresFreshness(database, self.memory, self._lock, identity)
        else:
            self.freshness = SqliteFreshness(database)
        self.stale_ms, self.close = self.freshness.stale_ms, self.freshness.close

    def find_cached(self, kid: str, *, cache_checked: bool = False) -> KnownSecret | None:
        """Return a secret from memory, without waiting; None if memory can't answer.

        `cache_checked` means that the same request had a verdict already, so on SQLite memory is
        fresh enough for it.
        """
        if (cache_checked and not self._leased) or self.freshness.is_fresh():
            known = self.memory.secrets.get(kid)
            if known is not None:
                self.hits += 1
            return known
        return None

    def find(self, kid: str) -> KnownSecret | None:
        """Return the secret as of now, or None if unknown; raises `Unavailable` errors."""
        memory = self.memory
        with self._lock:
            if self.freshness.refresh(memory):
                known = memory.secrets.get(kid)
                if known is not None or kid in memory.unknown_kids:
                    self.hits += 1
                    return known
            start_state = memory.state
            self.misses += 1
        rows = self.freshness.fetch_rows(queries.BY_KID, kid)
        known = known_secret(rows[0]) if rows else None
        with self._lock:
            memory.keep(kid, known, start_state)
        return known

    def is_cached(self, kid: str) -> bool:
        """Return whether memory can answer for `kid` now, as known or as unknown."""
        memory = self.memory
        with self._lock:
            fresh = self.freshness.refresh(memory)
            return fresh and (
                kid in memory.secrets or kid in memory.unknown_kids or kid in memory.services
            )

    def find_imported(self, digest: bytes) -> KnownSecret | None:
        """Return the imported secret whose hash has this digest, or None."""
        rows = self.freshness.fetch_rows(queries.BY_DIGEST, digest)
        return known_secret(rows[0]) if rows else None

    def find_service(self, kid: str) -> KnownServiceKey | None:
        """Return the operator's service key with this kid, or None."""
        memory = self.memory
        with self._lock:
            if self.freshness.refresh(memory) and kid in memory.services:
                return memory.services[kid]
            start_state = memory.state
        rows = self.freshness.fetch_rows(queries.SERVICE, kid)
        if not rows:
            return None
        known = known_service(rows[0])
        with self._lock:
            memory.keep_service(known, start_state)
        return known

    def import_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes of imported keys, sorted."""
        memory = self.memory
        with self._lock:
            if self.freshness.refresh(memory) and memory.prefixes is not None:
                return memory.prefixes
            start_state = memory.state
        prefixes = tuple(
            sorted(row["prefix"] for row in self.freshness.fetch_rows(queries.PREFIXES))
        )
        with self._lock:
            if memory.state == start_state:
                memory.prefixes = prefixes
        return prefixes

    def has_import_prefix(self, text: str) -> bool:
        """Return whether `text` starts with one of the import prefixes, which don't overlap."""
        prefixes = self.import_prefixes()
        index = bisect_right(prefixes, text)
        return index > 0 and text.startswith(prefixes[index - 1])

    def has_one_organization(self) -> bool:
        """Return whether the deployment has exactly one organization."""
        memory = self.memory
        if self.freshness.is_fresh() and (cached := memory.has_one_organization) is not None:
            return cached
        with self._lock:
            if self.freshness.refresh(memory) and memory.has_one_organization is not None:
                return memory.has_one_organization
            start_state = memory.state
        has_one = len(self.freshness.fetch_rows(queries.TWO_ORGANIZATIONS)) == 1
        with self._lock:
            if memory.state == start_state:
                memory.has_one_organization = has_one
        return has_one

    def find_organization(self, reference: str) -> str | None:
        """Return the id of the organization with this id, slug or former slug, or None."""
        memory = self.memory
        if self.freshness.is_fresh() and (cached := memory.organizations.get(reference)):
            return cached
        with self._lock:
            if self.freshness.refresh(memory) and reference in memory.organizations:
                return memory.organizations[reference]
            start_state = memory.state
        rows = self.freshness.fetch_rows(queries.ORGANIZATION, reference)
        org_id = rows[0]["id"] if rows else None
        with self._lock:
            memory.keep_organization(reference, org_id, start_state)
        return org_id

    def revision(self) -> int:
        """Return the newest revision this process knows; without a query if nothing changed."""
        with self._lock:
            self.freshness.refresh(self.memory)
            return self.memory.revision

    def forget(self, kid: str) -> None:
        """Drop one secret from memory, so the next look-up reads it again."""
        with self._lock:
            self.memory.forget(kid)
