from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from tests.api import schemathesis_hooks
from tests.browser.conftest import passes
from tests.support.server import Server
from wardkey.domain.errors import ERRORS_BY_CODE
from wardkey.domain.verdict import Verdict
from wardkey.web.problems import status_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    with server.client() as anyone:
        answer = anyone.get("/v2/openapi.json")
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the document, following a reference."""
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def pointed_at(node: object) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*(pointed_at(part) for part in node.values()))
    if isinstance(node, list):
        return set().union(*(pointed_at(part) for part in node))
    return set()


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    for reference in pointed_at(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_every_operation_is_described_once_and_never_returns_422(
    document: dict[str, Any],
) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["servers"][0]["url"]
    described = operations(document)
    ids = [operation["operationId"] for operation in described]
    assert len(set(ids)) == len(ids)
    for operation in described:
        assert operation["description"]
        assert operation["summary"]
        assert operation["tags"]
        assert "security" in {**document, **operation}
        assert "422" not in operation["responses"]


def test_every_body_and_response_has_an_example_that_matches_its_schema(
    document: dict[str, Any],
) -> None:
    for operation in operations(document):
        holders = [
            resolved(document, a) for status, a in operation["responses"].items() if status < "300"
        ]
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
            (content,) = resolved(document, answer)["content"].values()
            codes = content["schema"]["allOf"][1]["properties"]["code"]["enum"]
            for code in codes:
                assert status_of(ERRORS_BY_CODE[code]) == int(status)
                declared.add(code)
            assert set(content["examples"]) <= set(codes)
            for code in content["examples"]:
                value = document["components"]["examples"][code]["value"]
                assert (value["status"], value["code"]) == (int(status), code)
    assert declared <= set(ERRORS_BY_CODE)
    with server.client() as anyone:
        for code in ERRORS_BY_CODE:
            assert code in anyone.get(f"/problems/{code}").text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v2/keys", "GET, HEAD, POST"),
        ("DELETE", "/v2/keys/import", "POST"),
        ("GET", "/v2/keys/verify", "POST"),
        ("DELETE", "/v2/invitations/accept", "POST"),
        ("POST", "/v2/keys/key_0fA3xQ2LmN7pR9sT1uV4wY", "DELETE, GET, HEAD, PATCH"),
    ],
)
def test_405_lists_the_methods_that_the_path_allows(
    server: Server, method: str, path: str, allowed: str
) -> None:
    with server.client() as anyone:
        answer = anyone.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_415_a_form_is_not_json(server: Server) -> None:
    with server.owner() as owner:
        answer = owner.post("/v2/keys", data={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_the_document_is_small_and_sent_compressed(server: Server) -> None:
    with server.client() as anyone:
        plain = anyone.get("/v2/openapi.json", headers={"Accept-Encoding": "identity"})
        zipped = anyone.get("/v2/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert len(plain.content) < 320_000
    assert int(zipped.headers["content-length"]) < 50_000
    assert (zipped.headers["content-encoding"], zipped.content) == ("gzip", plain.content)
    assert plain.headers["vary"] == zipped.headers["vary"] == "Accept-Encoding"
    assert plain.headers["etag"] != zipped.headers["etag"]


def test_publish_is_described_with_its_body_responses_and_headers(document: dict[str, Any]) -> None:
    publish = document["paths"]["/publish"]["post"]
    one, many = publish["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert one["required"] == ["topic", "payload"]
    assert all(one["properties"][name]["description"] for name in one["properties"])
    assert many["maxItems"] == 1_000
    named = {resolved(document, parameter)["name"] for parameter in publish["parameters"]}
    assert {"Idempotency-Key", "X-Wardkey-Grant"} <= named
    assert resolved(document, publish["responses"]["200"])["content"]["application/json"]["example"]
    assert publish["security"]


def test_every_field_of_a_verification_request_is_described(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["VerifyRequest"]["properties"]
    assert fields.keys() >= {"organization", "origin", "cost", "route", "type"}
    assert all(field["description"].endswith(".") for field in fields.values())
    codes = document["components"]["schemas"]["Verdict"]["properties"]["code"]["enum"]
    assert set(codes) == set(Verdict)


def test_the_docs_page_shows_every_operation_parameter_and_code(
    document: dict[str, Any], server: Server
) -> None:
    with server.client() as anyone:
        page = anyone.get("/v2/docs").text
    for operation in operations(document):
        assert f'<article id="{operation["operationId"]}">' in page
        for parameter in operation.get("parameters", ()):
            assert f"<code>{resolved(document, parameter)['name']} (" in page
    for code in ("duplicate_name", "not_permitted", "storage_unreachable"):
        assert f'href="/problems/{code}"' in page
    assert "<code>rate_limit.burst</code>" in page
    assert "a whole number from 1 to 1,000,000,000<" in page


@pytest.mark.browser
def test_the_docs_page_is_usable_at_once_and_passes_axe(server: Server, browser: Browser) -> None:
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{server.url}/v2/docs#publish")
    assert page.locator("#publish").bounding_box() is not None
    passes(page)
    page.fill("#filter", "verify")
    assert page.locator("nav li:visible").count() < 10
    page.get_by_role("link", name="POST Verify key", exact=True).click()
    assert page.url.endswith("#verify_key")
    assert not faults
    page.close()


def test_the_docs_page_loads_only_our_own_files(server: Server) -> None:
    with server.client() as anyone:
        page = anyone.get("/v2/docs")
        assert "script-src 'self';" in page.headers["content-security-policy"]
        for name in ("reference.css", "reference.js"):
            assert f"/static/reference/{name}" in page.text
            assert anyone.get(f"/static/reference/{name}").status_code == 200
        assert anyone.get("/static/reference/docs.py").status_code == 404


@pytest.mark.parametrize(
    ("phases", "examples", "within_s"),
    [
        ("examples,fuzzing,stateful", 3, 110),
        # Every boundary value and wrong type of each field: 6,000 requests.
        pytest.param(
            "examples,coverage,fuzzing,stateful",
            20,
            1800,
            marks=[pytest.mark.soak, pytest.mark.timeout(1900)],
        ),
    ],
    ids=["short", "deep"],
)
def test_schemathesis_finds_no_undocumented_response(
    start: Callable[..., Server], tmp_path: Path, phases: str, examples: int, within_s: int
) -> None:
    # The storage doesn't affect the format of responses, so one is enough for so many requests.
    server = start()
    with server.owner() as owner:
        credential = owner.headers["authorization"]
        described = operations(owner.get("/v2/openapi.json").json())
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{server.url}/v2/openapi.json",
            "-H",
            f"Authorization: {credential}",
            f"--phases={phases}",
            f"--max-examples={examples}",
            "--seed=1",
            "--no-color",
            # Made-up credentials beside the real one would be ambiguous.
            "--generation-with-security-parameters=false",
            "--generation-database=none",
            # It would end the token that all other requests use.
            "--exclude-operation-id=sign_out",
            # `what_fits_the_schema_is_taken` in the hooks replaces it and explains why.
            "--exclude-checks=positive_data_acceptance",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": schemathesis_hooks.__name__,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert f"Tested: {len(described) - 1}\n" in ran.stdout, ran.stdout[-8000:]


def cpu_s(server: Server) -> float:
    """Return the CPU time of the workers, in seconds."""
    ticks, workers = 0, server.workers()
    assert workers
    for pid in workers:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def test_the_document_and_its_page_are_rendered_once_and_cached_by_clients(
    server: Server,
) -> None:
    paths = ("/v2/openapi.json", "/v2/docs", "/static/reference/reference.css")
    with server.client() as anyone:
        for path in paths:
            first = anyone.get(path)
            again = anyone.get(path, headers={"If-None-Match": f'"x", {first.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            other = anyone.get(path, headers={"If-None-Match": '"x"'})
            assert (other.status_code, other.content) == (200, first.content)
        before = cpu_s(server)
        for _ in range(40):
            with server.client() as another:
                assert another.get("/v2/openapi.json").status_code == 200
    # Without the cache: 40 times a third of a second.
    assert cpu_s(server) - before < 4
