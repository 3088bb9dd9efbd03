"""Key sets of identity providers, kept for a while, each fetched by one thread at a time."""

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

MOST_SETS = 2_000
KEPT_S = 600
STALE_S = 3_600
# No set is fetched more often for its max-age, nor for kids that it does not have.
REFETCH_S = 30
# How long a failure stands before the next attempt.
RETRY_S = 10
# Threads that may wait for one provider and for all; the others are told to come back. With those
# that wait for password hashes they are fewer than the framework's 40.
_WAIT_FOR_ONE, _WAIT_IN_ALL, _REFRESH_IN_ALL = 8, 16, 16

_Name = tuple[str, KeySource]


@dataclass(slots=True)
class _Kept:
    """What is known of one set; written while `fetching` is held, read at any time."""

    keys: tuple[VerifyingKey, ...] | None = None
    by_kid: dict[str, tuple[VerifyingKey, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    fresh_until: float = 0.0
    stale_until: float = 0.0
    tried_at: float = float("-inf")
    missed_at: float = float("-inf")
    tries: int = 0
    fault: str = ""
    fetching: threading.Lock = field(default_factory=threading.Lock)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WAIT_FOR_ONE))

    def found(self, kid: str, now: float) -> tuple[VerifyingKey, ...] | None:
        """Return the keys with a kid, all without one, and None where the set has to be asked."""
        if self.keys is None or now >= self.stale_until:
            return None
        return self.by_kid.get(kid) if kid else self.keys


@dataclass(slots=True)
class KeySets:
    """The key sets that this process knows, by provider, bounded in number.

    `fetch` is `Fetch.get`. What one provider's issuer does never makes another's tokens wait.
    """

    fetch: Callable[[str], Fetched]
    clock: Callable[[], float] = time.monotonic
    most: int = MOST_SETS
    _kept: OrderedDict[_Name, _Kept] = field(default_factory=OrderedDict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WAIT_IN_ALL))
    _refreshing: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(_REFRESH_IN_ALL)
    )

    def keys_of(self, provider_id: str, source: KeySource) -> KeysOf:
        """Return what `tokens.verified` asks for a provider's keys."""
        return partial(self.keys, provider_id, source)

    def are_cached(self, provider_id: str, source: KeySource, kid: str) -> bool:
        """Tell whether a provider's keys with a kid are known, so that nobody need be asked."""
        return self._of((provider_id, source)).found(kid, self.clock()) is not None

    def keys(self, provider_id: str, source: KeySource, kid: str) -> Sequence[VerifyingKey]:
        """Return a provider's keys with a kid, or all for none; may wait for the issuer.

        Raises `KeySetUnavailable` where the issuer cannot be asked and nothing known will do.
        """
        kept = self._of((provider_id, source))
        now, tries = self.clock(), kept.tries
        found = kept.found(kid, now)
        fresh = now < kept.fresh_until
        if found is not None and fresh:
            return found
        # A key that was made since the last fetch is looked for at once, but not again and again.
        due = now - kept.missed_at >= REFETCH_S if fresh else now - kept.tried_at >= RETRY_S
        if due:
            if found is not None:
                # Nobody waits while stale keys will do.
                if not kept.fetching.locked() and self._refreshing.acquire(blocking=False):
                    told = (kept, source, tries)
                    threading.Thread(target=self._refresh, args=told, daemon=True).start()
                return found
            self._wait(kept, source, tries)
            found = kept.found(kid, self.clock())
        if found is not None:
            return found
        if kept.fault:
            raise KeySetUnavailable(
                f"The provider's keys cannot be fetched, so its tokens cannot be checked. "
                f"{kept.fault}",
                retry_after_s=RETRY_S,
            )
        return ()

    def left_out(self, provider_id: str, source: KeySource) -> tuple[str, ...]:
        """Return a sentence for each key of a fetched set that cannot verify, and why."""
        return self._of((provider_id, source)).left_out

    def purge(self, provider_id: str) -> None:
        """Forget a provider's keys, stale ones too: what one does after a key was stolen."""
        with self._guard:
            for name in [name for name in self._kept if name[0] == provider_id]:
                del self._kept[name]

    def _of(self, name: _Name) -> _Kept:
        with self._guard:
            kept = self._kept.get(name)
            if kept is None:
                kept = self._kept[name] = _Kept()
                if len(self._kept) > self.most:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(name)
            return kept

    def _wait(self, kept: _Kept, source: KeySource, tries: int) -> None:
        """Fetch, or wait for whoever does; among a bounded number of others."""
        many = KeySetUnavailable(
            "Many tokens wait for this provider's keys already; try again.", retry_after_s=1
        )
        if not kept.waiting.acquire(blocking=False):
            raise many
        try:
            if not self._waiting.acquire(blocking=False):
                raise many
            try:
                with kept.fetching:
                    self._load(kept, source, tries)
            finally:
                self._waiting.release()
        finally:
            kept.waiting.release()

    def _refresh(self, kept: _Kept, source: KeySource, tries: int) -> None:
        try:
            with kept.fetching:
                self._load(kept, source, tries)
        finally:
            self._refreshing.release()

    def _load(self, kept: _Kept, source: KeySource, tries: int) -> None:
        """Ask the issuer, unless somebody did since `tries` was read; `fetching` is held."""
        if kept.tries != tries:
            return
        missed = self.clock() < kept.fresh_until
        try:
            (keys, left_out), max_age_s = self._asked(source)
        except KeySetUnavailable as failure:
            kept.fault = failure.detail
        else:
            by_kid: dict[str, tuple[VerifyingKey, ...]] = {}
            for key in keys:
                by_kid[key.kid] = (*by_kid.get(key.kid, ()), key)
            now = self.clock()
            life = KEPT_S if max_age_s is None else min(max(max_age_s, REFETCH_S), KEPT_S)
            kept.keys, kept.by_kid, kept.fault = keys, by_kid, ""
            kept.left_out = left_out
            kept.fresh_until, kept.stale_until = now + life, now + life + STALE_S
        finally:
            kept.tried_at = self.clock()
            if missed:
                kept.missed_at = kept.tried_at
            kept.tries += 1

    def _asked(self, source: KeySource) -> tuple[KeySet, int | None]:
        url = source.url
        if source.is_discovery:
            document = self.fetch(url).document
            if document.get("issuer") != source.issuer:
                raise KeySetUnavailable(
                    f"The discovery document names another issuer than {source.issuer}; the two "
                    "are compared character by character."
                )
            url = document.get("jwks_uri", "")
            if not isinstance(url, str) or not url:
                raise KeySetUnavailable("The discovery document has no jwks_uri.")
        document, max_age_s = self.fetch(url)
        try:
            return import_keys(document), max_age_s
        except ValueError as error:
            raise KeySetUnavailable(f"The key set cannot be used: {error}") from None
