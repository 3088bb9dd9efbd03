"""The reference of the API as one page of HTML, made of the OpenAPI document."""

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

_DEEPEST = 4
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
    """A parameter, or a field of a body: its path in dots, and what it takes."""

    name: str
    takes: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers with one status; of refusals the codes, its own first."""

    status: str
    phrase: str
    description: str
    fields: tuple[Field, ...]
    example: str
    own_codes: tuple[str, ...]
    usual_codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method at a path."""

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
    """The operations about one thing."""

    id: str
    heading: str
    operations: tuple[Operation, ...]


def render_reference(document: Node) -> str:
    """Return the page; everything in it is there without a script."""
    reader = _Reader(document)
    return (
        _templates()
        .get_template("reference.html")
        .render(
            document=document,
            groups=reader.groups(),
            schemes=document["components"]["securitySchemes"],
        )
    )


class _Reader:
    """Reads an OpenAPI document whose parts are shared."""

    def __init__(self, document: Node) -> None:
        self._document = document
        self._parts = document["components"]["schemas"]
        self._server = document["servers"][0]["url"]

    def groups(self) -> list[Group]:
        """Return the operations by their first tag, in the order of the document."""
        found: dict[str, list[Operation]] = {}
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                found.setdefault(operation["tags"][0], []).append(
                    self._operation(method.upper(), path, operation)
                )
        return [
            Group(f"about-{tag}", _HEADINGS.get(tag, tag.capitalize()), tuple(operations))
            for tag, operations in found.items()
        ]

    def _operation(self, method: str, path: str, operation: Node) -> Operation:
        content = self._content(operation.get("requestBody", {}))
        security = operation.get("security", self._document.get("security", []))
        return Operation(
            id=operation["operationId"],
            method=method,
            path=path,
            summary=operation["summary"],
            description=operation["description"],
            credentials=_credentials(security),
            parameters=tuple(self._parameters(operation)),
            body=tuple(self._fields(content.get("schema"))),
            curl=_curl(method, self._server + path, content.get("example"), security),
            answers=tuple(
                self._answer(status, self._resolved(answer))
                for status, answer in operation["responses"].items()
            ),
        )

    def _parameters(self, operation: Node) -> Iterator[Field]:
        for parameter in map(self._resolved, operation.get("parameters", ())):
            schema = parameter.get("schema", {})
            said = parameter.get("description") or schema.get("description", "")
            yield Field(
                f"{parameter['name']} ({parameter['in']})",
                Shape(schema, self._parts).accepted(),
                parameter.get("required", False),
                said,
            )

    def _answer(self, status: str, answer: Node) -> Answer:
        content = self._content(answer)
        is_refusal = status >= "400"
        own = tuple(content.get("examples", ())) if is_refusal else ()
        codes = _codes(content.get("schema", {})) if is_refusal else ()
        example = content.get("example") if not is_refusal else None
        return Answer(
            status=status,
            phrase=HTTPStatus(int(status)).phrase,
            description="" if is_refusal else answer["description"],
            fields=() if is_refusal else tuple(self._fields(content.get("schema"))),
            example="" if example is None else json.dumps(example, indent=2, ensure_ascii=False),
            own_codes=own,
            usual_codes=tuple(code for code in codes if code not in own),
        )

    def _fields(self, schema: Node | None, above: str = "", depth: int = 0) -> Iterator[Field]:
        """Return the fields of an object, those of objects in it behind each."""
        if schema is None or depth > _DEEPEST:
            return
        options = Shape(schema, self._parts).options()
        alone = [option.schema for option in options if "properties" in option.schema]
        for option in options:
            items = option.schema.get("items")
            # A list of what may come alone needs no telling again.
            if items and items not in alone:
                yield from self._fields(items, f"{above}[]", depth + 1)
            required = option.schema.get("required", ())
            named = option.schema.get("properties", {})
            for name in sorted(named, key=lambda one: one not in required):
                below = named[name]
                path = f"{above}.{name}" if above else name
                shape = Shape(below, self._parts)
                is_object = any("properties" in one.schema for one in shape.options())
                yield Field(
                    path,
                    "an object" if is_object else shape.accepted(),
                    name in required,
                    below.get("description", ""),
                )
                yield from self._fields(below, path, depth + 1)

    @staticmethod
    def _content(holder: Node) -> Node:
        return next(iter(holder.get("content", {}).values()), {})

    def _resolved(self, node: Node) -> Node:
        while "$ref" in node:
            found: Any = self._document
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node


def _codes(schema: Node) -> tuple[str, ...]:
    for part in schema.get("allOf", ()):
        if "code" in part.get("properties", {}):
            return tuple(part["properties"]["code"]["enum"])
    return ()


def _credentials(security: list[Node]) -> str:
    names = {
        "key": "a key",
        "userToken": "a person's token",
        "metricsToken": "the metrics token",
    }
    said = [names[name] for each in security for name in each if name in names]
    if {} in security:
        said.append("nothing")
    return " or ".join(said) if said else "Needs no credential."


def _curl(method: str, url: str, example: object, security: list[Node]) -> str:
    address = _PARAMETER.sub(lambda found: f"${found[1].upper()}", url)
    is_plain = method == "GET" or (method == "POST" and example is not None)
    lines = [f'curl "{address}"' if is_plain else f'curl -X {method} "{address}"']
    if any("key" in each or "userToken" in each for each in security):
        lines.append('-H "Authorization: Bearer $KEY"')
    if example is not None:
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d {shlex.quote(json.dumps(example, ensure_ascii=False))}")
    return " \\\n  ".join(lines)


def _marked(text: str) -> Markup:
    """Return a description as HTML: paragraphs are kept apart, and what is in backticks is code."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    safe = [_CODE.sub(r"<code>\1</code>", str(escape(part))) for part in paragraphs]
    return Markup("<br>".join(safe))  # noqa: S704 - escaped above


@lru_cache(maxsize=1)
def _templates() -> Templates:
    made = Templates(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["marked"] = _marked
    return made
