from __future__ import annotations

import threading
from collections.abc import Callable

import httpx2 as httpx
import pytest

from tests.support.server import Server, wait_until

TRANSPORT = (httpx.TransportError, httpx.HTTPError)


class Worker(threading.Thread):
    """Issues keys, revokes every second one, and records the acknowledged changes."""

    def __init__(self, server: Server, number: int) -> None:
        super().__init__()
        self.url, self.key, self.number = server.url, server.first_key, number
        self.issued: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.unsure: set[str] = set()

    def run(self) -> None:
        with httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20
        ) as client:
            for turn in range(10_000):
                try:
                    name = f"live-fault-{self.number}-{turn}"
                    made = client.post("/v2/keys", json={"name": name, "type": "secret"})
                    if made.status_code != 201:
                        return
                    key_id = made.json()["key"]["id"]
                    self.issued[key_id] = made.json()["secret"]
                    if turn % 2:
                        self.unsure.add(key_id)
                        done = client.post(f"/v2/keys/{key_id}/revoke")
                        if done.status_code == 200:
                            self.revoked.add(key_id)
                            self.unsure.discard(key_id)
                except TRANSPORT:
                    return


@pytest.mark.parametrize("how", ["everything", "one worker"])
def test_acknowledged_changes_survive_a_kill(
    start: Callable[..., Server], storage_url: str, how: str
) -> None:
    server = start(database_url=storage_url, workers=2)
    crowd = [Worker(server, number) for number in range(3)]
    for writer in crowd:
        writer.start()
    wait_until(lambda: sum(len(writer.revoked) for writer in crowd) >= 20, 60)
    if how == "one worker":
        killed = server.kill_one_worker()
        wait_until(lambda: len(server.workers()) == 2 and killed not in server.workers(), 30)
    server.kill()
    for writer in crowd:
        writer.join(30)
    server.start()
    with server.client(server.first_key) as client:
        for writer in crowd:
            for key_id, text in writer.issued.items():
                if key_id in writer.unsure:
                    continue
                answer = client.post("/v2/keys/verify", json={"key": text}).json()
                wanted = "revoked" if key_id in writer.revoked else "valid"
                assert answer["code"] == wanted, answer
        state = client.get("/v2/audit-events/verify").json()
        assert state["holds"], state["breaks"]
        keys = client.get("/v2/keys", params={"limit": 1}).json()["total"]
        issued = client.get(
            "/v2/audit-events/export", params={"action": "key.issued"}
        ).text.splitlines()
        assert keys == len(issued)
