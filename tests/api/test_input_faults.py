"""Every entry point reports bad input in the same words: the value sent and the format expected."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic import ValidationError as ModelFault
from pydantic_core import core_schema

from tests.support.server import Server, running
from wardkey.api import acl, clients, keys, organization, people, providers, schemas, scopes, tokens
from wardkey.domain.errors import InvalidRequest
from wardkey.web.request_faults import validation_failure

# Pydantic's own wording.
FOREIGN = (
    "Input should", "Field required", "Extra inputs", "unable to parse", "Expected `", "Object ",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**20, 1.5, "", "x", "x" * 10_000, [], [None], [[]], ["x"] * 2_000, {},
    {"x": 1}, {"kind": "x"}, [{}], [{"x": 1}],
)  # fmt: skip
ROOMS = (acl, clients, keys, organization, people, providers, scopes, tokens)
ROUTES = [
    route
    for scope in ROOMS
    for route in scope.router.routes
    if isinstance(route, APIRoute) and route.body_field is not None
]


def request_of(route: APIRoute) -> Request:
    request = Request({"type": "http", "headers": [], "route": route})
    request._body = b"{}"
    return request


def model_of(route: APIRoute) -> type[BaseModel]:
    """Return the model of a route's body, without `None` if the body is optional."""
    assert route.body_field is not None
    kind: Any = route.body_field.field_info.annotation
    model: type[BaseModel] = (typing.get_args(kind) or (kind,))[0]
    return model


def faults_of(route: APIRoute) -> Iterator[RequestValidationError]:
    """Yield the framework's validation errors of a body, for each field and many values."""
    model = model_of(route)
    bodies: list[Any] = [*VALUES, {"no_such_field": 1}]
    bodies += [{name: value} for name in model.model_fields for value in VALUES]
    nested = {"rate_limit": ("limit", "period_s", "burst"), "subject": ("kind", "value")}
    for name in nested.keys() & model.model_fields.keys():
        bodies += [{name: {inner: value}} for inner in nested[name] for value in VALUES]
    for body in bodies:
        try:
            model.model_validate(body)
        except ModelFault as error:
            errors = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
            yield RequestValidationError(errors, body=body)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_validation_errors_never_use_the_librarys_wording(route: APIRoute) -> None:
    count = 0
    for fault in faults_of(route):
        failure = validation_failure(fault, request_of(route))
        assert isinstance(failure, InvalidRequest)
        assert failure.errors
        for name, sentence in failure.errors:
            assert not any(text in sentence for text in FOREIGN), sentence
            assert sentence.startswith((name, "The body", "There is no field")), sentence
            assert any(word in sentence for word in ("must be", "accepts", "send")), sentence
            assert len(sentence) < 700
            assert sentence.endswith(".")
        count += 1
    assert count > 10


@pytest.mark.parametrize("kind", typing.get_args(core_schema.ErrorType))
def test_every_pydantic_error_type_has_our_own_message(kind: str) -> None:
    """No pydantic text is returned, even for error types that no model raises today."""
    route = next(item for item in ROUTES if item.name == "issue_key")
    fault = RequestValidationError(
        [{"type": kind, "loc": ("body", "rate_limit", "burst"), "msg": "Input should", "input": 0}],
        body={},
    )
    failure = validation_failure(fault, request_of(route))
    assert "Input should" not in failure.detail
    if kind not in {"json_invalid", "extra_forbidden"}:
        assert "rate_limit.burst" in failure.detail
        assert "a whole number from 1 to 1,000,000,000" in failure.detail


def test_every_body_model_is_covered() -> None:
    tried = set(map(model_of, ROUTES))
    described = {
        model
        for model in vars(schemas).values()
        if isinstance(model, type) and issubclass(model, schemas.Input)
    }
    inputs = {model for model in _all_inputs(schemas.Input) if not model.__name__.startswith("_")}
    inside = {_name for model in tried for _name in _inner(model)}
    left = {model.__name__ for model in inputs - tried - described} - inside
    # Base classes of other models.
    assert left <= {"KeyFields", "ProviderFields"}, left


def _all_inputs(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _all_inputs(below)


def _inner(model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield from schema.get("$defs", {})
    yield schema.get("title", "")


# An entry point: its path, a valid body, and the field that the tests make invalid.
ENTRY_POINTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rest": ("/v2/keys", {"name": "live-input-faults", "type": "secret"}, "name"),
    "verify": ("/v2/keys/verify", {"key": "x"}, "key"),
    "publish": ("/publish", {"topic": "a", "payload": 1}, "topic"),
    "exchange": ("/v2/tokens/exchange", {"token": "x"}, "token"),
    "create": ("/v2/tokens/create", {"user_email": "a@acme.example"}, "user_email"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["lane", "framework"])
def ask(request: pytest.FixtureRequest, server: Server) -> Iterator[Callable[..., Any]]:
    """Call an entry point, through the fast path or around it."""
    with server.client(server.first_key) as key:

        def send(entry: str, body: str | bytes, **headers: str) -> Any:  # noqa: ANN401 - any JSON
            content = body if isinstance(body, bytes) else body.encode()
            sent_headers = {"Content-Type": "application/json", **headers}
            # The fast path leaves bodies of unknown length to the framework.
            sent = content if request.param else iter([content])
            return key.post(ENTRY_POINTS[entry][0], content=sent, headers=sent_headers).json()

        yield send


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Input is validated before the storage is queried, so one storage is enough.
    with running(tmp_path_factory.mktemp("faults") / "data", no_messaging=0) as up:
        yield up


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_400_invalid_json_is_reported_by_line_and_column(
    ask: Callable[..., Any], entry: str
) -> None:
    name = ENTRY_POINTS[entry][2]
    problem = ask(entry, f'{{\n  "{name}": "x",\n  "b" 1\n}}')
    assert (problem["status"], problem["code"]) == (400, "malformed_json")
    assert "line 3, column 7: expected a colon" in problem["detail"]
    problem = ask(entry, f'{{"{name}": "x"')
    assert "ends too early" in problem["detail"]
    problem = ask(entry, b'{"%b": "\xff"}' % name.encode())
    assert problem["code"] == "malformed_json"
    assert f"UTF-8 at byte {len(name) + 7};" in problem["detail"]


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_400_an_empty_body_is_reported_as_empty(ask: Callable[..., Any], entry: str) -> None:
    for body in ("", "  \n"):
        problem = ask(entry, body)
        assert (problem["status"], problem["code"]) == (400, "malformed_json")
        assert problem["detail"].startswith("The body is empty; send a JSON object")


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_400_an_unknown_field_lists_the_known_fields(ask: Callable[..., Any], entry: str) -> None:
    _, good, name = ENTRY_POINTS[entry]
    problem = ask(entry, json.dumps({**good, f"{name}s": 1}))
    assert (problem["status"], problem["code"]) == (400, "invalid_request")
    assert problem["detail"].startswith(f"There is no field {name}s. Did you mean {name}")
    assert all(field in problem["detail"].partition("accepts")[2] for field in good)
    assert problem["errors"] == [{"field": f"{name}s", "message": problem["detail"]}]


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_400_missing_fields_and_wrong_types_are_reported_the_same_way(
    ask: Callable[..., Any], entry: str
) -> None:
    _, good, name = ENTRY_POINTS[entry]
    problem = ask(entry, json.dumps({field: v for field, v in good.items() if field != name}))
    assert problem["detail"].startswith(f"{name} is missing; send a")
    problem = ask(entry, json.dumps({**good, name: 5}))
    assert problem["errors"][0]["field"] == name
    assert problem["detail"].startswith(f"{name} must be a")
    assert problem["detail"].endswith("but 5 was sent.")
    problem = ask(entry, "[3]" if entry != "publish" else "3")
    assert problem["detail"].startswith("The body must be an object with ")


NUMBER = "a whole number from 1 to"
SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"scopes": ["a:b"]}, "Did you mean permissions?"),
    "camel case": ({"expiresAt": "2030-01-01T00:00:00Z"}, "Did you mean expires_at?"),
    "seconds": ({"expires_at": 1900000000}, "must be a time such as “2030-01-31T12:00:00Z”"),
    "seconds in that form": ({"expires_at": 1900000000}, "“2030-03-17T17:46:40Z”"),
    "milliseconds": ({"expires_at": 1900000000000}, "in this form: “2030-03-17T17:46:40Z”"),
    "burst": (
        {"rate_limit": {"limit": 5, "period_s": 60}},
        f"rate_limit.burst is missing; send {NUMBER} 1,000,000,000.",
    ),
    "period": (
        {"rate_limit": {"limit": "5", "period_s": 0, "burst": 1}},
        f"rate_limit.period_s must be {NUMBER} 2,678,400, but 0 was sent.",
    ),
    "inside": (
        {"rate_limit": {"limit": 5, "per": 1, "period_s": 1, "burst": 1}},
        "rate_limit accepts limit, period_s, burst.",
    ),
    "one of": ({"type": "secrets"}, "type must be one of “publishable”, “secret”"),
    "near": ({"type": "secrets"}, "Did you mean secret?"),
    "list": ({"permissions": "invoices:read"}, "permissions must be a list"),
    "boolean": ({"allow_native": "yes"}, "allow_native must be true or false, but a string"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_400_an_invalid_key_field_is_reported_with_its_expected_format(
    ask: Callable[..., Any], case: str
) -> None:
    spoilt, says = SPOILT[case]
    problem = ask("rest", json.dumps({"name": "live-spoilt", "type": "secret", **spoilt}))
    assert (problem["status"], problem["code"]) == (400, "invalid_request")
    assert says in problem["detail"]


def test_a_misplaced_secret_is_never_echoed(ask: Callable[..., Any], server: Server) -> None:
    secret = server.first_key
    for entry, (_, good, name) in ENTRY_POINTS.items():
        for spoilt in ({secret: 1}, {name: [secret]}, {name: {"a": secret}}):
            problem = ask(entry, json.dumps({**good, **spoilt}))
            assert problem["status"] == 400, problem
            assert secret not in json.dumps(problem)
        assert secret not in json.dumps(ask(entry, secret))
    problem = ask("rest", json.dumps({"name": "x", "type": secret}))
    assert secret not in json.dumps(problem)


@pytest.mark.parametrize("query", ["{key}", "{key}=1", "search={key}", "key=Bearer+{key}"])
def test_a_key_as_a_query_parameter_name_is_rejected_too(server: Server, query: str) -> None:
    with server.client(server.first_key) as key:
        answer = key.get(f"/v2/keys?{query.format(key=server.first_key)}")
    assert (answer.status_code, answer.json()["code"]) == (400, "credential_in_url")
    assert server.first_key not in answer.text


def test_a_long_unknown_field_name_is_truncated(ask: Callable[..., Any]) -> None:
    problem = ask("rest", json.dumps({"x" * 5_000: 1}))
    assert len(problem["detail"]) < 1_000
    problem = ask("verify", json.dumps({"key": "x", "\n\u001b[31m": 1}))
    assert "\n" not in problem["detail"]
    assert "\x1b" not in problem["detail"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limt=1", "Did you mean limit? This route accepts cursor, "),
        ("limit=no", "limit must be a whole number from 1 to 200, but a string"),
        ("limit=1000", "limit must be a whole number from 1 to 200, but 1000 was sent."),
        ("type=secrt", "type must be one of “publishable”, “secret”"),
    ],
    ids=["near", "text", "bound", "one of"],
)
def test_400_a_bad_parameter_is_reported_like_a_bad_field(
    server: Server, query: str, says: str
) -> None:
    with server.client(server.first_key) as key:
        problem = key.get(f"/v2/keys?{query}").json()
    assert (problem["status"], problem["code"]) == (400, "invalid_request")
    assert says in problem["detail"]
