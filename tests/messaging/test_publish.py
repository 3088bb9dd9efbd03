"""`POST /publish` reports success only for messages that the broker acknowledged."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.mqtt import MqttClient, connected
from tests.support.server import Server, running, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("bridge") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            rule = {
                "subject": {"kind": "everyone"},
                "action": "both",
                "effect": "allow",
                "priority": 10,
                "filter": "#",
            }
            assert owner.post("/v2/acl/rules", json=rule).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def receiver(broker: Server) -> Iterator[MqttClient]:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "receiver"}).json()
    with connected(
        broker, made["client"]["mqtt_username"], made["password"], "receiver-1"
    ) as client:
        assert client.subscribe("#") == 1
        yield client


def publish(server: Server, body: Any, key: str = "", **headers: str) -> httpx.Response:  # noqa: ANN401
    with server.client(key or server.first_key, **headers) as client:
        return client.post("/publish", json=body)


@pytest.mark.parametrize(
    ("payload", "encoding", "expected"),
    [
        ({"status": "idle", "load": 0.12}, "json", b'{"status":"idle","load":0.12}'),
        ([1, 2], "json", b"[1,2]"),
        (True, "json", b"true"),
        ("as it is", "json", b"as it is"),
        ("plain", "plain", b"plain"),
        (base64.b64encode(b"\0\xff").decode(), "base64", b"\0\xff"),
        ("", "plain", b""),
    ],
)
def test_a_message_arrives_with_its_payload_decoded(
    broker: Server, receiver: MqttClient, payload: object, encoding: str, expected: bytes
) -> None:
    topic = f"agents/{uuid.uuid4().hex}"
    for qos in (0, 1):
        response = publish(
            broker,
            {"topic": topic, "payload": payload, "payload_encoding": encoding, "qos": qos},
        )
        assert response.status_code == 200, response.text
        assert response.json()["success"] is True
    wait_until(lambda: receiver.messages.count((topic, expected)) == 2)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"topic": "a/+", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "a/#", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "$SYS/x", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "a b", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "a\0", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "a*>", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "", "payload": 1}, 400, "invalid_topic"),
        ({"topic": "x" * 65_536, "payload": 1}, 400, "invalid_topic"),
        ({"topic": "a", "payload": "$$", "payload_encoding": "base64"}, 400, "invalid_payload"),
        ({"topic": "a", "payload": 1, "payload_encoding": "plain"}, 400, "invalid_payload"),
        ({"topic": "a", "payload": "x" * 300_000}, 413, "payload_too_large"),
        ({"topic": "a", "payload": 1, "qos": 2}, 400, "invalid_request"),
        ({"topic": "a", "payload": 1, "qos": 7}, 400, "invalid_request"),
        ({"topic": "a"}, 400, "invalid_request"),
        ({"topic": "a", "payload": 1, "retian": True}, 400, "invalid_request"),
        ([], 400, "too_many_items"),
        ([{"topic": "a", "payload": 1}] * 1_001, 400, "too_many_items"),
    ],
)
def test_bad_input_is_refused_with_its_error_code(
    broker: Server,
    body: Any,  # noqa: ANN401
    status: int,
    code: str,
) -> None:
    response = publish(broker, body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["access-control-allow-origin"] == "*"


def test_null_in_an_optional_field_means_absent(broker: Server, receiver: MqttClient) -> None:
    empty = b'"qos": null, "retain": null, "payload_encoding": null'
    topic = f"nulls/{uuid.uuid4().hex}".encode()
    single = b'{"topic": "%s", "payload": 1.10, %s}' % (topic, empty)
    batch = b'[{"topic": "%s", "payload": null, %s}]' % (topic, empty)
    with broker.client(broker.first_key, Content_Type="application/json") as client:
        assert client.post("/publish", content=single).status_code == 200
        assert client.post("/publish", content=batch).json()[0]["success"]
    wait_until(lambda: (topic.decode(), b"1.10") in receiver.messages)
    wait_until(lambda: (topic.decode(), b"null") in receiver.messages)


def test_a_batch_is_answered_item_by_item(broker: Server, receiver: MqttClient) -> None:
    topic = f"agents/{uuid.uuid4().hex}"
    response = publish(broker, [{"topic": topic, "payload": n} for n in range(50)] + [
        {"topic": "a/+", "payload": 1}
    ])  # fmt: skip
    assert response.status_code == 200, response.text
    answers = response.json()
    assert [answer["success"] for answer in answers] == [True] * 50 + [False]
    assert answers[-1]["code"] == "invalid_topic"
    wait_until(lambda: sum(1 for seen, _ in receiver.messages if seen == topic) == 50)


def test_retained_messages_are_listed_and_cleared_in_their_environment(
    broker: Server, receiver: MqttClient
) -> None:
    kept: list[dict[str, Any]] = [
        {"topic": "kept/a.b/é", "payload": {"n": 1}, "qos": 1},
        {"topic": "kept//x", "payload": "AP8=", "payload_encoding": "base64"},
        {"topic": "kept", "payload": "bare"},
        *({"topic": f"kept/many/{n}", "payload": n, "qos": 1} for n in range(40)),
        {"topic": "other/x", "payload": "stays"},
    ]
    publish(broker, [{**message, "retain": True} for message in kept])
    publish(broker, {"topic": "kept/a.b/é", "payload": "newer", "qos": 1, "retain": True})
    wait_until(lambda: ("kept/a.b/é", b"newer") in receiver.messages)
    with broker.owner() as owner, broker.owner(**{"Wardkey-Environment": "test"}) as test:

        def listed(**query: Any) -> Any:  # noqa: ANN401 - JSON
            response = owner.get("/v2/retained", params={"filter": "kept/#", **query})
            assert response.status_code == 200, response.text
            return response.json()

        # QoS 0 is not acknowledged.
        wait_until(lambda: len(listed()["messages"]) == len(kept) - 1)
        page = listed()
        by_topic = {row["topic"]: row for row in page["messages"]}
        assert set(by_topic) == {message["topic"] for message in kept[:-1]}
        assert page["next_cursor"] is None
        rows = [by_topic[name] for name in ("kept/a.b/é", "kept//x")]
        assert [(row["payload"], row["payload_encoding"]) for row in rows] == [
            ("newer", "plain"),
            ("AP8=", "base64"),
        ]
        assert [(row["size"], row["qos"]) for row in rows] == [(5, 1), (2, 0)]
        assert rows[0]["retained_at"] > rows[1]["retained_at"]
        pages = [listed(limit=17)]
        while pages[-1]["next_cursor"]:
            pages.append(listed(limit=17, cursor=pages[-1]["next_cursor"]))
        assert [len(part["messages"]) for part in pages] == [17, 17, len(kept) - 1 - 34]
        assert [row["topic"] for part in pages for row in part["messages"]] == list(by_topic)
        # Another environment lists and clears none of them.
        assert test.get("/v2/retained").json()["messages"] == []
        assert test.delete("/v2/retained?filter=%23").json()["cleared"] == 0
        assert owner.delete("/v2/retained?topic=kept//x").json() == {"cleared": 1, "more": False}
        assert owner.delete("/v2/retained?topic=kept//x").json()["cleared"] == 0
        cleared = owner.delete("/v2/retained", params={"filter": "kept/#"}).json()
        assert cleared == {"cleared": len(kept) - 2, "more": False}
        wait_until(lambda: listed()["messages"] == [])
        assert [m["topic"] for m in listed(filter="other/+")["messages"]] == ["other/x"]
        events = owner.get("/v2/audit-events?action=retained.cleared").json()["events"]
        assert [event["details"]["count"] for event in events] == [len(kept) - 2, 1]
        for query in ("", "?topic=a&filter=a"):
            assert owner.delete(f"/v2/retained{query}").json()["code"] == "invalid_request"
        for query, code in (("topic=a/%23", "invalid_topic"), ("filter=", "invalid_request"),
                            ("filter=a/%23/b", "invalid_topic_filter")):  # fmt: skip
            assert owner.delete(f"/v2/retained?{query}").json()["code"] == code


def test_403_clients_read_lists_no_payloads_and_publish_clears_none(broker: Server) -> None:
    for permissions in (["clients:read"], ["publish", "retained:read"]):
        with broker.owner() as owner:
            body = {"name": permissions[0], "type": "secret", "permissions": permissions}
            key = owner.post("/v2/keys", json=body).json()["secret"]
        with broker.client(key) as client:
            cleared = client.delete("/v2/retained?filter=%23")
            status = client.get("/v2/retained").status_code
        assert (cleared.status_code, cleared.json()["code"]) == (403, "not_permitted")
        assert "retained:write" in cleared.json()["detail"]
        assert status == (200 if "retained:read" in permissions else 403)


def test_an_idempotency_key_publishes_once(broker: Server, receiver: MqttClient) -> None:
    topic, key = f"agents/{uuid.uuid4().hex}", str(uuid.uuid4())
    body = {"topic": topic, "payload": "once"}
    first, second = (publish(broker, body, **{"Idempotency-Key": key}) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    other = publish(broker, body | {"payload": "twice"}, **{"Idempotency-Key": key})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    publish(broker, {"topic": topic, "payload": "end"})
    wait_until(lambda: (topic, b"end") in receiver.messages)
    assert receiver.messages.count((topic, b"once")) == 1


def test_retained_messages_stay_until_an_empty_one_clears_them(broker: Server) -> None:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "late"}).json()
    name, password = made["client"]["mqtt_username"], made["password"]
    for payload, expected in (("kept", [("retained/x", b"kept")]), ("", [])):
        publish(broker, {"topic": "retained/x", "payload": payload, "retain": True, "qos": 1})
        with connected(broker, name, password, "late-1") as late:
            late.subscribe("retained/x")
            late.publish("agents/end", "end")
            late.subscribe("agents/#")
            late.publish("agents/end", "end")
            wait_until(lambda: ("agents/end", b"end") in late.messages)
            assert [m for m in late.messages if m[0] == "retained/x"] == expected


def test_no_client_can_use_the_bridges_client_id(broker: Server) -> None:
    with broker.owner() as owner:
        made = owner.post("/v2/clients", json={"username": "posing"}).json()
    login = (made["client"]["mqtt_username"], made["password"])
    for mqtt_id, let_in in (("wardkey-bridge-1", False), ("posing-1", True)):
        with connected(broker, *login, mqtt_id) as client:
            assert (client.code == 0) is let_in


def test_a_publishable_key_publishes_only_where_a_rule_allows_it(broker: Server) -> None:
    with broker.owner() as owner:
        made = owner.post(
            "/v2/keys",
            json={
                "name": "live-page",
                "type": "publishable",
                "allowed_origins": ["https://app.acme.example"],
            },
        ).json()
    page, origin = made["secret"], {"Origin": "https://app.acme.example"}
    denied = publish(broker, {"topic": "public/x", "payload": 1}, page, **origin)
    assert (denied.status_code, denied.json()["code"]) == (403, "publish_denied")
    with broker.owner() as owner:
        rule = {
            "subject": {"kind": "publishable"},
            "action": "publish",
            "effect": "allow",
            "priority": 5,
            "filter": "public/#",
        }
        assert owner.post("/v2/acl/rules", json=rule).status_code == 201
    assert publish(broker, {"topic": "public/x", "payload": 1}, page, **origin).is_success
    for wrong in ({}, {"Origin": "https://evil.example"}):
        refused = publish(broker, {"topic": "public/x", "payload": 1}, page, **wrong)
        assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
        assert refused.headers["access-control-allow-origin"] == "*"


def test_a_preflight_needs_no_key(broker: Server) -> None:
    response = httpx.options(
        f"{broker.url}/publish",
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
    )
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    for name in ("authorization", "x-wardkey-grant"):
        assert name in response.headers["access-control-allow-headers"].lower()


def test_503_or_504_while_the_broker_is_unreachable(broker: Server) -> None:
    broker.pause_broker()
    try:
        unconfirmed = publish(broker, {"topic": "agents/x", "payload": 1, "qos": 1})
        assert (unconfirmed.status_code, unconfirmed.json()["code"]) == (504, "publish_unconfirmed")
    finally:
        broker.resume_broker()
    wait_until(lambda: publish(broker, {"topic": "agents/x", "payload": 1, "qos": 1}).is_success)
    broker.kill_broker()
    answers = [publish(broker, {"topic": "agents/x", "payload": 1}) for _ in range(3)]
    for response in answers:
        assert response.status_code in (200, 503, 504), response.text
    wait_until(
        lambda: publish(broker, {"topic": "agents/x", "payload": 1, "qos": 1}).is_success, 30
    )


def test_503_if_the_broker_was_never_reachable(start: Callable[..., Server]) -> None:
    # Nothing listens on port 1.
    server = start(no_messaging=0, broker="nats://127.0.0.1:1")
    response = publish(
        server, {"topic": "a", "payload": 1}, **{"Idempotency-Key": str(uuid.uuid4())}
    )
    assert (response.status_code, response.json()["code"]) == (503, "broker_unreachable")
    assert response.headers["retry-after"]
    with server.owner() as owner:
        assert owner.get("/v2/sessions").json()["code"] == "broker_unreachable"
        # Requests that need no broker still work.
        assert owner.post("/v2/clients", json={"username": "waiting"}).status_code == 201
    assert server.stop() == 0


def test_404_if_messaging_is_off(server: Server) -> None:
    response = publish(server, {"topic": "a", "payload": 1})
    assert (response.status_code, response.json()["code"]) == (404, "messaging_off")
