"""Caches the key sets of identity providers; one thread at a time fetches each."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from wardkey.adapters.fetch import Fetched
from wardkey.adapters.tokens import KeySet, KeysOf, VerifyingKey, import_keys
from wardkey.domain.errors import KeySetUnavailable
from wardkey.domain.providers import KeySource

MAX_SETS = 2_000
MAX_AGE_S = 600
STALE_S = 3_600
# A set is not fetched more often than this, for a short max-age or for unknown kids.
REFETCH_S = 30
# After a failure, wait this long before the next attempt.
RETRY_S = 10
# Threads that may wait for one set, and for all; further requests get an error to retry later.
# Together with the threads that wait for password hashes they are fewer than the framework's 40.
_MAX_WAITING_PER_SET, _MAX_WAITING, _MAX_REFRESHING = 8, 16, 16

_SetId = tuple[str, KeySource]


@dataclass(slots=True)
class _Entry:
    """A cached set; written while `fetching` is held, read at any time."""

    keys: tuple[VerifyingKey, ...] | None = None
    by_kid: dict[str, tuple[VerifyingKey, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    fresh_until: float = 0.0
    stale_until: float = 0.0
    attempted_at: float = float("-inf")
    missed_at: float = float("-inf")
    attempts: int = 0
    error: str = ""
    fetching: threading.Lock = field(default_factory=threading.Lock)
    waiting: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(_MAX_WAITING_PER_SET)
    )

    def find_keys(self, kid: str, now: float) -> tuple[VerifyingKey, ...] | None:
        """Return the keys with a kid, or all if it is empty; None if a fetch is needed."""
        if self.keys is None or now >= self.stale_until:
            return None
        return self.by_kid.get(kid) if kid else self.keys


@dataclass(slots=True)
class KeySets:
    """The key sets cached by this process, by provider, bounded in number.

    `fetch` is `Fetch.get`. A slow issuer never delays another provider's tokens.
    """

    fetch: Callable[[str], Fetched]
    clock: Callable[[], float] = time.monotonic
    max_sets: int = MAX_SETS
    _entries: OrderedDict[_SetId, _Entry] = field(default_factory=OrderedDict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MAX_WAITING))
    _refreshing: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(_MAX_REFRESHING)
    )

    def keys_of(self, provider_id: str, source: KeySource) -> KeysOf:
        """Return the function from which `verify_token` gets a provider's keys."""
        return partial(self.keys, provider_id, source)

    def are_cached(self, provider_id: str, source: KeySource, kid: str) -> bool:
        """Return whether a provider's keys with a kid are cached, so no fetch is needed."""
        return self._entry((provider_id, source)).find_keys(kid, self.clock()) is not None

    def keys(self, provider_id: str, source: KeySource, kid: str) -> Sequence[VerifyingKey]:
        """Return a provider's keys with a kid, or all if it is empty; may wait for the issuer.

        Raises `KeySetUnavailable` if the issuer can't be reached and no cached key matches.
        """
        entry = self._entry((provider_id, source))
        now, attempts = self.clock(), entry.attempts
        keys = entry.find_keys(kid, now)
        fresh = now < entry.fresh_until
        if keys is not None and fresh:
            return keys
        # An unknown kid may belong to a new key, so fetch at once, but not repeatedly.
        due = now - entry.missed_at >= REFETCH_S if fresh else now - entry.attempted_at >= RETRY_S
        if due:
            if keys is not None:
                # Stale keys are used while another thread refreshes them.
                if not entry.fetching.locked() and self._refreshing.acquire(blocking=False):
                    arguments = (entry, source, attempts)
                    threading.Thread(target=self._refresh, args=arguments, daemon=True).start()
                return keys
            self._wait(entry, source, attempts)
            keys = entry.find_keys(kid, self.clock())
        if keys is not None:
            return keys
        if entry.error:
            raise KeySetUnavailable(
                f"The provider's keys can't be fetched, so its tokens can't be verified. "
                f"{entry.error}",
                retry_after_s=RETRY_S,
            )
        return ()

    def left_out(self, provider_id: str, source: KeySource) -> tuple[str, ...]:
        """Return a sentence for each key of a fetched set that can't be used, with the reason."""
        return self._entry((provider_id, source)).left_out

    def purge(self, provider_id: str) -> None:
        """Remove a provider's keys, also stale ones; for use after a key was stolen."""
        with self._guard:
            for set_id in [set_id for set_id in self._entries if set_id[0] == provider_id]:
                del self._entries[set_id]

    def _entry(self, set_id: _SetId) -> _Entry:
        with self._guard:
            entry = self._entries.get(set_id)
            if entry is None:
                entry = self._entries[set_id] = _Entry()
                if len(self._entries) > self.max_sets:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(set_id)
            return entry

    def _wait(self, entry: _Entry, source: KeySource, attempts: int) -> None:
        """Fetch, or wait for the thread that does; a bounded number of threads can wait."""
        overloaded = KeySetUnavailable(
            "Too many tokens already wait for this provider's keys; try again.", retry_after_s=1
        )
        if not entry.waiting.acquire(blocking=False):
            raise overloaded
        try:
            if not self._waiting.acquire(blocking=False):
                raise overloaded
            try:
                with entry.fetching:
                    self._load(entry, source, attempts)
            finally:
                self._waiting.release()
        finally:
            entry.waiting.release()

    def _refresh(self, entry: _Entry, source: KeySource, attempts: int) -> None:
        try:
            with entry.fetching:
                self._load(entry, source, attempts)
        finally:
            self._refreshing.release()

    def _load(self, entry: _Entry, source: KeySource, attempts: int) -> None:
        """Fetch, unless another thread has since `attempts` was read; `fetching` is held."""
        if entry.attempts != attempts:
            return
        is_miss = self.clock() < entry.fresh_until
        try:
            (keys, left_out), max_age_s = self._fetch_keys(source)
        except KeySetUnavailable as error:
            entry.error = error.detail
        else:
            by_kid: dict[str, tuple[VerifyingKey, ...]] = {}
            for key in keys:
                by_kid[key.kid] = (*by_kid.get(key.kid, ()), key)
            now = self.clock()
            age = MAX_AGE_S if max_age_s is None else min(max(max_age_s, REFETCH_S), MAX_AGE_S)
            entry.keys, entry.by_kid, entry.error = keys, by_kid, ""
            entry.left_out = left_out
            entry.fresh_until, entry.stale_until = now + age, now + age + STALE_S
        finally:
            entry.attempted_at = self.clock()
            if is_miss:
                entry.missed_at = entry.attempted_at
            entry.attempts += 1

    def _fetch_keys(self, source: KeySource) -> tuple[KeySet, int | None]:
        url = source.url
        if source.is_discovery:
            document = self.fetch(url).document
            if document.get("issuer") != source.issuer:
                raise KeySetUnavailable(
                    f"The discovery document names another issuer, not {source.issuer}; the two "
                    "are compared character by character."
                )
            url = document.get("jwks_uri", "")
            if not isinstance(url, str) or not url:
                raise KeySetUnavailable("The discovery document has no jwks_uri.")
        document, max_age_s = self.fetch(url)
        try:
            return import_keys(document), max_age_s
        except ValueError as error:
            raise KeySetUnavailable(f"The key set can't be used: {error}") from None
