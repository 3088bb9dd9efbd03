"""How failures leave over HTTP: RFC 9457 problem documents, and the only map to statuses."""

from __future__ import annotations

import logging
import math
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from wardkey.domain import errors
from wardkey.domain.errors import Failure
from wardkey.domain.rate import Admission, RateLimit

log = logging.getLogger("wardkey")

_FAMILIES: tuple[tuple[type[Failure], int], ...] = (
    (errors.BodyTooLarge, 413),
    (errors.UnsupportedMediaType, 415),
    (errors.MethodNotAllowed, 405),
    (errors.InternalError, 500),
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


class FieldProblem(BaseModel):
    """One input at fault: its path in the body or its parameter's name, and what is wrong."""

    field: str
    message: str


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
    request_id: str
    errors: list[FieldProblem]
    error: str
    message: str


def status_of(failure: type[Failure]) -> int:
    """Return the HTTP status of a class of failures."""
    return next(status for family, status in _FAMILIES if issubclass(failure, family))


def problem_body(failure: Failure, request_id: str) -> dict[str, Any]:
    """Return the problem document of `failure` as a JSON object."""
    faults = [{"field": failure.field, "message": failure.detail}] if failure.field else []
    if isinstance(failure, errors.InvalidRequest):
        faults = [{"field": name, "message": message} for name, message in failure.errors]
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
    }


def problem_headers(failure: Failure) -> dict[str, str]:
    """Return the header fields that go with `failure`: challenge, scope, waiting time."""
    headers = {"Cache-Control": "no-store"}
    detail = quote(failure.detail, safe=" ,;:.()/-_'")
    if isinstance(failure, errors.MissingCredentials):
        headers["WWW-Authenticate"] = 'Bearer realm="wardkey"'
    elif isinstance(failure, errors.Unauthenticated):
        headers["WWW-Authenticate"] = (
            f'Bearer realm="wardkey", error="invalid_token", error_description="{detail}"'
        )
    elif isinstance(failure, errors.Forbidden):
        scope = f', scope="{failure.needs}"' if failure.needs else ""
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


def problem_response(failure: Failure, request: Request) -> JSONResponse:
    """Return the response that tells `failure`."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    return JSONResponse(
        problem_body(failure, request_id),
        status_of(type(failure)),
        problem_headers(failure),
        MEDIA_TYPE,
    )


def told(*failures: type[Failure]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that can fail with `failures` and the usual ones."""
    by_status: dict[int, list[str]] = {}
    for failure in dict.fromkeys((*_USUAL, *failures)):
        by_status.setdefault(status_of(failure), []).append(failure.code)
    return {
        status: {
            "description": ", ".join(f"`{code}`" for code in sorted(codes)),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, codes in sorted(by_status.items())
    }


_USUAL: tuple[type[Failure], ...] = (
    errors.InvalidRequest,
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
    errors.AddressNotAllowed,
    errors.OriginNotAllowed,
    errors.SecretKeyInBrowser,
    errors.OrganizationSuspended,
    errors.OrganizationNotFound,
    errors.BodyTooLarge,
    errors.RateLimitExceeded,
    errors.VerifierUnavailable,
    errors.StorageBusy,
    errors.StorageFull,
    errors.StorageReadOnly,
    errors.StorageUnreachable,
)


def install(app: FastAPI) -> None:
    """Make every way to fail leave as a problem document."""

    @app.exception_handler(Failure)
    def _failure(request: Request, failure: Failure) -> JSONResponse:
        return problem_response(failure, request)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, fault: RequestValidationError) -> JSONResponse:
        return problem_response(_from_validation(fault), request)

    @app.exception_handler(HTTPException)
    def _http(request: Request, fault: HTTPException) -> JSONResponse:
        if fault.status_code == 405:  # noqa: PLR2004 - RFC 9110 §15.5.6
            response = problem_response(errors.MethodNotAllowed(), request)
            response.headers["Allow"] = ", ".join(_methods(request))
            return response
        missing = fault.status_code == 404  # noqa: PLR2004 - RFC 9110 §15.5.5
        failure = errors.RouteNotFound() if missing else errors.InvalidRequest(str(fault.detail))
        return problem_response(failure, request)

    @app.exception_handler(Exception)
    def _internal(request: Request, fault: Exception) -> JSONResponse:
        request_id = request.scope.get("state", {}).get("request_id", "")
        log.error("request %s failed", request_id, exc_info=fault)
        return problem_response(errors.InternalError(), request)


def _methods(request: Request) -> list[str]:
    """Return the methods of every route at this path; the router knows only the first one's."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _from_validation(fault: RequestValidationError) -> Failure:
    faults = fault.errors()
    if any(item["type"] == "json_invalid" for item in faults):
        return errors.MalformedJson()
    told_faults = tuple(
        (".".join(str(part) for part in item["loc"][1:]) or str(item["loc"][0]), item["msg"])
        for item in faults
    )
    first = "; ".join(f"{name}: {message}" for name, message in told_faults[:3])
    return errors.InvalidRequest(
        f"The request does not have the documented form: {first}.", errors=told_faults
    )
