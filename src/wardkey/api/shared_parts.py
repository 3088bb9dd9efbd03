"""An OpenAPI document made small: what stands in several places moves to its components."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count
from typing import Any

Node = dict[str, Any]
# Below that, the schema of a field is easier to read in its place.
_LEAST_SHARED = 400
_SCHEMA_WORDS = {"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"}


def share_parts(document: Node) -> None:
    """Replace headers, parameters and responses that come more than once by references.

    Readers resolve a reference once, and most of the document is the same few refusals.
    """
    components = document["components"]
    _drop_titles(document)
    operations = [one for path in document["paths"].values() for one in path.values()]
    answers = [one["responses"] for one in operations]
    components["headers"] = _share(
        [answer["headers"] for each in answers for answer in each.values() if "headers" in answer],
        "headers",
    )
    components["responses"] = _share(answers, "responses")
    named = [
        {_name_of(parameter): parameter for parameter in one["parameters"]}
        for one in operations
        if "parameters" in one
    ]
    components["parameters"] = _share(named, "parameters")
    for one, parameters in zip((o for o in operations if "parameters" in o), named, strict=True):
        one["parameters"] = list(parameters.values())
    schemas = components["schemas"]
    fields = [schema["properties"] for schema in schemas.values() if "properties" in schema]
    schemas |= _share(fields, "schemas", _LEAST_SHARED)
    told = _text({"paths": document["paths"], "responses": components["responses"]})
    components["examples"] = {
        code: example
        for code, example in components["examples"].items()
        if f"/examples/{code}" in told
    }


def _drop_titles(node: Any) -> None:  # noqa: ANN401 - any JSON
    """Drop the titles that pydantic makes of the names of fields."""
    if isinstance(node, list):
        for part in node:
            _drop_titles(part)
    elif isinstance(node, dict):
        # Where it is a field's name, or in an example, it stands beside no type.
        if isinstance(node.get("title"), str) and _SCHEMA_WORDS & node.keys():
            del node["title"]
        for name, part in node.items():
            if name not in {"example", "examples"}:
                _drop_titles(part)


def _name_of(parameter: Node) -> str:
    return str(parameter["name"])


def _share(holders: list[Node], kind: str, least: int = 0) -> Node:
    """Return the parts that several holders have alike, by name, and put references there.

    Parts with fewer than `least` characters stay where they are.
    """
    counted = Counter(_text(part) for holder in holders for part in holder.values())
    names: dict[str, str] = {}
    shared: Node = {}
    for holder in holders:
        for name, part in holder.items():
            text = _text(part)
            if counted[text] == 1 or len(text) < least:
                continue
            if text not in names:
                names[text] = next(one for one in _names(name) if one not in shared)
                shared[names[text]] = part
            holder[name] = {"$ref": f"#/components/{kind}/{names[text]}"}
    return shared


def _names(name: str) -> Iterator[str]:
    """Return names for a part, of which the first that is free is taken."""
    return chain([name], (f"{name}.{number}" for number in count(2)))


def _text(part: Node) -> str:
    return json.dumps(part, sort_keys=True)
