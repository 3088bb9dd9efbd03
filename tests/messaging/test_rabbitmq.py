"""A real RabbitMQ authenticates and authorizes its clients through the hooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.mqtt import connected
from tests.support.rabbitmq import rabbitmq
from tests.support.server import Server, running, wait_until

ALLOW = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}


@dataclass
class Foreign:
    """A deployment without a broker, a RabbitMQ that uses its hooks, and two organizations."""

    server: Server
    port: int
    org_id: str
    other_id: str

    def client(self, username: str) -> dict[str, Any]:
        with self.server.client(self.server.first_key) as key:
            made = key.post("/v2/clients", json={"username": username})
        assert made.status_code == 201, made.text
        body: dict[str, Any] = made.json()
        return {**body["client"], "password": body["password"]}

    def connected(self, client: dict[str, Any], mqtt_id: str, vhost: str = "", **more: str) -> Any:  # noqa: ANN401
        name = f"{vhost or self.org_id}:{client['mqtt_username']}"
        return connected(self.port, name, more.get("password", client["password"]), mqtt_id)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """Run both, with a rule: everyone in agents/#."""
    folder = tmp_path_factory.mktemp("rabbitmq")
    with running(folder / "data") as server:
        other = server.cli_here("org", "create", "Other", "--owner", "owner@acme.example", "--json")
        other_id = json.loads(other.stdout)["id"]
        with server.client(server.first_key) as key:
            made = key.post("/v2/acl/rules", json={**ALLOW, "priority": 10, "filter": "agents/#"})
            assert made.status_code == 201, made.text
            org_id = key.get("/v2/organization").json()["id"]
        token = server.cli_here("hook", "create", "rabbitmq").stdout.strip()
        hooks = f"{server.url}/hooks/rabbitmq/{token}"
        with rabbitmq(folder / "broker", hooks, (org_id, f"{org_id}.test", other_id)) as port:
            yield Foreign(server, port, org_id, other_id)
        # Each request had the token in its path.
        assert token not in server.output


def test_a_client_publishes_to_another_under_the_rules(foreign: Foreign) -> None:
    publisher, subscriber = foreign.client("one"), foreign.client("other")
    with (
        foreign.connected(publisher, "one-1") as sender,
        foreign.connected(subscriber, "other-1") as receiver,
    ):
        assert (sender.code, receiver.code) == (0, 0)
        assert receiver.subscribe("agents/+/state") == 1
        sender.publish("agents/agent-01/state", "idle")
        wait_until(lambda: receiver.messages)
        assert receiver.messages == [("agents/agent-01/state", b"idle")]


def test_a_forbidden_topic_is_neither_published_nor_subscribed_to(foreign: Foreign) -> None:
    client = foreign.client("nosy")
    # RabbitMQ closes the connection after a forbidden request.
    with foreign.connected(client, "nosy-1") as nosy:
        nosy.paho.subscribe("private/#", 1)
        wait_until(lambda: nosy.ended_at)
        assert not nosy.granted
    with foreign.connected(client, "nosy-1") as nosy:
        nosy.paho.publish("private/x", "no", 1)
        wait_until(lambda: nosy.ended_at)


def test_a_wrong_password_is_refused(foreign: Foreign) -> None:
    with foreign.connected(foreign.client("careful"), "w-1", password="wrong") as refused:
        assert refused.code != 0


def test_a_disabled_client_is_refused_at_its_next_login(foreign: Foreign) -> None:
    client = foreign.client("gone")
    with foreign.connected(client, "gone-1") as before:
        assert before.code == 0
    with foreign.server.client(foreign.server.first_key) as key:
        done = key.patch(f"/v2/clients/{client['id']}", json={"enabled": False})
        assert done.status_code == 200, done.text
    with foreign.connected(client, "gone-1") as after:
        assert after.code != 0


def test_another_organizations_vhost_and_the_other_environments_are_refused(
    foreign: Foreign,
) -> None:
    client = foreign.client("stranger")
    for vhost in (foreign.other_id, f"{foreign.org_id}.test"):
        with foreign.connected(client, "stranger-1", vhost) as refused:
            assert refused.code != 0
    with foreign.connected(client, "stranger-1") as at_home:
        assert at_home.code == 0


def test_another_clients_client_id_is_refused(foreign: Foreign) -> None:
    with foreign.connected(foreign.client("first"), "shared-1") as first:
        assert first.code == 0
        with foreign.connected(foreign.client("second"), "shared-1") as second:
            assert second.code != 0
