"""Routes of token exchange, open to browsers: exchange, create and refresh grants."""

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
_GUESS_ERRORS = (errors.InvalidToken, errors.TokenExpired)
MAX_BODY = 2 * LONGEST_TOKEN


class ExchangeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v2/tokens/exchange`, in either of its forms."""

    token: str
    provider: str = ""
    ttl: int | None = None
    organization_id: str = ""
    integration_id: str = ""

    def __repr__(self) -> str:
        """Hide the token."""
        return "ExchangeRequest(…)"


class CreateRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v2/tokens/create`; prefer to send the key as Bearer."""

    user_email: str
    organization_id: str = ""
    secret_key: str = ""
    integration_id: str = ""
    replace_existing: bool = False
    ttl: int | None = None

    def __repr__(self) -> str:
        """Hide the key."""
        return "CreateRequest(…)"


class RefreshRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v2/tokens/refresh`."""

    token_id: str
    current_token_password: str

    def __repr__(self) -> str:
        """Hide the password."""
        return "RefreshRequest(…)"


_exchange_decoder = msgspec.json.Decoder(ExchangeRequest)
_create_decoder = msgspec.json.Decoder(CreateRequest)
_refresh_decoder = msgspec.json.Decoder(RefreshRequest)
_encoder = msgspec.json.Encoder()

_TTL = {"type": ["integer", "null"], "minimum": SHORTEST_TTL_S, "maximum": LONGEST_TTL_S}
_ID = {"type": ["string", "null"], "maxLength": 64}
_GRANT_SCHEMA = {
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


def _describe_body(properties: dict[str, Any], required: list[str], example: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
        "example": example,
    }
    content = {JSON: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "security": _SECURITY}


def _describe_responses(*error_types: type[errors.WardkeyError]) -> dict[int | str, dict[str, Any]]:
    grant = {"description": "The grant.", "content": {JSON: {"schema": _GRANT_SCHEMA}}}
    return {**problem_responses(*error_types, body=True), 200: grant}


@router.options("/v2/tokens/exchange", include_in_schema=False)
@router.options("/v2/tokens/refresh", include_in_schema=False)
def preflight() -> Response:
    """Answer a CORS preflight. It carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=preflight_headers("POST"))


@router.post(
    "/v2/tokens/exchange",
    responses=_describe_responses(
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
    openapi_extra=_describe_body(
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
    """Exchange an identity provider's token for a short-lived MQTT credential.

    With a key, `provider` selects the provider. Without one, send `organization_id`; the token's
    issuer then selects the provider among those that allow exchange without a key.
    """
    incoming = RawRequest.of(request, await request.body())
    try:
        exchange = await run_in_threadpool(verify_exchange, incoming, ctx)
        minted = await ctx.token_exchange.mint(exchange)
    except errors.WardkeyError as error:
        return _render_error(error, incoming).response()
    return _render_grant(minted, ctx, exchange.provider.spec.name).response()


def exchange_on_fast_path(
    incoming: RawRequest, ctx: AppContext
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Exchange a token presented with a key, in a thread only if its issuer must be queried.

    Returns None for a request without a key.
    """
    if not has_simple_credential(incoming, ctx) or not find_credential(incoming, ctx):
        return None
    started_at = perf_counter()
    try:
        pending = _prepare_with_key(incoming, ctx)
        has_keys = ctx.token_exchange.has_cached_keys(pending.token)
        exchange = pending.verify(ctx) if has_keys else None
        return asyncio.create_task(_mint_later(pending, exchange, incoming, ctx, started_at))
    except errors.WardkeyError as error:
        response = _render_error(error, incoming)
    except Exception:
        log.exception("request %s failed", incoming.request_id)
        response = _render_error(errors.InternalError(), incoming)
    ctx.verifier.metrics.observe(incoming.route, perf_counter() - started_at)
    return response


async def _mint_later(
    pending: _PendingExchange,
    exchange: VerifiedToken | None,
    incoming: RawRequest,
    ctx: AppContext,
    started_at: float,
) -> RawResponse:
    try:
        if exchange is None:
            exchange = await run_in_threadpool(pending.verify, ctx)
        minted = await ctx.token_exchange.mint(exchange)
        return _render_grant(minted, ctx, exchange.provider.spec.name)
    except errors.WardkeyError as error:
        return _render_error(error, incoming)
    except Exception:
        log.exception("request %s failed", incoming.request_id)
        return _render_error(errors.InternalError(), incoming)
    finally:
        ctx.verifier.metrics.observe(incoming.route, perf_counter() - started_at)


@router.post(
    "/v2/tokens/create",
    responses=_describe_responses(
        errors.InvalidEmail, errors.InvalidTtl, errors.ProviderNotFound, errors.OrganizationNotFound
    ),
    openapi_extra=_describe_body(
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
    """Create a grant for one of your own users.

    The server vouches for the user with its secret key.
    """
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(_respond, _create_grant, incoming, ctx)).response()


@router.post(
    "/v2/tokens/refresh",
    responses=_describe_responses(
        errors.InvalidToken, errors.RefreshReplayed, errors.TooManyAttempts
    ),
    openapi_extra=_describe_body(
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
    """Replace a grant with a new one of the same length.

    A password refreshes once. It still logs in for 30 seconds, and its sessions continue under the
    new grant. If the response was lost, the same request within two minutes returns another new
    password, unless the first one was used. Any other refresh with an old password ends the grant
    and all grants refreshed from it: the password may be stolen.
    """
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(_respond, _refresh_grant, incoming, ctx)).response()


@dataclass(frozen=True, slots=True)
class _PendingExchange:
    """A token presented with a credential of the organization."""

    caller: Caller
    token: UnverifiedToken
    ttl: int | None

    def verify(self, ctx: AppContext) -> VerifiedToken:
        """Verify the token; raises why it is rejected."""
        return ctx.token_exchange.verify(self.caller.by, self.caller.kid, self.token, self.ttl)


def _prepare_with_key(incoming: RawRequest, ctx: AppContext) -> _PendingExchange:
    require_json_body(incoming)
    body = _decode(_exchange_decoder, incoming.body)
    caller = caller_in_organization(incoming, ctx)
    _require_same_organization(caller.by, body.organization_id)
    name = body.provider or body.integration_id
    with ctx.runner.audit_refusals("exchange_token", caller.by):
        return _PendingExchange(
            caller, ctx.token_exchange.find_provider(caller.by, name, trim(body.token)), body.ttl
        )


def verify_exchange(incoming: RawRequest, ctx: AppContext) -> VerifiedToken:
    """Verify the token; without a key, a failure counts against the client's address."""
    # Requests with a key skip the per-address throttle: other clients' failures, or bad tokens of
    # the key's own users, must not block them.
    if find_credential(incoming, ctx):
        return _prepare_with_key(incoming, ctx).verify(ctx)
    require_json_body(incoming)
    body = _decode(_exchange_decoder, incoming.body)
    address = client_address(incoming, ctx)
    name = body.provider or body.integration_id
    by = _anonymous_principal(incoming, body.organization_id, address)
    counters = by_address("exchange", address, Limit.SHARED)
    with ctx.throttle.failures(*counters, failed=_GUESS_ERRORS):
        try:
            return ctx.token_exchange.verify_keyless(by, name, trim(body.token), body.ttl)
        except errors.InvalidToken:
            if body.organization_id:
                raise
            missing = missing_credentials_error(incoming, ctx).detail
            raise errors.MissingCredentials(
                f"{missing} Without a key, send organization_id (at /oauth/token: audience)."
            ) from None


def _create_grant(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    require_json_body(incoming)
    body = _decode(_create_decoder, incoming.body)
    if body.secret_key:
        bearer = (b"authorization", f"Bearer {trim(body.secret_key)}".encode())
        incoming = replace_headers(incoming, [*incoming.headers, bearer])
    caller = caller_in_organization(incoming, ctx)
    by = caller.by
    with ctx.runner.audit_refusals("create_token", by):
        by.require(Permission.TOKENS_CREATE)
    _require_same_organization(by, body.organization_id)
    try:
        email = clean_email(body.user_email)
    except ValueError as error:
        raise errors.InvalidEmail(str(error), field="user_email") from None
    ttl_s = choose_ttl(body.ttl, LONGEST_TTL_S)
    grant = native_grant(by.org_id, email.lower(), body.integration_id, ttl_s)
    minted = ctx.runner.write(grants.create, by, grant, caller.kid, replace=body.replace_existing)
    return _render_grant(minted, ctx)


def _refresh_grant(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    require_json_body(incoming)
    return _render_grant(refresh_once(incoming, ctx, _decode(_refresh_decoder, incoming.body)), ctx)


def refresh_once(incoming: RawRequest, ctx: AppContext, body: RefreshRequest) -> MintedGrant:
    """Refresh a grant; a failure counts against the client's address. Raises `RefreshReplayed`."""
    address = client_address(incoming, ctx)
    credentials = (body.token_id, trim(body.current_token_password))
    by = _anonymous_principal(incoming, "", address)
    with ctx.throttle.failures(*by_address("refresh", address, Limit.SHARED)):
        ctx.runner.read(refreshes.check_refresh, by, *credentials)
        minted = ctx.runner.write(refreshes.refresh, by, *credentials)
        if minted is None:
            raise errors.RefreshReplayed
    return minted


def _respond(
    handler: Callable[[RawRequest, AppContext], RawResponse], incoming: RawRequest, ctx: AppContext
) -> RawResponse:
    try:
        return handler(incoming, ctx)
    except errors.WardkeyError as error:
        return _render_error(error, incoming)


def _render_error(error: errors.WardkeyError, incoming: RawRequest) -> RawResponse:
    response = raw_problem_response(error, incoming.request_id)
    response.headers = {**response.headers, **CORS_HEADERS}
    return response


def _render_grant(minted: MintedGrant, ctx: AppContext, provider: str = "") -> RawResponse:
    grant, password = minted.grant, minted.password.text
    if not provider and grant.provider_id:
        provider = ctx.token_exchange.name_of(grant)
    body = {
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
    return RawResponse(200, _encoder.encode(body), JSON, CORS_HEADERS)


def _anonymous_principal(incoming: RawRequest, organization: str, address: str) -> Principal:
    """Return the principal of a caller without a key; a malformed organization matches nothing."""
    owner = parse_username(f"x@{organization}")
    return Principal(
        PrincipalKind.USER,
        "",
        "",
        org_id=owner.org_id if owner else "",
        environment=owner.environment if owner else Environment.LIVE,
        address=address,
        user_agent=incoming.header(b"user-agent")[:MOST_TAKEN],
    )


def _require_same_organization(by: Principal, organization: str) -> None:
    # The bare id is accepted in both environments, because older clients send only that.
    if organization not in ("", by.org_id, on_the_wire("", by.org_id, by.environment)[1:]):
        raise errors.OrganizationNotFound(
            "organization_id is not the organization and environment of the key; omit it, or send "
            "a key of that organization."
        )


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    if len(body) > MAX_BODY:
        raise errors.BodyTooLarge
    try:
        return decode_body(decoder, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise body_failure(body, decoder.type, error) from None


def replace_headers(
    incoming: RawRequest, headers: list[tuple[bytes, bytes]], body: bytes | None = None
) -> RawRequest:
    """Return the request with other headers, and another body unless it is None."""
    return RawRequest(
        incoming.query,
        headers,
        incoming.peer,
        incoming.body if body is None else body,
        incoming.request_id,
        incoming.cache,
        incoming.route,
    )


def is_never_cached(_incoming: RawRequest, _ctx: AppContext) -> bool:
    """Return False: memory never suffices, because each grant is a row in the database."""
    return False


FAST_ROUTES = {
    b"/v2/tokens/exchange": FastRoute(
        b"POST", "POST /v2/tokens/exchange", exchange_on_fast_path, is_never_cached
    )
}
