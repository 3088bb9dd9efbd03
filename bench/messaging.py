"""Measures messaging: publishing over HTTP, delivery, logins, disconnects, rules and memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import LOAD_CORE, SERVER_CORE, BenchmarkError, Case, Server, write_requests
from bench.mqtt import MqttClient
from bench.page import Page, spread
from bench.sides import post
from wardkey.actions.accounts import organizations
from wardkey.actions.messaging import acl, clients
from wardkey.actions.operations.first_start import first_start
from wardkey.config import load_config
from wardkey.deployment import open_deployment
from wardkey.domain.acl import AclRule, Action, Actor, ActorKind, Effect, SubjectKind
from wardkey.domain.clients import ClientSpec
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.rule_specs import PresetName
from wardkey.domain.secret import Environment

CONCURRENCY = 64
_PAYLOAD = "x" * 64
_RULES = 1_000
_BROKER_START_S = 30


@dataclass(frozen=True, slots=True)
class Amount:
    """The amount of measuring."""

    rounds: int
    seconds: float
    clients: int
    chosen: int
    kicks: int
    organizations: int
    idle: int


QUICK = Amount(2, 2, 400, 5, 30, 20, 500)
FULL = Amount(5, 5, 3_000, 20, 200, 200, 5_000)


@dataclass(frozen=True, slots=True)
class Login:
    """A client's MQTT credentials."""

    id: str
    username: str
    password: str


@dataclass(slots=True)
class Running:
    """A deployment with its broker, in which the first organization allows everything."""

    server: Server
    key: str
    mqtt_port: int

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Call the API with the first key; raises `BenchmarkError` if it is refused."""
        text = json.dumps(body) if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n"
        kind = "Content-Type: application/json\r\n" if text else ""
        request = f"{head}{kind}Content-Length: {len(text)}\r\n\r\n{text}".encode()
        status, _, rest = self.server.send(request).removeprefix("HTTP/1.1 ").partition(" ")
        if status[0] != "2":
            raise BenchmarkError(f"{method} {path}: {status} {rest}")
        response: dict[str, object] = json.loads(rest.partition("\r\n\r\n")[2] or "{}")
        return response

    def broker_pid(self) -> int:
        """Return the process id of the broker, which starts once a worker is ready.

        Raises `BenchmarkError`.
        """
        end = time.monotonic() + _BROKER_START_S
        while time.monotonic() < end:
            for pid in self.server.pids():
                if b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    return pid
            time.sleep(0.05)
        raise BenchmarkError("the broker did not start")

    def worker_cpu(self) -> float:
        """Return the CPU time of all processes except the broker so far, in seconds."""
        return self.server.cpu() - _cpu(self.broker_pid())

    def resident_mib(self) -> dict[str, float]:
        """Return the proportional memory of each process, in MiB."""
        memory = {}
        for pid in self.server.pids():
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
            is_broker = b"nats-server" in name[0]
            memory[f"{'broker' if is_broker else 'Wardkey'} {pid}"] = (
                int(kib[1]) / 1024 if kib else 0
            )
        return memory


def _cpu(pid: int) -> float:
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def messaging(page: Page, *, quick: bool) -> None:
    """Measure all of messaging."""
    amount = QUICK if quick else FULL
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    page.section("Messaging")
    page.say("One worker on one core; the broker, in its own process, and the load on the other.\n")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        logins = _fill(folder / "data", amount)
        with _running(folder) as running:
            _publish(page, running, folder, amount)
            asyncio.run(_deliver(page, running, logins[0][0], amount))
            asyncio.run(_log_in(page, running, logins[0], amount))
            asyncio.run(_disconnect(page, running, amount))
            asyncio.run(_hold_idle_clients(page, running, logins, amount))
    _decide(page)


def _fill(data_dir: Path, amount: Amount) -> list[list[Login]]:
    """Create a deployment; return the logins of each organization's clients."""
    each = amount.idle // amount.organizations
    logins = []
    with open_deployment(load_config({}, {"data_dir": data_dir})) as runner:
        first = runner.write(first_start, operator(), "Acme", "owner@acme.example")
        assert first is not None
        (data_dir / "key").write_text(first.issued.secret.text)
        (data_dir / "key").chmod(0o600)
        for number in range(amount.organizations):
            org, user = first.organization, ""
            if number:
                org, user = runner.write(
                    organizations.create,
                    operator(),
                    f"Org {number}",
                    f"owner-{number}@acme.example",
                )
            by = _owner(org.id, user)
            runner.write(acl.apply_preset, by, PresetName.ALLOW_ALL)
            count = each if number else max(each, amount.clients)
            made = [
                runner.write(clients.create, by, ClientSpec(f"device-{n}", Environment.LIVE))
                for n in range(count)
            ]
            logins.append(
                [Login(m.client.id, m.client.mqtt_username, m.password or "") for m in made]
            )
    return logins


def _owner(org_id: str, user_id: str) -> Principal:
    return member(
        user_id=user_id,
        email="owner@acme.example",
        org_id=org_id,
        role=Role.OWNER,
        environment=Environment.LIVE,
    )


@contextmanager
def _running(folder: Path) -> Iterator[Running]:
    """Run Wardkey on one core and its broker on the other; raises `BenchmarkError`."""
    key = (folder / "data" / "key").read_text()
    server = Server(
        "wardkey",
        [sys.executable, "-m", "wardkey", "up", "--data-dir", str(folder / "data"),
         "--listen", "127.0.0.1:PORT"],
        folder / "server",
        {"WARDKEY_MQTT_LISTEN": "127.0.0.1:0", "WARDKEY_WEBSOCKET_LISTEN": "127.0.0.1:0"},
    )  # fmt: skip
    try:
        server.start()
        server.wait(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", " 200 ok")
        log = (folder / "server" / "log").read_text()
        port = re.search(r"MQTT: \S+:(\d+),", log)
        assert port is not None, log
        running = Running(server, key, int(port[1]))
        for task in Path(f"/proc/{running.broker_pid()}/task").iterdir():
            os.sched_setaffinity(int(task.name), {int(LOAD_CORE)})
        yield running
    finally:
        server.stop()


def _publish(page: Page, running: Running, folder: Path, amount: Amount) -> None:
    """Publish over HTTP, alternating with the same MQTT client alone, at the same concurrency."""
    body = json.dumps({"topic": "bench/a", "payload": _PAYLOAD, "qos": 1})
    request = post("/publish", body, f"Authorization: Bearer {running.key}\r\n")
    size = write_requests(folder / "publish", [request])
    case = Case(
        "POST /publish", running.server, folder / "publish", size, '"success":true',
        connections=CONCURRENCY,
    )  # fmt: skip
    case.warm_up(1)
    alone, cpu, bare_cpu = [], [], []
    for _ in range(amount.rounds):
        used = running.worker_cpu()
        counts = case.round(amount.seconds, 0)
        case.rates.append(counts["requests"] / counts["us"] * 1e6)
        cpu.append((running.worker_cpu() - used) / counts["requests"] * 1e6)
        rate, each = _publish_without_http(running, amount.seconds)
        alone.append(rate)
        bare_cpu.append(each)
        case.alone_us.append(case.round(1, 0, connections=1)["p50"])
    ratios = [ours / bare for ours, bare in zip(case.rates, alone, strict=True)]
    page.say(
        f"- QoS 1 over HTTP, {CONCURRENCY} connections, acknowledged by the broker: "
        f"{spread(case.rates)} a second (goal: at least 8,000), {spread(cpu, ',.1f')} µs of the "
        "worker's CPU each"
    )
    page.say(
        f"- the same MQTT client without HTTP, {CONCURRENCY} in flight: {spread(alone)} a second, "
        f"{spread(bare_cpu, ',.1f')} µs of CPU each"
    )
    page.say(f"- the first ÷ the second: {spread(ratios, ',.2f')} (goal: at least 0.5)")
    page.say(f"- one message at a time over HTTP: p50 {spread(case.alone_us)} µs")


def _publish_without_http(running: Running, seconds: float) -> tuple[float, float]:
    """Return the MQTT client's messages a second on the worker's core, and the CPU µs of each."""
    made = running.call("POST", "/v2/clients", {"username": f"bare-{time.time_ns()}"})
    client = made["client"]
    assert isinstance(client, dict)
    done = subprocess.run(
        ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "bench.bare", str(running.mqtt_port),
         str(client["mqtt_username"]), str(CONCURRENCY), str(seconds)],
        input=str(made["password"]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"the MQTT client alone: {done.stderr}")
    rate, each = map(float, done.stdout.split())
    return rate, each


async def _deliver(page: Page, running: Running, login: Login, amount: Amount) -> None:
    """Publish 2,000 messages a second over HTTP; measure the time until a subscriber has each."""
    delays: list[float] = []
    subscriber = MqttClient(
        lambda payload: delays.append(time.perf_counter() - float(payload.partition(b" ")[0]))
    )
    await subscriber.connect(running.mqtt_port, login.username, login.password, "bench-receiver")
    await subscriber.subscribe("delay/#")
    # As in a client's pool: a connection is reused once it has its response.
    connections: list[_PooledConnection] = []
    free: deque[_PooledConnection] = deque()
    head = f"Authorization: Bearer {running.key}\r\n"
    count, began = int(2_000 * amount.seconds * 2), time.perf_counter()
    for number in range(count):
        due = began + number / 2_000
        await asyncio.sleep(max(0, due - time.perf_counter()))
        payload = f"{time.perf_counter():.7f} {_PAYLOAD}"
        body = json.dumps({"topic": "delay/a", "payload": payload, "qos": 1})
        if not free:
            connections.append(await _PooledConnection.open(running.server.port, free))
        free.popleft().send(post("/publish", body, head))
    seconds = time.perf_counter() - began
    for _ in range(500):
        if len(delays) >= count:
            break
        await asyncio.sleep(0.01)
    for connection in connections:
        connection.close()
    subscriber.close()
    if len(delays) < count:
        raise BenchmarkError(f"{count - len(delays)} of {count} messages did not arrive")
    page.say(
        f"- from the call to the subscriber at {count / seconds:,.0f} a second over "
        f"{len(connections)} connections: {_percentiles(delays, 1e3)} ms (goal: p99 at most 10)"
    )


class _PooledConnection(asyncio.Protocol):
    """An HTTP connection that returns to the pool with each response."""

    def __init__(self, free: deque[_PooledConnection]) -> None:
        self._free, self._received = free, b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int, free: deque[_PooledConnection]) -> _PooledConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(free), "127.0.0.1", port)
        free.append(connection)
        return connection

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b'"success":true' in self._received:
            self._received = b""
            self._free.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


async def _log_in(page: Page, running: Running, logins: Sequence[Login], amount: Amount) -> None:
    """Log in on many connections at once; the first time with new client ids."""
    logins = logins[: amount.clients]
    for name in ("the first time", "again"):
        rate = await _log_in_all(running, logins, [f"bench-{n}" for n in range(len(logins))])
        page.say(f"- logins with generated passwords, {name}: {rate:,.0f} a second (goal: 1,000)")
    chosen = []
    for number in range(amount.chosen):
        password = f"a chosen password {number}"
        made = running.call(
            "POST", "/v2/clients", {"username": f"chosen-{number}", "password": password}
        )["client"]
        assert isinstance(made, dict)
        chosen.append(Login(made["id"], made["mqtt_username"], password))
    names = [f"chosen-{n}" for n in range(len(chosen))]
    first = await _log_in_all(running, chosen, names)
    page.say(f"- logins with chosen passwords, including Argon2: {first:,.0f} a second")
    again = max(1, amount.clients // len(chosen))
    rate = await _log_in_all(
        running, chosen * again, [f"{n}-{t}" for t in range(again) for n in names]
    )
    page.say(
        f"- logins with chosen passwords, remembered for five minutes, new client ids: {rate:,.0f} "
        "a second (goal: 1,000)"
    )


async def _log_in_all(running: Running, logins: Sequence[Login], names: Sequence[str]) -> float:
    """Return the logins a second, 64 at once; raises `BenchmarkError` if one is refused."""
    pending = iter(list(zip(logins, names, strict=True)))
    refused = 0

    async def log_in_next() -> None:
        nonlocal refused
        for login, name in pending:
            client = MqttClient()
            refused += bool(
                await client.connect(running.mqtt_port, login.username, login.password, name)
            )
            client.close()

    began = time.perf_counter()
    await asyncio.gather(*(log_in_next() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - began
    if refused:
        raise BenchmarkError(f"{refused} logins of {len(logins)} were refused")
    return len(logins) / seconds


async def _disconnect(page: Page, running: Running, amount: Amount) -> None:
    """Disable clients with a live session; measure the time until it is closed."""
    total, after_response = [], []
    for number in range(amount.kicks):
        made = running.call("POST", "/v2/clients", {"username": f"kicked-{number}"})
        client = made["client"]
        assert isinstance(client, dict)
        session = MqttClient()
        await session.connect(
            running.mqtt_port, client["mqtt_username"], str(made["password"]), f"kicked-{number}"
        )
        began = time.perf_counter()
        call = asyncio.to_thread(
            running.call, "PATCH", f"/v2/clients/{client['id']}", {"enabled": False}
        )
        response_time = asyncio.create_task(_finish_time(call))
        async with asyncio.timeout(20):
            ended = await session.ended
        total.append(ended - began)
        after_response.append(max(0.0, ended - await response_time))
    page.say(
        f"- from the call that disables a client to the end of its session: "
        f"{_percentiles(total, 1e3)} ms (goal: p99 at most 100); from the response: "
        f"{_percentiles(after_response, 1e3)} ms"
    )


async def _finish_time(call: Awaitable[object]) -> float:
    await call
    return time.perf_counter()


async def _hold_idle_clients(
    page: Page, running: Running, organizations_logins: Sequence[Sequence[Login]], amount: Amount
) -> None:
    """Connect many clients of many organizations; report the memory of all processes."""
    before = sum(running.resident_mib().values())
    each = amount.idle // amount.organizations
    idle_clients: list[MqttClient] = []
    for number, logins in enumerate(organizations_logins):
        batch = [MqttClient() for _ in logins[:each]]
        idle_clients += batch
        codes = await asyncio.gather(
            *(
                client.connect(running.mqtt_port, login.username, login.password, f"i-{number}-{n}")
                for n, (client, login) in enumerate(zip(batch, logins, strict=False))
            )
        )
        if any(codes):
            raise BenchmarkError(f"idle clients were refused: {codes}")
        await asyncio.gather(*(client.subscribe("idle/#") for client in batch))
    await asyncio.sleep(2)
    after = running.resident_mib()
    page.say(
        f"- memory with {len(idle_clients):,} idle clients of {amount.organizations:,} "
        f"organizations: {sum(after.values()):,.0f} MiB in all processes (goal: at most 1,024), "
        f"{before:,.0f} before; the broker's part is "
        f"{sum(mib for name, mib in after.items() if name.startswith('broker')):,.0f}"
    )
    for client in idle_clients:
        client.close()


def _decide(page: Page) -> None:
    """Time a decision by a thousand rules, as in the simulator and in publishing."""
    rules = RuleSet(
        AclRule(
            f"acl_{n:04}", n, SubjectKind.EVERYONE, "", f"site/{n % 40}/{{username}}/{n}/#",
            Action.BOTH, Effect.ALLOW if n % 3 else Effect.DENY,
        )
        for n in range(_RULES)
    )  # fmt: skip
    actor = Actor(ActorKind.CLIENT, "org", "device-1", "device-1", "cli")
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for n in range(2_000):
            rules.decide(actor, Action.PUBLISH, f"site/{n % 40}/device-1/{n % _RULES}/state")
        times.append((time.perf_counter() - began) / 2_000 * 1e6)
    page.say(f"- a decision by {_RULES:,} rules: {spread(times, ',.1f')} µs (goal: at most 50)")


def _percentiles(values: Sequence[float], scale: float) -> str:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"p50 {cuts[49] * scale:.1f}, p99 {cuts[98] * scale:.1f}, max {max(values) * scale:.1f}"
