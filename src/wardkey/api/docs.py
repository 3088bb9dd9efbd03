"""The OpenAPI document and its page."""

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

from wardkey.api.reference import render_reference
from wardkey.api.shared_parts import share_parts
from wardkey.api.verdict_shape import VERDICT_PARTS
from wardkey.api.verify import QUESTIONS
from wardkey.domain.errors import ERRORS_BY_CODE, RouteNotFound
from wardkey.web.caller import requires_credential
from wardkey.web.context import KEY_HEADER, CurrentContext
from wardkey.web.problems import HEADERS, Problem, problem_example

router = APIRouter(include_in_schema=False)

_rendering = threading.Lock()
_STATIC = Path(__file__).parent / "static"
# Only these are served, so that no path in a request ever becomes a path on disk.
_FILES = {
    "reference.css": (_STATIC / "reference.css", "text/css"),
    "reference.js": (_STATIC / "reference.js", "text/javascript"),
}
_PAGE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
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
    """A file as it is sent, plain or compressed; `etag` names its content (RFC 9110 §8.8.3)."""

    body: bytes
    zipped: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> _File:
        """Return the file with that content."""
        etag = blake2b(body, digest_size=12).hexdigest()
        return cls(body, gzip.compress(body, 9, mtime=0), media_type, etag)

    def answer(self, request: Request, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer: 304 where the client names the content that it has already."""
        zips = "gzip" in request.headers.get("accept-encoding", "")
        # Two encodings are two representations, each with its own tag.
        etag = f'"{self.etag}-gzip"' if zips else f'"{self.etag}"'
        sent = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        sent |= headers or {}
        known = request.headers.get("if-none-match", "")
        if known == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(None, 304, sent)
        if zips:
            sent["Content-Encoding"] = "gzip"
        return Response(self.zipped if zips else self.body, 200, sent, self.media_type)


@router.get("/v2/openapi.json")
def openapi(request: Request, ctx: CurrentContext) -> Response:
    """Describe every route, with every problem that each can answer."""
    return _described(request.app, ctx.public_url)[0].answer(request)


def _described(app: FastAPI, url: str) -> tuple[_File, _File]:
    """Return the document and its page, made once, because that takes half a second of CPU."""
    with _rendering:
        if not hasattr(app.state, "described"):
            document = _describe(app, url)
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            app.state.described = (
                _File.of(text.encode(), "application/json"),
                _File.of(render_reference(document).encode(), "text/html"),
            )
    return cast("tuple[_File, _File]", app.state.described)


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
    parts["schemas"].update(_problem_schemas() | QUESTIONS | VERDICT_PARTS)
    parts["examples"] = {
        code: problem_example(leaf) for code, leaf in sorted(ERRORS_BY_CODE.items())
    }
    parts["securitySchemes"] = _SCHEMES
    # Of every operation that says nothing else.
    document["security"] = _ANY_SCHEME
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            path = document["paths"].get(getattr(route, "path_format", ""), {})
            operation = path.get(method.lower())
            if operation is not None:
                _complete(operation, route, parts["schemas"])
    share_parts(document)
    return document


@router.get("/v2/docs")
def page(request: Request, ctx: CurrentContext) -> Response:
    """Send the page that shows the document."""
    return _described(request.app, ctx.public_url)[1].answer(request, _PAGE)


@router.get("/static/reference/{name}")
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
    if not requires_credential(route):
        operation.setdefault("security", [])
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
