"""The steps of the demo: each checks a claim about the running deployment."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx

Step = tuple[str, str]
PASSWORD = "a password for the demo"


class DemoError(Exception):
    """A claim of the demo that is not true."""


def claim(is_true: object, message: str) -> None:
    """Stop the demo with `message` unless a claim is true."""
    if not is_true:
        raise DemoError(message)


def life_of_a_key(
    url: str, setup_token: str, data_dir: Path, parent: int, workers: int
) -> Iterator[Step]:
    """Yield the title and the outcome of each step when it is done."""
    anonymous = httpx.Client(base_url=url, timeout=20)
    answer = anonymous.post("/v2/setup", json={"token": setup_token, "password": PASSWORD})
    claim(answer.status_code == 201, answer.text)
    owner = httpx.Client(
        base_url=url, timeout=20, headers={"Authorization": f"Bearer {answer.json()['token']}"}
    )
    yield "set up the owner", answer.json()["email"]

    issued = _issue(owner, "live-billing-webhooks", "secret", permissions=["keys:verify"])
    key_id, first = issued["key"]["id"], issued["secret"]
    yield "issue a secret key", f"{issued['key']['secrets'][0]['prefix']} shown once"

    public = _issue(owner, "live-storefront-page", "publishable")["secret"]
    yield "issue a publishable key", f"{public[:12]}… for pages"

    result = _verify(anonymous, first, first)
    claim(result["valid"], f"not valid: {result}")
    yield (
        "verify the secret key",
        f"{result['code']}: {result['name']} of {result['organization']['name']}",
    )

    refused = anonymous.get("/v2/keys", headers={"Authorization": f"Bearer {public}"})
    claim(refused.json()["code"] == "secret_key_required", refused.text)
    yield "use a publishable key where a secret key is required", refused.json()["detail"]

    test = _issue(owner, "test-billing-webhooks", "secret", environment="test")["secret"]
    result = _verify(anonymous, first, test)
    claim(result["code"] == "wrong_environment", f"not refused: {result}")
    yield "verify a test key in live", result["detail"]

    mistyped = first[:30] + ("A" if first[30] != "A" else "B") + first[31:]
    result = _verify(anonymous, first, mistyped)
    claim(result["code"] == "malformed", f"not rejected: {result}")
    yield "verify a mistyped key", result["detail"]

    rotated = owner.post(f"/v2/keys/{key_id}/rotate", json={"grace": "24h"}).json()
    second = rotated["secret"]
    yield "rotate with 24 h of grace", f"new secret {second[:12]}…"

    codes = [_verify(anonymous, second, text)["code"] for text in (first, second)]
    claim(codes == ["valid", "valid"], f"not both valid: {codes}")
    yield "verify both secrets", "valid"

    old = _last_use(owner, key_id, issued["kid"])
    yield "last use of the old secret", f"{old['at']} from {old['address']} by {old['user_agent']}"

    receipt = owner.post(f"/v2/keys/{key_id}/revoke", json={"reason": "keyCompromise"}).json()
    yield "revoke the key", f"receipt {receipt['id']}, revision {receipt['revision']}"

    requests, answered = _try_every_worker(url, second, parent, workers)
    yield (
        "use the revoked secret immediately",
        f"refused {requests} of {requests} times, by {answered} of {workers} workers",
    )

    chain = owner.get("/v2/audit-events/verify").json()
    claim(chain["holds"], f"the chain is broken: {chain['breaks']}")
    yield "verify the audit chain", f"{chain['events']} events, all links intact"

    leaks = _search(data_dir, [first, second, public, test, PASSWORD])
    claim(not leaks, f"found in {leaks}")
    files = ", ".join(sorted(path.name for path in data_dir.glob("*.db*")))
    yield "search the database files for the secrets", f"not found ({files})"


def _issue(owner: httpx.Client, name: str, kind: str, **more: Any) -> Any:  # noqa: ANN401 - JSON
    answer = owner.post("/v2/keys", json={"name": name, "type": kind, **more})
    claim(answer.status_code == 201, answer.text)
    return answer.json()


def _verify(anonymous: httpx.Client, api_key: str, text: str) -> Any:  # noqa: ANN401 - JSON
    answer = anonymous.post(
        "/v2/keys/verify",
        json={"key": text, "address": "203.0.113.7", "user_agent": "billing/1.4"},
        headers={"Authorization": f"Bearer {api_key}", "User-Agent": "demo/1.0"},
    )
    claim(answer.status_code == 200, answer.text)
    return answer.json()


def _last_use(owner: httpx.Client, key_id: str, kid: str) -> Any:  # noqa: ANN401 - JSON
    """Wait up to three seconds for the next batch of counters."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        key = owner.get(f"/v2/keys/{key_id}").json()
        used = next(s["last_used"] for s in key["secrets"] if s["kid"] == kid)
        if used is not None:
            return used
        time.sleep(0.05)
    raise DemoError("the last use did not appear within 3 s")


def _try_every_worker(url: str, text: str, parent: int, workers: int) -> tuple[int, int]:
    """Use a secret on new connections until every worker answered; count requests and workers."""
    host, port = url.removeprefix("http://").split(":")
    connections: list[http.client.HTTPConnection] = []
    answered: set[int] = set()
    try:
        while len(answered) < workers or len(connections) < 20 * workers:
            claim(len(connections) < 2000, "a worker never accepted a connection")
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            connections.append(connection)
            connection.request("GET", "/v2/auth", headers={"Authorization": f"Bearer {text}"})
            answer = connection.getresponse()
            body = json.load(answer)
            claim(answer.status == 401, f"accepted after the revocation: {body}")
            claim(body["code"] == "revoked", body)
            answered.add(worker_of(connection.sock.getsockname()[1], int(port), parent))
    finally:
        for connection in connections:
            connection.close()
    return len(connections), len(answered)


def worker_of(client_port: int, server_port: int, group: int) -> int:
    """Return the process of a group that has the server's end of a connection (proc(5))."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ends = [int(end.split(":")[1], 16) for end in fields[1:3]]
        if ends == [server_port, client_port]:
            socket_name = f"socket:[{fields[9]}]"
            break
    else:
        raise DemoError("the connection is not in /proc/net/tcp")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                continue
            open_files = {str(fd.readlink()) for fd in (process / "fd").iterdir()}
        except OSError:
            continue
        if socket_name in open_files:
            return int(process.name)
    raise DemoError("no worker has the connection")


def _search(data_dir: Path, texts: list[str]) -> list[str]:
    return [
        path.name
        for path in data_dir.glob("*.db*")
        for text in texts
        if text.encode() in path.read_bytes()
    ]
