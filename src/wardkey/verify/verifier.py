"""Verification of a presented key: parsing, look-up, hash, decision, rate limit, counters."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

from wardkey.db.engine import Database, storage_failure
from wardkey.db.leases import VerifierIdentity, boottime
from wardkey.domain.addresses import contains, network_of
from wardkey.domain.errors import (
    AddressNotAllowed,
    Revoked,
    Unavailable,
    Unknown,
    VerifierUnavailable,
    WardkeyError,
)
from wardkey.domain.rate import Admission, RateLimit, admit, share
from wardkey.domain.secret import Malformed, SecretKind, SecretText, kid_of, parse
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest, decide, failure_of
from wardkey.verify.directory import Directory
from wardkey.verify.memory import KnownServiceKey
from wardkey.verify.metrics import Metrics
from wardkey.verify.shared_rates import SharedRates
from wardkey.verify.usage import Usage

_DUMMY_DIGEST = bytes(32)
_MOST_RATES = 200_000
_MOST_GUESSING_ADDRESSES = 100_000
# Unknown secrets that one address may send: 600 at once, then 10 per second.
_GUESS_LIMIT = RateLimit(limit=10, period_ms=1_000, burst=600)
_KINDS = frozenset({SecretKind.SECRET, SecretKind.PUBLISHABLE})


# Not frozen: one is created per verdict, and creating a frozen one takes four times as long.
@dataclass(slots=True)
class VerificationResult:
    """A verdict with the secret's record, which is None unless the hash matched.

    `as_of` is the time of the decision in epoch milliseconds; it reflects every commit before
    that. With `--max-staleness`, while the database is unreachable, commits of the last
    `stale_ms` may be missing.
    """

    verdict: Verdict
    known: KnownSecret | None
    as_of: int
    admission: Admission | None = None
    stale_ms: int = 0

    def failure(self, request: VerificationRequest) -> WardkeyError:
        """Return the error for a verdict other than `valid`."""
        wait = self.admission.retry_after_ms if self.admission else None
        seconds = None if wait is None else wait / 1000
        return failure_of(self.verdict, self.known, request, seconds)


_VALID = Verdict.VALID


class Verifier:
    """Verifies presented keys in one process of a deployment.

    `live` is the number of verifiers that share the keys' rate limits.
    """

    def __init__(
        self,
        database: Database,
        usage: Usage,
        identity: VerifierIdentity | None = None,
        memory_mib: int = 256,
    ) -> None:
        self._database = database
        self._vault = database.vault
        self._usage = usage
        self.identity = identity or VerifierIdentity.local_process(database.clock())
        self.directory = Directory(database, self.identity, memory_mib)
        self.live = 1
        # Counters shared by this machine's verifiers; if None, each enforces its part of a limit.
        self.shared_rates: SharedRates | None = None
        # How many of the `live` parts the shared counters cover; None if they cover all.
        self.shared_parts: int | None = None
        self.metrics = Metrics()
        self._rates: dict[str, float] = {}
        self._rate_lock = threading.Lock()
        self._guesses: dict[str, float] = {}
        self._rehashes: dict[str, tuple[bytes, int]] = {}

    def revalidate(self, known: KnownSecret, address: str, user_agent: str, route: str) -> bool:
        """Return whether a caller's key is still valid without a new verdict, and count its use.

        False if a new verdict is needed: something changed, or the key has a rate limit.
        """
        if known.rate is not None or known.pepper_version != self._vault.version:
            return False
        if self.directory.find_cached(known.kid) is not known:
            return False
        now = self._database.clock()
        expires_at = known.expires_at
        if expires_at is not None and now >= expires_at:
            return False
        self._usage.note(known.kid, known.key_id, _VALID, now, address, user_agent, route)
        self.metrics.count(_VALID, stale=False)
        return True

    def verify(
        self,
        request: VerificationRequest,
        user_agent: str = "",
        route: str = "",
        *,
        cache_checked: bool = False,
        paid_by: str = "",
    ) -> VerificationResult:
        """Return the verdict on `request.text`; raises `VerifierUnavailable` without storage.

        `user_agent` and `route`, like the address, are counted as usage. `cache_checked` means
        that the same HTTP request already had a verdict, on its caller; `paid_by` is the id of
        the key whose rate limit that verdict was charged to.
        """
        try:
            result = self._verify(
                request, user_agent, route, cache_checked=cache_checked, paid_by=paid_by
            )
        except Exception as error:
            failure = error if isinstance(error, WardkeyError) else storage_failure(error)
            if isinstance(failure, Unavailable):
                self.metrics.count("verifier_unavailable", stale=False)
                raise VerifierUnavailable from error
            raise
        self.metrics.count(result.verdict, stale=result.stale_ms > 0)
        return result

    def admit(self, limit: RateLimit, name: str, cost: int = 1) -> Admission:
        """Apply the rate limit of `name`, a key or provider id, to a request of `cost`.

        If all verifiers share their counters, the whole limit applies, else the part of it that
        belongs to this machine or this verifier.
        """
        now = _monotonic_ms()
        if self.shared_rates is not None:
            parts = self.shared_parts
            if parts is not None and parts < self.live:
                limit = share(limit, self.live, parts)
            return self.shared_rates.admit(limit, name, now, cost)
        if self.live > 1:
            limit = share(limit, self.live)
        with self._rate_lock:
            admission = admit(limit, self._rates.get(name, 0.0), now, cost)
            self._rates[name] = admission.tat
            if len(self._rates) > _MOST_RATES:
                self._rates = {k: tat for k, tat in self._rates.items() if tat > now}
        return admission

    def snapshot(self) -> str:
        """Return this verifier's metrics as JSON."""
        memory, freshness = self.directory.memory, self.directory.freshness
        return self.metrics.snapshot(
            directory_secrets=len(memory.secrets),
            directory_bytes=memory.used_bytes,
            directory_hits=self.directory.hits,
            directory_misses=self.directory.misses,
            revision=self.directory.revision(),
            lease_age_seconds=freshness.age_ms() / 1000,
            rate_limit_parts=self.live,
            usage_lost=self._usage.lost,
        )

    def service_key(self, secret: SecretText, address: str) -> KnownServiceKey:
        """Return the operator's service key for `secret`, if `address` is allowed.

        Raises `Unknown`, `Revoked`, `AddressNotAllowed`.
        """
        known = self.directory.find_service(secret.kid)
        if known is None:
            self._vault.matches(secret.text, _DUMMY_DIGEST, self._vault.version)
            raise Unknown
        if not self._vault.matches(secret.text, known.digest, known.pepper_version):
            raise Unknown
        if known.revoked_at is not None:
            raise Revoked
        if not contains(known.networks, address):
            raise AddressNotAllowed
        if known.pepper_version != self._vault.version:
            self._rehashes[known.kid] = (self._vault.digest(secret.text), known.pepper_version)
        return known

    def take_rehashes(self) -> dict[str, tuple[bytes, int]]:
        """Return and clear the new digests, by kid, of secrets used under an older pepper."""
        rehashes, self._rehashes = self._rehashes, {}
        return rehashes

    def _verify(
        self,
        request: VerificationRequest,
        user_agent: str,
        route: str,
        *,
        cache_checked: bool,
        paid_by: str,
    ) -> VerificationResult:
        text, stale_ms = request.text, 0
        known = cached = self.directory.find_cached(kid_of(text), cache_checked=cache_checked)
        # The digest covers the whole text, so a match needs no check of its format.
        if known is None or known.imported or not self._matches(text, known):
            result = self._find(text, request.address, cached)
            if isinstance(result, VerificationResult):
                return result
            known, stale_ms = result, self.directory.stale_ms()
        now = self._database.clock()
        verdict = decide(known, request, now)
        if verdict is Verdict.UNKNOWN:
            return self._reject(verdict)
        admission = None
        if verdict is _VALID and known.rate is not None:
            already_paid = known.key_id == paid_by
            admission = self.admit(known.rate, known.key_id, max(0, request.cost - already_paid))
            if not admission.admitted:
                verdict = Verdict.RATE_LIMITED
        self._usage.note(known.kid, known.key_id, verdict, now, request.address, user_agent, route)
        if verdict is _VALID and known.pepper_version != self._vault.version:
            self._note_rehash(known, text)
        return VerificationResult(verdict, known, now, admission, stale_ms)

    def _find(
        self, text: str, address: str, mismatch: KnownSecret | None
    ) -> KnownSecret | VerificationResult:
        """Look up a text that memory could not verify; return a result to reject it as unknown.

        `mismatch` is the cached record that it does not match.
        """
        secret = parse(text, brand=self._database.brand)
        known, verdict = None, Verdict.UNKNOWN
        if isinstance(secret, Malformed):
            verdict = Verdict.MALFORMED
            if not text or not self.directory.has_import_prefix(text):
                return self._reject(verdict)
            known = self._find_imported(text)
        elif secret.kind in _KINDS:
            known = self.directory.find(secret.kid)
            if known is None:
                # Take as long as for a known kid with a wrong secret.
                self._vault.matches(text, _DUMMY_DIGEST, self._vault.version)
            elif known is mismatch or known.imported or not self._matches(text, known):
                known = None
        return known or self._reject_unknown(address, verdict)

    def _matches(self, text: str, known: KnownSecret) -> bool:
        return self._vault.matches(text, known.digest, known.pepper_version)

    def _find_imported(self, text: str) -> KnownSecret | None:
        hashed = hashlib.sha256(text.encode()).hexdigest()
        for version in self._vault.peppers:
            known = self.directory.find_imported(self._vault.digest(hashed, version))
            if known is not None and text.startswith(known.prefix.rstrip("…")):
                return known
        return None

    def _reject_unknown(self, address: str, verdict: Verdict) -> VerificationResult:
        """Reject an unknown secret, and rate-limit the address that sent it.

        Valid secrets from that address still pass, because many clients may share an address.
        """
        now = self._database.clock()
        if not address:
            return self._reject(verdict)
        address, steady = network_of(address), _monotonic_ms()
        admission = admit(_GUESS_LIMIT, self._guesses.get(address, 0.0), steady)
        if not admission.admitted:
            self._usage.note_unknown(now, Verdict.RATE_LIMITED)
            return VerificationResult(Verdict.RATE_LIMITED, None, now, admission)
        if len(self._guesses) >= _MOST_GUESSING_ADDRESSES:
            self._guesses = {k: tat for k, tat in self._guesses.items() if tat > steady}
        self._guesses[address] = admission.tat
        return self._reject(verdict)

    def _reject(self, verdict: Verdict) -> VerificationResult:
        now = self._database.clock()
        self._usage.note_unknown(now, verdict)
        return VerificationResult(verdict, None, now)

    def _note_rehash(self, known: KnownSecret, text: str) -> None:
        hashed = hashlib.sha256(text.encode()).hexdigest() if known.imported else text
        self._rehashes[known.kid] = (self._vault.digest(hashed), known.pepper_version)


def _monotonic_ms() -> int:
    """Return ms on a clock that can't be set back, which would extend the limits by as much."""
    return boottime() // 1_000_000
