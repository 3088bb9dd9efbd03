"""`python -m bench.bare PORT USERNAME AT_ONCE SECONDS`: the bridge's MQTT client without HTTP.

The password comes over stdin. Printed are the messages a second that were acknowledged, and the
CPU µs of each.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from wardkey.adapters.mqtt import Publisher
from wardkey.domain.errors import WardkeyError


async def publish(
    port: int, username: str, password: str, at_once: int, seconds: float
) -> tuple[float, float]:
    """Return the messages a second, and the CPU µs of each."""
    publisher = Publisher("127.0.0.1", port, f"bare-{time.time_ns()}")
    await publisher.open(username, password)
    count, over = 0, asyncio.Event()
    began, used = time.perf_counter(), time.process_time()
    end = began + seconds

    def done(failure: WardkeyError | None) -> None:
        nonlocal count
        if failure is not None:
            raise failure
        count += 1
        if time.perf_counter() < end:
            publisher.send("bench/a", b"x" * 64, done, retain=False)
        else:
            over.set()

    for _ in range(at_once):
        publisher.send("bench/a", b"x" * 64, done, retain=False)
    async with asyncio.timeout(seconds + 20):
        await over.wait()
    each = (time.process_time() - used) / count * 1e6
    return count / (time.perf_counter() - began), each


_, port, username, at_once, seconds = sys.argv
print(*uvloop.run(publish(int(port), username, sys.stdin.read(), int(at_once), float(seconds))))
