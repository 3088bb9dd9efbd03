"""Broker faults delay messages but never lose an acknowledged one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.mqtt import connected
from tests.support.ports import free_addresses
from tests.support.server import Server, running, wait_until
from wardkey.adapters.broker import BrokerKeys, BrokerProcess, Node, broker_program, broker_settings
from wardkey.adapters.broker_link import BrokerLink, Login
from wardkey.adapters.mqtt import Publisher
from wardkey.adapters.publishers import Publishers
from wardkey.domain.errors import BrokerUnreachable

AT_ONCE = 40
EACH = 25
Job = tuple[list[str], str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a deployment with a broker and two workers, whose rules allow everything."""
    with running(tmp_path_factory.mktemp("faults") / "data", no_messaging=0, workers=2) as up:
        allow_all(up)
        yield up


def allow_all(up: Server) -> None:
    rule = {"subject": {"kind": "everyone"}, "action": "both", "effect": "allow", "filter": "#"}
    with up.owner() as owner:
        assert owner.post("/v2/acl/rules", json={"priority": 1, **rule}).status_code == 201
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200)


def create(up: Server, username: str) -> tuple[str, str]:
    """Create a client; return its user name and password."""
    with up.owner() as owner:
        made = owner.post("/v2/clients", json={"username": username}).json()
    return made["client"]["mqtt_username"], made["password"]


def publish_one(up: Server, topic: str, payload: str, **more: Any) -> httpx.Response:  # noqa: ANN401
    with up.client(up.first_key) as client:
        return client.post("/publish", json={"topic": topic, "payload": payload, "qos": 1, **more})


class Load:
    """Concurrent publishing over HTTP until each message is acknowledged or unconfirmed.

    `said` has the outcome of each message by payload; `kept` the responses by idempotency key.
    """

    def __init__(self, up: Server, topic: str, at_once: int = AT_ONCE) -> None:
        self.up, self.topic, self.at_once = up, topic, at_once
        self.said: dict[str, str] = {}
        self.kept: dict[str, tuple[Any, httpx.Response]] = {}
        self.unsent = 0

    def run(self, singles: int, batches: int, meanwhile: dict[int, Callable[[], Any]]) -> None:
        """Publish, and call a function once a number of messages is answered."""
        jobs: list[Job] = [
            ([uuid.uuid4().hex for _ in range(count)], str(uuid.uuid4()) if number % 2 else "")
            for count, total in ((1, singles), (EACH, batches))
            for number in range(total)
        ]
        # Mix both request shapes.
        jobs.sort(key=lambda job: job[0])
        asyncio.run(self._run(jobs, meanwhile))

    def acknowledged(self) -> set[str]:
        return {name for name, code in self.said.items() if code == ""}

    def _has(self, count: int) -> bool:
        return len(self.said) >= count

    async def _run(self, jobs: list[Job], meanwhile: dict[int, Callable[[], Any]]) -> None:
        waiting = iter(jobs)

        async def work() -> None:
            headers = {"Authorization": f"Bearer {self.up.first_key}"}
            async with httpx.AsyncClient(headers=headers, timeout=30, verify=False) as client:
                for names, key in waiting:
                    await self._send(client, names, key)

        async def disturb() -> None:
            for count, do in sorted(meanwhile.items()):
                await asyncio.to_thread(wait_until, partial(self._has, count), 60)
                await asyncio.to_thread(do)

        await asyncio.gather(disturb(), *(work() for _ in range(self.at_once)))

    async def _send(self, client: httpx.AsyncClient, names: list[str], key: str) -> None:
        end = time.monotonic() + 60
        while names:
            assert time.monotonic() < end, self.said
            body: Any = [{"topic": self.topic, "payload": name, "qos": 1} for name in names]
            body = body if len(names) > 1 else body[0]
            headers = {"Idempotency-Key": key} if key else {}
            try:
                response = await client.post(f"{self.up.url}/publish", json=body, headers=headers)
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError):
                    # A start takes seconds and both cores.
                    await asyncio.sleep(0.5)
                    continue
                # The server stopped meanwhile, so the outcome is unknown.
                self.said |= dict.fromkeys(names, "cut")
                return
            answer = response.json()
            items = answer if isinstance(answer, list) else [answer]
            assert len(items) == len(names), response.text
            codes = [one.get("code", "") for one in items]
            assert set(codes) <= {"", "broker_unreachable", "publish_unconfirmed"}, response.text
            unsent = [n for n, c in zip(names, codes, strict=True) if c == "broker_unreachable"]
            if key and len(unsent) < len(names):
                self.kept[key] = (body, response)
            self.said |= {n: c for n, c in zip(names, codes, strict=True) if n not in unsent}
            self.unsent += len(unsent)
            names = unsent
            if names:
                key = ""
                await asyncio.sleep(0.05)


def arrived(up: Server, login: tuple[str, str], mqtt_id: str, load: Load) -> Counter[str]:
    """Resume a persistent session; return how often each queued message was delivered."""
    with connected(up, *login, mqtt_id, clean=False) as session:
        assert session.code == 0
        assert publish_one(up, load.topic, "end").status_code == 200
        wait_until(lambda: (load.topic, b"end") in session.messages, 60)
        return Counter(payload.decode() for _, payload in session.messages)


def test_a_killed_broker_neither_loses_nor_duplicates_acknowledged_messages(server: Server) -> None:
    login = create(server, "lasting")
    with connected(server, *login, "lasting-1", clean=False) as session:
        assert session.subscribe("load/kill") == 1
    load = Load(server, "load/kill")
    load.run(1_000, 360, {3_000: server.kill_broker})
    assert len(load.said) == 10_000
    assert load.unsent
    for body, first in [*load.kept.values()][:: len(load.kept) // 60]:
        key = first.request.headers["Idempotency-Key"]
        with server.client(server.first_key) as client:
            again = client.post("/publish", json=body, headers={"Idempotency-Key": key})
        assert (again.status_code, again.content) == (first.status_code, first.content)
    came = arrived(server, login, "lasting-1", load)
    assert load.acknowledged() - set(came) == set()
    assert set(came) - set(load.said) == {"end"}
    assert [name for name, count in came.items() if count > 1] == []


def test_logins_continue_while_a_worker_is_killed(server: Server) -> None:
    login = create(server, "many")
    codes: list[int | None] = []

    def log_in(number: int) -> None:
        for turn in range(12):
            with connected(server, *login, f"many-{number}-{turn}") as one:
                codes.append(one.code)

    crowd = [threading.Thread(target=log_in, args=(number,)) for number in range(4)]
    for one in crowd:
        one.start()
    wait_until(lambda: len(codes) > 12)
    server.kill_one_worker()
    for one in crowd:
        one.join(60)
    assert len(codes) == 48
    # Only logins that the killed worker had not answered, because the broker does not retry.
    assert sum(1 for code in codes if code != 0) <= 4
    wait_until(lambda: len(server.workers()) == 2)


def test_live_sessions_continue_while_no_worker_answers(server: Server) -> None:
    one, other = create(server, "speaker"), create(server, "listener")
    with connected(server, *one, "speaker-1") as sender, connected(server, *other, "l-1") as taker:
        taker.subscribe("talk/#", 1)
        stopped = server.workers()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            sender.publish("talk/x", "still here")
            wait_until(lambda: taker.messages == [("talk/x", b"still here")])
            with connected(server, *other, "l-2") as refused:
                assert refused.code != 0
            assert sender.ended_at == taker.ended_at == 0
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    wait_until(lambda: can_log_in(server, other), 30)


def can_log_in(up: Server, login: tuple[str, str]) -> bool:
    try:
        with connected(up, *login, f"try-{uuid.uuid4().hex[:8]}") as one:
            return one.code == 0
    except OSError:
        return False


@pytest.mark.parametrize("pause_s", [3, pytest.param(12, marks=pytest.mark.soak)])
def test_a_paused_broker_delays_messages_but_not_the_api(server: Server, pause_s: float) -> None:
    login = create(server, f"patient-{pause_s}")
    topic = f"load/pause-{pause_s}"
    with connected(server, *login, f"patient-{pause_s}", clean=False) as session:
        session.subscribe(topic)
    load = Load(server, topic)
    slowest = 0.0

    def pause() -> None:
        nonlocal slowest
        server.pause_broker()
        try:
            end = time.monotonic() + pause_s
            with server.client(server.first_key) as client:
                while time.monotonic() < end:
                    began = time.monotonic()
                    assert client.get("/v2/keys").status_code == 200
                    slowest = max(slowest, time.monotonic() - began)
        finally:
            server.resume_broker()

    load.run(200, 20, {100: pause})
    assert slowest < 1
    came = arrived(server, login, f"patient-{pause_s}", load)
    assert load.acknowledged() <= set(came)
    assert max(came.values()) == 1
    if pause_s < 10:
        assert load.acknowledged() == set(load.said)


def test_acknowledged_messages_survive_a_restart_of_everything(
    start: Callable[..., Server],
) -> None:
    listen, mqtt_listen = free_addresses(2)
    up = start(no_messaging=0, workers=2, listen=listen, mqtt_listen=mqtt_listen, max_staleness=0)
    allow_all(up)
    login, watching = create(up, "lasting"), create(up, "watching")
    with connected(up, *login, "lasting-1", clean=False) as session:
        session.subscribe("load/restart")
    load = Load(up, "load/restart", 8)
    assert publish_one(up, "state/x", "kept", retain=True).status_code == 200

    def restart() -> None:
        assert up.stop() == 0
        up.start()

    def crash() -> None:
        up.kill()
        up.start()

    with connected(up, *watching, "watching-1") as watcher:
        load.run(400, 40, {200: restart, 700: crash})
        assert watcher.ended_at
    with connected(up, *watching, "watching-1") as watcher:
        watcher.subscribe("state/#")
        wait_until(lambda: ("state/x", b"kept") in watcher.messages)
    came = arrived(up, login, "lasting-1", load)
    assert load.acknowledged() <= set(came)
    assert len(load.acknowledged()) > 700
    assert max(came.values()) == 1


def test_a_worker_started_while_the_broker_hangs_answers_and_ends_sessions(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    names = ("listen", "mqtt-listen", "websocket-listen")
    addresses = dict(zip(names, free_addresses(3), strict=True))
    with socket.create_server(("127.0.0.1", int(addresses["listen"].rpartition(":")[2]))) as mute:
        up = start(
            no_messaging=0,
            broker=f"nats://{addresses['listen']}",
            broker_mqtt=f"mqtt://{addresses['mqtt-listen']}",
        )
        # It is connected but receives nothing.
        mute.accept()[0].close()
        mute.accept()[0].close()
        assert publish_one(up, "a", "x").json()["code"] == "broker_unreachable"
    options = [f"--{name}={address}" for name, address in addresses.items()]
    done = up.cli_here(
        "broker", "settings", "--server-name=n1", f"--store-dir={tmp_path / 'n1'}", *options
    )
    assert done.exit_code == 0, done.stderr
    process = BrokerProcess(broker_program(""), done.stdout, tmp_path / "n1")
    try:
        allow_all(up)
        login = create(up, "after")
        up.mqtt_port = int(addresses["mqtt-listen"].rpartition(":")[2])
        wait_until(lambda: can_log_in(up, login))
        with connected(up, *login, "after-1") as live, up.owner() as owner:
            assert live.code == 0
            (client,) = owner.get("/v2/clients").json()["clients"]
            assert owner.patch(f"/v2/clients/{client['id']}", json={"enabled": False}).is_success
            wait_until(lambda: live.ended_at)
        assert publish_one(up, "a", "x").status_code == 200
    finally:
        process.stop()


def test_a_session_is_ended_even_if_its_client_id_was_pruned(server: Server) -> None:
    name, password = create(server, "many-ids")

    async def log_in_with_others() -> None:
        for number in range(110):
            one = Publisher("127.0.0.1", server.mqtt_port, f"id-{number}")
            with suppress(BrokerUnreachable):
                await one.open(name, password)
            one.close()

    with connected(server, name, password, "oldest") as live, server.owner() as owner:
        assert live.code == 0
        asyncio.run(log_in_with_others())
        (client,) = owner.get("/v2/clients", params={"search": "many-ids"}).json()["clients"]
        assert owner.patch(f"/v2/clients/{client['id']}", json={"enabled": False}).is_success
        wait_until(lambda: live.ended_at)


def accepted(client: httpx.Client, wanted: dict[str, Any]) -> bool:
    return client.post("/publish", json=wanted).status_code == 200


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 100 MiB at the folder."""
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_503_while_the_broker_disk_is_full_and_publishing_recovers(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with small_disk(data / "broker"):
        up = start(data, no_messaging=0)
        allow_all(up)
        assert publish_one(up, "state/x", "before", retain=True).status_code == 200
        ballast = data / "broker" / "ballast"
        wanted = {"topic": "state/x", "payload": "full", "qos": 1, "retain": True}
        for scope in (32 * 1_048_576, 0):
            with suppress(OSError), ballast.open("wb") as file:
                file.write(bytes(100 * 1_048_576 - scope))
            key = {"Idempotency-Key": str(uuid.uuid4())}
            with up.client(up.first_key, **key) as client:
                full = client.post("/publish", json=wanted)
                assert (full.status_code, full.json()["code"]) == (503, "broker_full")
                assert full.headers["retry-after"]
                # Requests that need no disk keep working.
                assert client.get("/v2/keys").status_code == 200
                ballast.unlink()
                wait_until(partial(accepted, client, wanted))
        login = create(up, "late")
        with connected(up, *login, "late-1") as late:
            late.subscribe("state/#")
            wait_until(lambda: late.messages == [("state/x", b"full")])
        up.kill()


def test_the_broker_serves_many_organizations(tmp_path: Path) -> None:
    keys = BrokerKeys(bytes(32))
    inside, mqtt, websocket = free_addresses(3)
    text = broker_settings(keys, Node(inside, mqtt, websocket, tmp_path), int(time.time()))
    process = BrokerProcess(broker_program(""), text, tmp_path)

    async def nobody(_login: Login) -> None:
        return None

    async def publish_in_each() -> None:
        link = BrokerLink([f"nats://{inside}"], keys, lambda: int(time.time() * 1000))
        host, _, port = mqtt.rpartition(":")
        publishers = Publishers(link, [(host, int(port))], "here")
        try:
            await link.open(nobody)
            for number in range(30):
                await publishers.publish((f"org_{number}", "live"), "a", b"x", 1, retain=True)
        finally:
            await publishers.close()
            await link.close()

    try:
        asyncio.run(publish_in_each())
    finally:
        process.stop()
