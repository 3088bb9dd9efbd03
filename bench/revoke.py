"""Checks over HTTP that another worker refuses a key as soon as the revoke call has returned."""

from __future__ import annotations

import http.client
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

from bench.page import Page
from demo.__main__ import deployment
from demo.steps import worker_of


def call(
    connection: http.client.HTTPConnection, method: str, path: str, key: str, body: object = None
) -> tuple[int, dict[str, object]]:
    """Send a request; return its status and body."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else {}


def connect_to_each_worker(url: str, parent: int, count: int) -> list[http.client.HTTPConnection]:
    """Open connections until each worker process has one; return one of each."""
    host, port = url.removeprefix("http://").split(":")
    connections: dict[int, http.client.HTTPConnection] = {}
    while len(connections) < count:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connections[worker_of(connection.sock.getsockname()[1], int(port), parent)] = connection
    return list(connections.values())


def revoke(page: Page, tries: int) -> None:
    """Revoke through one worker, verify at the other at once; count accepted keys."""
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder) / "data") as (parent, output),
    ):
        url = re.search(r"listens on (\S+)", output)
        key = re.search(r"sk_live_\w+", output)
        assert url is not None
        assert key is not None
        first, second = connect_to_each_worker(url[1], parent, 2)
        accepted, times = 0, []
        for turn in range(tries):
            spec = {"name": f"live-bench-{turn}", "type": "secret"}
            _, issued = call(first, "POST", "/v2/keys", key[0], spec)
            record, secret = issued["key"], str(issued["secret"])
            assert isinstance(record, dict)
            # Load the key into the other worker's memory, so that it has something to evict.
            status, _ = call(second, "GET", "/v2/auth", secret)
            assert status == 200
            began = time.perf_counter()
            status, _ = call(first, "POST", f"/v2/keys/{record['id']}/revoke", key[0])
            times.append((time.perf_counter() - began) * 1000)
            assert status == 200
            accepted += call(second, "GET", "/v2/auth", secret)[0] == 200
        single = []
        for _ in range(min(tries, 2000)):
            began = time.perf_counter()
            call(second, "GET", "/v2/auth", key[0])
            single.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    page.say(
        f"- accepted by the other worker after the revoke call returned: {accepted} of {tries:,}"
    )
    page.say(
        f"- revoke call: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, max {max(times):.1f} ms"
    )
    page.say(f"- one forward-auth request at a time: p50 {statistics.median(single):.2f} ms")
