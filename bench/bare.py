"""`python -m bench.bare PORT USERNAME CONCURRENCY SECONDS`: our MQTT client without HTTP.

Reads the password from stdin. Prints the acknowledged messages a second and the CPU µs of each.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from wardkey.adapters.mqtt import Publisher
from wardkey.domain.errors import WardkeyError


async def publish(
    port: int, username: str, password: str, concurrency: int, seconds: float
) -> tuple[float, float]:
    """Return the acknowledged messages a second, and the CPU µs of each."""
    publisher = Publisher("127.0.0.1", port, f"bare-{time.time_ns()}")
    await publisher.open(username, password)
    count, is_finished = 0, asyncio.Event()
    began, used = time.perf_counter(), time.process_time()
    end = began + seconds

    def on_acknowledged(failure: WardkeyError | None) -> None:
        nonlocal count
        if failure is not None:
            raise failure
        count += 1
        if time.perf_counter() < end:
            publisher.send("bench/a", b"x" * 64, on_acknowledged, retain=False)
        else:
            is_finished.set()

    for _ in range(concurrency):
        publisher.send("bench/a", b"x" * 64, on_acknowledged, retain=False)
    async with asyncio.timeout(seconds + 20):
        await is_finished.wait()
    each = (time.process_time() - used) / count * 1e6
    return count / (time.perf_counter() - began), each


_, port, username, concurrency, seconds = sys.argv
password = sys.stdin.read()
print(*uvloop.run(publish(int(port), username, password, int(concurrency), float(seconds))))
