"""`POST /publish` in the fast lane answers as the framework does, and in order."""

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
        wanted = {
            "name": "live-page",
            "type": "publishable",
            "allowed_origins": ["https://a.example"],
        }
        return str(owner.post("/v2/keys", json=wanted).json()["secret"])


def asked(key: str, body: str, *fields: str, chunked: bool = False) -> bytes:
    said = "".join(f"{field}\r\n" for field in ("Content-Type: application/json", *fields))
    head = f"POST /publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{said}"
    if chunked:
        return (
            f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode()
        )
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def message(topic: str = "public/x", qos: int = 1) -> str:
    return json.dumps({"topic": topic, "payload": 1, "qos": qos})


@pytest.mark.parametrize("who", ["first", "page", "nobody"])
@pytest.mark.parametrize(
    "body",
    [message(), message(qos=0), message("a/+"), message("private/x"), "{", "[]", '{"topic":1}',
     f"[{message()}]", '{"topic":"public/x","payload":1,"payload_encoding":"plain"}'],
)  # fmt: skip
def test_a_message_is_answered_alike_by_the_lane_and_by_the_framework(
    broker: Server, page: str, who: str, body: str
) -> None:
    key = {"first": broker.first_key, "page": page, "nobody": page[:-1]}[who]
    origin = ("Origin: https://a.example",) if who == "page" else ()
    wire = Wire(broker)
    try:
        told = [plain(wire, asked(key, body, *origin)) for _ in range(3)]
        other = plain(wire, asked(key, body, *origin, chunked=True))
        without_ids = [(s, f, b.split(b"msg_")[0]) for s, f, b in (*told, other)]
        assert without_ids == [without_ids[0]] * 4
        assert "access-control-allow-origin: *" in told[0][1]
    finally:
        wire.close()


def test_answers_that_come_later_keep_the_order_of_their_requests(broker: Server) -> None:
    wire = Wire(broker)
    try:
        health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        wire.send(asked(broker.first_key, message()) + health + asked(broker.first_key, message()))
        bodies = [wire.answer()[2] for _ in range(3)]
        assert [b"message_id" in body for body in bodies] == [True, False, True]
        # The next one comes in pieces while the first waits for the broker.
        whole = asked(broker.first_key, message())
        wire.send(whole + whole[:-9])
        assert wire.answer()[0] == 200
        wire.send(whole[-9:])
        assert wire.answer()[0] == 200
        wire.send(asked(broker.first_key, message(), "Connection: close"))
        assert wire.answer()[0] == 200
        assert wire.closed()
    finally:
        wire.close()


def test_who_goes_away_before_the_answer_harms_nobody(broker: Server) -> None:
    wire = Wire(broker)
    broker.pause_broker()
    try:
        gone = Wire(broker)
        gone.send(asked(broker.first_key, message()))
        gone.close()
        wire.send(asked(broker.first_key, message()))
    finally:
        broker.resume_broker()
    assert wire.answer()[0] == 200
    wire.close()


def test_a_revoked_key_publishes_nothing_over_a_connection_that_knew_it(broker: Server) -> None:
    with broker.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "live-lane-gone", "type": "secret"}).json()
        wire = Wire(broker)
        for wanted in (200, 200, 401):
            if wanted == 401:
                owner.post(f"/v2/keys/{made['key']['id']}/revoke")
            wire.send(asked(made["secret"], message()))
            assert wire.answer()[0] == wanted
        wire.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["lane", "framework"])
@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("Wardkey-Organization: other", "other_organization"),
        ("Wardkey-Environment: test", "wrong_environment"),
    ],
)
def test_403_a_key_publishes_in_its_own_place_alone(
    broker: Server, field: str, code: str, *, chunked: bool
) -> None:
    wire = Wire(broker)
    wire.send(asked(broker.first_key, message(), field, chunked=chunked))
    status, _, body = wire.answer()
    wire.close()
    assert (status, json.loads(body)["code"]) == (403, code)
