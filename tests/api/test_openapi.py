from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.server import Server
from wardkey.domain.errors import LEAVES


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    with server.client() as anyone:
        answer = anyone.get("/v2/openapi.json")
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def pointed_at(node: object) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*(pointed_at(part) for part in node.values()))
    if isinstance(node, list):
        return set().union(*(pointed_at(part) for part in node))
    return set()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in pointed_at(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_every_operation_is_described_once_and_never_answers_422(
    document: dict[str, Any],
) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["servers"][0]["url"]
    found = operations(document)
    ids = [operation["operationId"] for operation in found]
    assert len(set(ids)) == len(ids)
    for operation in found:
        assert operation["description"]
        assert operation["summary"]
        assert operation["tags"]
        assert "security" in operation
        assert "422" not in operation["responses"]


def test_every_body_and_answer_has_an_example_that_fits_its_schema(
    document: dict[str, Any],
) -> None:
    for operation in operations(document):
        holders = [a for status, a in operation["responses"].items() if status < "300"]
        for holder in (*holders, operation.get("requestBody", {})):
            for content in holder.get("content", {}).values():
                schema = {**content["schema"], "components": document["components"]}
                jsonschema_rs.validate(schema, content["example"])


def test_every_declared_problem_has_its_status_example_and_page(
    document: dict[str, Any], server: Server
) -> None:
    declared = set()
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            if status < "400":
                continue
            (content,) = answer["content"].values()
            for code in content["examples"]:
                value = document["components"]["examples"][code]["value"]
                assert (value["status"], value["code"]) == (int(status), code)
                declared.add(code)
    assert declared <= set(LEAVES)
    with server.client() as anyone:
        for code in LEAVES:
            assert code in anyone.get(f"/problems/{code}").text


def test_405_names_the_methods_that_the_path_takes(server: Server) -> None:
    with server.client() as anyone:
        answer = anyone.put("/v2/keys", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


def test_415_a_form_is_not_json(server: Server) -> None:
    with server.owner() as owner:
        answer = owner.post("/v2/keys", data={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_the_docs_page_runs_only_our_own_files(server: Server) -> None:
    with server.client() as anyone:
        page = anyone.get("/v2/docs")
        assert "script-src 'self';" in page.headers["content-security-policy"]
        for name in ("docs.js", "swagger-ui-bundle.js", "swagger-ui.css"):
            assert f"/static/swagger/{name}" in page.text
            assert anyone.get(f"/static/swagger/{name}").status_code == 200
        assert anyone.get("/static/swagger/LICENSE").status_code == 404


def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(
    server: Server, tmp_path: Path
) -> None:
    with server.owner() as owner:
        credential = owner.headers["authorization"]
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{server.url}/v2/openapi.json",
            "-H",
            f"Authorization: {credential}",
            "--phases=examples,coverage",
            "--seed=1",
            "--no-color",
            # It would end the token that everything else is asked with.
            "--exclude-operation-id=sign_out",
            # Not held yet: rules of cursors, times, slugs and tokens are not in the schemas, and
            # /v2/keys/import is also a /v2/keys/{key_id}, whose methods Allow lists.
            "--exclude-checks=positive_data_acceptance,allow_header_conformance",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
