"""Sentences about input of another shape than a JSON Schema asks for: what it takes, what came."""

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

_LONGEST_NAME = 64
_MOST_LISTED = 24
_MOST_OPTIONS = 3
_MOST_SHOWN = 10**15
# What other APIs call a field of ours, folded; it is suggested only where the field is known.
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
# Seconds since 1970; a number a thousand times as large is taken for milliseconds.
_FROM_2001 = 10**9
_UNTIL_2286 = 10**10
# In the place of a value that cannot be looked at.
UNREAD = object()


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON Schema, with the schemas that its references name."""

    schema: Schema
    parts: Mapping[str, Schema]

    def at(self, path: Sequence[str | int]) -> tuple[Shape, str]:
        """Return the schema at a path, and the path in dots.

        A step that the schema does not know, such as the name of a union's option, is left out.
        """
        ctx, named = self, []
        for step in path:
            below = ctx.below(step)
            if below is not None:
                ctx = below
                named.append(shown_name(str(step)))
        return ctx, ".".join(named)

    def fields(self) -> dict[str, Schema]:
        """Return the fields of an object, of every option that is one."""
        found: dict[str, Schema] = {}
        for option in self.options():
            found |= _properties(option.schema)
        return found

    def takes(self) -> str:
        """Return what a value has to be, as a noun phrase."""
        options = self.options()
        phrases = list(dict.fromkeys(_takes(option) for option in options))
        return " or ".join(phrases[:_MOST_OPTIONS]) or "another value"

    def choices(self) -> list[str]:
        """Return the strings that a value is to be one of, if it is."""
        options = (option.schema for option in self.options())
        return [one for schema in options for one in schema.get("enum", ()) if isinstance(one, str)]

    def is_time(self) -> bool:
        """Return whether a value has to be a time."""
        return any(option.schema.get("format") == "date-time" for option in self.options())

    def options(self) -> list[Shape]:
        """Return the schema without references and unions; null is left out beside others."""
        schema = self.schema
        if "$ref" in schema:
            schema = self.parts.get(str(schema["$ref"]).rpartition("/")[2], {})
            return Shape(schema, self.parts).options()
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                nested = [Shape(one, self.parts).options() for one in schema[union]]
                found = [option for options in nested for option in options]
                return [one for one in found if one.schema.get("type") != "null"] or found
        return [self]

    def below(self, step: str | int) -> Shape | None:
        """Return the schema of a field or of a list's items; None if there is none."""
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
    """Return the path of a field that is missing, and a sentence about it."""
    ctx, name = shape.at(path)
    if not name:
        return "body", "The body is missing or null; send a JSON object."
    return name, f"{name} is missing; it takes {ctx.takes()}."


def unknown_field(shape: Shape, path: Sequence[str | int]) -> tuple[str, str]:
    """Return the path of a field that does not exist, and a sentence that names those that do."""
    *above, last = path
    parent, parent_name = shape.at(above)
    shown = shown_name(str(last))
    name = f"{parent_name}.{shown}" if parent_name else shown
    taken = list(parent.fields())
    return name, unknown_name(
        f"There is no field {name}.", str(last), taken, parent_name or "The body"
    )


def unknown_name(said: str, name: str, known: Sequence[str], holder: str) -> str:
    """Return `said` with the known name that was meant, and the names that `holder` takes."""
    listed = ", ".join(known[:_MOST_LISTED]) + (" and more" if len(known) > _MOST_LISTED else "")
    return f"{said}{_question(similar_names(name, known))} {holder} takes {listed or 'none'}."


def wrong_value(shape: Shape, path: Sequence[str | int], value: object) -> tuple[str, str]:
    """Return the path of a value of the wrong shape, and a sentence on what it takes."""
    ctx, name = shape.at(path)
    said = f"{name or 'The body'} takes {ctx.takes()}"
    if value is not UNREAD:
        said += f", and {_came(value)} came"
    if ctx.is_time() and isinstance(value, int | float):
        said += _as_time(value)
    elif isinstance(value, str):
        question = _question(get_close_matches(value.lower()[:_LONGEST_NAME], ctx.choices(), n=1))
        return name or "body", f"{said}.{question}"
    return name or "body", f"{said}."


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that `name` may have meant, whatever its case and separators."""
    folded = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:_LONGEST_NAME])
    folded = re.sub(r"[^a-z0-9]+", "_", folded.lower()).strip("_")
    names = list(known)
    if folded in names:
        return [folded]
    meant = [one for one in names if folded in _ALIASES.get(one, ())]
    return meant or get_close_matches(folded, names, n=2, cutoff=0.7)


def _question(found: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(found)}?" if found else ""


def shown_name(name: str) -> str:
    """Return a name that a client made up, as a sentence may show it."""
    cut = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
    return mask_secrets(cut.encode("unicode_escape").decode("ascii"))


def _takes(shape: Shape) -> str:  # noqa: PLR0911 - a line for each kind of schema
    schema = shape.schema
    if "const" in schema:
        return _choice(schema["const"])
    if "enum" in schema:
        listed = [_choice(one) for one in schema["enum"] if one is not None]
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
            each = f", each item {Shape(items, shape.parts).takes()}" if items else ""
            return f"a list{_length(schema)}{each}"
        case "object":
            names = list(_properties(schema))[:_MOST_LISTED]
            return f"an object with {', '.join(names)}" if names else "an object"
        case list() as kinds:
            options = [Shape({**schema, "type": kind}, shape.parts) for kind in kinds]
            return " or ".join(_takes(one) for one in options if one.schema["type"] != "null")
        case "null":
            return "null"
    return "any JSON value"


def _properties(schema: Schema) -> dict[str, Schema]:
    """Return the fields of an object, those that are required first."""
    found, required = schema.get("properties", {}), schema.get("required", ())
    return {name: found[name] for name in sorted(found, key=lambda one: one not in required)}


def _choice(value: object) -> str:
    return f"“{value}”" if isinstance(value, str) else json.dumps(value)


def _length(schema: Schema) -> str:
    lists = schema.get("type") == "array"
    unit = "items" if lists else "characters"
    noun = "Items" if lists else "Length"
    said = _bounds(schema, f"min{noun}", f"max{noun}")
    if not said:
        return ""
    return f"{said} {unit}" if said.startswith(" of") else f" of{said.removeprefix(' from')} {unit}"


def _bounds(schema: Schema, least: str, most: str) -> str:
    # Some writers of schemas make every number a float.
    bounds = (schema.get(least), schema.get(most))
    low, high = (int(one) if isinstance(one, float) and one.is_integer() else one for one in bounds)
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    if low is not None:
        return f" of at least {low:,}"
    return "" if high is None else f" of at most {high:,}"


def _came(value: object) -> str:  # noqa: PLR0911 - a line for each kind of JSON
    """Return what came; nothing of a string is shown, because it may be a secret."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value) if abs(value) < _MOST_SHOWN else "a number that cannot be taken"
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
    """Return, of seconds or milliseconds since 1970, the time that they stand for."""
    if not _FROM_2001 <= value < _UNTIL_2286 and not _FROM_2001 <= value / 1000 < _UNTIL_2286:
        return ""
    seconds = int(value if value < _UNTIL_2286 else value / 1000)
    return f" (in that form “{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}”)"
