"""Retained messages survive a rotation of the master key."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.mqtt import connected
from tests.support.server import Server, wait_until


def test_a_retained_message_survives_a_master_key_rotation(start: Callable[..., Server]) -> None:
    server = start(no_messaging=0)
    with server.owner() as owner:
        rule = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow"}
        made = owner.post("/v2/acl/rules", json={**rule, "priority": 10, "filter": "#"})
        assert made.status_code == 201, made.text
        made = owner.post("/v2/clients", json={"username": "agent"})
        password = made.json()["password"]
        name = made.json()["client"]["mqtt_username"]

    def wait_for_broker() -> None:
        with server.client(server.first_key) as client:
            wait_until(lambda: client.get("/v2/sessions").status_code == 200)

    wait_for_broker()
    with connected(server, name, password, "agent-1") as client:
        client.publish("state/agent", "idle", retain=True)
    server.stop()
    rotated = server.cli_here("master-key", "rotate")
    assert rotated.exit_code == 0, rotated.output
    server.start()
    wait_for_broker()
    with connected(server, name, password, "agent-1") as client:
        assert client.subscribe("state/#") == 1
        client.publish("state/last", "last")
        wait_until(lambda: ("state/last", b"last") in client.messages)
        assert client.messages == [("state/agent", b"idle"), ("state/last", b"last")]
