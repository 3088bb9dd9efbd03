"""A real `wardkey up` in its own process, with clients for its people and keys."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx2 as httpx
from click.testing import CliRunner, Result

from tests.support.forkserver import Warm

T = TypeVar("T")

PASSWORD = "a password of some length"
OWNER = "owner@acme.example"
# Otherwise httpx reads all system certificates for each client, which takes 50 ms.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def wait_until(condition: Callable[[], T], within_s: float = 15) -> T:
    """Return the first truthy value of `condition()`; fail after a timeout."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{condition} did not come true within {within_s} s")


class Server:
    """A deployment that can be started, stopped, killed and started again.

    `first_key` and `setup_token` come from the first start's output; `output` is all of it.
    `around` are environment variables that are not settings; with any, or if `cold`, it is
    started as by a shell, otherwise by `Warm`.
    """

    def __init__(
        self, data_dir: Path, around: Mapping[str, str] | None = None, **settings: object
    ) -> None:
        self.data_dir = data_dir
        self.around = around or {}
        self.cold = bool(settings.pop("cold", around))
        self.settings: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "owner": OWNER,
            "organization": "Acme",
            # Most tests only need keys, and a broker for each would take a second.
            "no_messaging": 1,
            "mqtt_listen": "127.0.0.1:0",
            "websocket_listen": "127.0.0.1:0",
            **settings,
        }
        cert = settings.get("tls_cert")
        self.trust = ssl.create_default_context(cafile=str(cert)) if cert else NO_CERTIFICATES
        # The certificate itself is trusted, independent of its signer.
        self.trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.process: subprocess.Popen[bytes] | Warm | None = None
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.url = ""
        self.first_key = ""
        self.setup_token = ""
        self._tokens: dict[str, str] = {}
        self._broker = 0

    @property
    def environment(self) -> dict[str, str]:
        """The WARDKEY_* variables of this deployment, also for its command line."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
        named = {f"WARDKEY_{k.upper()}": str(v) for k, v in self.settings.items() if v != ""}
        return {**clean, **self.around, **named, "WARDKEY_DATA_DIR": str(self.data_dir)}

    @property
    def output(self) -> str:
        """The output of all starts."""
        return self.log.read_text() if self.log.exists() else ""

    def start(self) -> None:
        """Start and wait until it is ready."""
        before = len(self.output)
        if self.cold:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "wardkey", "up"],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        else:
            self.process = Warm(["up"], self.environment, self.log, self.log)

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.output[before:]
            match = re.search(r"listens on (\S+)", self.output[before:])
            if match is None:
                return False
            self.url = match[1]
            try:
                return (
                    httpx.get(f"{self.url}/readyz", timeout=1, verify=self.trust).status_code == 200
                )
            except httpx.TransportError:
                return False

        wait_until(ready, 60)
        key = re.search(r"\b(\w+_)?sk_live_\w+", self.output)
        link = re.search(r"/setup/(\w+)", self.output)
        self.first_key = key[0] if key else ""
        self.setup_token = link[1] if link else ""
        mqtt = re.search(
            r"MQTT: \S+:(\d+), over WebSocket: wss?://\S+:(\d+)/mqtt", self.output[before:]
        )
        self.mqtt_port, self.websocket_port = (int(mqtt[1]), int(mqtt[2])) if mqtt else (0, 0)

    def stop(self) -> int:
        """Stop it with SIGTERM, as an init system does; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def kill(self) -> None:
        """Kill all its processes at once, and wait until their ports are free."""
        if self.process is not None and self.process.poll() is None:
            self._broker = self._find_broker() or 0
            if self._broker:
                os.kill(self._broker, signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            wait_until(lambda: not self._is_any_alive())

    def _is_any_alive(self) -> bool:
        assert self.process is not None
        for stat in Path("/proc").glob("[0-9]*/stat"):
            # An ended process may have no file any more, or be a zombie (Z).
            with suppress(OSError):
                name, _, rest = stat.read_text().rpartition(")")
                state, _, group = rest.split()[:3]
                # The broker has its own group, and ends with the process that started it.
                is_ours = int(group) == self.process.pid or int(name.split()[0]) == self._broker
                if is_ours and state not in "ZX":
                    return True
        return False

    def workers(self) -> list[int]:
        """Return the worker processes, without the broker and the resource tracker."""
        assert self.process is not None
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            pid = int(process.name)
            with suppress(OSError):
                if pid != self.process.pid and os.getpgid(pid) == self.process.pid:
                    command = (process / "cmdline").read_text()
                    if "spawn_main" in command or "forkserver" in command:
                        pids.append(pid)
        return pids

    def kill_one_worker(self) -> int:
        """Kill one worker process and return its pid."""
        pid = self.workers()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def pause_workers(self) -> None:
        """Pause every worker with its connections open."""
        for pid in self.workers():
            os.kill(pid, signal.SIGSTOP)

    def kill_workers(self) -> None:
        """Kill every worker at once; the server restarts them."""
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)

    def broker(self) -> int:
        """Return the broker's process."""
        return wait_until(self._find_broker)

    def _find_broker(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        return next((p for p in pids if "nats-server" in Path(f"/proc/{p}/cmdline").read_text()), 0)

    def kill_broker(self) -> None:
        """Kill the broker; the server restarts it."""
        os.kill(self.broker(), signal.SIGKILL)

    def pause_broker(self) -> None:
        """Pause the broker with its connections open."""
        os.kill(self.broker(), signal.SIGSTOP)

    def resume_broker(self) -> None:
        """Resume the broker."""
        os.kill(self.broker(), signal.SIGCONT)

    def cli(self, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `wardkey …` as this deployment's operator."""
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
            code = Warm(args, {**self.environment, **more}, stdout, stderr).wait(60)
            return subprocess.CompletedProcess(args, code, stdout.read_text(), stderr.read_text())

    def cli_here(self, *args: str, typed: str = "") -> Result:
        """Run `wardkey …` in this process, which is faster; `typed` is its stdin."""
        from wardkey.cli import main

        unset = dict.fromkeys(name for name in os.environ if name.startswith("WARDKEY_"))
        return CliRunner().invoke(main, args, input=typed, env={**unset, **self.environment})

    def client(self, credential: str = "", **headers: str) -> httpx.Client:
        """Return an HTTP client that authenticates with a key or token; without one, anonymous."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if credential:
            named["Authorization"] = f"Bearer {credential}"
        return httpx.Client(base_url=self.url, headers=named, timeout=20, verify=self.trust)

    def owner(self, **headers: str) -> httpx.Client:
        """Return a client signed in as the first owner."""
        if OWNER not in self._tokens:
            with self.client() as anonymous:
                answer = anonymous.post(
                    "/v2/setup", json={"token": self.setup_token, "password": PASSWORD}
                )
            assert answer.status_code == 201, answer.text
            self._tokens[OWNER] = answer.json()["token"]
        return self.client(self._renewed(OWNER), **headers)

    def person(self, role: str, **headers: str) -> httpx.Client:
        """Return a client signed in as an invited member with a role."""
        if role not in self._tokens:
            with self.owner() as owner:
                made = owner.post(
                    "/v2/invitations", json={"email": f"{role}@acme.example", "role": role}
                )
            assert made.status_code == 201, made.text
            token = made.json()["link"].rpartition("/")[2]
            with self.client() as anonymous:
                taken = anonymous.post(
                    "/v2/invitations/accept", json={"token": token, "password": PASSWORD}
                )
            assert taken.status_code == 201, taken.text
            self._tokens[role] = taken.json()["token"]
        return self.client(self._renewed(role, f"{role}@acme.example"), **headers)

    def _renewed(self, name: str, email: str = OWNER) -> str:
        """Return a person's token, or a new one if a test signed them out everywhere."""
        with self.client(self._tokens[name]) as client:
            if client.get("/v2/members").json().get("code") != "invalid_user_token":
                return self._tokens[name]
            body = {"email": email, "password": PASSWORD}
            made = client.post("/v2/user-tokens", json=body)
        if made.status_code == 201:
            self._tokens[name] = made.json()["token"]
        return self._tokens[name]


@contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[Server]:
    """Run a deployment until the block ends."""
    up = Server(data_dir, None, **settings)
    try:
        up.start()
        yield up
    finally:
        up.kill()
