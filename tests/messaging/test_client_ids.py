"""Client ids are freed for other clients, and the broker deletes the queues of former holders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.messaging.test_sessions import ALLOW, create, second_organization, sessions_of
from tests.support.mqtt import connected
from tests.support.mqtt_wire import PUBCOMP, PUBREC, PUBREL, wired
from tests.support.server import Server, running, wait_until

COUNT, SIZE = 100, 200_000
# The file being written stays while it contains a message of another session.
BLOCK = 4_500_000
QUEUED = COUNT * SIZE
# What paho calls CONNACK 5.
NOT_AUTHORIZED = 135


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a deployment with its broker, two workers, and a rule: everyone in agents/#."""
    folder = tmp_path_factory.mktemp("client-ids")
    with running(folder / "data", no_messaging=0, workers=2) as server:
        with server.owner() as owner:
            made = owner.post("/v2/acl/rules", json={**ALLOW, "priority": 10, "filter": "agents/#"})
            assert made.status_code == 201, made.text
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


def stored_bytes(server: Server) -> int:
    """Return the number of message bytes that the broker has on disk."""
    total = 0
    # The broker deletes files and folders at the same time.
    for folder, _, names in os.walk(server.data_dir / "broker" / "jetstream"):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_size if name.endswith(".blk") else 0
    return total


def leave_subscribed(server: Server, login: tuple[str, str], mqtt_id: str, qos: int = 1) -> None:
    """Leave a disconnected session with a subscription."""
    with connected(server, *login, mqtt_id, clean=False) as client:
        assert client.code == 0
        assert client.subscribe(f"agents/{mqtt_id}/#", qos) == qos


def fill(server: Server, topic: str) -> None:
    """Queue 20 MB for a disconnected session."""
    message = {"topic": topic, "payload": "x" * SIZE, "qos": 1}
    with server.owner() as owner:
        for _ in range(COUNT):
            assert owner.post("/publish", json=message).status_code == 200


def login_of(client: dict[str, Any]) -> tuple[str, str]:
    return client["mqtt_username"], client["password"]


def list_held(server: Server, **params: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    with server.owner() as owner:
        response = owner.get("/v2/client-ids", params=params)
        assert response.status_code == 200, response.text
        rows: list[dict[str, Any]] = response.json()["client_ids"]
    return rows


def login_attempt(server: Server, login: tuple[str, str], mqtt_id: str) -> Callable[[], bool]:
    """Return a function that logs in once and returns whether that opened a new session."""

    def attempt() -> bool:
        try:
            with connected(server, *login, mqtt_id, clean=False) as client:
                assert not client.present or client.code != 0
                return client.code == 0
        except OSError:
            return False

    return attempt


def test_a_deleted_clients_id_is_free_and_its_queue_deleted(broker: Server) -> None:
    first, second = create(broker, "first"), create(broker, "second")
    leave_subscribed(broker, login_of(first), "device-1")
    before = stored_bytes(broker)
    fill(broker, "agents/device-1/x")
    assert stored_bytes(broker) > before + QUEUED
    with connected(broker, *login_of(second), "device-1") as refused:
        assert refused.code == NOT_AUTHORIZED
    assert f"client id device-1 is held by first ({first['id']})" in broker.output
    with broker.owner() as owner:
        assert owner.delete(f"/v2/clients/{first['id']}").status_code == 200
    with connected(broker, *login_of(second), "device-1", clean=False) as client:
        assert (client.code, client.present) == (0, False)
        assert client.subscribe("agents/device-1/#") == 1
        with broker.owner() as owner:
            new = {"topic": "agents/device-1/x", "payload": "new", "qos": 1}
            assert owner.post("/publish", json=new).status_code == 200
        wait_until(lambda: client.messages)
        assert client.messages == [("agents/device-1/x", b"new")]
    wait_until(lambda: stored_bytes(broker) < before + SIZE, 10)


def test_a_session_is_deleted_with_its_client_even_if_the_id_is_not_reused(broker: Server) -> None:
    deleted, stays = create(broker, "gone"), create(broker, "stays")
    leave_subscribed(broker, login_of(deleted), "gone-1")
    leave_subscribed(broker, login_of(stays), "stays-1")
    before = stored_bytes(broker)
    fill(broker, "agents/gone-1/x")
    assert stored_bytes(broker) > before + QUEUED
    with broker.owner() as owner:
        kept = {"topic": "agents/stays-1/x", "payload": "kept", "qos": 1}
        assert owner.post("/publish", json=kept).status_code == 200
        assert owner.delete(f"/v2/clients/{deleted['id']}").status_code == 200
    wait_until(lambda: stored_bytes(broker) < before + BLOCK, 10)
    assert list_held(broker, search="gone-1") == []
    with connected(broker, *login_of(stays), "stays-1", clean=False) as client:
        assert client.present
        wait_until(lambda: client.messages)
        assert client.messages == [("agents/stays-1/x", b"kept")]


def test_a_users_sessions_are_deleted_with_the_last_grant(broker: Server) -> None:
    with broker.owner() as owner:
        tokens = [
            owner.post("/v2/tokens/create", json={"user_email": "ann@acme.example"}).json()
            for _ in range(2)
        ]
        logins = [(token["mqtt_username"], token["mqtt_password"]) for token in tokens]
        leave_subscribed(broker, logins[0], "page-1")
        (listed,) = list_held(broker, username=logins[0][0])
        assert (listed["client_id"], listed["holder"]["kind"]) == ("page-1", "user")
        assert listed["holder"]["username"] == logins[0][0]
        before = stored_bytes(broker)
        fill(broker, "agents/page-1/x")
        assert owner.delete(f"/v2/tokens/{tokens[0]['token_id']}").status_code == 200
        # The same user returns with another grant.
        with connected(broker, *logins[1], "page-1", clean=False) as client:
            assert client.present
            wait_until(lambda: len(client.messages) == COUNT)
        fill(broker, "agents/page-1/x")
        assert stored_bytes(broker) > before + QUEUED
        assert owner.delete(f"/v2/tokens/{tokens[1]['token_id']}").status_code == 200
    wait_until(lambda: stored_bytes(broker) < before + BLOCK, 10)
    assert list_held(broker, search="page-1") == []


def test_a_client_id_is_listed_and_freed_by_hand(broker: Server) -> None:
    client_1, other = create(broker, "mine"), create(broker, "other")
    leave_subscribed(broker, login_of(client_1), "sensor-1")
    with (
        connected(broker, *login_of(client_1), "sensor/ä", clean=False) as live,
        broker.owner() as owner,
    ):
        assert live.code == 0
        pages = [owner.get("/v2/client-ids", params={"username": "mine", "limit": 1}).json()]
        pages.append(
            owner.get(
                "/v2/client-ids",
                params={"username": "mine", "limit": 1, "cursor": pages[0]["next_cursor"]},
            ).json()
        )
        assert [page["total"] for page in pages] == [2, 2]
        assert pages[1]["next_cursor"] is None
        rows = [row for page in pages for row in page["client_ids"]]
        holder = {"kind": "client", "id": client_1["id"], "username": client_1["mqtt_username"]}
        assert {row["client_id"]: row["connected"] for row in rows} == {
            "sensor-1": False,
            "sensor/ä": True,
        }
        assert [row["holder"] for row in rows] == [holder, holder]
        assert all(row["since"] <= row["last_seen_at"] for row in rows)
        for name in ("sensor-1", "sensor/ä"):
            assert owner.delete("/v2/client-ids", params={"client_id": name}).status_code == 204
        assert owner.get("/v2/client-ids?username=mine").json()["total"] == 0
        repeated = owner.delete("/v2/client-ids", params={"client_id": "sensor-1"})
        assert (repeated.status_code, repeated.json()["code"]) == (404, "client_id_not_found")
        wait_until(lambda: live.ended_at)
        events = owner.get("/v2/audit-events", params={"action": "client_id.freed"}).json()
        assert {row["details"]["client_id"] for row in events["events"]} == {"sensor-1", "sensor/ä"}
    with connected(broker, *login_of(other), "sensor-1", clean=False) as client:
        assert (client.code, client.present) == (0, False)
    with broker.person("viewer") as viewer:
        assert viewer.get("/v2/client-ids").status_code == 200
        refused = viewer.delete("/v2/client-ids", params={"client_id": "sensor-1"})
        assert refused.json()["code"] == "not_permitted"


def test_404_a_client_id_of_another_tenant_scope_is_neither_listed_nor_freed(
    broker: Server,
) -> None:
    client = create(broker, "apart")
    _, stranger = second_organization(broker)
    with (
        connected(broker, *login_of(client), "apart-1") as live,
        stranger,
        broker.owner(**{"Wardkey-Environment": "test"}) as in_test,
    ):
        for other in (stranger, in_test):
            for name in ("apart", client["mqtt_username"]):
                page = other.get("/v2/client-ids", params={"username": name}).json()
                assert (page["client_ids"], page["total"]) == ([], 0)
            assert other.get("/v2/client-ids").json()["total"] == 0
            refused = other.delete("/v2/client-ids", params={"client_id": "apart-1"})
            assert (refused.status_code, refused.json()["code"]) == (404, "client_id_not_found")
        assert live.ended_at == 0
    assert [row["client_id"] for row in list_held(broker, username="apart")] == ["apart-1"]


def test_a_session_is_deleted_even_if_broker_and_workers_are_killed(broker: Server) -> None:
    deleted, other = create(broker, "gone-2"), create(broker, "other-2")
    leave_subscribed(broker, login_of(deleted), "gone-2")
    before = stored_bytes(broker)
    fill(broker, "agents/gone-2/x")
    broker.pause_broker()
    with broker.owner() as owner:
        assert owner.delete(f"/v2/clients/{deleted['id']}").status_code == 200
    broker.kill_workers()
    broker.resume_broker()
    wait_until(login_attempt(broker, login_of(other), "unused"), 30)
    wait_until(lambda: stored_bytes(broker) < before + BLOCK, 20)
    wait_until(login_attempt(broker, login_of(other), "gone-2"), 10)


def test_an_unreleased_qos_2_message_is_not_passed_to_the_next_holder(broker: Server) -> None:
    first, second = create(broker, "exactly-1"), create(broker, "exactly-2")
    reader = create(broker, "exactly-reader")

    def publish(client: dict[str, Any], payload: bytes) -> None:
        with wired(broker) as wire:
            assert wire.login(*login_of(client), "exactly", clean=False) == (0, False)
            wire.publish("agents/exactly", payload, 2)
            packet = wire.read()
            assert packet is not None
            assert packet.kind == PUBREC
            if payload == b"new":
                wire.send(PUBREL, b"\0\7", 2)
                packet = wire.read()
                assert packet is not None
                assert packet.kind == PUBCOMP

    with connected(broker, *login_of(reader), "exactly-reader") as listener:
        listener.subscribe("agents/exactly", 2)
        publish(first, b"old")
        with broker.owner() as owner:
            assert owner.delete(f"/v2/clients/{first['id']}").status_code == 200
        publish(second, b"new")
        wait_until(lambda: listener.messages)
        assert listener.messages == [("agents/exactly", b"new")]


def test_a_session_is_found_by_the_short_username(broker: Server) -> None:
    client = create(broker, "agent-77")
    with connected(broker, *login_of(client), "agent-77"), broker.owner() as owner:
        sessions = owner.get("/v2/sessions?username=agent-77").json()["sessions"]
        assert [session["client_id"] for session in sessions] == ["agent-77"]
        assert sessions_of(broker, client) == sessions
        assert owner.get("/v2/sessions?username=agent").json()["sessions"] == []
