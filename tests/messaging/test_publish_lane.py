"""`POST /publish` answers on the fast path as it does in the framework, and in order."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.api.test_lane import Wire, plain
from tests.support.server import Server, running, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("lane") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            rule = {"subject": {"kind": "publishable"}, "action": "publish", "effect": "allow",
                    "priority": 5, "filter": "public/#"}  # fmt: skip
            assert owner.post("/v2/acl/rules", json=rule).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def page(broker: Server) -> str:
    with broker.owner() as owner:
        body = {
            "name": "live-page",
            "type": "publishable",
            "allowed_origins": ["https://a.example"],
        }
        return str(owner.post("/v2/keys", json=body).json()["secret"])


def publish_request(key: str, body: str, *fields: str, chunked: bool = False) -> bytes:
    header_lines = "".join(f"{field}\r\n" for field in ("Content-Type: application/json", *fields))
    head = f"POST /publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header_lines}"
    if chunked:
        return (
            f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode()
        )
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def message(topic: str = "public/x", qos: int = 1) -> str:
    return json.dumps({"topic": topic, "payload": 1, "qos": qos})


@pytest.mark.parametrize("key_name", ["first", "page", "invalid"])
@pytest.mark.parametrize(
    "body",
    [message(), message(qos=0), message("a/+"), message("private/x"), "{", "[]", '{"topic":1}',
     f"[{message()}]", '{"topic":"public/x","payload":1,"payload_encoding":"plain"}'],
)  # fmt: skip
def test_a_message_gets_the_same_answer_on_the_fast_path_and_in_the_framework(
    broker: Server, page: str, key_name: str, body: str
) -> None:
    key = {"first": broker.first_key, "page": page, "invalid": page[:-1]}[key_name]
    origin = ("Origin: https://a.example",) if key_name == "page" else ()
    wire = Wire(broker)
    try:
        fast = [plain(wire, publish_request(key, body, *origin)) for _ in range(3)]
        slow = plain(wire, publish_request(key, body, *origin, chunked=True))
        without_ids = [(s, f, b.split(b"msg_")[0]) for s, f, b in (*fast, slow)]
        assert without_ids == [without_ids[0]] * 4
        assert "access-control-allow-origin: *" in fast[0][1]
    finally:
        wire.close()


def test_deferred_answers_keep_the_order_of_their_requests(broker: Server) -> None:
    wire = Wire(broker)
    try:
        health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        wire.send(
            publish_request(broker.first_key, message())
            + health
            + publish_request(broker.first_key, message())
        )
        bodies = [wire.answer()[2] for _ in range(3)]
        assert [b"message_id" in body for body in bodies] == [True, False, True]
        # The next request arrives in pieces while the first waits for the broker.
        whole = publish_request(broker.first_key, message())
        wire.send(whole + whole[:-9])
        assert wire.answer()[0] == 200
        wire.send(whole[-9:])
        assert wire.answer()[0] == 200
        wire.send(publish_request(broker.first_key, message(), "Connection: close"))
        assert wire.answer()[0] == 200
        assert wire.closed()
    finally:
        wire.close()


def test_a_client_that_disconnects_early_does_not_affect_others(broker: Server) -> None:
    wire = Wire(broker)
    broker.pause_broker()
    try:
        early = Wire(broker)
        early.send(publish_request(broker.first_key, message()))
        early.close()
        wire.send(publish_request(broker.first_key, message()))
    finally:
        broker.resume_broker()
    assert wire.answer()[0] == 200
    wire.close()


def test_a_revoked_key_publishes_nothing_over_an_open_connection(broker: Server) -> None:
    with broker.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-lane-gone", "type": "secret"}).json()
        wire = Wire(broker)
        for status in (200, 200, 401):
            if status == 401:
                owner.post(f"/v2/keys/{made['key']['id']}/revoke")
            wire.send(publish_request(made["secret"], message()))
            assert wire.answer()[0] == status
        wire.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["fast path", "framework"])
@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("Wardkey-Organization: other", "other_organization"),
        ("Wardkey-Environment: test", "wrong_environment"),
    ],
)
def test_403_a_key_publishes_only_in_its_own_tenant_scope(
    broker: Server, field: str, code: str, *, chunked: bool
) -> None:
    wire = Wire(broker)
    wire.send(publish_request(broker.first_key, message(), field, chunked=chunked))
    status, _, body = wire.answer()
    wire.close()
    assert (status, json.loads(body)["code"]) == (403, code)
