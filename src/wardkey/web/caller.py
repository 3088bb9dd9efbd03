"""Authentication: turns the credential of a request into a Principal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Request

from wardkey.actions.accounts.people import as_member, identify
from wardkey.domain.addresses import bare_address, contains
from wardkey.domain.callers import MOST_TAKEN
from wardkey.domain.credentials import (
    authorization_texts,
    choose_credential,
    explain_missing,
    trim,
    trim_field,
)
from wardkey.domain.errors import (
    CredentialInUrl,
    InvalidRequest,
    MissingCredentials,
    OtherOrganization,
    SecretKeyInBrowser,
    WardkeyError,
    WrongEnvironment,
)
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment, Malformed, SecretKind, kid_of, looks_like_ours, parse
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.raw_http import RawRequest
from wardkey.web.request_faults import unknown_parameter

# Longer than any address with a zone, brackets and a port.
_MAX_HOP = 128
_MAX_ORGANIZATION = 64
_BEARER = ("Bearer", "bearer")


@dataclass(frozen=True, slots=True)
class Caller:
    """A Principal with the credential it presented; `known` is the record of its key, if any."""

    by: Principal
    text: str = field(repr=False)
    known: KnownSecret | None = field(default=None, repr=False)

    @property
    def kid(self) -> str:
        """The kid of the key's secret, or "" for other credentials."""
        return "" if self.known is None else self.known.kid

    @property
    def credential(self) -> bytes:
        """A fingerprint of the credential."""
        return blake2b(self.text.encode("utf-8", "surrogateescape"), digest_size=32).digest()

    def acting_in(self, environment: Environment | None) -> Principal:
        """Return the Principal in the environment given in the body.

        Members can act in both; a key keeps its own, and actions reject the other.
        """
        if environment is None or self.by.kind is not PrincipalKind.MEMBER:
            return self.by
        return replace(self.by, environment=environment)


def client_address(incoming: RawRequest, ctx: AppContext) -> str:
    """Return the address of the end client; X-Forwarded-For counts only from trusted proxies.

    The header is read from the right, skipping the trusted proxies.
    """
    address = incoming.peer
    if not ctx.proxies:
        return address
    chain = ",".join(incoming.headers_named(b"x-forwarded-for")).split(",")
    for hop in reversed([item.strip() for item in chain if item.strip()]):
        if not contains(ctx.proxies, address):
            break
        address = bare_address(hop[:_MAX_HOP])
    return address[:64]


def find_credential(incoming: RawRequest, ctx: AppContext) -> str:
    """Return the one credential in the request's headers, or "" if there is none.

    Raises `AmbiguousCredentials`, `CredentialInUrl`.
    """
    if incoming.query and _has_credential(incoming.query, ctx.runner.database.brand):
        raise CredentialInUrl

    def is_ours(text: str) -> bool:
        brand, directory = ctx.runner.database.brand, ctx.verifier.directory
        return looks_like_ours(text, brand=brand) or directory.has_import_prefix(text)

    texts: list[str] = []
    for value in incoming.headers_named(b"authorization"):
        scheme, _, rest = value.partition(" ")
        if scheme in _BEARER:
            texts.append(trim_field(rest))
        else:
            texts += authorization_texts(value, is_ours)
    for name in ctx.key_names:
        if name in incoming.named:
            texts += map(trim_field, incoming.headers_named(name))
    return texts[0] if len(texts) == 1 else choose_credential(texts, is_ours)


def missing_credentials_error(incoming: RawRequest, ctx: AppContext) -> MissingCredentials:
    """Return the error for a request without a credential, naming what it sent instead."""
    brand, read = ctx.runner.database.brand, (b"authorization", *ctx.key_names)
    others = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in incoming.headers
        if name not in read
    ]
    detail = explain_missing(
        incoming.headers_named(b"authorization"), others, partial(looks_like_ours, brand=brand)
    )
    return MissingCredentials(detail)


def has_simple_credential(incoming: RawRequest, ctx: AppContext) -> bool:
    """Return whether at most one header carries a credential, as Bearer or as a key.

    Other forms may need the import prefixes, or hide a user token from the fast path, so they are
    left to the framework's threads.
    """
    named = incoming.named
    authorization = named.get(b"authorization")
    if authorization is not None and authorization[:7].lower() != b"bearer ":
        return False
    count = 0 if authorization is None else 1
    for name in ctx.key_names:
        if name in named:
            count += 1
    if count <= 1 and len(named) != len(incoming.headers):
        names = (b"authorization", *ctx.key_names)
        count = sum(name in names for name, _ in incoming.headers)
    return count <= 1


def is_caller_cached(incoming: RawRequest, ctx: AppContext, keys: Sequence[str] = ()) -> bool:
    """Return whether the caller's credential and `keys` are cached, so no network is needed."""
    if not has_simple_credential(incoming, ctx):
        return False
    try:
        secrets = [find_credential(incoming, ctx), *map(trim, keys)]
    except WardkeyError:
        return True
    return all(ctx.verifier.directory.is_cached(kid_of(text)) for text in secrets)


# A proxy sends the same few URLs all the time.
@lru_cache(maxsize=1024)
def _has_credential(query: bytes, brand: str) -> bool:
    return any(
        looks_like_ours(text.removeprefix("Bearer "), brand=brand)
        for pair in parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        for text in pair
    )


def is_from_browser(incoming: RawRequest) -> bool:
    """Return whether a browser sent the request; Node's fetch sends neither of these headers."""
    return b"origin" in incoming.named or b"sec-fetch-site" in incoming.named


def key_principal(known: KnownSecret, address: str, user_agent: str, origin: str = "") -> Principal:
    """Return the Principal of a key with a valid verdict."""
    return Principal(
        PrincipalKind.KEY,
        known.key_id,
        known.name,
        org_id=known.org_id,
        environment=known.environment,
        permissions=known.permissions,
        key_type=known.type,
        address=address,
        user_agent=user_agent,
        expires_at=known.expires_at,
        kid=known.kid,
        origin=origin,
    )


def audit_exposure(ctx: AppContext, known: KnownSecret, address: str, agent: str) -> None:
    """Audit that a browser sent a secret key, once a minute for each key."""
    by = key_principal(known, address, agent)
    ctx.runner.aggregator.aggregate(by, "key.exposed", f"{known.kid} was sent by a browser")


def identify_caller(incoming: RawRequest, ctx: AppContext) -> Caller:
    """Return the caller authenticated by its credential; raises why it is rejected."""
    cache = incoming.cache
    if cache.known is not None and _is_cache_valid(incoming, ctx):
        caller: Caller = cache.caller
        by = caller.by
        if ctx.verifier.revalidate(cache.known, by.address, by.user_agent, incoming.route):
            return caller
    text = find_credential(incoming, ctx)
    if not text:
        raise missing_credentials_error(incoming, ctx)
    address = client_address(incoming, ctx)
    agent = incoming.header(b"user-agent")[:MOST_TAKEN]
    secret = parse(text, brand=ctx.runner.database.brand)
    if not isinstance(secret, Malformed) and secret.kind is not SecretKind.SECRET:
        if secret.kind is SecretKind.USER:
            with ctx.runner.database.read() as tx:
                return Caller(
                    replace(identify(tx, secret), address=address, user_agent=agent), text
                )
        if secret.kind is SecretKind.SERVICE:
            service = ctx.verifier.service_key(secret, address)
            by = Principal(
                PrincipalKind.SERVICE_KEY,
                service.kid,
                service.name,
                address=address,
                user_agent=agent,
            )
            return Caller(by, text)
    request = VerificationRequest(
        text,
        address=address,
        origin=incoming.header(b"origin"),
        browser=is_from_browser(incoming),
    )
    result = ctx.verifier.verify(request, agent, incoming.route)
    if result.verdict is not Verdict.VALID or result.known is None:
        error = result.failure(request)
        if isinstance(error, SecretKeyInBrowser) and result.known is not None:
            audit_exposure(ctx, result.known, address, agent)
        raise error
    by = key_principal(result.known, address, agent, request.origin)
    caller = Caller(by, text, result.known)
    if len(incoming.named) == len(incoming.headers):
        cache.named, cache.query = incoming.named, incoming.query
        cache.known, cache.caller = result.known, caller
    return caller


def caller_in_organization(incoming: RawRequest, ctx: AppContext) -> Caller:
    """Return the caller in an organization: a key's own, or the one a user's headers name.

    Raises `OtherOrganization`, `WrongEnvironment` if a key's headers name another one.
    """
    caller = identify_caller(incoming, ctx)
    if caller.by.kind is not PrincipalKind.USER:
        _require_own_scope(caller, incoming)
        return caller
    organization = incoming.header(b"wardkey-organization")
    try:
        environment = Environment(incoming.header(b"wardkey-environment") or Environment.LIVE)
    except ValueError:
        environment = None
    if environment is None or len(organization) > _MAX_ORGANIZATION:
        raise InvalidRequest(
            "Send a slug or an id in Wardkey-Organization, and live or test in Wardkey-Environment."
        )
    with ctx.runner.database.read() as tx:
        return Caller(as_member(tx, caller.by, organization, environment), caller.text)


def _require_own_scope(caller: Caller, incoming: RawRequest) -> None:
    """Reject headers that name another organization or environment than the key's."""
    organization = incoming.header(b"wardkey-organization")
    known = caller.known
    if organization:
        if known is None:
            raise OtherOrganization(
                "A service key doesn't belong to an organization; remove the Wardkey-Organization "
                "header, and name the organization in the body."
            )
        if not known.is_of(organization):
            raise OtherOrganization(
                "Wardkey-Organization names a different organization than the key's; remove the "
                "header, or send a key of that organization."
            )
    environment = incoming.header(b"wardkey-environment")
    if environment and known is not None and environment != known.environment:
        raise WrongEnvironment(
            f"Wardkey-Environment names another environment, but this is a {known.environment} "
            "key; remove the header, or send a key of that environment."
        )


def _is_cache_valid(incoming: RawRequest, ctx: AppContext) -> bool:
    """Return whether everything that identifies the caller equals the previous request's."""
    named, previous = incoming.named, incoming.cache.named
    if incoming.query != incoming.cache.query or len(named) != len(incoming.headers):
        return False
    if named is previous:
        return True
    if any(named.get(name) != previous.get(name) for name in ctx.identity_headers):
        return False
    incoming.cache.named = named
    return True


def _caller(request: Request, ctx: CurrentContext) -> Caller:
    incoming = RawRequest.of(request)
    # A missing credential is reported before unknown parameters.
    if find_credential(incoming, ctx):
        _reject_unknown_parameters(request)
    return identify_caller(incoming, ctx)


def _reject_unknown_parameters(request: Request) -> None:
    """Reject parameters that the route doesn't have: a misspelled filter would list everything."""
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise unknown_parameter(unknown[0], sorted(known))


AnyCaller = Annotated[Caller, Depends(_caller)]


def _in_organization(
    request: Request,
    caller: AnyCaller,
    ctx: CurrentContext,
    wardkey_organization: Annotated[
        str,
        Header(
            max_length=64,
            description="Slug or id of the organization, for users in several. A key acts only in "
            "its own.",
        ),
    ] = "",
    wardkey_environment: Annotated[
        Environment,
        Header(description="The environment, for users. A key acts only in its own."),
    ] = Environment.LIVE,
) -> Caller:
    """Return the caller in an organization: a key's own, or the one a user's headers name."""
    if caller.by.kind is not PrincipalKind.USER:
        _require_own_scope(caller, RawRequest.of(request))
        return caller
    with ctx.runner.database.read() as tx:
        by = as_member(tx, caller.by, wardkey_organization, wardkey_environment)
    return Caller(by, caller.text)


CurrentCaller = Annotated[Caller, Depends(_in_organization)]


def requires_credential(route: object) -> bool:
    """Return whether a route authenticates its caller, for the OpenAPI document."""
    stack = [getattr(route, "dependant", None)]
    while stack:
        dependant = stack.pop()
        if dependant is None:
            continue
        if dependant.call is _caller:
            return True
        stack.extend(dependant.dependencies)
    return False


def anonymous_principal(request: Request, ctx: AppContext) -> Principal:
    """Return a Principal without permissions, for routes authenticated by a one-time link."""
    return Principal(
        PrincipalKind.USER,
        "",
        "",
        address=client_address(RawRequest.of(request), ctx),
        user_agent=request.headers.get("user-agent", "")[:MOST_TAKEN],
    )
