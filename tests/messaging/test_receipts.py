"""Changes report the final count of ended sessions, whichever process ended them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.mqtt import MqttClient, connected
from tests.support.server import Server, running, wait_until

PASSWORD = "moss on a northern roof"
RULE = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow", "filter": "agents/#"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("receipts") / "data"
    with running(data, no_messaging=0, workers=2) as server:
        with server.owner() as owner:
            assert owner.post("/v2/acl/rules", json={**RULE, "priority": 10}).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


@pytest.fixture(scope="module")
def owner(broker: Server) -> Iterator[httpx.Client]:
    with broker.owner() as client:
        yield client


def created(owner: httpx.Client, username: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    made = owner.post("/v2/clients", json={"username": username, **more})
    assert made.status_code == 201, made.text
    body = made.json()
    return {**body["client"], "password": body["password"] or more["password"]}


def settle(owner: httpx.Client, sessions: dict[str, Any]) -> dict[str, Any]:
    def settled_receipt() -> dict[str, Any]:
        receipt: dict[str, Any] = owner.get(
            f"/v2/sessions/receipts/{sessions['receipt_id']}"
        ).json()
        return {} if receipt["pending"] else receipt

    return wait_until(settled_receipt, 10)


def all_ended(clients: list[MqttClient]) -> bool:
    return all(client.ended_at for client in clients)


CHANGES: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "disabled": lambda owner, path: owner.patch(path, json={"enabled": False}),
    "password": lambda owner, path: owner.post(f"{path}/password", json={}),
    "deleted": lambda owner, path: owner.delete(path),
}


def test_a_change_ends_and_counts_only_the_sessions_of_its_client(
    broker: Server, owner: httpx.Client
) -> None:
    receipts = []
    with ExitStack() as stack:
        other = created(owner, "other")
        stays = stack.enter_context(
            connected(broker, other["mqtt_username"], other["password"], "other-1")
        )
        for how, change in CHANGES.items():
            client = created(owner, f"count-{how}")
            name, password = client["mqtt_username"], client["password"]
            clients = [
                stack.enter_context(connected(broker, name, password, f"{how}-{number}"))
                for number in range(3)
            ]
            assert [session_client.code for session_client in clients] == [0, 0, 0]
            done = change(owner, f"/v2/clients/{client['id']}")
            returned = time.monotonic()
            assert done.status_code == 200, done.text
            sessions = done.json()["sessions"]
            assert sessions["pending"] is True
            assert sessions["pending_until"] > client["created_at"]
            wait_until(partial(all_ended, clients))
            # 100 ms, and the time for a closed socket to reach paho's threads on a busy machine.
            assert max(session_client.ended_at for session_client in clients) - returned < 0.5
            receipts.append(sessions)
        for sessions in receipts:
            receipt = settle(owner, sessions)
            assert receipt == {**sessions, "ended": 3, "pending": False, "pending_until": None}
        assert stays.ended_at == 0


def test_a_rule_change_counts_the_sessions_whose_rights_it_changes(
    broker: Server, owner: httpx.Client
) -> None:
    client, other = created(owner, "ruled"), created(owner, "unruled")
    with (
        connected(broker, client["mqtt_username"], client["password"], "ruled-1") as live,
        connected(broker, other["mqtt_username"], other["password"], "unruled-1") as stays,
    ):
        rule = {
            **RULE,
            "priority": 20,
            "subject": {"kind": "client", "value": client["id"]},
            "filter": "more/#",
        }
        made = owner.post("/v2/acl/rules", json=rule).json()
        wait_until(lambda: live.ended_at)
        assert settle(owner, made["sessions"])["ended"] == 1
        deleted = owner.delete(f"/v2/acl/rules/{made['id']}").json()
        assert deleted["sessions"]["pending"] is True
        assert settle(owner, deleted["sessions"])["ended"] == 0
        assert stays.ended_at == 0


def test_a_change_that_affects_no_session_reports_it_at_once(owner: httpx.Client) -> None:
    nothing = {"receipt_id": None, "ended": 0, "pending": False, "pending_until": None}
    client = created(owner, "renamed")
    renamed = owner.patch(f"/v2/clients/{client['id']}", json={"display_name": "x"}).json()
    assert renamed["sessions"] == nothing
    key = owner.post("/v2/keys", json={"name": "live-gone", "type": "secret"}).json()["key"]
    receipt = owner.delete(f"/v2/keys/{key['id']}").json()
    assert receipt["sessions"] == nothing
    assert owner.get(f"/v2/receipts/{receipt['id']}").json()["sessions"] == nothing


def test_404_a_session_receipt_of_another_environment(broker: Server, owner: httpx.Client) -> None:
    client = created(owner, "hidden")
    sessions = owner.delete(f"/v2/clients/{client['id']}").json()["sessions"]
    path = f"/v2/sessions/receipts/{sessions['receipt_id']}"
    assert owner.get(path).status_code == 200
    with broker.owner(**{"Wardkey-Environment": "test"}) as test:
        assert test.get(path).json()["code"] == "receipt_not_found"


def test_a_login_in_flight_ends_within_2_1_s_and_is_counted(
    broker: Server, owner: httpx.Client
) -> None:
    # Wrong passwords occupy both hashing threads, so the correct one waits in line.
    crowd = created(owner, "crowd", password=PASSWORD)
    for attempt in range(10):
        client = created(owner, f"flight-{attempt}", password=PASSWORD)
        with ThreadPoolExecutor(6) as pool:
            for n in range(5):
                wrong = f"{PASSWORD} {attempt} {n}"
                name = f"crowd-{attempt}-{n}"
                pool.submit(
                    lambda *login: MqttClient(broker.mqtt_port, *login).close(),
                    crowd["mqtt_username"],
                    wrong,
                    name,
                )
            login = pool.submit(
                MqttClient, broker.mqtt_port, client["mqtt_username"], PASSWORD, f"flight-{attempt}"
            )
            wait([login], 0.02 + 0.02 * attempt)
            body = owner.patch(f"/v2/clients/{client['id']}", json={"enabled": False}).json()
            returned = time.monotonic()
            live = login.result()
        if live.code == 0 and body["sessions"]["ended"] == 0:
            wait_until(partial(all_ended, [live]))
            assert live.ended_at - returned < 2.1
            assert settle(owner, body["sessions"])["ended"] == 1
            live.close()
            return
        live.close()
    pytest.fail("no login was in flight while its client was disabled")


def test_the_count_is_unknown_while_the_broker_is_unreachable(
    broker: Server, owner: httpx.Client
) -> None:
    client = created(owner, "away")
    with connected(broker, client["mqtt_username"], client["password"], "away-1") as live:
        assert live.code == 0
        broker.pause_broker()
        try:
            began = time.monotonic()
            done = owner.patch(f"/v2/clients/{client['id']}", json={"enabled": False})
            assert time.monotonic() - began < 2
            sessions = done.json()["sessions"]
            receipt = owner.get(f"/v2/sessions/receipts/{sessions['receipt_id']}").json()
        finally:
            broker.resume_broker()
        assert sessions == receipt
        assert (sessions["ended"], sessions["pending"], sessions["pending_until"]) == (
            None,
            True,
            None,
        )
        wait_until(lambda: live.ended_at)
        assert settle(owner, sessions)["ended"] == 1
