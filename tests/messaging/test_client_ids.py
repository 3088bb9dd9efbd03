"""Client ids change hands, and the broker keeps nothing for a holder that is gone."""

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
# The file that the broker writes to stays while a message of another waits in it.
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


def stored(server: Server) -> int:
    """Return how many bytes the broker has on the disk."""
    total = 0
    # The broker removes files and folders meanwhile.
    for folder, _, names in os.walk(server.data_dir / "broker" / "jetstream"):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_size if name.endswith(".blk") else 0
    return total


def subscribed(server: Server, login: tuple[str, str], mqtt_id: str, qos: int = 1) -> None:
    """Leave a session that is away, with a subscription."""
    with connected(server, *login, mqtt_id, clean=False) as client:
        assert client.code == 0
        assert client.subscribe(f"agents/{mqtt_id}/#", qos) == qos


def fill(server: Server, topic: str) -> None:
    """Queue 20 MB for a session that is away."""
    message = {"topic": topic, "payload": "x" * SIZE, "qos": 1}
    with server.owner() as owner:
        for _ in range(COUNT):
            assert owner.post("/publish", json=message).status_code == 200


def login_of(client: dict[str, Any]) -> tuple[str, str]:
    return client["mqtt_username"], client["password"]


def held(server: Server, **asked: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    with server.owner() as owner:
        answer = owner.get("/v2/client-ids", params=asked)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["client_ids"]
    return found


def let_in(server: Server, login: tuple[str, str], mqtt_id: str) -> Callable[[], bool]:
    """Return a function that logs in once and says whether it was let in, to a new session."""

    def tries() -> bool:
        try:
            with connected(server, *login, mqtt_id, clean=False) as client:
                assert not client.present or client.code != 0
                return client.code == 0
        except OSError:
            return False

    return tries


def test_a_deleted_clients_id_and_queue_are_gone_for_the_next_user(broker: Server) -> None:
    first, second = create(broker, "first"), create(broker, "second")
    subscribed(broker, login_of(first), "device-1")
    before = stored(broker)
    fill(broker, "agents/device-1/x")
    assert stored(broker) > before + QUEUED
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
    wait_until(lambda: stored(broker) < before + SIZE, 10)


def test_a_session_goes_with_its_client_though_no_one_wants_its_id(broker: Server) -> None:
    gone, stays = create(broker, "gone"), create(broker, "stays")
    subscribed(broker, login_of(gone), "gone-1")
    subscribed(broker, login_of(stays), "stays-1")
    before = stored(broker)
    fill(broker, "agents/gone-1/x")
    assert stored(broker) > before + QUEUED
    with broker.owner() as owner:
        kept = {"topic": "agents/stays-1/x", "payload": "kept", "qos": 1}
        assert owner.post("/publish", json=kept).status_code == 200
        assert owner.delete(f"/v2/clients/{gone['id']}").status_code == 200
    wait_until(lambda: stored(broker) < before + BLOCK, 10)
    assert held(broker, search="gone-1") == []
    with connected(broker, *login_of(stays), "stays-1", clean=False) as client:
        assert client.present
        wait_until(lambda: client.messages)
        assert client.messages == [("agents/stays-1/x", b"kept")]


def test_a_users_sessions_go_with_the_last_grant(broker: Server) -> None:
    with broker.owner() as owner:
        told = [
            owner.post("/v2/tokens/create", json={"user_email": "ann@acme.example"}).json()
            for _ in range(2)
        ]
        logins = [(one["mqtt_username"], one["mqtt_password"]) for one in told]
        subscribed(broker, logins[0], "page-1")
        (listed,) = held(broker, username=logins[0][0])
        assert (listed["client_id"], listed["holder"]["kind"]) == ("page-1", "user")
        assert listed["holder"]["username"] == logins[0][0]
        before = stored(broker)
        fill(broker, "agents/page-1/x")
        assert owner.delete(f"/v2/tokens/{told[0]['token_id']}").status_code == 200
        # The same user returns with another grant.
        with connected(broker, *logins[1], "page-1", clean=False) as client:
            assert client.present
            wait_until(lambda: len(client.messages) == COUNT)
        fill(broker, "agents/page-1/x")
        assert stored(broker) > before + QUEUED
        assert owner.delete(f"/v2/tokens/{told[1]['token_id']}").status_code == 200
    wait_until(lambda: stored(broker) < before + BLOCK, 10)
    assert held(broker, search="page-1") == []


def test_a_client_id_is_listed_and_freed_by_hand(broker: Server) -> None:
    mine, other = create(broker, "mine"), create(broker, "other")
    subscribed(broker, login_of(mine), "sensor-1")
    with (
        connected(broker, *login_of(mine), "sensor/ä", clean=False) as live,
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
        found = [one for page in pages for one in page["client_ids"]]
        holder = {"kind": "client", "id": mine["id"], "username": mine["mqtt_username"]}
        assert {one["client_id"]: one["connected"] for one in found} == {
            "sensor-1": False,
            "sensor/ä": True,
        }
        assert [one["holder"] for one in found] == [holder, holder]
        assert all(one["since"] <= one["last_seen_at"] for one in found)
        for name in ("sensor-1", "sensor/ä"):
            assert owner.delete("/v2/client-ids", params={"client_id": name}).status_code == 204
        assert owner.get("/v2/client-ids?username=mine").json()["total"] == 0
        again = owner.delete("/v2/client-ids", params={"client_id": "sensor-1"})
        assert (again.status_code, again.json()["code"]) == (404, "client_id_not_found")
        wait_until(lambda: live.ended_at)
        events = owner.get("/v2/audit-events", params={"action": "client_id.freed"}).json()
        assert {one["details"]["client_id"] for one in events["events"]} == {"sensor-1", "sensor/ä"}
    with connected(broker, *login_of(other), "sensor-1", clean=False) as client:
        assert (client.code, client.present) == (0, False)
    with broker.person("viewer") as viewer:
        assert viewer.get("/v2/client-ids").status_code == 200
        refused = viewer.delete("/v2/client-ids", params={"client_id": "sensor-1"})
        assert refused.json()["code"] == "not_permitted"


def test_404_a_client_id_of_another_room_is_neither_shown_nor_freed(broker: Server) -> None:
    client = create(broker, "apart")
    _, stranger = second_organization(broker)
    with (
        connected(broker, *login_of(client), "apart-1") as live,
        stranger,
        broker.owner(**{"Wardkey-Environment": "test"}) as in_test,
    ):
        for other in (stranger, in_test):
            for name in ("apart", client["mqtt_username"]):
                shown = other.get("/v2/client-ids", params={"username": name}).json()
                assert (shown["client_ids"], shown["total"]) == ([], 0)
            assert other.get("/v2/client-ids").json()["total"] == 0
            refused = other.delete("/v2/client-ids", params={"client_id": "apart-1"})
            assert (refused.status_code, refused.json()["code"]) == (404, "client_id_not_found")
        assert live.ended_at == 0
    assert [one["client_id"] for one in held(broker, username="apart")] == ["apart-1"]


def test_a_session_is_removed_though_broker_and_workers_die_meanwhile(broker: Server) -> None:
    gone, other = create(broker, "gone-2"), create(broker, "other-2")
    subscribed(broker, login_of(gone), "gone-2")
    before = stored(broker)
    fill(broker, "agents/gone-2/x")
    broker.pause_broker()
    with broker.owner() as owner:
        assert owner.delete(f"/v2/clients/{gone['id']}").status_code == 200
    broker.kill_workers()
    broker.resume_broker()
    wait_until(let_in(broker, login_of(other), "unused"), 30)
    wait_until(lambda: stored(broker) < before + BLOCK, 20)
    wait_until(let_in(broker, login_of(other), "gone-2"), 10)


def test_an_unreleased_message_of_quality_2_is_not_the_next_users(broker: Server) -> None:
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

    with connected(broker, *login_of(reader), "exactly-reader") as listens:
        listens.subscribe("agents/exactly", 2)
        publish(first, b"old")
        with broker.owner() as owner:
            assert owner.delete(f"/v2/clients/{first['id']}").status_code == 200
        publish(second, b"new")
        wait_until(lambda: listens.messages)
        assert listens.messages == [("agents/exactly", b"new")]


def test_a_session_is_found_by_the_short_user_name(broker: Server) -> None:
    client = create(broker, "agent-77")
    with connected(broker, *login_of(client), "agent-77"), broker.owner() as owner:
        found = owner.get("/v2/sessions?username=agent-77").json()["sessions"]
        assert [one["client_id"] for one in found] == ["agent-77"]
        assert sessions_of(broker, client) == found
        assert owner.get("/v2/sessions?username=agent").json()["sessions"] == []
