"""The OpenAPI document and its reference page."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from wardkey.api.reference import DEFAULT_DESCRIPTION, render_reference
from wardkey.api.shared_parts import share_parts
from wardkey.api.verdict_shape import VERDICT_PARTS
from wardkey.api.verify import REQUEST_SCHEMAS
from wardkey.domain.errors import ERRORS_BY_CODE, RouteNotFound
from wardkey.web.caller import requires_credential
from wardkey.web.context import KEY_HEADER, CurrentContext
from wardkey.web.problems import HEADERS, Problem, problem_example

router = APIRouter(include_in_schema=False)

_render_lock = threading.Lock()
_STATIC = Path(__file__).parent / "static"
# Only these are served, so no path in a request becomes a path on disk.
_FILES = {
    "reference.css": (_STATIC / "reference.css", "text/css"),
    "reference.js": (_STATIC / "reference.js", "text/javascript"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_SECURITY_SCHEMES: dict[str, dict[str, Any]] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sk_live_…",
        "description": "An API key.",
    },
    "userToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "ut_…",
        "description": "A user token from POST /v2/user-tokens, valid for 12 hours.",
    },
    "metricsToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "The value of WARDKEY_METRICS_TOKEN.",
    },
    "keyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": KEY_HEADER.decode(),
        "description": "An API key, for clients that cannot set Authorization.",
    },
}
_DEFAULT_SECURITY: list[dict[str, list[str]]] = [
    {name: []} for name in _SECURITY_SCHEMES if name != "metricsToken"
]
_REQUEST_ID = {
    "description": "The id of this request in the server's log.",
    "required": True,
    "schema": {"type": "string", "pattern": "^req_[0-9a-f]{16}$"},
    "example": "req_1d0f3c9a7e5b2486",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A served file, plain and compressed; `etag` identifies its content (RFC 9110 §8.8.3)."""

    body: bytes
    zipped: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> _File:
        """Compress and tag the content."""
        etag = blake2b(body, digest_size=12).hexdigest()
        return cls(body, gzip.compress(body, 9, mtime=0), media_type, etag)

    def respond(self, request: Request, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response, or 304 if the client already has this content."""
        accepts_gzip = "gzip" in request.headers.get("accept-encoding", "")
        # Each encoding is a representation with its own tag.
        etag = f'"{self.etag}-gzip"' if accepts_gzip else f'"{self.etag}"'
        sent_headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        sent_headers |= headers or {}
        if_none_match = request.headers.get("if-none-match", "")
        if if_none_match == "*" or etag in (
            tag.strip().removeprefix("W/") for tag in if_none_match.split(",")
        ):
            return Response(None, 304, sent_headers)
        if accepts_gzip:
            sent_headers["Content-Encoding"] = "gzip"
        body = self.zipped if accepts_gzip else self.body
        return Response(body, 200, sent_headers, self.media_type)


@router.get("/v2/openapi.json")
def openapi(request: Request, ctx: CurrentContext) -> Response:
    """Return the OpenAPI document, with every problem that each route can return."""
    return _load_files(request.app, ctx.public_url)[0].respond(request)


def _load_files(app: FastAPI, url: str) -> tuple[_File, _File]:
    """Return the document and its page, built once because that takes half a second of CPU."""
    with _render_lock:
        if not hasattr(app.state, "openapi_files"):
            document = _build_document(app, url)
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            app.state.openapi_files = (
                _File.of(text.encode(), "application/json"),
                _File.of(render_reference(document).encode(), "text/html"),
            )
    return cast("tuple[_File, _File]", app.state.openapi_files)


def _build_document(app: FastAPI, url: str) -> dict[str, Any]:
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        servers=[{"url": url}],
    )
    components = document["components"]
    # FastAPI's own validation errors are never sent; they become invalid_request problems.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"].update(_problem_schemas() | REQUEST_SCHEMAS | VERDICT_PARTS)
    components["examples"] = {
        code: problem_example(error) for code, error in sorted(ERRORS_BY_CODE.items())
    }
    components["securitySchemes"] = _SECURITY_SCHEMES
    # Applies to every operation without its own security.
    document["security"] = _DEFAULT_SECURITY
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            path = document["paths"].get(getattr(route, "path_format", ""), {})
            operation = path.get(method.lower())
            if operation is not None:
                _complete_operation(operation, route, components["schemas"])
    share_parts(document)
    return document


@router.get("/v2/docs")
def page(request: Request, ctx: CurrentContext) -> Response:
    """Return the reference page."""
    return _load_files(request.app, ctx.public_url)[1].respond(request, _PAGE_HEADERS)


@router.get("/static/reference/{name}")
def file(name: str, request: Request) -> Response:
    """Return one of the page's files."""
    if name not in _FILES:
        raise RouteNotFound
    return _read_file(*_FILES[name]).respond(request)


@cache
def _read_file(path: Path, media_type: str) -> _File:
    return _File.of(path.read_bytes(), media_type)


def _problem_schemas() -> dict[str, Any]:
    """Return the schemas of a problem and its parts by name."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "Problem": schema}


def _complete_operation(operation: dict[str, Any], route: Any, schemas: dict[str, Any]) -> None:  # noqa: ANN401 - FastAPI's routes have no common type
    """Add the stable id, security, headers and examples of an operation."""
    operation["operationId"] = route.name
    operation["summary"] = route.name.replace("_", " ").capitalize()
    if not requires_credential(route):
        operation.setdefault("security", [])
    operation["responses"].pop("422", None)
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _remove_null(parameter["schema"])
    for status, response in operation["responses"].items():
        response.setdefault("headers", {})["Wardkey-Request-Id"] = _REQUEST_ID
        if status == "429" and route.name == "forward_auth":
            response["headers"] |= {
                name: HEADERS[name] for name in ("RateLimit", "RateLimit-Policy")
            }
        if status.startswith("2"):
            if response["description"] == "Successful Response":
                response["description"] = DEFAULT_DESCRIPTION
            _add_examples(response, schemas)
    if "requestBody" in operation:
        _add_examples(operation["requestBody"], schemas)


def _remove_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema without null; a parameter is omitted or has a value."""
    rest = {name: part for name, part in schema.items() if name != "anyOf"}
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    return rest | options[0] if len(options) == 1 else schema


def _add_examples(holder: dict[str, Any], schemas: dict[str, Any]) -> None:
    for content in holder.get("content", {}).values():
        if "example" not in content and "examples" not in content:
            content["example"] = build_example(content.get("schema", {}), schemas)


def build_example(  # noqa: PLR0911 - a line for each kind of schema
    schema: dict[str, Any], schemas: dict[str, Any]
) -> Any:  # noqa: ANN401 - any JSON
    """Return a value that matches `schema`, built from the examples of its parts."""
    if "$ref" in schema:
        return build_example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    values = [schema[name] for name in ("example", "default", "const") if name in schema]
    if values:
        return values[0]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return build_example(schema[union][0], schemas)
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        return {name: build_example(part, schemas) for name, part in properties.items()}
    if schema.get("type") == "array":
        return [build_example(schema["items"], schemas)] if "items" in schema else []
    scalars = {"integer": schema.get("minimum", 1), "number": 1, "boolean": True, "null": None}
    return scalars.get(schema.get("type", ""), "text")
