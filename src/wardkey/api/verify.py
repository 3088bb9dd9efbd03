"""Routes that judge keys: verify, its batch, and forward-auth for proxies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Any, NoReturn
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.domain import errors
from wardkey.domain.addresses import bare_address
from wardkey.domain.callers import MOST_TAKEN
from wardkey.domain.credentials import trim
from wardkey.domain.forward_auth import (
    ANY_ORGANIZATION,
    Browser,
    MethodSource,
    Terms,
    parse_terms,
    quotable,
    split_query,
)
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest
from wardkey.verify import wire
from wardkey.verify.verifier import VerificationResult
from wardkey.web.caller import (
    Caller,
    audit_exposure,
    caller_in_organization,
    client_address,
    find_credential,
    has_simple_credential,
    is_caller_cached,
    is_from_browser,
    missing_credentials_error,
)
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.fast_path import FastRoute
from wardkey.web.problems import (
    check_content_type,
    problem_responses,
    rate_headers,
    raw_problem_response,
)
from wardkey.web.raw_http import RawRequest, RawResponse, header_lines

router = APIRouter(tags=["verify"])
log = logging.getLogger(__name__)

Judge = Callable[[RawRequest, AppContext], RawResponse]
_JSON_TYPE = "application/json"
_FORWARD_AUTH = b"/v2/auth"

_ONE, _MANY, QUESTIONS = wire.schemas()
_VERDICT = {"$ref": "#/components/schemas/Verdict"}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_PERMISSION = {"type": "string", "format": "permission"}
_SECURITY: list[dict[str, list[str]]] = [{"key": []}, {"keyHeader": []}, {"userToken": []}]
_BATCH = {
    "type": "object",
    "required": ["items"],
    "properties": {"items": {"type": "array", "items": _VERDICT}},
}


def _takes(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "security": _SECURITY}


@router.post(
    "/v2/keys/verify",
    openapi_extra=_takes(_ONE),
    responses={
        **problem_responses(
            errors.InvalidCost,
            errors.TooManyItems,
            errors.UnknownPermission,
            errors.OtherOrganization,
            body=True,
        ),
        200: {"content": {"application/json": {"schema": _VERDICT}}},
    },
    response_class=Response,
)
async def verify_key(request: Request, ctx: CurrentContext) -> Response:
    """Judge a key; a refusal is an answer too: 200 with `valid: false` and its code."""
    return await _apart(_answer_one, request, ctx)


@router.post(
    "/v2/keys/verify-batch",
    openapi_extra=_takes(_MANY),
    responses={
        **problem_responses(
            errors.InvalidCost,
            errors.TooManyItems,
            errors.UnknownPermission,
            errors.OtherOrganization,
            body=True,
        ),
        200: {"content": {"application/json": {"schema": _BATCH}}},
    },
    response_class=Response,
)
async def verify_keys(request: Request, ctx: CurrentContext) -> Response:
    """Judge up to a hundred keys, each by itself, in their order."""
    return await _apart(_answer_many, request, ctx)


@router.get(
    "/v2/auth",
    responses={
        **problem_responses(
            errors.UnknownPermission,
            errors.OrganizationNotFound,
            errors.OtherOrganization,
            errors.OriginNotAllowed,
        ),
        200: {
            "description": "The key opens it; the Wardkey-* headers say whose it is.",
            "headers": {
                "Deprecation": {
                    "description": "RFC 9745: when the key got a newer secret than this one.",
                    "schema": {"type": "string", "pattern": "^@[0-9]+$"},
                    "example": "@1893456000",
                },
                "Sunset": {
                    "description": "RFC 8594: when the secret ends, to the second.",
                    "schema": {"type": "string"},
                    "example": "Tue, 01 Jan 2030 00:00:00 GMT",
                },
            },
        },
    },
    response_class=Response,
    openapi_extra={
        "security": [{"key": []}, {"keyHeader": []}],
        "parameters": [
            _parameter(
                "organization",
                {
                    "type": "string",
                    "maxLength": 64,
                    "description": "An id or a slug, or `any` for keys of every organization.",
                },
            ),
            _parameter("environment", {"enum": list(Environment), "default": "live"}),
            _parameter("type", {"enum": list(KeyType), "default": "secret"}),
            _parameter("permission", {"type": "array", "items": _PERMISSION, "maxItems": 20}),
            _parameter("browser", {"enum": list(Browser), "default": "refuse"}),
            _parameter("preflight", {"enum": list(MethodSource)}),
            _parameter("path", {"type": "string"}),
        ],
    },
)
async def forward_auth(request: Request, ctx: CurrentContext) -> Response:
    """Judge the key of a request that a proxy holds up; the proxy's URL says whose keys it takes.

    Every identity header is always sent, even empty, so that none can be forged from outside.
    """
    return await _judge_held(request, request.scope["query_string"], ctx)


# Without methods a route takes every method: proxies ask with the method of the request they hold.
@router.api_route(
    "/v2/auth", methods=[], include_in_schema=False, operation_id="forward_auth_any_method"
)
async def forward_auth_any_method(request: Request, ctx: CurrentContext) -> Response:
    """Judge as `GET /v2/auth` does, whatever the method."""
    return await _judge_held(request, request.scope["query_string"], ctx)


@router.api_route(
    "/v2/auth/{path:path}", methods=[], include_in_schema=False, operation_id="forward_auth_path"
)
async def forward_auth_path(request: Request, ctx: CurrentContext) -> Response:
    """Judge for a proxy that appends the client's path and query to ours.

    Both are the client's, so none of it is read as a parameter.
    """
    path: bytes = request.scope["raw_path"]
    held = path.removeprefix(_FORWARD_AUTH) + b"?" + request.scope["query_string"]
    return await _judge_held(request, b"path=" + held, ctx)


async def _judge_held(request: Request, query: bytes, ctx: AppContext) -> Response:
    incoming = RawRequest.of(request)
    incoming.query, incoming.route = query, f"{request.method} /v2/auth"
    return (await run_in_threadpool(_answer_proxied, incoming, ctx)).response()


async def _apart(answer: Judge, request: Request, ctx: AppContext) -> Response:
    """Judge in a thread, where waiting for a database holds up nobody."""
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(answer, incoming, ctx)).response()


def answering(judge: Judge) -> Judge:
    """Return `judge` with what it raises as a problem in its answer."""

    def answer(incoming: RawRequest, ctx: AppContext) -> RawResponse:
        began = perf_counter()
        try:
            return judge(incoming, ctx)
        except errors.WardkeyError as failure:
            return raw_problem_response(failure, incoming.request_id)
        except Exception:
            log.exception("request %s failed", incoming.request_id)
            return raw_problem_response(errors.InternalError(), incoming.request_id)
        finally:
            ctx.verifier.metrics.observe(incoming.route, perf_counter() - began)

    return answer


def judge_one(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer POST /v2/keys/verify."""
    caller = _asking(incoming, ctx, "verify_key")
    told, _ = _answer(ctx, caller, wire.read_request(incoming.body), _paid_by(caller.by))
    return RawResponse(200, told, _JSON_TYPE)


def judge_many(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer POST /v2/keys/verify-batch."""
    caller = _asking(incoming, ctx, "verify_keys")
    items, paid_by = [], _paid_by(caller.by)
    for wanted in wire.read_batch(incoming.body):
        told, paid_by = _answer(ctx, caller, wanted, paid_by)
        items.append(told)
    return RawResponse(200, wire.render_batch(items), _JSON_TYPE)


def _asking(incoming: RawRequest, ctx: AppContext, attempt: str) -> Caller:
    said = incoming.header(b"content-type")
    if said != _JSON_TYPE and incoming.body:
        check_content_type(said)
    caller = caller_in_organization(incoming, ctx)
    if incoming.query:
        raise errors.InvalidRequest("This route takes no parameter in its URL.")
    try:
        caller.by.require_verifying()
    except errors.Forbidden as failure:
        ctx.runner.note_refusal(attempt, caller.by, failure)
        raise
    return caller


def _paid_by(by: Principal) -> str:
    """Return the id of the key whose rate limit the call took one from, if a key calls."""
    return by.id if by.kind is PrincipalKind.KEY else ""


def _answer(
    ctx: AppContext, caller: Caller, wanted: wire.VerifyRequest, paid_by: str
) -> tuple[bytes, str]:
    """Return the answer, and `paid_by` unless this question was what the call paid for."""
    by = caller.by
    asked = _question(ctx, caller, wanted)
    if by.kind is PrincipalKind.SERVICE_KEY:
        ctx.runner.aggregator.aggregate(by, "service_key.used", "verify")
    # The caller's own verdict came first, so commits before this request are known already.
    answer = ctx.verifier.verify(
        asked,
        wanted.user_agent,
        wanted.route or "verify",
        cache_checked=by.kind is PrincipalKind.KEY,
        paid_by=paid_by,
    )
    _note_browser(ctx, answer, asked)
    known = answer.known
    if known is not None and answer.admission is not None and known.key_id == paid_by:
        paid_by = ""
    return wire.render(answer, asked), paid_by


def _question(ctx: AppContext, caller: Caller, wanted: wire.VerifyRequest) -> VerificationRequest:
    """Return what a caller may ask: of its own organization and environment, or of any."""
    by = caller.by
    if by.kind is PrincipalKind.SERVICE_KEY:
        org_id, environment = wanted.organization, wanted.environment
    else:
        org_id, environment = by.org_id, wanted.environment or by.environment
        if environment is not by.environment or not _is_own(ctx, caller, wanted.organization):
            _refuse(ctx, by, environment)
    return VerificationRequest(
        trim(wanted.key),
        organization=org_id,
        environment=environment,
        type=wanted.type,
        permissions=tuple(wanted.permissions),
        address=bare_address(wanted.address),
        origin=wanted.origin,
        cost=wanted.cost,
    )


def _is_own(ctx: AppContext, caller: Caller, named: str) -> bool:
    """Return whether a question names the caller's organization, by its id or a slug, or none."""
    if not named or named == caller.by.org_id:
        return True
    if caller.known is not None:
        return caller.known.is_of(named)
    # A person's; their questions are answered in a thread, which may wait for the database.
    return ctx.verifier.directory.find_organization(named) == caller.by.org_id


def _refuse(ctx: AppContext, by: Principal, environment: Environment) -> NoReturn:
    with ctx.runner.audit_refusals("verify_key", by):
        if environment is not by.environment:
            raise errors.WrongEnvironment(
                f"You ask in {by.environment}, where {environment} keys are not known; ask "
                f"with a {environment} key."
            )
        raise errors.OtherOrganization


def judge_proxied(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer GET /v2/auth."""
    try:
        incoming.query, path = split_query(incoming.query)
        asked = _proxied(incoming, ctx, parse_terms(incoming.query))
        if asked is None:
            return RawResponse(200, headers=_identity(None, "preflight"))
        agent = incoming.header(b"user-agent")[:MOST_TAKEN]
        answer = ctx.verifier.verify(asked, agent, _held_route(incoming, path))
    except errors.WardkeyError as raised:
        if isinstance(raised, errors.OrganizationNotFound | errors.OrganizationRequired):
            ctx.proxy_mistakes.note(ctx.runner, raised, incoming.peer)
        # A proxy is told that the key could not be judged, not which part of us is away.
        away = isinstance(raised, errors.Unavailable)
        failure = errors.VerifierUnavailable() if away else raised
        refused = raw_problem_response(failure, incoming.request_id)
        return replace(refused, headers={**refused.headers, **_identity(None, failure.code)})
    _note_browser(ctx, answer, asked)
    known = answer.known
    if answer.verdict is Verdict.VALID and known is not None:
        if answer.admission is None and known.superseded_at is None:
            return RawResponse(200, lines=_valid_lines(known))
        return RawResponse(200, headers=_fields(answer))
    failure = answer.failure(asked)
    if isinstance(failure, errors.SecretKeyInBrowser):
        failure = errors.SecretKeyInBrowser(
            f"{failure.detail} If the request has Origin or Sec-Fetch-Site though a server sends "
            "the key, add browser=allow to the proxy's forward-auth URL."
        )
    refused = raw_problem_response(failure, incoming.request_id)
    return replace(refused, headers={**refused.headers, **_fields(answer)})


def _fields(answer: VerificationResult) -> dict[str, str]:
    fields = _identity(answer.known, answer.verdict) | wire.grace_fields(answer.known)
    if answer.admission is not None and answer.known is not None and answer.known.rate is not None:
        fields |= rate_headers(answer.known.rate, answer.admission)
    return fields


_lines: dict[str, tuple[KnownSecret, str]] = {}
_MOST_LINES = 50_000


def _valid_lines(known: KnownSecret) -> str:
    """Return the identity fields of a valid key, made once for each record."""
    kept = _lines.get(known.kid)
    if kept is not None and kept[0] is known:
        return kept[1]
    if len(_lines) >= _MOST_LINES:
        _lines.clear()
    fields = _identity(known, Verdict.VALID)
    lines = header_lines(fields)
    _lines[known.kid] = (known, lines)
    return lines


def _held_route(incoming: RawRequest, path: bytes) -> str:
    """Return method and path of the request that a proxy holds up, as far as it tells them."""
    method = incoming.header(b"x-forwarded-method") or incoming.header(b"x-original-method")
    held = incoming.header(b"x-forwarded-uri") or incoming.header(b"x-original-uri")
    if path:
        # The proxy sends the request itself, so these fields would be the client's.
        method, held = incoming.route.partition(" ")[0], path.decode("latin-1")
    return f"{method} {held.partition('?')[0]}".strip()[:MOST_TAKEN] or "auth"


def _proxied(incoming: RawRequest, ctx: AppContext, terms: Terms) -> VerificationRequest | None:
    """Return the question that a proxy asks; None for a CORS preflight that passes without a key.

    Raises `OrganizationRequired`, `OrganizationNotFound`, `MissingCredentials` and what
    `find_credential` raises.
    """
    text = find_credential(incoming, ctx)
    organization = _organization(ctx, terms.organization)
    if not text:
        if not _looks_like_preflight(incoming):
            raise missing_credentials_error(incoming, ctx)
        if terms.preflight is None or not _is_options(incoming, terms.preflight):
            raise errors.MissingCredentials(
                "This looks like a CORS preflight, which never carries a key; preflights pass "
                "where the proxy's URL says preflight= and where the original method is found, "
                "and that method is OPTIONS."
            )
        return None
    return VerificationRequest(
        text,
        organization=organization,
        environment=terms.environment,
        type=terms.type,
        permissions=terms.permissions,
        address=client_address(incoming, ctx),
        origin=incoming.header(b"origin"),
        browser=is_from_browser(incoming),
        browser_allowed=terms.browser is Browser.ALLOW,
    )


def _organization(ctx: AppContext, named: str) -> str:
    """Return the id of the organization that a proxy's URL names; empty where any key will do.

    A mistake in the URL is the operator's, so it must not read like a bad key of a client.
    """
    directory = ctx.verifier.directory
    if named:
        org_id = directory.find_organization(named)
        # An organization that had the slug `any` before that became a reserved word keeps it.
        if org_id is None and named != ANY_ORGANIZATION:
            raise errors.OrganizationNotFound(
                "The URL that the proxy asks at names as organization= "
                f"{quotable(named)}, which no organization of this deployment is called. The "
                "operator of the proxy has to correct that URL; `wardkey org list` prints the ids.",
                field="organization",
            )
        return org_id or ""
    if not directory.has_one_organization():
        raise errors.OrganizationRequired(
            "The URL that the proxy asks at names no organization, and this deployment has "
            "several. The operator of the proxy has to add ?organization=<id> to that URL, or "
            "?organization=any if keys of every organization open this.",
            field="organization",
        )
    return ""


def _looks_like_preflight(incoming: RawRequest) -> bool:
    """Return whether the fields of a CORS preflight (Fetch §3.2.2) are there."""
    named = incoming.named
    return b"origin" in named and b"access-control-request-method" in named


def _is_options(incoming: RawRequest, source: MethodSource) -> bool:
    """Return whether the original method is OPTIONS, as the one source says that is trusted."""
    if source is MethodSource.OWN:
        return incoming.route.startswith("OPTIONS ")
    return set(incoming.headers_named(source.encode())) == {"OPTIONS"}


def _note_browser(ctx: AppContext, answer: VerificationResult, asked: VerificationRequest) -> None:
    known = answer.known
    if known is None or known.type is not KeyType.SECRET or asked.browser_allowed:
        return
    if not (asked.browser or asked.origin):
        return
    audit_exposure(ctx, known, asked.address, "")


def _identity(known: KnownSecret | None, verdict: str) -> dict[str, str]:
    if known is None:
        return dict.fromkeys(_IDENTITY, "") | {"Wardkey-Verdict": str(verdict)}
    expiry = known.expires_at
    values = (
        str(verdict),
        known.key_id,
        known.kid,
        _quoted(known.name),
        str(known.type),
        str(known.environment),
        known.org_id,
        known.org_slug,
        _scopes(known.permissions),
        "" if expiry is None else iso(expiry),
    )
    return dict(zip(_IDENTITY, values, strict=True))


# Proxies ask for the same few keys all the time, and keys share their permissions.
@lru_cache(maxsize=4096)
def _quoted(name: str) -> str:
    return quote(name, safe=" ")


@lru_cache(maxsize=4096)
def _scopes(permissions: frozenset[str]) -> str:
    return " ".join(sorted(permissions))


_IDENTITY = (
    "Wardkey-Verdict",
    "Wardkey-Key-Id",
    "Wardkey-Kid",
    "Wardkey-Key-Name",
    "Wardkey-Key-Type",
    "Wardkey-Environment",
    "Wardkey-Organization",
    "Wardkey-Organization-Slug",
    "Wardkey-Permissions",
    "Wardkey-Expires-At",
)


def _one_at_hand(incoming: RawRequest, ctx: AppContext) -> bool:
    try:
        keys = [wire.read_request(incoming.body).key]
    except errors.WardkeyError:
        keys = []
    return is_caller_cached(incoming, ctx, keys)


def _many_at_hand(incoming: RawRequest, ctx: AppContext) -> bool:
    try:
        keys = [item.key for item in wire.read_batch(incoming.body)]
    except errors.WardkeyError:
        keys = []
    return is_caller_cached(incoming, ctx, keys)


def _proxied_at_hand(incoming: RawRequest, ctx: AppContext) -> bool:
    whole = incoming.query
    incoming.query, _ = split_query(whole)
    try:
        memory = ctx.verifier.directory.memory
        try:
            named = parse_terms(incoming.query).organization
        except errors.WardkeyError:
            return is_caller_cached(incoming, ctx)
        known = named in memory.organizations if named else memory.has_one_organization is not None
        return known and is_caller_cached(incoming, ctx)
    finally:
        incoming.query = whole


def in_place(answer: Judge) -> Callable[[RawRequest, AppContext], RawResponse | None]:
    """Return `answer` for the lane; None where the credential takes the framework's way."""

    def answer_ordinary(incoming: RawRequest, ctx: AppContext) -> RawResponse | None:
        return answer(incoming, ctx) if has_simple_credential(incoming, ctx) else None

    return answer_ordinary


_answer_one, _answer_many, _answer_proxied = map(answering, (judge_one, judge_many, judge_proxied))
FAST_ROUTES = {
    b"/v2/keys/verify": FastRoute(
        b"POST", "POST /v2/keys/verify", in_place(_answer_one), _one_at_hand
    ),
    b"/v2/keys/verify-batch": FastRoute(
        b"POST", "POST /v2/keys/verify-batch", in_place(_answer_many), _many_at_hand
    ),
    b"/v2/auth": FastRoute(b"GET", "GET /v2/auth", in_place(_answer_proxied), _proxied_at_hand),
}
