"""Token exchange: an identity provider's token becomes a grant, many of them in one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from anyio.to_thread import run_sync

from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.grants.providers import TrustedProvider, TrustedProviders
from wardkey.adapters.key_sets import KeySets
from wardkey.adapters.tokens import (
    ParsedToken,
    explain_token,
    issuer_hint,
    parse_token,
    verify_token,
)
from wardkey.db.engine import Database
from wardkey.domain.errors import (
    AmbiguousProvider,
    ExchangeNotAllowed,
    InvalidToken,
    KeySetUnavailable,
    ProviderDisabled,
    ProviderNotFound,
    RateLimitExceeded,
    WardkeyError,
)
from wardkey.domain.grants import LONGEST_TTL_S, GrantRecord, NewGrant, choose_ttl
from wardkey.domain.identity import Identity, Step, grant_username, identity_of, subject_of
from wardkey.domain.permissions import KeyType, Permission
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.providers import (
    SHARED_SECRET,
    ProviderSpec,
    clean_provider,
    clean_shared_secret,
    token_rules,
)
from wardkey.domain.rate import RateLimit
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope
from wardkey.services.minting import VerifiedToken, mint_together
from wardkey.services.work_slots import WorkSlots
from wardkey.verify.verifier import Verifier


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A token of which nothing is proven yet, and the provider that it is held against."""

    provider: TrustedProvider
    presented: ParsedToken


@dataclass(slots=True)
class TokenExchange:
    """One process's exchanges; `private_issuers` is the deployment's word on private addresses."""

    database: Database
    verifier: Verifier
    keys: KeySets
    private_issuers: bool
    providers: TrustedProviders = field(default_factory=TrustedProviders)
    # For tests of providers, each of which waits for an issuer in a thread.
    tests: WorkSlots = field(default_factory=lambda: WorkSlots(most=4, most_each=2))
    _waiting: list[tuple[VerifiedToken, asyncio.Future[MintedGrant]]] = field(default_factory=list)
    _minting: asyncio.Task[None] | None = None

    def find_provider(self, by: Principal, name: str, token: str) -> UnverifiedToken:
        """Read a token that somebody of the organization shows, and find whose it is.

        `name` is a provider's, or its id; without one the token's issuer says whose it is. Raises
        `ProviderNotFound`, `AmbiguousProvider`, `ProviderDisabled`, `ExchangeNotAllowed`,
        `InvalidToken`.
        """
        by.require(Permission.TOKENS_EXCHANGE)
        presented = None if name else parse_token(token)
        trusted = self._trusted(by.org_id, by.environment)
        provider = _named(trusted, name) if presented is None else _issuing(trusted, presented)
        if not provider.enabled:
            raise ProviderDisabled(
                f"The auth provider {provider.spec.name} is disabled; an admin can enable it."
            )
        limits = provider.spec.limits
        if by.key_type is KeyType.PUBLISHABLE and not limits.publishable_may_exchange:
            raise ExchangeNotAllowed(
                f"Tokens of {provider.spec.name} are exchanged with a secret key, from a server; "
                "an admin can let publishable keys exchange them (publishable_may_exchange)."
            )
        return UnverifiedToken(provider, presented or parse_token(token))

    def has_cached_keys(self, shown: UnverifiedToken) -> bool:
        """Tell whether `checked` has all that it needs, so that no issuer has to be asked."""
        provider, presented = shown.provider, shown.presented
        return presented.alg == SHARED_SECRET or self.keys.are_cached(
            provider.key_set, provider.rules.keys, presented.kid
        )

    def verify_keyless(
        self, stranger: Principal, provider_name: str, token: str, ttl: int | None
    ) -> VerifiedToken:
        """Check a token that a stranger shows for an organization, whose provider it names.

        `stranger` has the organization and environment that he named. Whatever is not found is
        one and the same `InvalidToken`, so that nobody learns which organizations there are.
        """
        # A wrong ttl is told before anything is looked for, or it would tell what was found.
        choose_ttl(ttl, LONGEST_TTL_S)
        hidden = InvalidToken(
            "The token is not accepted without a key. Check organization_id, and the token's "
            "issuer, audience and expiry; or the auth provider does not let callers exchange "
            "without a key (keyless_may_exchange), and an admin can change that."
        )
        try:
            presented = parse_token(token)
            issuer = issuer_hint(presented)
            fitting = [
                one
                for one in self._trusted(stranger.org_id, stranger.environment)
                if one.enabled
                and one.spec.limits.keyless_may_exchange
                and one.rules.issuer == issuer
                and provider_name in ("", one.id, one.spec.name)
            ]
            if len(fitting) != 1:
                raise hidden
            by = Principal(
                PrincipalKind.PROVIDER,
                fitting[0].id,
                fitting[0].spec.name,
                org_id=stranger.org_id,
                environment=stranger.environment,
                permissions=frozenset({Permission.TOKENS_EXCHANGE}),
                address=stranger.address,
                user_agent=stranger.user_agent,
            )
            return self.verify(by, "", UnverifiedToken(fitting[0], presented), ttl)
        except (InvalidToken, KeySetUnavailable):
            raise hidden from None

    def dry_run(
        self, by: Principal, spec: ProviderSpec, secret: bytes, token: str, provider_id: str
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        """Fetch a provider's keys and check a token step by step; with the identity if it passes.

        The keys are fetched anew, under a name of their own, whatever is remembered of them, which
        may take ten seconds. Raises `Overloaded` where too many tests run.
        """
        with self.tests.reserve(by.org_id):
            return self._try(spec, secret, token, provider_id)

    def _try(
        self, spec: ProviderSpec, secret: bytes, token: str, provider_id: str
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        rules, trial = token_rules(spec), f"test {provider_id}"
        self.keys.purge(trial)
        told: list[Step] = []
        if not spec.legacy_secret:
            try:
                found = self.keys.keys(trial, rules.keys, "")
            except KeySetUnavailable as failure:
                return [Step("keys", failure.detail)], None
            notes = self.keys.left_out(trial, rules.keys)
            none = "" if found else " ".join(["The key set has no key that can verify.", *notes])
            told.append(Step("keys", none, "" if none else " ".join(notes)))
        if not token:
            return told, None
        keys_of = self.keys.keys_of(trial, rules.keys)
        now_s = self.database.clock() / 1000
        told += explain_token(token, rules, keys_of, now_s, secret)
        if any(step.fault for step in told):
            return told, None
        claims = verify_token(parse_token(token), rules, keys_of, now_s, secret)
        try:
            who = identity_of(spec.mapping, claims)
        except WardkeyError as failure:
            return [*told, Step("claims", failure.detail)], None
        return [*told, Step("claims")], (who, _username(spec, who, provider_id)[0])

    def dry_run_unsaved(
        self,
        by: Principal,
        spec: ProviderSpec,
        secret: str,
        token: str,
        saved: TrustedProvider | None = None,
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        """Do as `tried` does with settings that somebody would save; nothing is written.

        `saved` is the provider whose settings they would become; its shared secret is taken where
        `secret` is empty. Raises what `clean_provider` and `clean_shared_secret` raise.
        """
        by.require(Permission.PROVIDERS_WRITE)
        spec = clean_provider(spec, http_allowed=self.private_issuers)
        known = b"" if saved is None else saved.secret
        if spec.legacy_secret and (secret or not known):
            known = clean_shared_secret(secret)
        if saved is not None:
            return self.dry_run(by, spec, known, token, saved.id)
        told, found = self.dry_run(by, spec, known, token, "prv_new")
        if found is not None:
            # Its mark is made of the provider's id, which there is none of yet.
            found = (found[0], f"{found[1].rpartition('_')[0]}_…")
        return told, found

    def name_of(self, grant: GrantRecord) -> str:
        """Return the name of a grant's provider, which may change after the grant was made."""
        trusted = self._trusted(grant.org_id, grant.environment)
        return next((one.spec.name for one in trusted if one.id == grant.provider_id), "")

    async def mint(self, exchange: VerifiedToken) -> MintedGrant:
        """Make the grant of a token that passed; it is durable when this returns.

        Those that come while others are being written share the next commit. Raises
        `OrganizationSuspended` and the storage's failures.
        """
        future: asyncio.Future[MintedGrant] = asyncio.get_running_loop().create_future()
        self._waiting.append((exchange, future))
        if self._minting is None or self._minting.done():
            self._minting = asyncio.create_task(self._mint_waiting())
        return await future

    async def _mint_waiting(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                made = await run_sync(self._write, [exchange for exchange, _ in taken])
            except WardkeyError as failure:
                made = [failure] * len(taken)
            for (_, future), one in zip(taken, made, strict=True):
                # Whoever asked may have gone.
                if future.done():
                    continue
                if isinstance(one, WardkeyError):
                    future.set_exception(one)
                else:
                    future.set_result(one)

    def _write(self, exchanges: Sequence[VerifiedToken]) -> list[MintedGrant | WardkeyError]:
        with self.database.write() as tx:
            made = mint_together(tx, exchanges)
        # A transaction that recorded nothing leaves its revision to another.
        if tx.position:
            self.providers.passed(tx.revision)
        return made

    def _trusted(self, org_id: str, environment: Environment) -> Sequence[TrustedProvider]:
        revision = self.verifier.directory.revision()
        return self.providers.of(self.database, TenantScope(org_id, environment), revision)

    def verify(
        self, by: Principal, key_kid: str, shown: UnverifiedToken, ttl: int | None
    ) -> VerifiedToken:
        """Return what is minted for a token; may wait for its issuer. Raises what is wrong."""
        provider, presented = shown.provider, shown.presented
        spec = provider.spec
        ttl_s = choose_ttl(ttl, spec.limits.max_ttl_s)
        claims = verify_token(
            presented,
            provider.rules,
            self.keys.keys_of(provider.key_set, provider.rules.keys),
            self.database.clock() / 1000,
            provider.secret,
        )
        self._limit(provider)
        who = identity_of(spec.mapping, claims)
        username, user_key = _username(spec, who, provider.id)
        wanted = NewGrant(
            provider.id,
            who.user_id,
            who.email.lower(),
            user_key,
            username,
            who.variables,
            ttl_s,
            spec.limits.max_refresh_s,
        )
        return VerifiedToken(by, provider, wanted, key_kid)

    def _limit(self, provider: TrustedProvider) -> None:
        rate = provider.spec.limits.rate
        if rate is None:
            return
        whole = RateLimit(rate.limit, rate.period_s * 1000, rate.burst)
        asked = self.verifier.admit(whole, provider.id)
        if asked.admitted:
            return
        raise RateLimitExceeded(
            f"The auth provider {provider.spec.name} takes {rate.limit} exchanges in "
            f"{rate.period_s} seconds; try again later.",
            retry_after_s=(asked.retry_after_ms or 0) / 1000,
        )


def native_grant(org_id: str, email: str, provider_id: str, ttl_s: int) -> NewGrant:
    """Return the grant of a user whom a server vouches for by his e-mail address."""
    digest = _digest(provider_id or org_id, email)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in email)
    mark = digest.hex()[:8]
    return NewGrant(
        provider_id,
        email,
        email,
        f"usr_{digest.hex()[:28]}",
        f"{name[:55]}_{mark}",
        {"user_id": email},
        ttl_s,
    )


def _username(spec: ProviderSpec, who: Identity, provider_id: str) -> tuple[str, str]:
    """Return the user name of somebody's grants, and the key that stands for him."""
    digest = _digest(provider_id, who.user_id)
    name = grant_username(spec.mapping.username_from, who, digest)
    return name, f"usr_{digest.hex()[:28]}"


def _digest(provider_id: str, user_id: str) -> bytes:
    # Keyed by what never changes, so that names outlive every rotation of the master key.
    return blake2b(
        subject_of(provider_id, user_id), key=provider_id.encode()[:64], digest_size=16
    ).digest()


def _named(trusted: Sequence[TrustedProvider], name: str) -> TrustedProvider:
    for one in trusted:
        if name in (one.id, one.spec.name):
            return one
    of_kind = [one for one in trusted if one.spec.kind == name]
    if len(of_kind) > 1:
        names = ", ".join(one.spec.name for one in of_kind)
        raise AmbiguousProvider(
            f"There are several auth providers of kind {name}; name one of them: {names}.",
            field="provider",
        )
    if not of_kind:
        raise ProviderNotFound
    return of_kind[0]


def _issuing(trusted: Sequence[TrustedProvider], presented: ParsedToken) -> TrustedProvider:
    issuer = issuer_hint(presented)
    fitting = [one for one in trusted if one.rules.issuer == issuer]
    # Whoever replaced a provider by another has disabled the first.
    fitting = [one for one in fitting if one.enabled] or fitting
    if len(fitting) > 1:
        names = ", ".join(one.spec.name for one in fitting)
        raise AmbiguousProvider(
            f"Several auth providers have the token's issuer; name one of them: {names}.",
            field="provider",
        )
    if not fitting:
        raise ProviderNotFound("No auth provider has the issuer that the token names.")
    return fitting[0]
