"""Runs servers on one core and wrk on the other, in alternating rounds."""

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


class BenchmarkError(Exception):
    """A server gave a wrong answer, so its numbers would be meaningless."""


@dataclass(slots=True)
class Server:
    """A server in its own process group; `PORT` in its command becomes a free port."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server on its core."""
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

    def wait(self, request: bytes, expected: str) -> float:
        """Return the time of the first expected answer to `request`; raises `BenchmarkError`."""
        assert self.process is not None
        end = time.perf_counter() + _START_S
        while time.perf_counter() < end:
            if self.process.poll() is not None:
                break
            try:
                answer = self.send(request)
            except OSError:
                time.sleep(0.005)
                continue
            if expected not in answer.lower():
                raise BenchmarkError(f"{self.name} answered {answer}")
            return time.perf_counter()
        log = (self.folder / "log").read_text()[-2000:]
        raise BenchmarkError(f"{self.name} did not answer:\n{log}")

    def send(self, request: bytes) -> str:
        """Send one request on a new connection; return the raw response."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(request)
            answer = b""
            while not _is_whole(answer):
                part = connection.recv(65_536)
                if not part:
                    raise ConnectionResetError
                answer += part
        return answer.decode()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """Stop the server."""
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.send_signal(signal.SIGKILL)
                self.process.wait()

    def pids(self) -> list[int]:
        """Return the ids of the server's processes."""
        assert self.process is not None
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                # By session, because the broker has its own process group.
                if os.getsid(int(entry.name)) == self.process.pid:
                    pids.append(int(entry.name))
            except ProcessLookupError:
                continue
        return pids

    def cpu(self) -> float:
        """Return the CPU time of the server's processes so far, in seconds."""
        used = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
        return used / _TICKS

    def memory(self) -> float:
        """Return the private memory of the server's processes, in MiB."""
        kib = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+)", rollup, re.MULTILINE))
        return kib / 1024


@dataclass(slots=True)
class Case:
    """One workload for one server: requests of equal length in a file, and the expected answer."""

    name: str
    server: Server
    requests: Path
    size: int
    expected: str
    # Send each request once before the rounds, to fill the server's caches.
    warm: bool = False
    # A slow server needs longer rounds and fewer connections.
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
        """Send twenty requests; return the mean length of the answers. Raises `BenchmarkError`."""
        answers = [self.server.send(self.sample(n)) for n in range(20)]
        wrong = [answer for answer in answers if self.expected not in answer.lower()]
        if wrong:
            raise BenchmarkError(f"{self.name}: {wrong[0]}")
        return statistics.mean(len(answer) for answer in answers)

    @property
    def count(self) -> int:
        """The number of requests in the file."""
        return self.requests.stat().st_size // self.size

    def round(self, seconds: float, first: int, connections: int = 0) -> dict[str, int]:
        """Run wrk, starting at request `first`; return its counts.

        Raises `BenchmarkError` if an answer was not a success.
        """
        concurrency, duration = connections or self.connections, max(seconds, self.least_s)
        done = subprocess.run(
            ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{concurrency}",
             f"-d{duration:g}s", "--timeout", "20s", "-s", str(_WRK), f"http://127.0.0.1:{self.server.port}/",
             "--", str(self.requests), str(self.size), str(first % self.count)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"{self.name}: wrk: {done.stdout}{done.stderr}")
        counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        if counts["refused"] or counts["broken"] or not counts["requests"]:
            raise BenchmarkError(f"{self.name}: {counts}")
        return counts

    def warm_up(self, seconds: float) -> None:
        """Run the first load. Raises `BenchmarkError` if answers have an unexpected length."""
        expected, sent, received = self.check(), 0, 0
        while not sent or (self.warm and sent < self.count):
            counts = self.round(seconds, sent)
            sent, received = sent + counts["requests"], received + counts["bytes"]
        # Refusals have status 200 too, but another length.
        if abs(received / sent / expected - 1) > 0.02:
            raise BenchmarkError(f"{self.name}: answers of {received / sent:.0f} bytes under load")

    def measure(self, seconds: float, first: int) -> None:
        """Measure one round, and a short one with one request at a time."""
        before = self.server.cpu()
        counts = self.round(seconds, first)
        used = self.server.cpu() - before
        self.rates.append(counts["requests"] / counts["us"] * 1e6)
        self.cpu_us.append(used / counts["requests"] * 1e6)
        self.alone_us.append(self.round(min(seconds, 1), first, connections=1)["p50"])


def write_requests(path: Path, requests: Sequence[bytes]) -> int:
    """Write requests of equal length one after another; return the length."""
    sizes = {len(request) for request in requests}
    assert len(sizes) == 1, f"requests of {path.name} differ in length: {sizes}"
    path.write_bytes(b"".join(requests))
    return sizes.pop()


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """Run servers until the block ends; raises `BenchmarkError`."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


def take_turns(cases: Sequence[Case], rounds: int, seconds: float) -> None:
    """Measure the cases A B C A B C; the other servers are paused (SIGSTOP)."""
    for case in cases:
        case.server.wait(case.sample(0), case.expected)
    for case in cases:
        case.server.send_signal(signal.SIGSTOP)
    for number in range(-1, rounds):
        for case in cases:
            case.server.send_signal(signal.SIGCONT)
            if number < 0:
                case.warm_up(seconds)
            else:
                case.measure(seconds, number * (case.count // rounds))
                case.check()
            case.server.send_signal(signal.SIGSTOP)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
