"""Starts a deployment in a temporary folder, tells its steps, and stops or keeps it."""

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
from demo.steps import Broken, claim, life_of_a_key

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
                found = re.search(r"/setup/(\w+)", output)
                url = re.search(r"listens on (\S+)", output)
                assert found is not None
                assert url is not None
                tell("start `wardkey up`", f"{WORKERS} workers on {url[1]}", started)
                before = time.perf_counter()
                for title, outcome in life_of_a_key(url[1], found[1], data_dir, process, WORKERS):
                    tell(title, outcome, before)
                    before = time.perf_counter()
                port = re.search(r"MQTT: \S+:(\d+),", output)
                assert port is not None
                for steps in (messaging, exchange):
                    for title, outcome in steps(url[1], int(port[1])):
                        tell(title, outcome, before)
                        before = time.perf_counter()
                print("\nEvery step held.")
                if keep:
                    stay(url[1], output)
        except Broken as error:
            print(f"\nThis step did not hold: {error}", file=sys.stderr)
            return 1
    return 0


def tell(title: str, outcome: str, since: float) -> None:
    """Print a step with the time that it took."""
    took = f"{(time.perf_counter() - since) * 1000:6.0f} ms"
    grey, plain = ("\x1b[2m", "\x1b[0m") if COLOUR else ("", "")
    print(f"{grey}{took}{plain}  {title}: {outcome}", flush=True)


@contextmanager
def deployment(data_dir: Path) -> Iterator[tuple[int, str]]:
    """Run `wardkey up` until the block ends; yield its process and output."""
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
        yield process.pid, ready(process, log)
        process.send_signal(signal.SIGTERM)
        claim(process.wait(30) == 0, f"it did not stop cleanly:\n{log.read_text()}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until it answers; return its output."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        output = log.read_text()
        claim(process.poll() is None, f"it did not start:\n{output}")
        found = re.search(r"listens on (\S+)", output)
        if found is not None:
            try:
                if httpx.get(f"{found[1]}/readyz", timeout=2).status_code == 200:
                    return output
            except httpx.TransportError:
                pass
        time.sleep(0.02)
    raise Broken("it was not ready within 60 s")


def stay(url: str, output: str) -> None:
    """Say how to go on, and wait for Ctrl-C."""
    key = re.search(r"sk_live_\w+", output)
    print(f"\nIt keeps running at {url}. Try:\n")
    print(f"  curl {url}/v2/keys -H 'Authorization: Bearer {key[0] if key else ''}'")
    print(f"\nAll routes: {url}/v2/docs   Stop with Ctrl-C; the folder is removed then.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main())
