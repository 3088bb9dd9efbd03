"""How failures leave over HTTP: RFC 9457 problem documents, and the only map to statuses."""

from __future__ import annotations

import json
import logging
import math
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from wardkey.domain import errors
from wardkey.domain.callers import CallerRecord
from wardkey.domain.errors import WardkeyError
from wardkey.domain.rate import Admission, RateLimit
from wardkey.domain.times import iso
from wardkey.web.pages import OPEN_TO_PAGES
from wardkey.web.raw_http import RawRequest, RawResponse
from wardkey.web.request_faults import unreadable_failure, validation_failure

log = logging.getLogger(__name__)

_FAMILIES: tuple[tuple[type[WardkeyError], int], ...] = (
    (errors.BodyTooLarge, 413),
    (errors.PayloadTooLarge, 413),
    (errors.PublishUnconfirmed, 504),
    (errors.HeadersTooLarge, 431),
    (errors.RequestTimeout, 408),
    (errors.UnsupportedMediaType, 415),
    (errors.MethodNotAllowed, 405),
    (errors.InternalError, 500),
    (errors.ClaimMissing, 422),
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.RateLimited, 429),
    (errors.Unavailable, 503),
)
MEDIA_TYPE = "application/problem+json"
_TYPE = "/problems/"
# FastAPI's words for a body that is no UTF-8, nests too deep or has a number too long.
_UNREADABLE = "There was an error parsing the body"


class FieldProblem(BaseModel):
    """One input at fault: its path in the body or its parameter's name, and what is wrong."""

    field: str
    message: str


class CallerShape(BaseModel):
    """Who used a secret; `count` may be too high where more callers came than are kept."""

    kid: str = Field(json_schema_extra={"example": "7QdRk2mVx9Ta"})
    address: str = Field(json_schema_extra={"example": "203.0.113.7"})
    product: str = Field(json_schema_extra={"example": "curl/8.5.0"})
    route: str = Field(json_schema_extra={"example": "GET /v1/invoices"})
    first_seen_at: str
    last_seen_at: str
    count: int


class Problem(BaseModel):
    """An RFC 9457 problem; `error` and `message` repeat `code` and `detail` for older clients."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": _TYPE + "duplicate_name",
                "title": "Duplicate name",
                "status": 409,
                "detail": "Another live key of live is named “billing”; choose another name, or "
                "revoke that key first.",
                "code": "duplicate_name",
                "request_id": "req_1d0f3c9a7e5b2486",
                "errors": [{"field": "name", "message": "Another live key has that name."}],
                "error": "duplicate_name",
                "message": "Another live key of live is named “billing”; …",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str = Field(pattern="^req_[0-9a-f]{16}$")
    errors: list[FieldProblem]
    error: str
    message: str
    callers: list[CallerShape] = Field(
        default=[], description="Only of `still_in_use`: who used the old secrets, latest first."
    )


def status_of(failure: type[WardkeyError]) -> int:
    """Return the HTTP status of a class of failures."""
    return next(status for family, status in _FAMILIES if issubclass(failure, family))


def caller_shape(caller: CallerRecord) -> CallerShape:
    """Render one caller of a secret."""
    return CallerShape(
        kid=caller.kid,
        address=caller.address,
        product=caller.product,
        route=caller.route,
        first_seen_at=iso(caller.first_at),
        last_seen_at=iso(caller.last_at),
        count=caller.count,
    )


def problem_body(failure: WardkeyError, request_id: str) -> dict[str, Any]:
    """Return the problem document of `failure` as a JSON object."""
    faults = [{"field": failure.field, "message": failure.detail}] if failure.field else []
    if isinstance(failure, errors.InvalidRequest):
        faults = [{"field": name, "message": message} for name, message in failure.errors]
    more = {}
    if isinstance(failure, errors.StillInUse):
        more["callers"] = [caller_shape(caller).model_dump() for caller in failure.callers]
    return {
        "type": _TYPE + failure.code,
        "title": failure.title,
        "status": status_of(type(failure)),
        "detail": failure.detail,
        "code": failure.code,
        "request_id": request_id,
        "errors": faults,
        "error": failure.code,
        "message": failure.detail,
        **more,
    }


def problem_headers(failure: WardkeyError) -> dict[str, str]:
    """Return the header fields that go with `failure`: challenge, scope, waiting time."""
    headers: dict[str, str] = {}
    detail = quote(failure.detail, safe=" ,;:.()/-_'")
    if isinstance(failure, errors.MissingCredentials):
        headers["WWW-Authenticate"] = 'Bearer realm="wardkey"'
    elif isinstance(failure, errors.Unauthenticated):
        headers["WWW-Authenticate"] = (
            f'Bearer realm="wardkey", error="invalid_token", error_description="{detail}"'
        )
    elif isinstance(failure, errors.Forbidden):
        needs = quote(failure.needs or "", safe=":")
        scope = f', scope="{needs}"' if needs else ""
        headers["WWW-Authenticate"] = f'Bearer realm="wardkey", error="insufficient_scope"{scope}'
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after_s)))
    elif isinstance(failure, errors.Unavailable):
        headers["Retry-After"] = "1"
    return headers


def rate_headers(limit: RateLimit, admission: Admission) -> dict[str, str]:
    """Return RateLimit fields (draft-ietf-httpapi-ratelimit-headers-10) for an answer."""
    reset = math.ceil(admission.reset_ms / 1000)
    return {
        "RateLimit-Policy": f'"key";q={limit.limit};w={limit.period_ms // 1000}',
        "RateLimit": f'"key";r={admission.remaining};t={reset}',
    }


def problem_response(failure: WardkeyError, request: Request) -> JSONResponse:
    """Return the response that tells `failure`."""
    headers = problem_headers(failure)
    if request.scope["path"] in request.app.state.open_to_pages:
        headers |= OPEN_TO_PAGES
    return JSONResponse(
        problem_body(failure, request_id_of(request)),
        status_of(type(failure)),
        headers,
        MEDIA_TYPE,
    )


def request_id_of(request: Request) -> str:
    """Return the request's name, which its answer tells."""
    name: str = request.scope.get("state", {}).get("request_id", "")
    return name


def unexpected(request: Request, fault: Exception) -> WardkeyError:
    """Write what broke to the log, under the request's id, and return what is told of it."""
    log.error("request %s failed", request_id_of(request), exc_info=fault)
    return errors.InternalError()


def problem_outgoing(failure: WardkeyError, request_id: str) -> RawResponse:
    """Return the answer that tells `failure`, as bytes."""
    body = json.dumps(
        problem_body(failure, request_id), ensure_ascii=False, separators=(",", ":")
    ).encode()
    return RawResponse(status_of(type(failure)), body, MEDIA_TYPE, problem_headers(failure))


def problem_responses(
    *failures: type[WardkeyError], anonymous: bool = False, body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that can fail with `failures` and the usual ones.

    `anonymous` routes ask for no credential; `body` ones read JSON. The document's components
    hold the Problem schema and an example for each code (`problem_example`); an answer refers to
    those of the route's own failures, because nearly every route has the usual ones.
    """
    usual = _ANYWHERE if anonymous else (*_ANYWHERE, *_CREDENTIALS)
    if any(issubclass(failure, errors.NotFound) for failure in failures):
        # A path in which an id has another form than ids have is no route at all.
        usual = (*usual, errors.RouteNotFound)
    by_status: dict[int, list[type[WardkeyError]]] = {}
    for failure in dict.fromkeys((*usual, *(_BODY if body else ()), *failures)):
        by_status.setdefault(status_of(failure), []).append(failure)
    return {
        status: _told_together(sorted(leaves, key=lambda leaf: leaf.code), failures)
        for status, leaves in sorted(by_status.items())
    }


def _told_together(
    leaves: list[type[WardkeyError]], own: tuple[type[WardkeyError], ...]
) -> dict[str, Any]:
    codes = [leaf.code for leaf in leaves]
    shown = [leaf.code for leaf in leaves if leaf in own] or codes
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"properties": {"code": {"enum": codes}}},
        ]
    }
    examples = {code: {"$ref": f"#/components/examples/{code}"} for code in shown}
    headers = {name: HEADERS[name] for name in problem_headers(leaves[0]()) if name in HEADERS}
    if any(issubclass(leaf, errors.RateLimited) for leaf in leaves):
        headers["Retry-After"] = HEADERS["Retry-After"]
    return {
        "description": ", ".join(f"`{code}`" for code in shown)
        + (", or one that most routes have." if len(shown) < len(codes) else ""),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        **({"headers": headers} if headers else {}),
    }


def problem_example(failure: type[WardkeyError]) -> dict[str, Any]:
    """Return an OpenAPI example of what is told of a class of failures."""
    return {"value": problem_body(failure(), "req_1d0f3c9a7e5b2486")}


HEADERS: dict[str, dict[str, Any]] = {
    "Retry-After": {
        "description": "Whole seconds to wait.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    },
    "WWW-Authenticate": {
        "description": "RFC 6750: what was wrong with the credential, or which scope it lacks.",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="wardkey", error="invalid_token"',
    },
    "RateLimit-Policy": {
        "description": "The key's limit: q requests in w seconds; absent without one.",
        "schema": {"type": "string"},
        "example": '"key";q=100;w=60',
    },
    "RateLimit": {
        "description": "r requests are left now, and all of them again in t seconds.",
        "schema": {"type": "string"},
        "example": '"key";r=42;t=31',
    },
}
_ANYWHERE: tuple[type[WardkeyError], ...] = (
    errors.InvalidRequest,
    errors.BodyTooLarge,
    errors.InternalError,
    errors.StorageBusy,
    errors.StorageFull,
    errors.StorageReadOnly,
    errors.StorageUnreachable,
)
_BODY: tuple[type[WardkeyError], ...] = (errors.MalformedJson, errors.UnsupportedMediaType)
_CREDENTIALS: tuple[type[WardkeyError], ...] = (
    errors.AmbiguousCredentials,
    errors.CredentialInUrl,
    errors.OrganizationRequired,
    errors.MissingCredentials,
    errors.Malformed,
    errors.Unknown,
    errors.Revoked,
    errors.Expired,
    errors.Disabled,
    errors.InvalidUserToken,
    errors.NotPermitted,
    errors.SecretKeyRequired,
    errors.WrongEnvironment,
    errors.OtherOrganization,
    errors.AddressNotAllowed,
    errors.OriginNotAllowed,
    errors.SecretKeyInBrowser,
    errors.OrganizationSuspended,
    errors.OrganizationNotFound,
    errors.RateLimitExceeded,
    errors.VerifierUnavailable,
)


def require_json(request: Request) -> None:
    """Refuse a body that says to be anything but JSON; raises `UnsupportedMediaType`."""
    has_body = request.headers.get("content-length", "0") != "0" or (
        "transfer-encoding" in request.headers
    )
    if has_body:
        check_content_type(request.headers.get("content-type", ""))


def check_content_type(content_type: str) -> None:
    """Refuse what is not JSON: a form posted by another site would need no preflight.

    Raises `UnsupportedMediaType`.
    """
    if content_type == "application/json":
        return
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType


def require_json_body(incoming: RawRequest) -> None:
    """Refuse a body that is not JSON by its header; that there is none is told by its reader.

    Raises `UnsupportedMediaType`.
    """
    if incoming.body:
        check_content_type(incoming.header(b"content-type"))


def install(app: FastAPI) -> None:
    """Make every way to fail leave as a problem document; the app has all its routes by now.

    Where a preflight is answered, pages of other sites must be able to read refusals too.
    """
    app.state.open_to_pages = frozenset(
        route.path
        for route in iter_route_contexts(app.routes)
        if "OPTIONS" in (getattr(route, "methods", None) or ())
    )

    @app.exception_handler(WardkeyError)
    def _failure(request: Request, failure: WardkeyError) -> JSONResponse:
        return problem_response(failure, request)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, fault: RequestValidationError) -> JSONResponse:
        return problem_response(validation_failure(fault, request), request)

    @app.exception_handler(HTTPException)
    def _http(request: Request, fault: HTTPException) -> JSONResponse:
        if fault.status_code == 405:  # noqa: PLR2004 - RFC 9110 §15.5.6
            response = problem_response(errors.MethodNotAllowed(), request)
            response.headers["Allow"] = ", ".join(_methods(request))
            return response
        if fault.detail == _UNREADABLE:
            return problem_response(unreadable_failure(request), request)
        missing = fault.status_code == 404  # noqa: PLR2004 - RFC 9110 §15.5.5
        failure = errors.RouteNotFound() if missing else errors.InvalidRequest(str(fault.detail))
        return problem_response(failure, request)

    @app.exception_handler(Exception)
    def _internal(request: Request, fault: Exception) -> JSONResponse:
        return problem_response(unexpected(request, fault), request)


def _methods(request: Request) -> list[str]:
    """Return the methods of every route at this path; the router knows only the first one's."""
    found: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        pattern = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(request.scope["path"]):
            found |= getattr(route, "methods", None) or set()
    if "GET" in found:
        found.add("HEAD")
    return sorted(found)
