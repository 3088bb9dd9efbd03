"""The OpenAPI document and its page."""

from __future__ import annotations

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

from wardkey.api.verify import QUESTIONS
from wardkey.domain.errors import ERRORS_BY_CODE, RouteNotFound
from wardkey.web.caller import asks_credential
from wardkey.web.context import KEY_HEADER, CurrentContext
from wardkey.web.problems import HEADERS, Problem, problem_example

router = APIRouter(include_in_schema=False)

_rendering = threading.Lock()
_STATIC = Path(__file__).parent / "static"
# Only these are served, so that no path in a request ever becomes a path on disk.
_FILES = {
    "docs.js": (_STATIC / "docs.js", "text/javascript"),
    "swagger-ui-bundle.js": (_STATIC / "swagger" / "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_STATIC / "swagger" / "swagger-ui.css", "text/css"),
}
_PAGE = {
    # Swagger UI sets style attributes on its elements; its icons are data: URLs in its CSS.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_SCHEMES: dict[str, dict[str, Any]] = {
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
        "description": "A person's token from POST /v2/user-tokens; it ends after 12 hours.",
    },
    "metricsToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "What WARDKEY_METRICS_TOKEN says.",
    },
    "keyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": KEY_HEADER.decode(),
        "description": "An API key, for clients that cannot set Authorization.",
    },
}
_ANY_SCHEME: list[dict[str, list[str]]] = [
    {name: []} for name in _SCHEMES if name != "metricsToken"
]
_REQUEST_ID = {
    "description": "Names this request in the server's log.",
    "required": True,
    "schema": {"type": "string", "pattern": "^req_[0-9a-f]{16}$"},
    "example": "req_1d0f3c9a7e5b2486",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is sent; `etag` names its content (RFC 9110, section 8.8.3)."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> _File:
        """Return the file with that content."""
        return cls(body, media_type, f'"{blake2b(body, digest_size=12).hexdigest()}"')

    def answer(self, request: Request, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer: 304 where the client names the content that it has already."""
        sent = {"ETag": self.etag, "Cache-Control": "no-cache", **(headers or {})}
        known = request.headers.get("if-none-match", "")
        if known == "*" or self.etag in (
            tag.strip().removeprefix("W/") for tag in known.split(",")
        ):
            return Response(None, 304, sent)
        return Response(self.body, 200, sent, self.media_type)


@router.get("/v2/openapi.json")
def openapi(request: Request, ctx: CurrentContext) -> Response:
    """Describe every route, with every problem that each can answer."""
    return _document(request.app, ctx.public_url).answer(request)


def _document(app: FastAPI, url: str) -> _File:
    """Return the document, rendered once, because that takes a third of a second of CPU."""
    with _rendering:
        if not hasattr(app.state, "openapi_file"):
            text = json.dumps(_describe(app, url), ensure_ascii=False, separators=(",", ":"))
            app.state.openapi_file = _File.of(text.encode(), "application/json")
    return cast("_File", app.state.openapi_file)


def _describe(app: FastAPI, url: str) -> dict[str, Any]:
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        servers=[{"url": url}],
    )
    parts = document["components"]
    # FastAPI's own form of validation errors never leaves: they are invalid_request problems.
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    parts["schemas"].update(_problem_schemas() | QUESTIONS)
    parts["examples"] = {
        code: problem_example(leaf) for code, leaf in sorted(ERRORS_BY_CODE.items())
    }
    parts["securitySchemes"] = _SCHEMES
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            path = document["paths"].get(getattr(route, "path_format", ""), {})
            operation = path.get(method.lower())
            if operation is not None:
                _complete(operation, route, parts["schemas"])
    return document


@router.get("/v2/docs")
def page(request: Request) -> Response:
    """Send the page that shows the document."""
    return _read(_STATIC / "docs.html", "text/html").answer(request, _PAGE)


@router.get("/static/swagger/{name}")
def file(name: str, request: Request) -> Response:
    """Send one of the page's files."""
    if name not in _FILES:
        raise RouteNotFound
    return _read(*_FILES[name]).answer(request)


@cache
def _read(path: Path, media_type: str) -> _File:
    return _File.of(path.read_bytes(), media_type)


def _problem_schemas() -> dict[str, Any]:
    """Return the schema of a problem and of its parts, each under its own name."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "Problem": schema}


def _complete(operation: dict[str, Any], route: Any, schemas: dict[str, Any]) -> None:  # noqa: ANN401 - FastAPI's routes have no common type
    """Give an operation its stable id, security, headers and examples."""
    operation["operationId"] = route.name
    operation["summary"] = route.name.replace("_", " ").capitalize()
    operation.setdefault("security", _ANY_SCHEME if asks_credential(route) else [])
    operation["responses"].pop("422", None)
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _never_null(parameter["schema"])
    for status, answer in operation["responses"].items():
        answer.setdefault("headers", {})["Wardkey-Request-Id"] = _REQUEST_ID
        if status == "429" and route.name == "forward_auth":
            answer["headers"] |= {name: HEADERS[name] for name in ("RateLimit", "RateLimit-Policy")}
        if status.startswith("2"):
            _exemplify(answer, schemas)
    if "requestBody" in operation:
        _exemplify(operation["requestBody"], schemas)


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema without null: it is left out or has a value."""
    said = {name: part for name, part in schema.items() if name != "anyOf"}
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return said | options[0] if len(options) == 1 else schema


def _exemplify(holder: dict[str, Any], schemas: dict[str, Any]) -> None:
    for content in holder.get("content", {}).values():
        if "example" not in content and "examples" not in content:
            content["example"] = example_of(content.get("schema", {}), schemas)


def example_of(  # noqa: PLR0911 - a line for each kind of schema
    schema: dict[str, Any], schemas: dict[str, Any]
) -> Any:  # noqa: ANN401 - any JSON
    """Return a value that fits `schema`, put together from the examples of its parts."""
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    said = [schema[name] for name in ("example", "default", "const") if name in schema]
    if said:
        return said[0]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return example_of(schema[union][0], schemas)
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        return {name: example_of(part, schemas) for name, part in properties.items()}
    if schema.get("type") == "array":
        return [example_of(schema["items"], schemas)] if "items" in schema else []
    plain = {"integer": schema.get("minimum", 1), "number": 1, "boolean": True, "null": None}
    return plain.get(schema.get("type", ""), "text")
