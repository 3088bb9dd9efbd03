"""Routes that verify keys: one, a batch, and forward auth for proxies."""

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

Handler = Callable[[RawRequest, AppContext], RawResponse]
_JSON_TYPE = "application/json"
_FORWARD_AUTH = b"/v2/auth"

_REQUEST, _BATCH_REQUEST, REQUEST_SCHEMAS = wire.schemas()
_VERDICT = {"$ref": "#/components/schemas/Verdict"}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_PERMISSION = {"type": "string", "format": "permission"}
_SECURITY: list[dict[str, list[str]]] = [{"key": []}, {"keyHeader": []}, {"userToken": []}]
_BATCH_RESPONSE = {
    "type": "object",
    "required": ["items"],
    "properties": {"items": {"type": "array", "items": _VERDICT}},
}


def _describe_body(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "security": _SECURITY}


@router.post(
    "/v2/keys/verify",
    openapi_extra=_describe_body(_REQUEST),
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
    """Verify a key.

    A rejected key also returns 200, with `valid: false` and a code.
    """
    return await _run_in_thread(_handle_one, request, ctx)


@router.post(
    "/v2/keys/verify-batch",
    openapi_extra=_describe_body(_BATCH_REQUEST),
    responses={
        **problem_responses(
            errors.InvalidCost,
            errors.TooManyItems,
            errors.UnknownPermission,
            errors.OtherOrganization,
            body=True,
        ),
        200: {"content": {"application/json": {"schema": _BATCH_RESPONSE}}},
    },
    response_class=Response,
)
async def verify_keys(request: Request, ctx: CurrentContext) -> Response:
    """Verify up to 100 keys independently, in order."""
    return await _run_in_thread(_handle_batch, request, ctx)


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
            "description": "The key is accepted; the Wardkey-* headers identify it.",
            "headers": {
                "Deprecation": {
                    "description": "RFC 9745: when the key got a newer secret than this.",
                    "schema": {"type": "string", "pattern": "^@[0-9]+$"},
                    "example": "@1893456000",
                },
                "Sunset": {
                    "description": "RFC 8594: when the secret expires, to the second.",
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
    """Verify the key of a request that a proxy holds.

    The proxy's URL sets the requirements. All identity headers are always sent, even if empty, so
    clients can't forge them.
    """
    return await _answer_forward_auth(request, request.scope["query_string"], ctx)


# Without methods, a route accepts all of them: proxies use the method of the request they hold.
@router.api_route(
    "/v2/auth", methods=[], include_in_schema=False, operation_id="forward_auth_any_method"
)
async def forward_auth_any_method(request: Request, ctx: CurrentContext) -> Response:
    """Verify like `GET /v2/auth`, with any method."""
    return await _answer_forward_auth(request, request.scope["query_string"], ctx)


@router.api_route(
    "/v2/auth/{path:path}", methods=[], include_in_schema=False, operation_id="forward_auth_path"
)
async def forward_auth_path(request: Request, ctx: CurrentContext) -> Response:
    """Verify for a proxy that appends the client's path and query to the forward-auth URL.

    Both come from the client, so neither is read as parameters.
    """
    path: bytes = request.scope["raw_path"]
    client_url = path.removeprefix(_FORWARD_AUTH) + b"?" + request.scope["query_string"]
    return await _answer_forward_auth(request, b"path=" + client_url, ctx)


async def _answer_forward_auth(request: Request, query: bytes, ctx: AppContext) -> Response:
    incoming = RawRequest.of(request)
    incoming.query, incoming.route = query, f"{request.method} /v2/auth"
    return (await run_in_threadpool(_handle_proxied, incoming, ctx)).response()


async def _run_in_thread(handler: Handler, request: Request, ctx: AppContext) -> Response:
    """Answer in a thread, where waiting for the database doesn't block other requests."""
    incoming = RawRequest.of(request, await request.body())
    return (await run_in_threadpool(handler, incoming, ctx)).response()


def render_errors(handler: Handler) -> Handler:
    """Return `handler` with its errors rendered as problems."""

    def handle(incoming: RawRequest, ctx: AppContext) -> RawResponse:
        started_at = perf_counter()
        try:
            return handler(incoming, ctx)
        except errors.WardkeyError as error:
            return raw_problem_response(error, incoming.request_id)
        except Exception:
            log.exception("request %s failed", incoming.request_id)
            return raw_problem_response(errors.InternalError(), incoming.request_id)
        finally:
            ctx.verifier.metrics.observe(incoming.route, perf_counter() - started_at)

    return handle


def verify_one(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer POST /v2/keys/verify."""
    caller = _authorize_caller(incoming, ctx, "verify_key")
    body, _ = _verify(ctx, caller, wire.read_request(incoming.body), _paying_key(caller.by))
    return RawResponse(200, body, _JSON_TYPE)


def verify_batch(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer POST /v2/keys/verify-batch."""
    caller = _authorize_caller(incoming, ctx, "verify_keys")
    verdicts, paid_by = [], _paying_key(caller.by)
    for item in wire.read_batch(incoming.body):
        verdict, paid_by = _verify(ctx, caller, item, paid_by)
        verdicts.append(verdict)
    return RawResponse(200, wire.render_batch(verdicts), _JSON_TYPE)


def _authorize_caller(incoming: RawRequest, ctx: AppContext, attempt: str) -> Caller:
    content_type = incoming.header(b"content-type")
    if content_type != _JSON_TYPE and incoming.body:
        check_content_type(content_type)
    caller = caller_in_organization(incoming, ctx)
    if incoming.query:
        raise errors.InvalidRequest("This route takes no query parameters; send them in the body.")
    try:
        caller.by.require_verifying()
    except errors.Forbidden as error:
        ctx.runner.note_refusal(attempt, caller.by, error)
        raise
    return caller


def _paying_key(by: Principal) -> str:
    """Return the id of the calling key, whose rate limit the call used, or "" if no key calls."""
    return by.id if by.kind is PrincipalKind.KEY else ""


def _verify(
    ctx: AppContext, caller: Caller, body: wire.VerifyRequest, paid_by: str
) -> tuple[bytes, str]:
    """Return the rendered verdict, and `paid_by`, or "" if this item used the call's payment."""
    by = caller.by
    request = _build_request(ctx, caller, body)
    if by.kind is PrincipalKind.SERVICE_KEY:
        ctx.runner.aggregator.aggregate(by, "service_key.used", "verify")
    # The caller was verified first, so commits before this request are known already.
    result = ctx.verifier.verify(
        request,
        body.user_agent,
        body.route or "verify",
        cache_checked=by.kind is PrincipalKind.KEY,
        paid_by=paid_by,
    )
    _note_browser_use(ctx, result, request)
    known = result.known
    if known is not None and result.admission is not None and known.key_id == paid_by:
        paid_by = ""
    return wire.render(result, request), paid_by


def _build_request(
    ctx: AppContext, caller: Caller, body: wire.VerifyRequest
) -> VerificationRequest:
    """Build the verification request.

    A service key may verify in any organization and environment, other callers in their own only.
    """
    by = caller.by
    if by.kind is PrincipalKind.SERVICE_KEY:
        org_id, environment = body.organization, body.environment
    else:
        org_id, environment = by.org_id, body.environment or by.environment
        if environment is not by.environment or not _is_own(ctx, caller, body.organization):
            _reject(ctx, by, environment)
    return VerificationRequest(
        trim(body.key),
        organization=org_id,
        environment=environment,
        type=body.type,
        permissions=tuple(body.permissions),
        address=bare_address(body.address),
        origin=body.origin,
        cost=body.cost,
    )


def _is_own(ctx: AppContext, caller: Caller, organization: str) -> bool:
    """Return whether `organization` is the caller's, by id or slug, or is empty."""
    if not organization or organization == caller.by.org_id:
        return True
    if caller.known is not None:
        return caller.known.is_of(organization)
    # The caller is a user, whose requests run in a thread that can wait for the database.
    return ctx.verifier.directory.find_organization(organization) == caller.by.org_id


def _reject(ctx: AppContext, by: Principal, environment: Environment) -> NoReturn:
    with ctx.runner.audit_refusals("verify_key", by):
        if environment is not by.environment:
            raise errors.WrongEnvironment(
                f"Your credential verifies {by.environment} keys only; for {environment} keys, use "
                f"a {environment} key."
            )
        raise errors.OtherOrganization


def verify_proxied(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    """Answer GET /v2/auth."""
    try:
        incoming.query, path = split_query(incoming.query)
        request = _build_proxied_request(incoming, ctx, parse_terms(incoming.query))
        if request is None:
            return RawResponse(200, headers=_identity_headers(None, "preflight"))
        agent = incoming.header(b"user-agent")[:MOST_TAKEN]
        result = ctx.verifier.verify(request, agent, _proxied_route(incoming, path))
    except errors.WardkeyError as error:
        if isinstance(error, errors.OrganizationNotFound | errors.OrganizationRequired):
            ctx.proxy_mistakes.note(ctx.runner, error, incoming.peer)
        # The proxy learns that the key can't be verified, not which part of Wardkey is down.
        is_unavailable = isinstance(error, errors.Unavailable)
        failure = errors.VerifierUnavailable() if is_unavailable else error
        response = raw_problem_response(failure, incoming.request_id)
        return replace(
            response, headers={**response.headers, **_identity_headers(None, failure.code)}
        )
    _note_browser_use(ctx, result, request)
    known = result.known
    if result.verdict is Verdict.VALID and known is not None:
        if result.admission is None and known.superseded_at is None:
            return RawResponse(200, lines=_identity_lines(known))
        return RawResponse(200, headers=_result_headers(result))
    failure = result.failure(request)
    if isinstance(failure, errors.SecretKeyInBrowser):
        failure = errors.SecretKeyInBrowser(
            f"{failure.detail} If a server sends the key along with Origin or Sec-Fetch-Site, add "
            "browser=allow to the proxy's forward-auth URL."
        )
    response = raw_problem_response(failure, incoming.request_id)
    return replace(response, headers={**response.headers, **_result_headers(result)})


def _result_headers(result: VerificationResult) -> dict[str, str]:
    headers = _identity_headers(result.known, result.verdict) | wire.grace_fields(result.known)
    if result.admission is not None and result.known is not None and result.known.rate is not None:
        headers |= rate_headers(result.known.rate, result.admission)
    return headers


_cached_lines: dict[str, tuple[KnownSecret, str]] = {}
_MAX_CACHED_LINES = 50_000


def _identity_lines(known: KnownSecret) -> str:
    """Return the identity headers of a valid key, rendered once per record."""
    cached = _cached_lines.get(known.kid)
    if cached is not None and cached[0] is known:
        return cached[1]
    if len(_cached_lines) >= _MAX_CACHED_LINES:
        _cached_lines.clear()
    lines = header_lines(_identity_headers(known, Verdict.VALID))
    _cached_lines[known.kid] = (known, lines)
    return lines


def _proxied_route(incoming: RawRequest, path: bytes) -> str:
    """Return the method and path of the request that a proxy holds, as far as it sends them."""
    method = incoming.header(b"x-forwarded-method") or incoming.header(b"x-original-method")
    target = incoming.header(b"x-forwarded-uri") or incoming.header(b"x-original-uri")
    if path:
        # This proxy sets none of these headers, so they would be the client's.
        method, target = incoming.route.partition(" ")[0], path.decode("latin-1")
    return f"{method} {target.partition('?')[0]}".strip()[:MOST_TAKEN] or "auth"


def _build_proxied_request(
    incoming: RawRequest, ctx: AppContext, terms: Terms
) -> VerificationRequest | None:
    """Build a proxy's verification request; None for a CORS preflight that passes without a key.

    Raises `OrganizationRequired`, `OrganizationNotFound`, `MissingCredentials` and what
    `find_credential` raises.
    """
    secret = find_credential(incoming, ctx)
    organization = _find_organization(ctx, terms.organization)
    if not secret:
        if not _looks_like_preflight(incoming):
            raise missing_credentials_error(incoming, ctx)
        if terms.preflight is None or not _is_options(incoming, terms.preflight):
            raise errors.MissingCredentials(
                "This looks like a CORS preflight, which never carries a key; to let preflights "
                "pass, set preflight= in the proxy's URL to the source of the original method, "
                "which must be OPTIONS."
            )
        return None
    return VerificationRequest(
        secret,
        organization=organization,
        environment=terms.environment,
        type=terms.type,
        permissions=terms.permissions,
        address=client_address(incoming, ctx),
        origin=incoming.header(b"origin"),
        browser=is_from_browser(incoming),
        browser_allowed=terms.browser is Browser.ALLOW,
    )


def _find_organization(ctx: AppContext, organization: str) -> str:
    """Return the id of the organization in a proxy's URL; "" accepts keys of every organization.

    A mistake in the URL is the operator's, so its error must not look like a client's bad key.
    """
    directory = ctx.verifier.directory
    if organization:
        org_id = directory.find_organization(organization)
        # An organization that had the slug `any` before it was reserved keeps it.
        if org_id is None and organization != ANY_ORGANIZATION:
            raise errors.OrganizationNotFound(
                "The proxy's forward-auth URL sets organization= to "
                f"{quotable(organization)}, which is not an organization of this deployment. The "
                "operator of the proxy must correct the URL; `wardkey org list` prints the ids.",
                field="organization",
            )
        return org_id or ""
    if not directory.has_one_organization():
        raise errors.OrganizationRequired(
            "The proxy's forward-auth URL names no organization, and this deployment has "
            "several. The operator of the proxy must add ?organization=<id> to the URL, or "
            "?organization=any to accept keys of every organization.",
            field="organization",
        )
    return ""


def _looks_like_preflight(incoming: RawRequest) -> bool:
    """Return whether the headers of a CORS preflight (Fetch §3.2.2) are present."""
    headers = incoming.named
    return b"origin" in headers and b"access-control-request-method" in headers


def _is_options(incoming: RawRequest, source: MethodSource) -> bool:
    """Return whether the original method is OPTIONS, according to the one trusted source."""
    if source is MethodSource.OWN:
        return incoming.route.startswith("OPTIONS ")
    return set(incoming.headers_named(source.encode())) == {"OPTIONS"}


def _note_browser_use(
    ctx: AppContext, result: VerificationResult, request: VerificationRequest
) -> None:
    known = result.known
    if known is None or known.type is not KeyType.SECRET or request.browser_allowed:
        return
    if not (request.browser or request.origin):
        return
    audit_exposure(ctx, known, request.address, "")


def _identity_headers(known: KnownSecret | None, verdict: str) -> dict[str, str]:
    if known is None:
        return dict.fromkeys(_IDENTITY_HEADERS, "") | {"Wardkey-Verdict": str(verdict)}
    expires_at = known.expires_at
    values = (
        str(verdict),
        known.key_id,
        known.kid,
        _quote_name(known.name),
        str(known.type),
        str(known.environment),
        known.org_id,
        known.org_slug,
        _join_permissions(known.permissions),
        "" if expires_at is None else iso(expires_at),
    )
    return dict(zip(_IDENTITY_HEADERS, values, strict=True))


# Proxies send the same few keys again and again, and many keys have the same permissions.
@lru_cache(maxsize=4096)
def _quote_name(name: str) -> str:
    return quote(name, safe=" ")


@lru_cache(maxsize=4096)
def _join_permissions(permissions: frozenset[str]) -> str:
    return " ".join(sorted(permissions))


_IDENTITY_HEADERS = (
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


def _is_request_cached(incoming: RawRequest, ctx: AppContext) -> bool:
    try:
        keys = [wire.read_request(incoming.body).key]
    except errors.WardkeyError:
        keys = []
    return is_caller_cached(incoming, ctx, keys)


def _is_batch_cached(incoming: RawRequest, ctx: AppContext) -> bool:
    try:
        keys = [item.key for item in wire.read_batch(incoming.body)]
    except errors.WardkeyError:
        keys = []
    return is_caller_cached(incoming, ctx, keys)


def _is_proxied_cached(incoming: RawRequest, ctx: AppContext) -> bool:
    full_query = incoming.query
    incoming.query, _ = split_query(full_query)
    try:
        memory = ctx.verifier.directory.memory
        try:
            organization = parse_terms(incoming.query).organization
        except errors.WardkeyError:
            return is_caller_cached(incoming, ctx)
        is_known = (
            organization in memory.organizations
            if organization
            else memory.has_one_organization is not None
        )
        return is_known and is_caller_cached(incoming, ctx)
    finally:
        incoming.query = full_query


def on_fast_path(handler: Handler) -> Callable[[RawRequest, AppContext], RawResponse | None]:
    """Return `handler` for the fast path, which leaves unusual credentials to the framework."""

    def handle_ordinary(incoming: RawRequest, ctx: AppContext) -> RawResponse | None:
        return handler(incoming, ctx) if has_simple_credential(incoming, ctx) else None

    return handle_ordinary


_handle_one, _handle_batch, _handle_proxied = map(
    render_errors, (verify_one, verify_batch, verify_proxied)
)
FAST_ROUTES = {
    b"/v2/keys/verify": FastRoute(
        b"POST", "POST /v2/keys/verify", on_fast_path(_handle_one), _is_request_cached
    ),
    b"/v2/keys/verify-batch": FastRoute(
        b"POST", "POST /v2/keys/verify-batch", on_fast_path(_handle_batch), _is_batch_cached
    ),
    b"/v2/auth": FastRoute(
        b"GET", "GET /v2/auth", on_fast_path(_handle_proxied), _is_proxied_cached
    ),
}
