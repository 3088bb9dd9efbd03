"""Error details for input that doesn't match a JSON Schema: what was sent, and what to send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from wardkey.domain.secret import mask_secrets

Schema = Mapping[str, Any]

_MAX_NAME_LENGTH = 64
_MAX_LISTED_NAMES = 24
_MAX_OPTIONS = 3
_MAX_SHOWN_NUMBER = 10**15
# Other APIs' names for our fields, in snake case; suggested only where the field exists.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "permissions": ("scope", "scopes", "permission", "roles", "abilities"),
    "expires_at": ("expires", "expiry", "expiration", "expires_in", "expire_at", "valid_until"),
    "allowed_addresses": ("allowed_ips", "ip_whitelist", "ip_allowlist", "ips", "addresses"),
    "allowed_origins": ("origins", "cors_origins", "allowed_domains"),
    "rate_limit": ("ratelimit", "limits", "limit"),
    "period_s": ("period", "window", "interval", "duration"),
    "limit": ("requests", "max", "page_size", "per_page", "count"),
    "metadata": ("meta", "labels", "annotations"),
    "environment": ("env", "mode"),
    "key": ("api_key", "apikey", "secret", "token", "text"),
    "token": ("jwt", "id_token", "access_token", "subject_token"),
    "payload": ("message", "data", "body", "content"),
    "address": ("ip", "ip_address", "remote_addr"),
    "organization": ("org", "organization_id", "org_id", "tenant"),
    "search": ("q", "query", "filter", "name"),
    "cursor": ("page", "offset", "after", "starting_after"),
    "items": ("keys", "questions", "requests"),
}
_FORMATS: Mapping[str, str] = {
    "date-time": "a time such as “2030-01-31T12:00:00Z”",
    "permission": "a permission such as “invoices:read”",
    "cidr": "an address or a network such as “203.0.113.0/24”",
    "origin": "an origin such as “https://app.example.com”",
    "email": "an e-mail address",
}
# Seconds since 1970; a number a thousand times larger is read as milliseconds.
_FROM_2001 = 10**9
_UNTIL_2286 = 10**10
# Stands for a value that couldn't be read.
UNREAD = object()


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON Schema, with the schemas that it refers to."""

    schema: Schema
    parts: Mapping[str, Schema]

    def at(self, path: Sequence[str | int]) -> tuple[Shape, str]:
        """Return the schema at a path, and the path in dots.

        A step that the schema doesn't contain, such as the name of a union's option, is left out.
        """
        shape, names = self, []
        for step in path:
            below = shape.below(step)
            if below is not None:
                shape = below
                names.append(shown_name(str(step)))
        return shape, ".".join(names)

    def fields(self) -> dict[str, Schema]:
        """Return the fields of an object, from every option that is an object."""
        fields: dict[str, Schema] = {}
        for option in self.options():
            fields |= _properties(option.schema)
        return fields

    def accepted(self) -> str:
        """Return a noun phrase for the accepted values."""
        options = self.options()
        phrases = list(dict.fromkeys(_accepted(option) for option in options))
        return " or ".join(phrases[:_MAX_OPTIONS]) or "another value"

    def choices(self) -> list[str]:
        """Return the accepted strings, if only certain strings are accepted."""
        schemas = (option.schema for option in self.options())
        values = (value for schema in schemas for value in schema.get("enum", ()))
        return [value for value in values if isinstance(value, str)]

    def is_time(self) -> bool:
        """Return whether the value must be a time."""
        return any(option.schema.get("format") == "date-time" for option in self.options())

    def options(self) -> list[Shape]:
        """Return the schemas without references and unions; null is left out beside others."""
        schema = self.schema
        if "$ref" in schema:
            schema = self.parts.get(str(schema["$ref"]).rpartition("/")[2], {})
            return Shape(schema, self.parts).options()
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                nested = [Shape(member, self.parts).options() for member in schema[union]]
                shapes = [shape for options in nested for shape in options]
                return [shape for shape in shapes if shape.schema.get("type") != "null"] or shapes
        return [self]

    def below(self, step: str | int) -> Shape | None:
        """Return the schema of a field or of a list's items, or None."""
        for option in self.options():
            schema = option.schema
            if isinstance(step, int):
                below = schema.get("items")
            else:
                below = schema.get("properties", {}).get(step)
                if below is None and "properties" not in schema:
                    below = schema.get("additionalProperties")
            if isinstance(below, Mapping):
                return Shape(below, self.parts)
        return None


def missing_field(shape: Shape, path: Sequence[str | int]) -> tuple[str, str]:
    """Return the path of a missing field, and the error detail."""
    expected, name = shape.at(path)
    if not name:
        return "body", "The body is missing or null; send a JSON object."
    return name, f"{name} is missing; send {expected.accepted()}."


def unknown_field(shape: Shape, path: Sequence[str | int]) -> tuple[str, str]:
    """Return the path of a field that doesn't exist, and an error detail with those that do."""
    *above, last = path
    parent, parent_name = shape.at(above)
    field = shown_name(str(last))
    name = f"{parent_name}.{field}" if parent_name else field
    known = list(parent.fields())
    return name, unknown_name(
        f"There is no field {name}.", str(last), known, parent_name or "The body"
    )


def unknown_name(problem: str, name: str, known: Sequence[str], holder: str) -> str:
    """Return `problem` with the names that may have been meant and those that `holder` accepts."""
    listed = ", ".join(known[:_MAX_LISTED_NAMES]) + (
        " and more" if len(known) > _MAX_LISTED_NAMES else ""
    )
    return f"{problem}{_question(similar_names(name, known))} {holder} accepts {listed or 'none'}."


def wrong_value(shape: Shape, path: Sequence[str | int], value: object) -> tuple[str, str]:
    """Return the path of a value of the wrong shape, and an error detail with the accepted ones."""
    expected, name = shape.at(path)
    detail = f"{name or 'The body'} must be {expected.accepted()}"
    if value is not UNREAD:
        detail += f", but {_sent(value)} was sent"
    if expected.is_time() and isinstance(value, int | float):
        detail += _as_time(value)
    elif isinstance(value, str):
        close = get_close_matches(value.lower()[:_MAX_NAME_LENGTH], expected.choices(), n=1)
        return name or "body", f"{detail}.{_question(close)}"
    return name or "body", f"{detail}."


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that `name` may stand for, ignoring case and separators."""
    folded = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:_MAX_NAME_LENGTH])
    folded = re.sub(r"[^a-z0-9]+", "_", folded.lower()).strip("_")
    names = list(known)
    if folded in names:
        return [folded]
    meant = [candidate for candidate in names if folded in _ALIASES.get(candidate, ())]
    return meant or get_close_matches(folded, names, n=2, cutoff=0.7)


def _question(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(names)}?" if names else ""


def shown_name(name: str) -> str:
    """Return a name that a client sent, shortened, escaped and masked for an error detail."""
    cut = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}…"
    return mask_secrets(cut.encode("unicode_escape").decode("ascii"))


def _accepted(shape: Shape) -> str:  # noqa: PLR0911 - a line for each kind of schema
    schema = shape.schema
    if "const" in schema:
        return _choice(schema["const"])
    if "enum" in schema:
        listed = [_choice(value) for value in schema["enum"] if value is not None]
        return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"
    match schema.get("type"):
        case "string":
            return _FORMATS.get(schema.get("format", ""), f"a string{_length(schema)}")
        case "integer" | "number" as kind:
            noun = "a whole number" if kind == "integer" else "a number"
            return f"{noun}{_bounds(schema, 'minimum', 'maximum')}"
        case "boolean":
            return "true or false"
        case "array":
            items = schema.get("items")
            each = f", each item {Shape(items, shape.parts).accepted()}" if items else ""
            return f"a list{_length(schema)}{each}"
        case "object":
            names = list(_properties(schema))[:_MAX_LISTED_NAMES]
            return f"an object with {', '.join(names)}" if names else "an object"
        case list() as kinds:
            options = [Shape({**schema, "type": kind}, shape.parts) for kind in kinds]
            return " or ".join(
                _accepted(option) for option in options if option.schema["type"] != "null"
            )
        case "null":
            return "null"
    return "any JSON value"


def _properties(schema: Schema) -> dict[str, Schema]:
    """Return the fields of an object, required ones first."""
    fields, required = schema.get("properties", {}), schema.get("required", ())
    return {name: fields[name] for name in sorted(fields, key=lambda name: name not in required)}


def _choice(value: object) -> str:
    return f"“{value}”" if isinstance(value, str) else json.dumps(value)


def _length(schema: Schema) -> str:
    is_list = schema.get("type") == "array"
    unit = "items" if is_list else "characters"
    noun = "Items" if is_list else "Length"
    bounds = _bounds(schema, f"min{noun}", f"max{noun}")
    if not bounds:
        return ""
    if not bounds.startswith(" of"):
        bounds = f" of{bounds.removeprefix(' from')}"
    return f"{bounds} {unit}"


def _bounds(schema: Schema, minimum: str, maximum: str) -> str:
    # Some schema generators write every number as a float.
    bounds = (schema.get(minimum), schema.get(maximum))
    low, high = (int(n) if isinstance(n, float) and n.is_integer() else n for n in bounds)
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    if low is not None:
        return f" of at least {low:,}"
    return "" if high is None else f" of at most {high:,}"


def _sent(value: object) -> str:  # noqa: PLR0911 - a line for each kind of JSON
    """Return a noun phrase for the value; strings aren't shown, because they may be secrets."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value) if abs(value) < _MAX_SHOWN_NUMBER else "a number of that size"
        case str():
            if not value:
                return "an empty string"
            return f"a string of {len(value):,} characters" if len(value) > 1 else "a string"
        case list() | tuple():
            return "a list" if not value else f"a list of {len(value):,}"
        case dict():
            return "an object"
    return "something else"


def _as_time(value: float) -> str:
    """Return the same time in the accepted form, for seconds or milliseconds since 1970."""
    if not _FROM_2001 <= value < _UNTIL_2286 and not _FROM_2001 <= value / 1000 < _UNTIL_2286:
        return ""
    seconds = int(value if value < _UNTIL_2286 else value / 1000)
    return f" (in this form: “{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}”)"
