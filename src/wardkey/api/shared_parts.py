"""Shrinks an OpenAPI document by moving repeated parts to its components."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count
from typing import Any

Node = dict[str, Any]
# A shorter field schema is easier to read in place.
_MIN_SHARED_SIZE = 400
_SCHEMA_WORDS = {"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"}


def share_parts(document: Node) -> None:
    """Replace repeated headers, parameters, responses and large field schemas with references.

    Readers resolve a reference once, and most of the document is the same few errors.
    """
    components = document["components"]
    _drop_titles(document)
    operations = [item for path in document["paths"].values() for item in path.values()]
    responses = [operation["responses"] for operation in operations]
    components["headers"] = _share(
        [part["headers"] for each in responses for part in each.values() if "headers" in part],
        "headers",
    )
    components["responses"] = _share(responses, "responses")
    with_parameters = [operation for operation in operations if "parameters" in operation]
    named = [
        {_name_of(parameter): parameter for parameter in operation["parameters"]}
        for operation in with_parameters
    ]
    components["parameters"] = _share(named, "parameters")
    for operation, parameters in zip(with_parameters, named, strict=True):
        operation["parameters"] = list(parameters.values())
    schemas = components["schemas"]
    fields = [schema["properties"] for schema in schemas.values() if "properties" in schema]
    schemas |= _share(fields, "schemas", _MIN_SHARED_SIZE)
    text = _text({"paths": document["paths"], "responses": components["responses"]})
    components["examples"] = {
        code: example
        for code, example in components["examples"].items()
        if f"/examples/{code}" in text
    }


def _drop_titles(node: Any) -> None:  # noqa: ANN401 - any JSON
    """Drop the titles that pydantic derives from field names."""
    if isinstance(node, list):
        for part in node:
            _drop_titles(part)
    elif isinstance(node, dict):
        # A property called title has no type beside it; neither has a title in an example.
        if isinstance(node.get("title"), str) and _SCHEMA_WORDS & node.keys():
            del node["title"]
        for name, part in node.items():
            if name not in {"example", "examples"}:
                _drop_titles(part)


def _name_of(parameter: Node) -> str:
    return str(parameter["name"])


def _share(holders: list[Node], kind: str, min_size: int = 0) -> Node:
    """Replace parts that holders have in common with references; return these parts by name.

    Parts shorter than `min_size` characters stay in place.
    """
    counts = Counter(_text(part) for holder in holders for part in holder.values())
    names: dict[str, str] = {}
    shared: Node = {}
    for holder in holders:
        for name, part in holder.items():
            text = _text(part)
            if counts[text] == 1 or len(text) < min_size:
                continue
            if text not in names:
                names[text] = next(
                    candidate for candidate in _candidate_names(name) if candidate not in shared
                )
                shared[names[text]] = part
            holder[name] = {"$ref": f"#/components/{kind}/{names[text]}"}
    return shared


def _candidate_names(name: str) -> Iterator[str]:
    """Yield names for a part; the first unused one is taken."""
    return chain([name], (f"{name}.{number}" for number in count(2)))


def _text(part: Node) -> str:
    return json.dumps(part, sort_keys=True)
