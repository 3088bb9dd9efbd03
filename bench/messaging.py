"""What messaging costs: publishing over HTTP, delivery, logins, cuts, rules, and memory."""

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

from bench.load import LOAD_CORE, SERVER_CORE, Broken, Case, Server, write_requests
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

AT_ONCE = 64
_PAYLOAD = "x" * 64
_RULES = 1_000


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

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
    """What a client shows on MQTT."""

    id: str
    username: str
    password: str


@dataclass(slots=True)
class Running:
    """A deployment with its broker, of which the first organization lets everybody do all."""

    server: Server
    key: str
    mqtt_port: int

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Make a call with the first key; raises `Broken` if it is refused."""
        text = json.dumps(body) if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n"
        kind = "Content-Type: application/json\r\n" if text else ""
        asked = f"{head}{kind}Content-Length: {len(text)}\r\n\r\n{text}".encode()
        status, _, rest = self.server.ask(asked).removeprefix("HTTP/1.1 ").partition(" ")
        if status[0] != "2":
            raise Broken(f"{method} {path}: {status} {rest}")
        told: dict[str, object] = json.loads(rest.partition("\r\n\r\n")[2] or "{}")
        return told

    def broker(self) -> int:
        """Return the broker's process."""
        return next(
            pid
            for pid in self.server.pids()
            if b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        )

    def worker_cpu(self) -> float:
        """Return the seconds of CPU that all but the broker used so far."""
        return self.server.cpu() - _cpu(self.broker())

    def resident(self) -> dict[str, float]:
        """Return the MiB that each process holds, what they share split between them."""
        found = {}
        for pid in self.server.pids():
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
            is_broker = b"nats-server" in name[0]
            found[f"{'broker' if is_broker else 'Wardkey'} {pid}"] = (
                int(kib[1]) / 1024 if kib else 0
            )
        return found


def _cpu(pid: int) -> float:
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def messaging(page: Page, *, quick: bool) -> None:
    """Measure all of messaging."""
    amount = QUICK if quick else FULL
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    page.section("Messaging")
    page.say(
        "One worker on one core; the broker, a process of its own, and the load on the other.\n"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = _filled(folder / "data", amount)
        with _running(folder) as running:
            _publish(page, running, folder, amount)
            asyncio.run(_deliver(page, running, made[0][0], amount))
            asyncio.run(_log_in(page, running, made[0], amount))
            asyncio.run(_cut(page, running, amount))
            asyncio.run(_idle(page, running, made, amount))
    _decide(page)


def _filled(data_dir: Path, amount: Amount) -> list[list[Login]]:
    """Make a deployment; return the logins of each organization's clients."""
    each = amount.idle // amount.organizations
    found = []
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
            found.append(
                [Login(m.client.id, m.client.mqtt_username, m.password or "") for m in made]
            )
    return found


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
    """Run it on one core, its broker on the other; raises `Broken`."""
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
        told = re.search(r"MQTT: \S+:(\d+),", log)
        assert told is not None, log
        running = Running(server, key, int(told[1]))
        for task in Path(f"/proc/{running.broker()}/task").iterdir():
            os.sched_setaffinity(int(task.name), {int(LOAD_CORE)})
        yield running
    finally:
        server.stop()


def _publish(page: Page, running: Running, folder: Path, amount: Amount) -> None:
    """Publish over HTTP, in turn with the same MQTT client alone, as many messages in flight."""
    body = json.dumps({"topic": "bench/a", "payload": _PAYLOAD, "qos": 1})
    asked = post("/publish", body, f"Authorization: Bearer {running.key}\r\n")
    size = write_requests(folder / "publish", [asked])
    case = Case(
        "POST /publish", running.server, folder / "publish", size, '"success":true',
        connections=AT_ONCE,
    )  # fmt: skip
    case.warm_up(1)
    alone, cpu, bare_cpu = [], [], []
    for _ in range(amount.rounds):
        used = running.worker_cpu()
        told = case.round(amount.seconds, 0)
        case.rates.append(told["requests"] / told["us"] * 1e6)
        cpu.append((running.worker_cpu() - used) / told["requests"] * 1e6)
        rate, each = _bare(running, amount.seconds)
        alone.append(rate)
        bare_cpu.append(each)
        case.alone_us.append(case.round(1, 0, connections=1)["p50"])
    ratios = [ours / bare for ours, bare in zip(case.rates, alone, strict=True)]
    page.say(
        f"- QoS 1 over HTTP, {AT_ONCE} connections, acknowledged by the broker: "
        f"{spread(case.rates)} a second (goal: at least 8,000), {spread(cpu, ',.1f')} µs of the "
        "worker's CPU each"
    )
    page.say(
        f"- the same MQTT client without HTTP, {AT_ONCE} in flight: {spread(alone)} a second, "
        f"{spread(bare_cpu, ',.1f')} µs of CPU each"
    )
    page.say(f"- the first ÷ the second: {spread(ratios, ',.2f')} (goal: at least 0.5)")
    page.say(f"- one message alone over HTTP: p50 {spread(case.alone_us)} µs")


def _bare(running: Running, seconds: float) -> tuple[float, float]:
    """Return our MQTT client's messages a second on the worker's core, and the CPU µs of each."""
    made = running.call("POST", "/v2/clients", {"username": f"bare-{time.time_ns()}"})
    client = made["client"]
    assert isinstance(client, dict)
    done = subprocess.run(
        ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "bench.bare", str(running.mqtt_port),
         str(client["mqtt_username"]), str(AT_ONCE), str(seconds)],
        input=str(made["password"]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Broken(f"the MQTT client alone: {done.stderr}")
    rate, each = map(float, done.stdout.split())
    return rate, each


async def _deliver(page: Page, running: Running, login: Login, amount: Amount) -> None:
    """Publish 2,000 a second over HTTP; measure until a subscriber has each."""
    took: list[float] = []
    subscriber = MqttClient(
        lambda payload: took.append(time.perf_counter() - float(payload.partition(b" ")[0]))
    )
    await subscriber.connect(running.mqtt_port, login.username, login.password, "bench-receiver")
    await subscriber.subscribe("delay/#")
    # As in a client's pool: a line takes a request when it has its last answer.
    lines: list[_Line] = []
    free: deque[_Line] = deque()
    head = f"Authorization: Bearer {running.key}\r\n"
    count, began = int(2_000 * amount.seconds * 2), time.perf_counter()
    for number in range(count):
        due = began + number / 2_000
        await asyncio.sleep(max(0, due - time.perf_counter()))
        payload = f"{time.perf_counter():.7f} {_PAYLOAD}"
        body = json.dumps({"topic": "delay/a", "payload": payload, "qos": 1})
        if not free:
            lines.append(await _Line.open(running.server.port, free))
        free.popleft().send(post("/publish", body, head))
    lasted = time.perf_counter() - began
    for _ in range(500):
        if len(took) >= count:
            break
        await asyncio.sleep(0.01)
    for line in lines:
        line.close()
    subscriber.close()
    if len(took) < count:
        raise Broken(f"{count - len(took)} of {count} messages did not arrive")
    page.say(
        f"- from the call to the subscriber at {count / lasted:,.0f} a second over {len(lines)} "
        f"connections: {_cuts(took, 1e3)} ms (goal: p99 at most 10)"
    )


class _Line(asyncio.Protocol):
    """An HTTP connection that is back among the free ones with each answer."""

    def __init__(self, free: deque[_Line]) -> None:
        self._free, self._told = free, b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, port: int, free: deque[_Line]) -> _Line:
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(lambda: cls(free), "127.0.0.1", port)
        free.append(line)
        return line

    def data_received(self, data: bytes) -> None:
        self._told += data
        if b'"success":true' in self._told:
            self._told = b""
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
    """Log in one after the other on many connections; the first time with client ids unseen."""
    logins = logins[: amount.clients]
    for name in ("the first time", "again"):
        rate = await _storm(running, logins, [f"bench-{n}" for n in range(len(logins))])
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
    first = await _storm(running, chosen, names)
    page.say(f"- logins with chosen passwords, Argon2 paid: {first:,.0f} a second")
    again = max(1, amount.clients // len(chosen))
    rate = await _storm(running, chosen * again, [f"{n}-{t}" for t in range(again) for n in names])
    page.say(
        f"- logins with chosen passwords, known for five minutes, client ids unseen: {rate:,.0f} a "
        "second (goal: 1,000)"
    )


async def _storm(running: Running, logins: Sequence[Login], names: Sequence[str]) -> float:
    """Return how many log in a second, 64 at once; raises `Broken` if one is refused."""
    todo = iter(list(zip(logins, names, strict=True)))
    refused = 0

    async def some() -> None:
        nonlocal refused
        for login, name in todo:
            client = MqttClient()
            refused += bool(
                await client.connect(running.mqtt_port, login.username, login.password, name)
            )
            client.close()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    lasted = time.perf_counter() - began
    if refused:
        raise Broken(f"{refused} logins of {len(logins)} were refused")
    return len(logins) / lasted


async def _cut(page: Page, running: Running, amount: Amount) -> None:
    """Disable clients with a live session each; measure until it is closed."""
    took, after = [], []
    for number in range(amount.kicks):
        made = running.call("POST", "/v2/clients", {"username": f"kicked-{number}"})
        client = made["client"]
        assert isinstance(client, dict)
        live = MqttClient()
        await live.connect(
            running.mqtt_port, client["mqtt_username"], str(made["password"]), f"kicked-{number}"
        )
        began = time.perf_counter()
        call = asyncio.to_thread(
            running.call, "PATCH", f"/v2/clients/{client['id']}", {"enabled": False}
        )
        done = asyncio.create_task(_timed(call))
        async with asyncio.timeout(20):
            ended = await live.ended
        took.append(ended - began)
        after.append(max(0.0, ended - await done))
    page.say(
        f"- from the call that disables a client to the end of its session: {_cuts(took, 1e3)} ms "
        f"(goal: p99 at most 100); from its answer: {_cuts(after, 1e3)} ms"
    )


async def _timed(call: Awaitable[object]) -> float:
    await call
    return time.perf_counter()


async def _idle(
    page: Page, running: Running, made: Sequence[Sequence[Login]], amount: Amount
) -> None:
    """Hold many clients of many organizations; tell what all processes hold then."""
    before = sum(running.resident().values())
    each = amount.idle // amount.organizations
    held = []
    for number, logins in enumerate(made):
        some = [MqttClient() for _ in logins[:each]]
        held += some
        codes = await asyncio.gather(
            *(
                client.connect(running.mqtt_port, login.username, login.password, f"i-{number}-{n}")
                for n, (client, login) in enumerate(zip(some, logins, strict=False))
            )
        )
        if any(codes):
            raise Broken(f"idle clients were refused: {codes}")
        await asyncio.gather(*(client.subscribe("idle/#") for client in some))
    await asyncio.sleep(2)
    after = running.resident()
    page.say(
        f"- memory with {len(held):,} idle clients of {amount.organizations:,} organizations: "
        f"{sum(after.values()):,.0f} MiB of all processes (goal: at most 1,024), "
        f"{before:,.0f} before; of it the broker "
        f"{sum(mib for name, mib in after.items() if name.startswith('broker')):,.0f}"
    )
    for client in held:
        client.close()


def _decide(page: Page) -> None:
    """Time the decision of a thousand rules, as the simulator and publishing ask for it."""
    rules = RuleSet(
        AclRule(
            f"acl_{n:04}", n, SubjectKind.EVERYONE, "", f"site/{n % 40}/{{username}}/{n}/#",
            Action.BOTH, Effect.ALLOW if n % 3 else Effect.DENY,
        )
        for n in range(_RULES)
    )  # fmt: skip
    actor = Actor(ActorKind.CLIENT, "org", "device-1", "device-1", "cli")
    took = []
    for _ in range(5):
        began = time.perf_counter()
        for n in range(2_000):
            rules.decide(actor, Action.PUBLISH, f"site/{n % 40}/device-1/{n % _RULES}/state")
        took.append((time.perf_counter() - began) / 2_000 * 1e6)
    page.say(f"- a decision by {_RULES:,} rules: {spread(took, ',.1f')} µs (goal: at most 50)")


def _cuts(took: Sequence[float], scale: float) -> str:
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return f"p50 {cuts[49] * scale:.1f}, p99 {cuts[98] * scale:.1f}, max {max(took) * scale:.1f}"
