"""Null means an absent field in every request body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from tests.support.server import Server, running

Node = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server") / "data") as up:
        yield up


@pytest.fixture(scope="module")
def document(server: Server) -> Node:
    with server.client() as anyone:
        read: Node = anyone.get("/v2/openapi.json").json()
    return read


def objects(document: Node, schema: Node, seen: tuple[str, ...] = ()) -> Iterator[Node]:
    """Return every object with named fields within a body's schema."""
    if (ref := schema.get("$ref")) is not None:
        if ref not in seen:
            name = ref.rpartition("/")[2]
            yield from objects(document, document["components"]["schemas"][name], (*seen, ref))
        return
    # Without a type it narrows another object; with a maximum, one of its fields is required.
    if "properties" in schema and schema.get("type") == "object" and "maxProperties" not in schema:
        yield schema
    for part in (
        *schema.get("anyOf", ()),
        *schema.get("oneOf", ()),
        *schema.get("properties", {}).values(),
        *([schema["items"]] if "items" in schema else ()),
    ):
        yield from objects(document, part, seen)


def bodies(document: Node) -> Iterator[tuple[str, str, Node]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield method, path, content


def test_every_optional_field_of_every_body_accepts_null(document: Node) -> None:
    looked = 0
    for method, path, content in bodies(document):
        for shape in objects(document, content["schema"]):
            for name in shape["properties"].keys() - set(shape.get("required", ())):
                schema = {**shape["properties"][name], "components": document["components"]}
                assert jsonschema_rs.is_valid(schema, None), f"{method} {path}: {name}"
                looked += 1
    assert looked > 100


def test_a_body_with_nulls_means_the_same_as_one_without_the_fields(
    server: Server, document: Node
) -> None:
    with server.owner() as owner:
        requests = 0
        for method, path, content in bodies(document):
            shapes = list(objects(document, content["schema"]))
            example = content["example"]
            if path == "/publish" or not isinstance(example, dict) or method == "patch":
                continue
            if not shapes:
                continue
            optional = shapes[0]["properties"].keys() - set(shapes[0].get("required", ()))
            nulls = dict.fromkeys(optional - example.keys())
            answer = owner.request(method, path, json=example | nulls)
            assert '"code":"invalid_request"' not in answer.text, f"{method} {path}: {answer.text}"
            requests += 1
        assert requests > 10


@pytest.mark.parametrize(
    "nulls",
    [
        {"permissions": None, "cost": None, "environment": None, "type": None},
        {"organization": None, "address": None, "origin": None},
        {"user_agent": None, "route": None},
    ],
)
def test_a_verification_request_with_nulls_is_answered(
    server: Server, nulls: dict[str, None]
) -> None:
    question: dict[str, object] = {"key": server.first_key, **nulls}
    with server.client(server.first_key) as client:
        one = client.post("/v2/keys/verify", json=question).json()
        many = client.post("/v2/keys/verify-batch", json={"items": [question]}).json()["items"][0]
        missing = client.post("/v2/keys/verify", json=question | {"key": None})
        unknown = client.post("/v2/keys/verify", json=question | {"nope": None})
    assert one["code"] == many["code"] == "valid"
    assert missing.status_code == unknown.status_code == 400


def test_null_removes_an_expiry_and_leaves_other_fields_unchanged(server: Server) -> None:
    with server.owner() as owner:
        made = owner.post(
            "/v2/keys",
            json={"name": "live-nulls", "type": "secret", "description": "kept",
                  "allowed_addresses": ["192.0.2.1"], "metadata": {"a": None},
                  "expires_at": "2100-01-01T00:00:00Z"},
        ).json()["key"]  # fmt: skip
        nulls = dict.fromkeys(
            ("description", "allowed_addresses", "metadata", "expires_at", "name")
        )
        changed = owner.patch(f"/v2/keys/{made['id']}", json=nulls)
    assert changed.status_code == 200, changed.text
    key = changed.json()["key"]
    assert key["expires_at"] is None
    for name in ("description", "allowed_addresses", "name", "metadata"):
        assert key[name] == made[name]
