"""The verdict on a presented key: text, look-up, hash, decision, rate, counters."""

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

_NOBODY = bytes(32)
_MOST_RATES = 200_000
_MOST_GUESSING = 100_000
# Unknown secrets that one address may show: 600 at once, then 10 a second.
_GUESSES = RateLimit(limit=10, period_ms=1_000, burst=600)
_KINDS = frozenset({SecretKind.SECRET, SecretKind.PUBLISHABLE})


# Made for each verdict, and a frozen one takes four times as long to make.
@dataclass(slots=True)
class VerificationResult:
    """A verdict with what the asking side may know; `known` is None unless the hash matched.

    `as_of` is when it was decided, epoch milliseconds; the commits before it are all in it. With
    `--max-staleness` and without the database, commits of the last `stale_ms` may be missing.
    """

    verdict: Verdict
    known: KnownSecret | None
    as_of: int
    admission: Admission | None = None
    stale_ms: int = 0

    def failure(self, asked: VerificationRequest) -> WardkeyError:
        """Return the failure that stands for a verdict other than `valid`."""
        wait = self.admission.retry_after_ms if self.admission else None
        seconds = None if wait is None else wait / 1000
        return failure_of(self.verdict, self.known, asked, seconds)


_VALID = Verdict.VALID


class Verifier:
    """Judges presented keys for one process of a deployment.

    `live` is how many verifiers share the keys' rate limits; it starts at what is safe to assume.
    """

    def __init__(
        self,
        database: Database,
        usage: Usage,
        me: VerifierIdentity | None = None,
        memory_mib: int = 256,
    ) -> None:
        self._database = database
        self._vault = database.keys
        self._usage = usage
        self.me = me or VerifierIdentity.local_process(database.clock())
        self.directory = Directory(database, self.me, memory_mib)
        self.live = 1
        # Counts that this machine's verifiers share; without them each has its own part of a limit.
        self.shared_rates: SharedRates | None = None
        # How many of the `live` parts the shared counts stand for; None where they are all.
        self.shared_parts: int | None = None
        self.metrics = Metrics()
        self._rates: dict[str, float] = {}
        self._rate_lock = threading.Lock()
        self._guesses: dict[str, float] = {}
        self._rehash: dict[str, tuple[bytes, int]] = {}

    def revalidate(self, known: KnownSecret, address: str, user_agent: str, route: str) -> bool:
        """Tell whether a caller's key is as valid as in its last verdict, and count its use.

        False where that takes a verdict of its own: something changed, or is to be counted down.
        """
        if known.rate is not None or known.pepper_version != self._vault.version:
            return False
        if self.directory.remembered(known.kid) is not known:
            return False
        now = self._database.clock()
        end = known.expires_at
        if end is not None and now >= end:
            return False
        self._usage.note(known.kid, known.key_id, _VALID, now, address, user_agent, route)
        self.metrics.count(_VALID, stale=False)
        return True

    def verify(
        self,
        asked: VerificationRequest,
        user_agent: str = "",
        route: str = "",
        *,
        looked: bool = False,
        paid_by: str = "",
    ) -> VerificationResult:
        """Return the verdict on `asked.text`; raises `VerifierUnavailable` without storage.

        `user_agent` and `route` say, beside the address, who used the secret and for what;
        `looked` that the same request had a verdict already, on its caller, and `paid_by` is the
        id of the key whose limit it took one from.
        """
        try:
            answer = self._verify(asked, user_agent, route, looked=looked, paid_by=paid_by)
        except Exception as error:
            known = error if isinstance(error, WardkeyError) else storage_failure(error)
            if isinstance(known, Unavailable):
                self.metrics.count("verifier_unavailable", stale=False)
                raise VerifierUnavailable from error
            raise
        self.metrics.count(answer.verdict, stale=answer.stale_ms > 0)
        return answer

    def admit(self, limit: RateLimit, name: str, cost: int = 1) -> Admission:
        """Admit a request of what has that name, a key or a provider, by its rate limit.

        By the whole limit where all verifiers share their counts, else by the part of it that
        this machine or this verifier has.
        """
        now = _steady_ms()
        if self.shared_rates is not None:
            held = self.shared_parts
            if held is not None and held < self.live:
                limit = share(limit, self.live, held)
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
        """Return what this verifier tells of itself, as JSON."""
        memory, freshness = self.directory.memory, self.directory.freshness
        return self.metrics.snapshot(
            directory_secrets=len(memory.secrets),
            directory_bytes=memory.held_bytes,
            directory_hits=self.directory.hits,
            directory_misses=self.directory.misses,
            revision=self.directory.revision(),
            lease_age_seconds=freshness.age_ms() / 1000,
            rate_limit_parts=self.live,
            usage_lost=self._usage.lost,
        )

    def service_key(self, secret: SecretText, address: str) -> KnownServiceKey:
        """Return the operator's service key behind `secret`, if it may be used from `address`.

        Raises `Unknown`, `Revoked`, `AddressNotAllowed`.
        """
        known = self.directory.find_service(secret.kid)
        if known is None:
            self._vault.matches(secret.text, _NOBODY, self._vault.version)
            raise Unknown
        if not self._vault.matches(secret.text, known.digest, known.pepper_version):
            raise Unknown
        if known.revoked_at is not None:
            raise Revoked
        if not contains(known.networks, address):
            raise AddressNotAllowed
        if known.pepper_version != self._vault.version:
            self._rehash[known.kid] = (self._vault.digest(secret.text), known.pepper_version)
        return known

    def take_rehashes(self) -> dict[str, tuple[bytes, int]]:
        """Return digests under the current pepper, by kid, of secrets that had an older one."""
        taken, self._rehash = self._rehash, {}
        return taken

    def _verify(
        self, asked: VerificationRequest, user_agent: str, route: str, *, looked: bool, paid_by: str
    ) -> VerificationResult:
        text, stale_ms = asked.text, 0
        known = judged = self.directory.remembered(kid_of(text), looked=looked)
        # The digest covers the whole text, so what fits needs no look at its shape.
        if known is None or known.imported or not self._fits(text, known):
            found = self._find(text, asked.address, judged)
            if isinstance(found, VerificationResult):
                return found
            known, stale_ms = found, self.directory.stale_ms()
        now = self._database.clock()
        verdict = decide(known, asked, now)
        if verdict is Verdict.UNKNOWN:
            return self._stranger(verdict)
        admission = None
        if verdict is _VALID and known.rate is not None:
            paid = known.key_id == paid_by
            admission = self.admit(known.rate, known.key_id, max(0, asked.cost - paid))
            if not admission.admitted:
                verdict = Verdict.RATE_LIMITED
        self._usage.note(known.kid, known.key_id, verdict, now, asked.address, user_agent, route)
        if verdict is _VALID and known.pepper_version != self._vault.version:
            self._note_rehash(known, text)
        return VerificationResult(verdict, known, now, admission, stale_ms)

    def _find(
        self, text: str, address: str, judged: KnownSecret | None
    ) -> KnownSecret | VerificationResult:
        """Look a text up that memory alone could not judge; an answer says that it is nobody's.

        `judged` is the record that it does not fit.
        """
        secret = parse(text, brand=self._database.brand)
        known, verdict = None, Verdict.UNKNOWN
        if isinstance(secret, Malformed):
            verdict = Verdict.MALFORMED
            if not text or not self.directory.has_import_prefix(text):
                return self._stranger(verdict)
            known = self._imported(text)
        elif secret.kind in _KINDS:
            known = self.directory.find(secret.kid)
            if known is None:
                # As long as a known kid with a wrong secret takes.
                self._vault.matches(text, _NOBODY, self._vault.version)
            elif known is judged or known.imported or not self._fits(text, known):
                known = None
        return known or self._guess(address, verdict)

    def _fits(self, text: str, known: KnownSecret) -> bool:
        return self._vault.matches(text, known.digest, known.pepper_version)

    def _imported(self, text: str) -> KnownSecret | None:
        hashed = hashlib.sha256(text.encode()).hexdigest()
        for version in self._vault.peppers:
            known = self.directory.find_imported(self._vault.digest(hashed, version))
            if known is not None and text.startswith(known.prefix.rstrip("…")):
                return known
        return None

    def _guess(self, address: str, verdict: Verdict) -> VerificationResult:
        """Return the answer to an unknown secret; an address that sends too many gets a wait.

        Its right secrets are still looked up and accepted: many clients may share an address.
        """
        now = self._database.clock()
        if not address:
            return self._stranger(verdict)
        address, steady = network_of(address), _steady_ms()
        admission = admit(_GUESSES, self._guesses.get(address, 0.0), steady)
        if not admission.admitted:
            self._usage.note_stranger(now, Verdict.RATE_LIMITED)
            return VerificationResult(Verdict.RATE_LIMITED, None, now, admission)
        if len(self._guesses) >= _MOST_GUESSING:
            self._guesses = {k: tat for k, tat in self._guesses.items() if tat > steady}
        self._guesses[address] = admission.tat
        return self._stranger(verdict)

    def _stranger(self, verdict: Verdict) -> VerificationResult:
        now = self._database.clock()
        self._usage.note_stranger(now, verdict)
        return VerificationResult(verdict, None, now)

    def _note_rehash(self, known: KnownSecret, text: str) -> None:
        hashed = hashlib.sha256(text.encode()).hexdigest() if known.imported else text
        self._rehash[known.kid] = (self._vault.digest(hashed), known.pepper_version)


def _steady_ms() -> int:
    """Return ms on a clock that nobody sets back, or limits would hold for as long."""
    return boottime() // 1_000_000
