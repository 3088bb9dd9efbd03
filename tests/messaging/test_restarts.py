"""Restarts do not lock clients out: the broker never rejects a correct password."""

from __future__ import annotations

import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from tests.messaging.test_foreign import Login, node, urls
from tests.support.mqtt_wire import wired
from tests.support.ports import free_addresses
from tests.support.server import Server, running, wait_until

REFUSED = 5  # CONNACK's "not authorized", after which many clients stop reconnecting


class Crowd:
    """Logs in repeatedly from several threads; `answers` has the codes of all CONNACKs."""

    def __init__(self, server: Server, login: tuple[str, str], threads: int = 4) -> None:
        self.answers: list[int] = []
        self._server, self._login, self._ends = server, login, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._ends.wait(0.01):
            try:
                with wired(self._server) as wire:
                    answer = wire.login(*self._login, f"crowd-{uuid.uuid4().hex[:8]}")
            except OSError:
                continue
            if answer is not None:
                self.answers.append(answer[0])

    def wait_for_login(self) -> None:
        """Wait until a login that begins after this call succeeds."""
        before = self.answers.count(0)
        wait_until(lambda: self.answers.count(0) > before + len(self._threads), 30)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_login()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(20)


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("restarts") / "data"
    names = ("listen", "mqtt_listen", "websocket_listen")
    addresses = dict(zip(names, free_addresses(3), strict=True))
    with running(folder, no_messaging=0, workers=request.param, **addresses) as server:
        with server.owner() as owner:
            rule = {"subject": {"kind": "everyone"}, "action": "both", "filter": "#"}
            response = owner.post("/v2/acl/rules", json={**rule, "effect": "allow", "priority": 1})
            assert response.status_code == 201, response.text
        yield server


def made(server: Server, name: str) -> tuple[str, str]:
    with server.owner() as owner:
        created = owner.post("/v2/clients", json={"username": name}).json()
    return created["client"]["mqtt_username"], created["password"]


def restart(server: Server) -> None:
    assert server.stop() == 0
    server.start()


ROUNDS = [1, pytest.param(20, marks=pytest.mark.soak)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_correct_password_is_refused_around_a_restart(broker: Server, rounds: int) -> None:
    with Crowd(broker, made(broker, f"restart-{rounds}")) as crowd:
        for _ in range(rounds):
            restart(broker)
            crowd.wait_for_login()
    assert set(crowd.answers) == {0}


@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_correct_password_is_refused_when_the_broker_crashes(
    broker: Server, rounds: int
) -> None:
    with Crowd(broker, made(broker, f"crash-{rounds}")) as crowd:
        for _ in range(rounds):
            broker.kill_broker()
            crowd.wait_for_login()
    assert set(crowd.answers) == {0}


def test_the_broker_accepts_logins_once_the_api_is_up(broker: Server) -> None:
    login = made(broker, "ready")
    restart(broker)
    with wired(broker) as wire:
        assert wire.login(*login, "ready-1") == (0, False)


def is_online(server: Server, login: tuple[str, str], mqtt_id: str) -> bool:
    with server.owner() as owner:
        response = owner.get("/v2/sessions", params={"username": login[0]})
    return response.is_success and any(
        session["client_id"] == mqtt_id and session["subscriptions"]
        for session in response.json()["sessions"]
    )


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_mqtt_js_with_default_settings_reconnects_after_a_restart(
    broker: Server, scheme: str
) -> None:
    login = Login(*made(broker, f"js-{scheme}"))
    with node(urls(broker)[scheme], login, f"js-{scheme}", "{}") as client:
        assert client.next_event("connect") == {}
        restart(broker)
        assert client.next_event("connect") == {}


def test_mosquitto_sub_with_default_settings_reconnects_after_a_restart(broker: Server) -> None:
    login = made(broker, "default")
    sub = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(broker.mqtt_port), "-i", "sub-1"]
    sub += ["-u", login[0], "-P", login[1], "-t", "a/#"]
    with subprocess.Popen(sub, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listening:
        try:
            wait_until(lambda: is_online(broker, login, "sub-1"))
            restart(broker)
            wait_until(lambda: is_online(broker, login, "sub-1"), 30)
            assert listening.poll() is None
        finally:
            listening.kill()


def test_a_throttled_login_is_closed_without_an_error_code(
    start: Callable[..., Server],
) -> None:
    server = start(no_messaging=0)
    login = made(server, "guessed")
    with wired(server) as wire:
        assert wire.login(login[0], "wrong", "g-0") == (REFUSED, False)

    def is_closed() -> bool:
        with wired(server) as wire:
            return wire.login(login[0], "wrong", "g-1") is None

    wait_until(is_closed)
    with wired(server) as wire:
        assert wire.login(*login, "g-2") is None
    other = made(server, "other")
    with wired(server) as wire:
        assert wire.login(*other, "g-3") == (0, False)


def test_no_correct_password_is_refused_while_workers_are_replaced(
    start: Callable[..., Server],
) -> None:
    server = start(no_messaging=0, workers=2)
    before = set(server.workers())
    with Crowd(server, made(server, "replaced")) as crowd:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.workers()) == 2 and not before & set(server.workers()), 30)
        crowd.wait_for_login()
    assert set(crowd.answers) == {0}
