"""Servers on one core, wrk on the other, in rounds that take turns."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SERVER_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 32
_WRK = Path(__file__).with_name("wrk.lua")
_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 120


class Broken(Exception):
    """A server did not answer as it must, so its numbers would mean nothing."""


@dataclass(slots=True)
class Server:
    """A server in a process group of its own; `PORT` in its command becomes a free port."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on its core."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [part.replace("PORT", str(self.port)) for part in self.command]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", SERVER_CORE, *command],
                cwd=self.folder,
                env={**_environment(), **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, asked: bytes, expected: str) -> float:
        """Return when it first answered `asked` as expected; raises `Broken`."""
        assert self.process is not None
        end = time.perf_counter() + _START_S
        while time.perf_counter() < end:
            if self.process.poll() is not None:
                break
            try:
                answer = self.ask(asked)
            except OSError:
                time.sleep(0.005)
                continue
            if expected not in answer.lower():
                raise Broken(f"{self.name} answered {answer}")
            return time.perf_counter()
        log = (self.folder / "log").read_text()[-2000:]
        raise Broken(f"{self.name} did not answer:\n{log}")

    def ask(self, asked: bytes) -> str:
        """Send one request on a connection of its own; return the answer as it came."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(asked)
            answer = b""
            while not _is_whole(answer):
                part = connection.recv(65_536)
                if not part:
                    raise ConnectionResetError
                answer += part
        return answer.decode()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it."""
        self.tell(signal.SIGCONT)
        self.tell(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.tell(signal.SIGKILL)
                self.process.wait()

    def pids(self) -> list[int]:
        """Return its processes."""
        assert self.process is not None
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(place.name)) == self.process.pid:
                    found.append(int(place.name))
            except ProcessLookupError:
                continue
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU that its processes used so far."""
        used = 0
        for pid in self.pids():
            behind_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += int(behind_name[11]) + int(behind_name[12])
        return used / _TICKS

    def memory(self) -> float:
        """Return the MiB of memory that are its own: without what it shares, files included."""
        kib = 0
        for pid in self.pids():
            told = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+)", told, re.MULTILINE))
        return kib / 1024


@dataclass(slots=True)
class Case:
    """One question to one server: equal-length requests in a file, and what answers contain."""

    name: str
    server: Server
    requests: Path
    size: int
    expected: str
    # Each key is asked once before the rounds, so that what a server remembers is remembered.
    warm: bool = False
    # A slow server needs longer rounds and fewer connections, to answer anything in them.
    least_s: float = 0
    connections: int = CONNECTIONS
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    alone_us: list[float] = field(default_factory=list)

    def sample(self, number: int) -> bytes:
        """Return one of the requests."""
        with self.requests.open("rb") as file:
            file.seek(number * 7919 % self.count * self.size)
            return file.read(self.size)

    def check(self) -> float:
        """Ask twenty of the keys; return the mean length of the answers. Raises `Broken`."""
        answers = [self.server.ask(self.sample(n)) for n in range(20)]
        wrong = [answer for answer in answers if self.expected not in answer.lower()]
        if wrong:
            raise Broken(f"{self.name}: {wrong[0]}")
        return statistics.mean(len(answer) for answer in answers)

    @property
    def count(self) -> int:
        """How many requests there are."""
        return self.requests.stat().st_size // self.size

    def round(self, seconds: float, first: int, connections: int = 0) -> dict[str, int]:
        """Load it, from request `first` on; return what wrk counted.

        Raises `Broken` if an answer was no success.
        """
        at_once, lasts = connections or self.connections, max(seconds, self.least_s)
        done = subprocess.run(
            ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{at_once}", f"-d{lasts:g}s", "--timeout",
             "20s", "-s", str(_WRK), f"http://127.0.0.1:{self.server.port}/",
             "--", str(self.requests), str(self.size), str(first % self.count)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Broken(f"{self.name}: wrk: {done.stdout}{done.stderr}")
        told: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        if told["refused"] or told["broken"] or not told["requests"]:
            raise Broken(f"{self.name}: {told}")
        return told

    def warm_up(self, seconds: float) -> None:
        """Load it a first time. Raises `Broken` if answers are not as long as they must be."""
        expected, asked, answered = self.check(), 0, 0
        while not asked or (self.warm and asked < self.count):
            told = self.round(seconds, asked)
            asked, answered = asked + told["requests"], answered + told["bytes"]
        # Refusals come with 200 too; their length gives them away.
        if abs(answered / asked / expected - 1) > 0.02:
            raise Broken(f"{self.name}: answers of {answered / asked:.0f} bytes under load")

    def measure(self, seconds: float, first: int) -> None:
        """Take one round into account, and a short one of one request at a time."""
        before = self.server.cpu()
        told = self.round(seconds, first)
        used = self.server.cpu() - before
        self.rates.append(told["requests"] / told["us"] * 1e6)
        self.cpu_us.append(used / told["requests"] * 1e6)
        self.alone_us.append(self.round(min(seconds, 1), first, connections=1)["p50"])


def write_requests(path: Path, requests: Sequence[bytes]) -> int:
    """Write requests of one length end to end; return the length."""
    sizes = {len(request) for request in requests}
    assert len(sizes) == 1, f"requests of {path.name} differ in length: {sizes}"
    path.write_bytes(b"".join(requests))
    return sizes.pop()


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """Run servers until the block ends; raises `Broken`."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


def take_turns(cases: Sequence[Case], rounds: int, seconds: float) -> None:
    """Measure the cases A B C A B C; a server whose turn it is not is stopped dead."""
    for case in cases:
        case.server.wait(case.sample(0), case.expected)
    for case in cases:
        case.server.tell(signal.SIGSTOP)
    for number in range(-1, rounds):
        for case in cases:
            case.server.tell(signal.SIGCONT)
            if number < 0:
                case.warm_up(seconds)
            else:
                case.measure(seconds, number * (case.count // rounds))
                case.check()
            case.server.tell(signal.SIGSTOP)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
