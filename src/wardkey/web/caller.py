"""Who calls: the credential of a request turned into a Principal."""

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

# An address with a zone, brackets and a port is shorter.
_LONGEST_HOP = 128
_LONGEST_ORGANIZATION = 64
_BEARER = ("Bearer", "bearer")


@dataclass(frozen=True, slots=True)
class Caller:
    """A Principal with the credential that it showed; `known` is the record of a key."""

    by: Principal
    text: str = field(repr=False)
    known: KnownSecret | None = field(default=None, repr=False)

    @property
    def kid(self) -> str:
        """The kid of a key's secret, empty for others."""
        return "" if self.known is None else self.known.kid

    @property
    def credential(self) -> bytes:
        """A fingerprint of the credential."""
        return blake2b(self.text.encode("utf-8", "surrogateescape"), digest_size=32).digest()

    def acting_in(self, environment: Environment | None) -> Principal:
        """Return the Principal in the environment that the body names.

        A member may work in either; a key stays in its own, and actions refuse the other.
        """
        if environment is None or self.by.kind is not PrincipalKind.MEMBER:
            return self.by
        return replace(self.by, environment=environment)


def client_address(incoming: RawRequest, context: AppContext) -> str:
    """Return the address of the end client; forwarded ones count from trusted proxies only.

    X-Forwarded-For is read from its right end, past the trusted proxies.
    """
    address = incoming.peer
    if not context.proxies:
        return address
    chain = ",".join(incoming.headers_named(b"x-forwarded-for")).split(",")
    for hop in reversed([item.strip() for item in chain if item.strip()]):
        if not contains(context.proxies, address):
            break
        address = bare_address(hop[:_LONGEST_HOP])
    return address[:64]


def shown_credential(incoming: RawRequest, context: AppContext) -> str:
    """Return the one credential of the request's headers, or an empty text.

    Raises `AmbiguousCredentials`, `CredentialInUrl`.
    """
    if incoming.query and _shows_credential(incoming.query, context.runner.database.brand):
        raise CredentialInUrl

    def is_ours(text: str) -> bool:
        brand, directory = context.runner.database.brand, context.verifier.directory
        return looks_like_ours(text, brand=brand) or directory.has_import_prefix(text)

    texts: list[str] = []
    for value in incoming.headers_named(b"authorization"):
        scheme, _, rest = value.partition(" ")
        if scheme in _BEARER:
            texts.append(trim_field(rest))
        else:
            texts += authorization_texts(value, is_ours)
    for name in context.key_names:
        if name in incoming.named:
            texts += map(trim_field, incoming.headers_named(name))
    return texts[0] if len(texts) == 1 else choose_credential(texts, is_ours)


def no_credential(incoming: RawRequest, context: AppContext) -> MissingCredentials:
    """Return the failure of a request without a credential, which names what came instead."""
    brand, read = context.runner.database.brand, (b"authorization", *context.key_names)
    others = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in incoming.headers
        if name not in read
    ]
    said = explain_missing(
        incoming.headers_named(b"authorization"), others, partial(looks_like_ours, brand=brand)
    )
    return MissingCredentials(said)


def is_ordinary(incoming: RawRequest, context: AppContext) -> bool:
    """Return whether at most one header field presents a credential, as Bearer or as a key.

    Other forms may need a look at the import prefixes, or hide a person's token from the lane, so
    the event loop leaves them to the framework's threads.
    """
    named = incoming.named
    shown = named.get(b"authorization")
    if shown is not None and shown[:7].lower() != b"bearer ":
        return False
    count = 0 if shown is None else 1
    for name in context.key_names:
        if name in named:
            count += 1
    if count <= 1 and len(named) != len(incoming.headers):
        names = (b"authorization", *context.key_names)
        count = sum(name in names for name, _ in incoming.headers)
    return count <= 1


def is_caller_cached(incoming: RawRequest, context: AppContext, keys: Sequence[str] = ()) -> bool:
    """Tell whether memory holds the caller's credential and `keys`: no network needed."""
    if not is_ordinary(incoming, context):
        return False
    try:
        asked = [shown_credential(incoming, context), *map(trim, keys)]
    except WardkeyError:
        return True
    return all(context.verifier.directory.is_cached(kid_of(text)) for text in asked)


# A proxy asks with the same few URLs all the time.
@lru_cache(maxsize=1024)
def _shows_credential(query: bytes, brand: str) -> bool:
    return any(
        looks_like_ours(text.removeprefix("Bearer "), brand=brand)
        for pair in parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        for text in pair
    )


def from_browser(incoming: RawRequest) -> bool:
    """Tell whether a browser sent this; Node's fetch sends Sec-Fetch-Mode, but not these."""
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


def note_exposure(context: AppContext, known: KnownSecret, address: str, agent: str) -> None:
    """Say in the audit that a browser sent a secret key, once a minute for each key."""
    by = key_principal(known, address, agent)
    context.runner.aggregator.aggregate(by, "key.exposed", f"{known.kid} was sent by a browser")


def identify_caller(incoming: RawRequest, context: AppContext) -> Caller:
    """Return who shows a credential; raises what is wrong with it."""
    seen = incoming.seen
    if seen.known is not None and _tells_the_same(incoming, context):
        caller: Caller = seen.caller
        by = caller.by
        if context.verifier.revalidate(seen.known, by.address, by.user_agent, incoming.route):
            return caller
    text = shown_credential(incoming, context)
    if not text:
        raise no_credential(incoming, context)
    address = client_address(incoming, context)
    agent = incoming.header(b"user-agent")[:MOST_TAKEN]
    secret = parse(text, brand=context.runner.database.brand)
    if not isinstance(secret, Malformed) and secret.kind is not SecretKind.SECRET:
        if secret.kind is SecretKind.USER:
            with context.runner.database.read() as tx:
                return Caller(
                    replace(identify(tx, secret), address=address, user_agent=agent), text
                )
        if secret.kind is SecretKind.SERVICE:
            service = context.verifier.service_key(secret, address)
            by = Principal(
                PrincipalKind.SERVICE_KEY,
                service.kid,
                service.name,
                address=address,
                user_agent=agent,
            )
            return Caller(by, text)
    asked = VerificationRequest(
        text,
        address=address,
        origin=incoming.header(b"origin"),
        browser=from_browser(incoming),
    )
    answer = context.verifier.verify(asked, agent, incoming.route)
    if answer.verdict is not Verdict.VALID or answer.known is None:
        failure = answer.failure(asked)
        if isinstance(failure, SecretKeyInBrowser) and answer.known is not None:
            note_exposure(context, answer.known, address, agent)
        raise failure
    by = key_principal(answer.known, address, agent, asked.origin)
    caller = Caller(by, text, answer.known)
    if len(incoming.named) == len(incoming.headers):
        seen.named, seen.query = incoming.named, incoming.query
        seen.known, seen.caller = answer.known, caller
    return caller


def caller_in_organization(incoming: RawRequest, context: AppContext) -> Caller:
    """Return the caller inside an organization: a key in its own, or a person in the one named.

    Raises `OtherOrganization`, `WrongEnvironment` if the header fields name another one to a key.
    """
    caller = identify_caller(incoming, context)
    if caller.by.kind is not PrincipalKind.USER:
        _require_own_place(caller, incoming)
        return caller
    organization = incoming.header(b"wardkey-organization")
    try:
        environment = Environment(incoming.header(b"wardkey-environment") or Environment.LIVE)
    except ValueError:
        environment = None
    if environment is None or len(organization) > _LONGEST_ORGANIZATION:
        raise InvalidRequest(
            "Wardkey-Organization is a slug or an id, Wardkey-Environment live or test."
        )
    with context.runner.database.read() as tx:
        return Caller(as_member(tx, caller.by, organization, environment), caller.text)


def _require_own_place(caller: Caller, incoming: RawRequest) -> None:
    """Refuse header fields that name another organization or environment than a key acts in."""
    named = incoming.header(b"wardkey-organization")
    known = caller.known
    if named:
        if known is None:
            raise OtherOrganization(
                "A service key belongs to no organization; leave out Wardkey-Organization, and "
                "name the organization in the body."
            )
        if not known.is_of(named):
            raise OtherOrganization(
                "Wardkey-Organization names another organization than the key's, and a key acts "
                "in its own only; leave the header out, or send a key of that organization."
            )
    named = incoming.header(b"wardkey-environment")
    if named and known is not None and named != known.environment:
        raise WrongEnvironment(
            f"This is a {known.environment} key, and Wardkey-Environment names another "
            "environment; leave the header out, or send a key of that environment."
        )


def _tells_the_same(incoming: RawRequest, context: AppContext) -> bool:
    """Tell whether everything that a caller's identity hangs on is as in the request before."""
    named, before = incoming.named, incoming.seen.named
    if incoming.query != incoming.seen.query or len(named) != len(incoming.headers):
        return False
    if named is before:
        return True
    if any(named.get(name) != before.get(name) for name in context.identity_headers):
        return False
    incoming.seen.named = named
    return True


def _caller(request: Request, context: CurrentContext) -> Caller:
    incoming = RawRequest.of(request)
    # A request without any credential is told so first.
    if shown_credential(incoming, context):
        _refuse_unknown_parameters(request)
    return identify_caller(incoming, context)


def _refuse_unknown_parameters(request: Request) -> None:
    """Refuse what the route does not take: a mistyped filter would list everything."""
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
            description="Slug or id: where a person acts who is in several organizations. "
            "Keys act in their own, and any other is refused.",
        ),
    ] = "",
    wardkey_environment: Annotated[
        Environment,
        Header(
            description="Where a person acts. Keys act in their own environment, and the other "
            "is refused."
        ),
    ] = Environment.LIVE,
) -> Caller:
    """Return the caller inside an organization: a key in its own, or a person in the one named."""
    if caller.by.kind is not PrincipalKind.USER:
        _require_own_place(caller, RawRequest.of(request))
        return caller
    with ctx.runner.database.read() as tx:
        by = as_member(tx, caller.by, wardkey_organization, wardkey_environment)
    return Caller(by, caller.text)


CurrentCaller = Annotated[Caller, Depends(_in_organization)]


def asks_credential(route: object) -> bool:
    """Tell whether a route identifies its caller, for the OpenAPI document."""
    open_ends = [getattr(route, "dependant", None)]
    while open_ends:
        found = open_ends.pop()
        if found is None:
            continue
        if found.call is _caller:
            return True
        open_ends.extend(found.dependencies)
    return False


def anonymous_principal(request: Request, context: AppContext) -> Principal:
    """Return a Principal without any permission, for routes that identify by a link."""
    return Principal(
        PrincipalKind.USER,
        "",
        "",
        address=client_address(RawRequest.of(request), context),
        user_agent=request.headers.get("user-agent", "")[:MOST_TAKEN],
    )
