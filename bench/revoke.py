"""From the revoke call's answer to the refusal in another worker, over HTTP."""

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


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, key: str, body: object = None
) -> tuple[int, dict[str, object]]:
    """Return the status and the body of one request."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else {}


def a_connection_for_each_worker(
    url: str, parent: int, count: int
) -> list[http.client.HTTPConnection]:
    """Open connections until each worker process holds one; return one of each."""
    host, port = url.removeprefix("http://").split(":")
    held: dict[int, http.client.HTTPConnection] = {}
    while len(held) < count:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        held[worker_of(connection.sock.getsockname()[1], int(port), parent)] = connection
    return list(held.values())


def revoke(page: Page, tries: int) -> None:
    """Revoke through one worker, ask the other as soon as the answer is there; count."""
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder) / "data") as (parent, output),
    ):
        url = re.search(r"listens on (\S+)", output)
        key = re.search(r"sk_live_\w+", output)
        assert url is not None
        assert key is not None
        here, there = a_connection_for_each_worker(url[1], parent, 2)
        accepted, took = 0, []
        for turn in range(tries):
            wanted = {"name": f"live-bench-{turn}", "type": "secret"}
            _, made = ask(here, "POST", "/v2/keys", key[0], wanted)
            record, secret = made["key"], str(made["secret"])
            assert isinstance(record, dict)
            # Known to the other worker's memory, or there would be nothing to forget.
            status, _ = ask(there, "GET", "/v2/auth", secret)
            assert status == 200
            began = time.perf_counter()
            status, _ = ask(here, "POST", f"/v2/keys/{record['id']}/revoke", key[0])
            took.append((time.perf_counter() - began) * 1000)
            assert status == 200
            accepted += ask(there, "GET", "/v2/auth", secret)[0] == 200
        alone = []
        for _ in range(min(tries, 2000)):
            began = time.perf_counter()
            ask(there, "GET", "/v2/auth", key[0])
            alone.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    page.say(
        f"- accepted in the other worker after the revoke call returned: {accepted} of {tries:,}"
    )
    page.say(f"- revoke call: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, max {max(took):.1f} ms")
    page.say(f"- one forward-auth request alone: p50 {statistics.median(alone):.2f} ms")
