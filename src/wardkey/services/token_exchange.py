"""Token exchange: verifies identity providers' tokens and mints grants, in batches per commit."""

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
    """A parsed token that is not verified yet, and the provider to verify it with."""

    provider: TrustedProvider
    token: ParsedToken


@dataclass(slots=True)
class TokenExchange:
    """The token exchanges of one process.

    `private_issuers` is whether issuers may have private addresses, also without TLS.
    """

    database: Database
    verifier: Verifier
    keys: KeySets
    private_issuers: bool
    providers: TrustedProviders = field(default_factory=TrustedProviders)
    # Limits tests of providers, each of which waits for an issuer in a thread.
    tests: WorkSlots = field(default_factory=lambda: WorkSlots(total=4, per_organization=2))
    _waiting: list[tuple[VerifiedToken, asyncio.Future[MintedGrant]]] = field(default_factory=list)
    _minting: asyncio.Task[None] | None = None

    def find_provider(self, by: Principal, name: str, token: str) -> UnverifiedToken:
        """Parse a token that a principal of the organization presents, and find its provider.

        `name` is the provider's name or id; if empty, the token's issuer determines the provider.
        Raises `ProviderNotFound`, `AmbiguousProvider`, `ProviderDisabled`, `ExchangeNotAllowed`,
        `InvalidToken`.
        """
        by.require(Permission.TOKENS_EXCHANGE)
        parsed = None if name else parse_token(token)
        trusted = self._trusted(by.org_id, by.environment)
        provider = (
            _find_by_name(trusted, name) if parsed is None else _find_by_issuer(trusted, parsed)
        )
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
        return UnverifiedToken(provider, parsed or parse_token(token))

    def has_cached_keys(self, unverified: UnverifiedToken) -> bool:
        """Return whether `verify` can run without fetching keys from the issuer."""
        provider, token = unverified.provider, unverified.token
        return token.alg == SHARED_SECRET or self.keys.are_cached(
            provider.key_set, provider.rules.keys, token.kid
        )

    def verify_keyless(
        self, anonymous: Principal, provider_name: str, token: str, ttl: int | None
    ) -> VerifiedToken:
        """Verify a token from a caller without a key.

        `anonymous` has the organization and environment in the request. Everything that is not
        found raises the same `InvalidToken`, so callers can't find out which organizations exist.
        """
        # Check the ttl before any look-up, or its error would reveal what was found.
        choose_ttl(ttl, LONGEST_TTL_S)
        hidden = InvalidToken(
            "The token is not accepted without a key. Check organization_id, and the token's "
            "issuer, audience and expiry; or the auth provider does not let callers exchange "
            "without a key (keyless_may_exchange), and an admin can change that."
        )
        try:
            parsed = parse_token(token)
            issuer = issuer_hint(parsed)
            candidates = [
                provider
                for provider in self._trusted(anonymous.org_id, anonymous.environment)
                if provider.enabled
                and provider.spec.limits.keyless_may_exchange
                and provider.rules.issuer == issuer
                and provider_name in ("", provider.id, provider.spec.name)
            ]
            if len(candidates) != 1:
                raise hidden
            by = Principal(
                PrincipalKind.PROVIDER,
                candidates[0].id,
                candidates[0].spec.name,
                org_id=anonymous.org_id,
                environment=anonymous.environment,
                permissions=frozenset({Permission.TOKENS_EXCHANGE}),
                address=anonymous.address,
                user_agent=anonymous.user_agent,
            )
            return self.verify(by, "", UnverifiedToken(candidates[0], parsed), ttl)
        except (InvalidToken, KeySetUnavailable):
            raise hidden from None

    def dry_run(
        self, by: Principal, spec: ProviderSpec, secret: bytes, token: str, provider_id: str
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        """Fetch a provider's keys and check a token; return the steps, and the user if it passes.

        The keys are always fetched, not taken from the cache, which may take ten seconds. Raises
        `Overloaded` if too many tests run.
        """
        with self.tests.reserve(by.org_id):
            return self._explain(spec, secret, token, provider_id)

    def _explain(
        self, spec: ProviderSpec, secret: bytes, token: str, provider_id: str
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        rules, key_set = token_rules(spec), f"test {provider_id}"
        self.keys.purge(key_set)
        steps: list[Step] = []
        if not spec.legacy_secret:
            try:
                keys = self.keys.keys(key_set, rules.keys, "")
            except KeySetUnavailable as error:
                return [Step("keys", error.detail)], None
            notes = self.keys.left_out(key_set, rules.keys)
            fault = "" if keys else " ".join(["The key set has no key that can verify.", *notes])
            steps.append(Step("keys", fault, "" if fault else " ".join(notes)))
        if not token:
            return steps, None
        keys_of = self.keys.keys_of(key_set, rules.keys)
        now_s = self.database.clock() / 1000
        steps += explain_token(token, rules, keys_of, now_s, secret)
        if any(step.fault for step in steps):
            return steps, None
        claims = verify_token(parse_token(token), rules, keys_of, now_s, secret)
        try:
            identity = identity_of(spec.mapping, claims)
        except WardkeyError as error:
            return [*steps, Step("claims", error.detail)], None
        return [*steps, Step("claims")], (identity, _username(spec, identity, provider_id)[0])

    def dry_run_unsaved(
        self,
        by: Principal,
        spec: ProviderSpec,
        secret: str,
        token: str,
        saved: TrustedProvider | None = None,
    ) -> tuple[list[Step], tuple[Identity, str] | None]:
        """Do the same as `dry_run` with settings that are not saved; nothing is written.

        `saved` is the provider that the settings would update; its shared secret is used if
        `secret` is empty. Raises what `clean_provider` and `clean_shared_secret` raise.
        """
        by.require(Permission.PROVIDERS_WRITE)
        spec = clean_provider(spec, http_allowed=self.private_issuers)
        shared_secret = b"" if saved is None else saved.secret
        if spec.legacy_secret and (secret or not shared_secret):
            shared_secret = clean_shared_secret(secret)
        if saved is not None:
            return self.dry_run(by, spec, shared_secret, token, saved.id)
        steps, result = self.dry_run(by, spec, shared_secret, token, "prv_new")
        if result is not None:
            # The mark is derived from the provider's id, which does not exist yet.
            identity, username = result
            result = identity, f"{username.rpartition('_')[0]}_…"
        return steps, result

    def name_of(self, grant: GrantRecord) -> str:
        """Return the current name of a grant's provider, or "" if it no longer exists."""
        trusted = self._trusted(grant.org_id, grant.environment)
        names = (item.spec.name for item in trusted if item.id == grant.provider_id)
        return next(names, "")

    async def mint(self, verified: VerifiedToken) -> MintedGrant:
        """Mint the grant of a verified token; it is durable when this returns.

        Grants that arrive while others are being written share the next commit. Raises
        `OrganizationSuspended` and the storage's errors.
        """
        future: asyncio.Future[MintedGrant] = asyncio.get_running_loop().create_future()
        self._waiting.append((verified, future))
        if self._minting is None or self._minting.done():
            self._minting = asyncio.create_task(self._mint_waiting())
        return await future

    async def _mint_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await run_sync(self._write, [verified for verified, _ in batch])
            except WardkeyError as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                # The caller may have disconnected, which cancels the future.
                if future.done():
                    continue
                if isinstance(result, WardkeyError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _write(self, exchanges: Sequence[VerifiedToken]) -> list[MintedGrant | WardkeyError]:
        with self.database.write() as tx:
            results = mint_together(tx, exchanges)
        # A transaction that was rolled back leaves its revision to another.
        if tx.position:
            self.providers.skip_revision(tx.revision)
        return results

    def _trusted(self, org_id: str, environment: Environment) -> Sequence[TrustedProvider]:
        revision = self.verifier.directory.revision()
        return self.providers.get(self.database, TenantScope(org_id, environment), revision)

    def verify(
        self, by: Principal, key_kid: str, unverified: UnverifiedToken, ttl: int | None
    ) -> VerifiedToken:
        """Verify a token, which may wait for its issuer; raises the error of the failed check."""
        provider = unverified.provider
        spec = provider.spec
        ttl_s = choose_ttl(ttl, spec.limits.max_ttl_s)
        claims = verify_token(
            unverified.token,
            provider.rules,
            self.keys.keys_of(provider.key_set, provider.rules.keys),
            self.database.clock() / 1000,
            provider.secret,
        )
        self._apply_rate_limit(provider)
        identity = identity_of(spec.mapping, claims)
        username, user_key = _username(spec, identity, provider.id)
        grant = NewGrant(
            provider.id,
            identity.user_id,
            identity.email.lower(),
            user_key,
            username,
            identity.variables,
            ttl_s,
            spec.limits.max_refresh_s,
        )
        return VerifiedToken(by, provider, grant, key_kid)

    def _apply_rate_limit(self, provider: TrustedProvider) -> None:
        rate = provider.spec.limits.rate
        if rate is None:
            return
        limit = RateLimit(rate.limit, rate.period_s * 1000, rate.burst)
        admission = self.verifier.admit(limit, provider.id)
        if admission.admitted:
            return
        raise RateLimitExceeded(
            f"The auth provider {provider.spec.name} allows {rate.limit} exchanges in "
            f"{rate.period_s} seconds; try again later.",
            retry_after_s=(admission.retry_after_ms or 0) / 1000,
        )


def native_grant(org_id: str, email: str, provider_id: str, ttl_s: int) -> NewGrant:
    """Return the grant for a user whom a server identifies by e-mail address."""
    digest = _digest(provider_id or org_id, email)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in email)
    suffix = digest.hex()[:8]
    return NewGrant(
        provider_id,
        email,
        email,
        f"usr_{digest.hex()[:28]}",
        f"{name[:55]}_{suffix}",
        {"user_id": email},
        ttl_s,
    )


def _username(spec: ProviderSpec, identity: Identity, provider_id: str) -> tuple[str, str]:
    """Return the user name of an identity's grants, and its user key."""
    digest = _digest(provider_id, identity.user_id)
    name = grant_username(spec.mapping.username_from, identity, digest)
    return name, f"usr_{digest.hex()[:28]}"


def _digest(provider_id: str, user_id: str) -> bytes:
    # The key never changes, so user names survive a rotation of the master key.
    return blake2b(
        subject_of(provider_id, user_id), key=provider_id.encode()[:64], digest_size=16
    ).digest()


def _find_by_name(trusted: Sequence[TrustedProvider], name: str) -> TrustedProvider:
    for provider in trusted:
        if name in (provider.id, provider.spec.name):
            return provider
    of_kind = [provider for provider in trusted if provider.spec.kind == name]
    if len(of_kind) > 1:
        names = ", ".join(provider.spec.name for provider in of_kind)
        raise AmbiguousProvider(
            f"There are several auth providers of kind {name}; name one of them: {names}.",
            field="provider",
        )
    if not of_kind:
        raise ProviderNotFound
    return of_kind[0]


def _find_by_issuer(trusted: Sequence[TrustedProvider], token: ParsedToken) -> TrustedProvider:
    issuer = issuer_hint(token)
    candidates = [provider for provider in trusted if provider.rules.issuer == issuer]
    # A disabled provider may have been replaced by an enabled one with the same issuer.
    candidates = [provider for provider in candidates if provider.enabled] or candidates
    if len(candidates) > 1:
        names = ", ".join(provider.spec.name for provider in candidates)
        raise AmbiguousProvider(
            f"Several auth providers have the token's issuer; name one of them: {names}.",
            field="provider",
        )
    if not candidates:
        raise ProviderNotFound("No auth provider has the token's issuer; create one for it.")
    return candidates[0]
