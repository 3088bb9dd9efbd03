"""The API reference as one HTML page, rendered from the OpenAPI document."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from wardkey.domain.shape_faults import Shape

Node = Mapping[str, Any]

_MAX_DEPTH = 4
# Stands for FastAPI's longer default; the page leaves it out.
DEFAULT_DESCRIPTION = "OK"
_PARAMETER = re.compile(r"\{(\w+)\}")
_CODE = re.compile(r"`([^`]+)`")
_HEADINGS = {
    "acl": "ACL rules",
    "auth-providers": "Auth providers",
    "publish": "Publish",
    "retained": "Retained messages",
    "tokens": "Token exchange and grants",
    "verify": "Verify",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or body field: its dotted path, and the values it takes."""

    name: str
    takes: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An operation's response with one status; for errors the codes, its own first."""

    status: str
    phrase: str
    description: str
    fields: tuple[Field, ...]
    example: str
    own_codes: tuple[str, ...]
    usual_codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    credentials: str
    parameters: tuple[Field, ...]
    body: tuple[Field, ...]
    curl: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one tag."""

    id: str
    heading: str
    operations: tuple[Operation, ...]


def render_reference(document: Node) -> str:
    """Return the page; it is complete without scripts."""
    reader = _Reader(document)
    return (
        _load_templates()
        .get_template("reference.html")
        .render(
            document=document,
            groups=reader.groups(),
            schemes=document["components"]["securitySchemes"],
        )
    )


class _Reader:
    """Reads an OpenAPI document with shared components."""

    def __init__(self, document: Node) -> None:
        self._document = document
        self._parts = document["components"]["schemas"]
        self._server = document["servers"][0]["url"]

    def groups(self) -> list[Group]:
        """Return the operations by their first tag, in the order of the document."""
        by_tag: dict[str, list[Operation]] = {}
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                by_tag.setdefault(operation["tags"][0], []).append(
                    self._read_operation(method.upper(), path, operation)
                )
        return [
            Group(f"about-{tag}", _HEADINGS.get(tag, tag.capitalize()), tuple(operations))
            for tag, operations in by_tag.items()
        ]

    def _read_operation(self, method: str, path: str, operation: Node) -> Operation:
        content = self._read_content(operation.get("requestBody", {}))
        security = operation.get("security", self._document.get("security", []))
        return Operation(
            id=operation["operationId"],
            method=method,
            path=path,
            summary=operation["summary"],
            description=operation["description"],
            credentials=_describe_credentials(security),
            parameters=tuple(self._read_parameters(operation)),
            body=tuple(self._read_fields(content.get("schema"))),
            curl=_render_curl(method, self._server + path, content.get("example"), security),
            answers=tuple(
                self._read_answer(status, self._resolve(answer))
                for status, answer in operation["responses"].items()
            ),
        )

    def _read_parameters(self, operation: Node) -> Iterator[Field]:
        for parameter in map(self._resolve, operation.get("parameters", ())):
            schema = parameter.get("schema", {})
            description = parameter.get("description") or schema.get("description", "")
            yield Field(
                f"{parameter['name']} ({parameter['in']})",
                Shape(schema, self._parts).accepted(),
                parameter.get("required", False),
                description,
            )

    def _read_answer(self, status: str, answer: Node) -> Answer:
        content = self._read_content(answer)
        is_error = status >= "400"
        is_default = answer["description"] == DEFAULT_DESCRIPTION
        own_codes = tuple(content.get("examples", ())) if is_error else ()
        codes = _list_codes(content.get("schema", {})) if is_error else ()
        example = content.get("example") if not is_error else None
        return Answer(
            status=status,
            phrase=HTTPStatus(int(status)).phrase,
            description="" if is_error or is_default else answer["description"],
            fields=() if is_error else tuple(self._read_fields(content.get("schema"))),
            example="" if example is None else json.dumps(example, indent=2, ensure_ascii=False),
            own_codes=own_codes,
            usual_codes=tuple(code for code in codes if code not in own_codes),
        )

    def _read_fields(
        self, schema: Node | None, parent: str = "", depth: int = 0
    ) -> Iterator[Field]:
        """Return the fields of an object, each followed by the fields inside it."""
        if schema is None or depth > _MAX_DEPTH:
            return
        options = Shape(schema, self._parts).options()
        objects = [option.schema for option in options if "properties" in option.schema]
        for option in options:
            items = option.schema.get("items")
            # If an item is also accepted outside a list, its fields are listed already.
            if items and items not in objects:
                yield from self._read_fields(items, f"{parent}[]", depth + 1)
            required = option.schema.get("required", ())
            properties = option.schema.get("properties", {})
            for name in sorted(properties, key=lambda name: name not in required):
                field = properties[name]
                path = f"{parent}.{name}" if parent else name
                shape = Shape(field, self._parts)
                is_object = any("properties" in choice.schema for choice in shape.options())
                yield Field(
                    path,
                    "an object" if is_object else shape.accepted(),
                    name in required,
                    field.get("description", ""),
                )
                yield from self._read_fields(field, path, depth + 1)

    @staticmethod
    def _read_content(holder: Node) -> Node:
        return next(iter(holder.get("content", {}).values()), {})

    def _resolve(self, node: Node) -> Node:
        while "$ref" in node:
            target: Any = self._document
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            node = target
        return node


def _list_codes(schema: Node) -> tuple[str, ...]:
    for part in schema.get("allOf", ()):
        if "code" in part.get("properties", {}):
            return tuple(part["properties"]["code"]["enum"])
    return ()


def _describe_credentials(security: list[Node]) -> str:
    names = {
        "key": "a key",
        "userToken": "a user token",
        "metricsToken": "the metrics token",
    }
    credentials = [names[name] for option in security for name in option if name in names]
    if {} in security:
        credentials.append("none")
    return " or ".join(credentials) if credentials else "Needs no credential."


def _render_curl(method: str, url: str, example: object, security: list[Node]) -> str:
    address = _PARAMETER.sub(lambda match: f"${match[1].upper()}", url)
    is_plain = method == "GET" or (method == "POST" and example is not None)
    lines = [f'curl "{address}"' if is_plain else f'curl -X {method} "{address}"']
    if any("key" in option or "userToken" in option for option in security):
        lines.append('-H "Authorization: Bearer $KEY"')
    if example is not None:
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d {shlex.quote(json.dumps(example, ensure_ascii=False))}")
    return " \\\n  ".join(lines)


def _render_markup(text: str) -> Markup:
    """Render a description as HTML, with paragraphs and backticked code."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    safe = [_CODE.sub(r"<code>\1</code>", str(escape(part))) for part in paragraphs]
    return Markup("<br>".join(safe))  # noqa: S704 - escaped above


@lru_cache(maxsize=1)
def _load_templates() -> Templates:
    templates = Templates(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["marked"] = _render_markup
    return templates
