"""RFC 9457 problem documents for errors, and the only mapping of errors to HTTP statuses."""

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
from wardkey.web.cors import CORS_HEADERS
from wardkey.web.raw_http import RawRequest, RawResponse
from wardkey.web.request_faults import unreadable_failure, validation_failure

log = logging.getLogger(__name__)

# A class comes before its base classes.
_STATUSES: tuple[tuple[type[WardkeyError], int], ...] = (
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
# FastAPI's detail for a body that isn't UTF-8, is nested too deep or contains too long a number.
_UNREADABLE = "There was an error parsing the body"


class FieldProblem(BaseModel):
    """An invalid input: its path in the body, or its parameter name, and an error message."""

    field: str
    message: str


class CallerShape(BaseModel):
    """A caller of a secret; `count` may be too high if there were more callers than are kept."""

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
        default=[],
        description="Only for `still_in_use`: the callers of the old secrets, latest first.",
    )


def status_of(error: type[WardkeyError]) -> int:
    """Return the HTTP status of an error class."""
    return next(status for base, status in _STATUSES if issubclass(error, base))


def caller_shape(caller: CallerRecord) -> CallerShape:
    """Convert a caller of a secret for a response."""
    return CallerShape(
        kid=caller.kid,
        address=caller.address,
        product=caller.product,
        route=caller.route,
        first_seen_at=iso(caller.first_at),
        last_seen_at=iso(caller.last_at),
        count=caller.count,
    )


def problem_body(error: WardkeyError, request_id: str) -> dict[str, Any]:
    """Return the problem document of `error` as a JSON object."""
    faults = [{"field": error.field, "message": error.detail}] if error.field else []
    if isinstance(error, errors.InvalidRequest):
        faults = [{"field": name, "message": message} for name, message in error.errors]
    extension = {}
    if isinstance(error, errors.StillInUse):
        extension["callers"] = [caller_shape(caller).model_dump() for caller in error.callers]
    return {
        "type": _TYPE + error.code,
        "title": error.title,
        "status": status_of(type(error)),
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "errors": faults,
        "error": error.code,
        "message": error.detail,
        **extension,
    }


def problem_headers(error: WardkeyError) -> dict[str, str]:
    """Return the headers for `error`: WWW-Authenticate and Retry-After, if they apply."""
    headers: dict[str, str] = {}
    detail = quote(error.detail, safe=" ,;:.()/-_'")
    if isinstance(error, errors.MissingCredentials):
        headers["WWW-Authenticate"] = 'Bearer realm="wardkey"'
    elif isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = (
            f'Bearer realm="wardkey", error="invalid_token", error_description="{detail}"'
        )
    elif isinstance(error, errors.Forbidden):
        needs = quote(error.needs or "", safe=":")
        scope = f', scope="{needs}"' if needs else ""
        headers["WWW-Authenticate"] = f'Bearer realm="wardkey", error="insufficient_scope"{scope}'
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.Unavailable):
        headers["Retry-After"] = "1"
    return headers


def rate_headers(limit: RateLimit, admission: Admission) -> dict[str, str]:
    """Return the RateLimit headers (draft-ietf-httpapi-ratelimit-headers-10) of a response."""
    reset = math.ceil(admission.reset_ms / 1000)
    return {
        "RateLimit-Policy": f'"key";q={limit.limit};w={limit.period_ms // 1000}',
        "RateLimit": f'"key";r={admission.remaining};t={reset}',
    }


def problem_response(error: WardkeyError, request: Request) -> JSONResponse:
    """Return the problem response for `error`."""
    headers = problem_headers(error)
    if request.scope["path"] in request.app.state.cors_paths:
        headers |= CORS_HEADERS
    return JSONResponse(
        problem_body(error, request_id_of(request)),
        status_of(type(error)),
        headers,
        MEDIA_TYPE,
    )


def request_id_of(request: Request) -> str:
    """Return the id of the request, which its response repeats in a header."""
    request_id: str = request.scope.get("state", {}).get("request_id", "")
    return request_id


def unexpected(request: Request, exc: Exception) -> WardkeyError:
    """Log an unexpected exception with the request's id; return the error for the response."""
    log.error("request %s failed", request_id_of(request), exc_info=exc)
    return errors.InternalError()


def raw_problem_response(error: WardkeyError, request_id: str) -> RawResponse:
    """Return the problem response for `error`, as bytes."""
    body = json.dumps(
        problem_body(error, request_id), ensure_ascii=False, separators=(",", ":")
    ).encode()
    return RawResponse(status_of(type(error)), body, MEDIA_TYPE, problem_headers(error))


def problem_responses(
    *own_errors: type[WardkeyError], anonymous: bool = False, body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that can fail with `own_errors` and the common ones.

    `anonymous` routes don't require a credential; `body` routes read JSON. Nearly every route has
    the common errors, so a response shows examples (`problem_example`) only of the route's own.
    """
    common = _ANY_ROUTE if anonymous else (*_ANY_ROUTE, *_CREDENTIALS)
    if any(issubclass(error, errors.NotFound) for error in own_errors):
        # A path with a malformed id doesn't match any route.
        common = (*common, errors.RouteNotFound)
    by_status: dict[int, list[type[WardkeyError]]] = {}
    for error in dict.fromkeys((*common, *(_BODY if body else ()), *own_errors)):
        by_status.setdefault(status_of(error), []).append(error)
    return {
        status: _response_schema(sorted(classes, key=lambda error: error.code), own_errors)
        for status, classes in sorted(by_status.items())
    }


def _response_schema(
    classes: list[type[WardkeyError]], own_errors: tuple[type[WardkeyError], ...]
) -> dict[str, Any]:
    codes = [error.code for error in classes]
    own_codes = [error.code for error in classes if error in own_errors] or codes
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"properties": {"code": {"enum": codes}}},
        ]
    }
    examples = {code: {"$ref": f"#/components/examples/{code}"} for code in own_codes}
    headers = {name: HEADERS[name] for name in problem_headers(classes[0]()) if name in HEADERS}
    if any(issubclass(error, errors.RateLimited) for error in classes):
        headers["Retry-After"] = HEADERS["Retry-After"]
    return {
        "description": ", ".join(f"`{code}`" for code in own_codes)
        + (", or one common to most routes." if len(own_codes) < len(codes) else ""),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        **({"headers": headers} if headers else {}),
    }


def problem_example(error: type[WardkeyError]) -> dict[str, Any]:
    """Return an OpenAPI example of the problem document of an error class."""
    return {"value": problem_body(error(), "req_1d0f3c9a7e5b2486")}


HEADERS: dict[str, dict[str, Any]] = {
    "Retry-After": {
        "description": "Seconds to wait.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    },
    "WWW-Authenticate": {
        "description": "RFC 6750: why the credential was rejected, or which scope it lacks.",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="wardkey", error="invalid_token"',
    },
    "RateLimit-Policy": {
        "description": "The key's limit: q requests in w seconds; absent without a limit.",
        "schema": {"type": "string"},
        "example": '"key";q=100;w=60',
    },
    "RateLimit": {
        "description": "r requests remain; the full limit is available in t seconds.",
        "schema": {"type": "string"},
        "example": '"key";r=42;t=31',
    },
}
_ANY_ROUTE: tuple[type[WardkeyError], ...] = (
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
    """Reject a body whose content type isn't JSON; raises `UnsupportedMediaType`."""
    has_body = request.headers.get("content-length", "0") != "0" or (
        "transfer-encoding" in request.headers
    )
    if has_body:
        check_content_type(request.headers.get("content-type", ""))


def check_content_type(content_type: str) -> None:
    """Reject other types than JSON: a form posted by another site would need no preflight.

    Raises `UnsupportedMediaType`.
    """
    if content_type == "application/json":
        return
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType


def require_json_body(incoming: RawRequest) -> None:
    """Reject a body whose content type isn't JSON; a missing body is left to the JSON reader.

    Raises `UnsupportedMediaType`.
    """
    if incoming.body:
        check_content_type(incoming.header(b"content-type"))


def install(app: FastAPI) -> None:
    """Answer every error with a problem document; call this after all routes are added.

    Routes that answer preflights let pages of other sites read their errors too.
    """
    app.state.cors_paths = frozenset(
        route.path
        for route in iter_route_contexts(app.routes)
        if "OPTIONS" in (getattr(route, "methods", None) or ())
    )

    @app.exception_handler(WardkeyError)
    def _on_error(request: Request, error: WardkeyError) -> JSONResponse:
        return problem_response(error, request)

    @app.exception_handler(RequestValidationError)
    def _on_invalid_request(request: Request, exc: RequestValidationError) -> JSONResponse:
        return problem_response(validation_failure(exc, request), request)

    @app.exception_handler(HTTPException)
    def _on_http_exception(request: Request, exc: HTTPException) -> JSONResponse:
        if exc.status_code == 405:  # noqa: PLR2004 - RFC 9110 §15.5.6
            response = problem_response(errors.MethodNotAllowed(), request)
            response.headers["Allow"] = ", ".join(_methods(request))
            return response
        if exc.detail == _UNREADABLE:
            return problem_response(unreadable_failure(request), request)
        not_found = exc.status_code == 404  # noqa: PLR2004 - RFC 9110 §15.5.5
        error = errors.RouteNotFound() if not_found else errors.InvalidRequest(str(exc.detail))
        return problem_response(error, request)

    @app.exception_handler(Exception)
    def _on_exception(request: Request, exc: Exception) -> JSONResponse:
        return problem_response(unexpected(request, exc), request)


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes at this path; the router returns only the first one's."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        pattern = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(request.scope["path"]):
            methods |= getattr(route, "methods", None) or set()
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)
