"""Starts a deployment in a temporary folder, runs and prints the steps, and stops or keeps it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from demo.exchange import exchange
from demo.messaging import messaging
from demo.steps import DemoError, claim, life_of_a_key

WORKERS = 2
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def main() -> int:
    """Run the demo; return its exit code."""
    keep = bool(os.environ.get("KEEP"))
    with tempfile.TemporaryDirectory(prefix="wardkey-demo-") as folder:
        data_dir = Path(folder) / "data"
        started = time.perf_counter()
        try:
            with deployment(data_dir) as (process, output):
                setup_token = re.search(r"/setup/(\w+)", output)
                url = re.search(r"listens on (\S+)", output)
                assert setup_token is not None
                assert url is not None
                print_step("start `wardkey up`", f"{WORKERS} workers on {url[1]}", started)
                before = time.perf_counter()
                for title, outcome in life_of_a_key(
                    url[1], setup_token[1], data_dir, process, WORKERS
                ):
                    print_step(title, outcome, before)
                    before = time.perf_counter()
                port = re.search(r"MQTT: \S+:(\d+),", output)
                assert port is not None
                for steps in (messaging, exchange):
                    for title, outcome in steps(url[1], int(port[1])):
                        print_step(title, outcome, before)
                        before = time.perf_counter()
                print("\nEvery step passed.")
                if keep:
                    keep_running(url[1], output)
        except DemoError as error:
            print(f"\nThe next step failed: {error}", file=sys.stderr)
            return 1
    return 0


def print_step(title: str, outcome: str, since: float) -> None:
    """Print a step with its duration."""
    took = f"{(time.perf_counter() - since) * 1000:6.0f} ms"
    grey, plain = ("\x1b[2m", "\x1b[0m") if COLOUR else ("", "")
    print(f"{grey}{took}{plain}  {title}: {outcome}", flush=True)


@contextmanager
def deployment(data_dir: Path) -> Iterator[tuple[int, str]]:
    """Run `wardkey up` until the block ends; yield its process id and output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
    log = data_dir.with_name("log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "wardkey", "up", "--data-dir", str(data_dir), "--listen",
             "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0", "--websocket-listen", "127.0.0.1:0",
             "--workers", str(WORKERS), "--organization", "Acme", "--private-issuers",
             "--owner", "owner@acme.example"],
            env=clean, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
    try:
        yield process.pid, wait_until_ready(process, log)
        process.send_signal(signal.SIGTERM)
        claim(process.wait(30) == 0, f"`wardkey up` did not stop cleanly:\n{log.read_text()}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server is ready; return its output."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        output = log.read_text()
        claim(process.poll() is None, f"`wardkey up` did not start:\n{output}")
        url = re.search(r"listens on (\S+)", output)
        if url is not None:
            try:
                if httpx.get(f"{url[1]}/readyz", timeout=2).status_code == 200:
                    return output
            except httpx.TransportError:
                pass
        time.sleep(0.02)
    raise DemoError("the server was not ready within 60 s")


def keep_running(url: str, output: str) -> None:
    """Print what to try next, and wait for Ctrl-C."""
    key = re.search(r"sk_live_\w+", output)
    print(f"\nThe deployment keeps running at {url}. Try:\n")
    print(f"  curl {url}/v2/keys -H 'Authorization: Bearer {key[0] if key else ''}'")
    print(f"\nAll routes: {url}/v2/docs   Ctrl-C stops it and removes its folder.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main())
