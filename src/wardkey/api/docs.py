"""The OpenAPI document and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, Response
from fastapi.routing import iter_route_contexts

from wardkey.api.verify import QUESTIONS
from wardkey.domain.errors import LEAVES, RouteNotFound
from wardkey.web.caller import asks_credential
from wardkey.web.context import KEY_HEADER, Here
from wardkey.web.problems import HEADERS, Problem, problem_example

router = APIRouter(include_in_schema=False)

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


@router.get("/v2/openapi.json")
def openapi(request: Request, here: Here) -> dict[str, Any]:
    """Describe every route, with every problem that each can answer."""
    app = request.app
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        servers=[{"url": here.public_url}],
    )
    parts = document["components"]
    # FastAPI's own form of validation errors never leaves: they are invalid_request problems.
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    parts["schemas"].update(_problem_schemas() | QUESTIONS)
    parts["examples"] = {code: problem_example(leaf) for code, leaf in sorted(LEAVES.items())}
    parts["securitySchemes"] = _SCHEMES
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            path = document["paths"].get(getattr(route, "path_format", ""), {})
            operation = path.get(method.lower())
            if operation is not None:
                _complete(operation, route, parts["schemas"])
    return document


@router.get("/v2/docs")
def page() -> FileResponse:
    """Send the page that shows the document."""
    return FileResponse(_STATIC / "docs.html", media_type="text/html", headers=_PAGE)


@router.get("/static/swagger/{name}")
def file(name: str) -> Response:
    """Send one of the page's files."""
    if name not in _FILES:
        raise RouteNotFound
    path, media_type = _FILES[name]
    return FileResponse(path, media_type=media_type)


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
