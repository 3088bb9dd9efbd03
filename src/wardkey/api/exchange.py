"""Doors of token exchange, open to pages: exchange, create and refresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.actions.grants import grants, refreshes
from wardkey.actions.grants.grants import MintedGrant
from wardkey.adapters.tokens import LONGEST_TOKEN
from wardkey.domain import errors
from wardkey.domain.callers import MOST_TAKEN
from wardkey.domain.credentials import trim
from wardkey.domain.grants import (
    LONGEST_TTL_S,
    SHORTEST_TTL_S,
    choose_ttl,
    recommended_refresh,
)
from wardkey.domain.names import clean_email
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.usernames import on_the_wire, parse_username
from wardkey.services.minting import VerifiedToken
from wardkey.services.throttle import Limit, by_address
from wardkey.services.token_exchange import UnverifiedToken, native_grant
from wardkey.verify.body_faults import body_failure
from wardkey.verify.json_body import decode_body
from wardkey.web.caller import (
    Caller,
    caller_in_organization,
    client_address,
    find_credential,
    has_simple_credential,
    missing_credentials_error,
)
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.cors import CORS_HEADERS, preflight_headers
from wardkey.web.fast_path import FastRoute
from wardkey.web.problems import problem_responses, raw_problem_response, require_json_body
from wardkey.web.raw_http import RawRequest, RawResponse

log = logging.getLogger(__name__)
router = APIRouter(tags=["tokens"])

T = TypeVar("T")

JSON = "application/json"
_GUESSED = (errors.InvalidToken, errors.TokenExpired)
LONGEST_BODY = 2 * LONGEST_TOKEN


class ExchangeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `POST /v2/tokens/exchange` takes, in either of its shapes."""

    token: str
    provider: str = ""
    ttl: int | None = None
    organization_id: str = ""
    integration_id: str = ""

    def __repr__(self) -> str:
        """Show nothing of the token."""
        return "ExchangeRequest(…)"


class CreateRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `POST /v2/tokens/create` takes; the key is better sent as Bearer."""

    user_email: str
    organization_id: str = ""
    secret_key: str = ""
    integration_id: str = ""
    replace_existing: bool = False
    ttl: int | None = None

    def __repr__(self) -> str:
        """Show nothing of the key."""
        return "CreateRequest(…)"


class RefreshRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `POST /v2/tokens/refresh` takes."""

    token_id: str
    current_token_password: str

    def __repr__(self) -> str:
        """Show nothing of the password."""
        return "RefreshRequest(…)"


_exchange = msgspec.json.Decoder(ExchangeRequest)
_create = msgspec.json.Decoder(CreateRequest)
_refresh = msgspec.json.Decoder(RefreshRequest)
_encoder = msgspec.json.Encoder()

_TTL = {"type": ["integer", "null"], "minimum": SHORTEST_TTL_S, "maximum": LONGEST_TTL_S}
_ID = {"type": ["string", "null"], "maxLength": 64}
_MINTED = {
    "type": "object",
    "required": ["mqtt_username", "mqtt_password", "token_id", "expires_at", "expires_in"],
    "properties": {
        "mqtt_username": {"type": "string"},
        "mqtt_password": {"type": "string"},
        "expires_at": {"type": "string", "format": "date-time"},
        "expires_in": {"type": "integer"},
        "access_token": {"type": "string"},
        "token_type": {"const": "Bearer"},
        "token_id": {"type": "string"},
        "refresh_recommended_at": {"type": "string", "format": "date-time"},
        "mqtt_credentials": {
            "type": "object",
            "properties": {"username": {"type": "string"}, "password": {"type": "string"}},
        },
        "provider": {"type": "string"},
        "user_id": {"type": "string"},
        "user_email": {"type": "string"},
    },
    "example": {
        "mqtt_username": "user_abc_mzxw6ytb@org_0fA3xQ2LmN7pR9sT1uV4wY",
        "mqtt_password": "tkn_7QdRk2mVx9Ta_…",
        "expires_at": "2030-01-31T12:00:00.000Z",
        "expires_in": 3600,
        "access_token": "tkn_7QdRk2mVx9Ta_…",
        "token_type": "Bearer",
        "token_id": "tok_7QdRk2mVx9Ta",
        "refresh_recommended_at": "2030-01-31T11:48:00.000Z",
        "mqtt_credentials": {
            "username": "user_abc_mzxw6ytb@org_0fA3xQ2LmN7pR9sT1uV4wY",
            "password": "tkn_7QdRk2mVx9Ta_…",
        },
        "provider": "supabase",
        "user_id": "user_abc",
        "user_email": "admin@acme.example",
    },
}
_SECURITY: list[dict[str, list[str]]] = [{}, {"key": []}, {"keyHeader": []}, {"userToken": []}]


def _takes(properties: dict[str, Any], required: list[str], example: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
        "example": example,
    }
    content = {JSON: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "security": _SECURITY}


def _answers(*failures: type[errors.WardkeyError]) -> dict[int | str, dict[str, Any]]:
    answered = {"description": "The grant.", "content": {JSON: {"schema": _MINTED}}}
    return {**problem_responses(*failures, body=True), 200: answered}


@router.options("/v2/tokens/exchange", include_in_schema=False)
@router.options("/v2/tokens/refresh", include_in_schema=False)
def preflight() -> Response:
    """Answer a browser's question; it carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=preflight_headers("POST"))


@router.post(
    "/v2/tokens/exchange",
    responses=_answers(
        errors.InvalidToken,
        errors.TokenExpired,
        errors.ClaimMissing,
        errors.InvalidTtl,
        errors.AmbiguousProvider,
        errors.ProviderNotFound,
        errors.ProviderDisabled,
        errors.ExchangeNotAllowed,
        errors.OrganizationNotFound,
        errors.TooManyAttempts,
        errors.KeySetUnavailable,
        errors.ProviderChanged,
    ),
    openapi_extra=_takes(
        {
            "provider": _ID,
            "token": {"type": "string", "format": "provider-token", "maxLength": LONGEST_TOKEN},
            "ttl": _TTL,
            "organization_id": _ID,
            "integration_id": _ID,
        },
        ["token"],
        {"provider": "supabase", "token": "eyJhbGciOiJFUzI1NiJ9…", "ttl": 3600},
    ),
    response_class=Response,
)
async def exchange_token(request: Request, ctx: CurrentContext) -> Response:
    """VerifiedToken an identity provider's token for a short-lived MQTT credential.

    With a key `provider` names the provider; without one `organization_id` says where, and the
    provider is found by the token's issuer among those that allow it.
    """
    incoming = RawRequest.of(request, await request.body())
    try:
        exchange = await run_in_threadpool(check_exchange, incoming, ctx)
        minted = await ctx.token_exchange.mint(exchange)
    except errors.WardkeyError as failure:
        return _refused(failure, incoming).response()
    return _granted(minted, ctx, exchange.provider.spec.name).response()


def exchange_on_fast_path(
    incoming: RawRequest, ctx: AppContext
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Check a token that comes with a key, in a thread only where an issuer must be asked.

    None for what comes without a key.
    """
    if not has_simple_credential(incoming, ctx) or not find_credential(incoming, ctx):
        return None
    began = perf_counter()
    try:
        held = _with_key(incoming, ctx)
        exchange = held.checked(ctx) if ctx.token_exchange.has_cached_keys(held.shown) else None
        return asyncio.create_task(_minted_later(held, exchange, incoming, ctx, began))
    except errors.WardkeyError as failure:
        out = _refused(failure, incoming)
    except Exception:
        log.exception("request %s failed", incoming.request_id)
        out = _refused(errors.InternalError(), incoming)
    ctx.verifier.metrics.observe(incoming.route, perf_counter() - began)
    return out


async def _minted_later(
    held: _PendingExchange,
    exchange: VerifiedToken | None,
    incoming: RawRequest,
    ctx: AppContext,
    began: float,
) -> RawResponse:
    try:
        if exchange is None:
            exchange = await run_in_threadpool(held.checked, ctx)
        minted = await ctx.token_exchange.mint(exchange)
        return _granted(minted, ctx, exchange.provider.spec.name)
    except errors.WardkeyError as failure:
        return _refused(failure, incoming)
    except Exception:
        log.exception("request %s failed", incoming.request_id)
        return _refused(errors.InternalError(), incoming)
    finally:
        ctx.verifier.metrics.observe(incoming.route, perf_counter() - began)


@router.post(
    "/v2/tokens/create",
    responses=_answers(
        errors.InvalidEmail, errors.InvalidTtl, errors.ProviderNotFound, errors.OrganizationNotFound
    ),
    openapi_extra=_takes(
        {
            "organization_id": _ID,
            "secret_key": {"type": ["string", "null"], "format": "key-text", "maxLength": 256},
            "user_email": {"type": "string", "format": "email", "maxLength": 254},
            "integration_id": {"enum": ["", None]},
            "replace_existing": {"type": ["boolean", "null"]},
            "ttl": _TTL,
        },
        ["user_email"],
        {"user_email": "admin@acme.example"},
    ),
    response_class=Response,
)
async def create_token(request: Request, ctx: CurrentContext) -> Response:
    """Make a grant for a user of one's own, whom a server vouches for with its secret key."""
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(_answered, _created, incoming, ctx)).response()


@router.post(
    "/v2/tokens/refresh",
    responses=_answers(errors.InvalidToken, errors.RefreshReplayed, errors.TooManyAttempts),
    openapi_extra=_takes(
        {
            "token_id": {"type": "string", "maxLength": 64},
            "current_token_password": {
                "type": "string",
                "format": "grant-password",
                "maxLength": 256,
            },
        },
        ["token_id", "current_token_password"],
        {"token_id": "tok_7QdRk2mVx9Ta", "current_token_password": "tkn_7QdRk2mVx9Ta_…"},
    ),
    response_class=Response,
)
async def refresh_token(request: Request, ctx: CurrentContext) -> Response:
    """Replace a grant by a new one for as long again; its password works once for this.

    The old password still logs in for 30 seconds; sessions that it opened go on under the new
    grant. If the answer was lost, the same request within two minutes gets another new password,
    as long as the first one was not used. Any other use of an old password for a refresh ends the
    grant and all that came of it: two who have one password are one too many.
    """
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(_answered, _refreshed, incoming, ctx)).response()


@dataclass(frozen=True, slots=True)
class _PendingExchange:
    """A token that somebody of the organization shows."""

    caller: Caller
    shown: UnverifiedToken
    ttl: int | None

    def checked(self, ctx: AppContext) -> VerifiedToken:
        """Return what to mint; raises what is wrong with the token."""
        return ctx.token_exchange.verify(self.caller.by, self.caller.kid, self.shown, self.ttl)


def _with_key(incoming: RawRequest, ctx: AppContext) -> _PendingExchange:
    require_json_body(incoming)
    wanted = _decode(_exchange, incoming.body)
    caller = caller_in_organization(incoming, ctx)
    _same_organization(caller.by, wanted.organization_id)
    name = wanted.provider or wanted.integration_id
    with ctx.runner.audit_refusals("exchange_token", caller.by):
        return _PendingExchange(
            caller,
            ctx.token_exchange.find_provider(caller.by, name, trim(wanted.token)),
            wanted.ttl,
        )


def check_exchange(incoming: RawRequest, ctx: AppContext) -> VerifiedToken:
    """Identify whoever asks, and check the token; a stranger's failure counts for his address."""
    # Whoever shows a key is never held up for strangers at his address, nor for his users' tokens.
    if find_credential(incoming, ctx):
        return _with_key(incoming, ctx).checked(ctx)
    require_json_body(incoming)
    wanted = _decode(_exchange, incoming.body)
    address = client_address(incoming, ctx)
    name = wanted.provider or wanted.integration_id
    stranger = _stranger(incoming, wanted.organization_id, address)
    counters = by_address("exchange", address, Limit.SHARED)
    with ctx.throttle.failures(*counters, failed=_GUESSED):
        try:
            return ctx.token_exchange.verify_keyless(stranger, name, trim(wanted.token), wanted.ttl)
        except errors.InvalidToken:
            if wanted.organization_id:
                raise
            missing = missing_credentials_error(incoming, ctx).detail
            raise errors.MissingCredentials(
                f"{missing} Without a key, name organization_id (at /oauth/token: audience)."
            ) from None


def _created(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    require_json_body(incoming)
    wanted = _decode(_create, incoming.body)
    if wanted.secret_key:
        shown = (b"authorization", f"Bearer {trim(wanted.secret_key)}".encode())
        incoming = with_fields(incoming, [*incoming.headers, shown])
    caller = caller_in_organization(incoming, ctx)
    by = caller.by
    with ctx.runner.audit_refusals("create_token", by):
        by.require(Permission.TOKENS_CREATE)
    _same_organization(by, wanted.organization_id)
    try:
        email = clean_email(wanted.user_email)
    except ValueError as error:
        raise errors.InvalidEmail(str(error), field="user_email") from None
    ttl_s = choose_ttl(wanted.ttl, LONGEST_TTL_S)
    grant = native_grant(by.org_id, email.lower(), wanted.integration_id, ttl_s)
    minted = ctx.runner.write(grants.create, by, grant, caller.kid, replace=wanted.replace_existing)
    return _granted(minted, ctx)


def _refreshed(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    require_json_body(incoming)
    return _granted(refresh_once(incoming, ctx, _decode(_refresh, incoming.body)), ctx)


def refresh_once(incoming: RawRequest, ctx: AppContext, wanted: RefreshRequest) -> MintedGrant:
    """Refresh a grant; a failure counts against the address. Raises `RefreshReplayed`."""
    address = client_address(incoming, ctx)
    shown = (wanted.token_id, trim(wanted.current_token_password))
    stranger = _stranger(incoming, "", address)
    with ctx.throttle.failures(*by_address("refresh", address, Limit.SHARED)):
        ctx.runner.read(refreshes.check_refresh, stranger, *shown)
        minted = ctx.runner.write(refreshes.refresh, stranger, *shown)
        if minted is None:
            raise errors.RefreshReplayed
    return minted


def _answered(
    answer: Callable[[RawRequest, AppContext], RawResponse], incoming: RawRequest, ctx: AppContext
) -> RawResponse:
    try:
        return answer(incoming, ctx)
    except errors.WardkeyError as failure:
        return _refused(failure, incoming)


def _refused(failure: errors.WardkeyError, incoming: RawRequest) -> RawResponse:
    out = raw_problem_response(failure, incoming.request_id)
    out.headers = {**out.headers, **CORS_HEADERS}
    return out


def _granted(minted: MintedGrant, ctx: AppContext, provider: str = "") -> RawResponse:
    grant, password = minted.grant, minted.password.text
    if not provider and grant.provider_id:
        provider = ctx.token_exchange.name_of(grant)
    answer = {
        "mqtt_username": grant.mqtt_username,
        "mqtt_password": password,
        "expires_at": iso(grant.expires_at),
        "expires_in": (grant.expires_at - grant.created_at) // 1000,
        "access_token": password,
        "token_type": "Bearer",
        "token_id": grant.token_id,
        "refresh_recommended_at": iso(recommended_refresh(grant.created_at, grant.expires_at)),
        "mqtt_credentials": {"username": grant.mqtt_username, "password": password},
        "provider": provider or "native",
        "user_id": grant.user_id,
        "user_email": grant.user_email,
    }
    return RawResponse(200, _encoder.encode(answer), JSON, CORS_HEADERS)


def _stranger(incoming: RawRequest, organization: str, address: str) -> Principal:
    """Return somebody without a key, where he says that he is; nothing fits if that is nowhere."""
    named = parse_username(f"x@{organization}")
    return Principal(
        PrincipalKind.USER,
        "",
        "",
        org_id=named.org_id if named else "",
        environment=named.environment if named else Environment.LIVE,
        address=address,
        user_agent=incoming.header(b"user-agent")[:MOST_TAKEN],
    )


def _same_organization(by: Principal, organization: str) -> None:
    # The id alone does for either environment: callers of before know no other.
    if organization not in ("", by.org_id, on_the_wire("", by.org_id, by.environment)[1:]):
        raise errors.OrganizationNotFound(
            "organization_id names another organization or environment than the key's; leave it "
            "out, or send a key of that one."
        )


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    if len(body) > LONGEST_BODY:
        raise errors.BodyTooLarge
    try:
        return decode_body(decoder, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise body_failure(body, decoder.type, error) from None


def with_fields(
    incoming: RawRequest, fields: list[tuple[bytes, bytes]], body: bytes | None = None
) -> RawRequest:
    """Return the request with other header fields, and another body unless that is None."""
    return RawRequest(
        incoming.query,
        fields,
        incoming.peer,
        incoming.body if body is None else body,
        incoming.request_id,
        incoming.cache,
        incoming.route,
    )


def is_never_cached(_incoming: RawRequest, _here: AppContext) -> bool:
    """Tell that what memory holds never suffices: each grant is a row in the database."""
    return False


FAST_ROUTES = {
    b"/v2/tokens/exchange": FastRoute(
        b"POST", "POST /v2/tokens/exchange", exchange_on_fast_path, is_never_cached
    )
}
