"""Deployments of three verifiers, changed, paused and killed under constant requests."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from tests.support.revocation_watch import Asker, Watched
from tests.support.server import NO_CERTIFICATES, Server, wait_until

ELSEWHERE = ["192.0.2.1"]


@dataclass
class Key:
    """A key with its secrets in order of creation.

    `gone` are those that ended forever; `held` says why the others are not accepted now. A key
    is `unsure` once a widening call got no response: it may still take effect later.
    """

    id: str
    kids: list[str]
    texts: list[str]
    gone: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    unsure: bool = False

    @property
    def living(self) -> list[str]:
        return [text for text in self.texts if text not in self.gone]


class Deployment:
    """Three verifiers: workers of one server on SQLite, separate nodes on PostgreSQL."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.nodes = [Server(folder / "node0", database_url=url, workers=1 if url else 3)]
        self.nodes[0].start()
        for number in (1, 2) if url else ():
            data = folder / f"node{number}"
            data.mkdir(mode=0o700)
            shutil.copy(folder / "node0" / "master.key", data / "master.key")
            self.nodes.append(Server(data, database_url=url, workers=1))
        start_all(self.nodes[1:])
        for node in self.nodes:
            node.settings["listen"] = node.url.removeprefix("http://")
        self.first_key = self.nodes[0].first_key
        self.watched = Watched()
        self.keys: list[Key] = []
        self.paused: set[int] = set()
        self.count = 0
        self.history: list[str] = []
        self.done: Counter[str] = Counter()
        self.copied: dict[str, int] = {}
        self.can_restore = False
        self.askers = [
            Asker(
                self.nodes[seed % len(self.nodes)].url,
                self.watched,
                seed,
                self.first_key if seed % 2 else "",
            )
            for seed in range(6 if url else 9)
        ]
        for asker in self.askers:
            asker.start()

    def call(self, method: str, path: str, body: object = None) -> httpx.Response | None:
        """Call the first node, which is never paused or killed as a whole; None if it failed."""
        with (
            suppress(httpx.TransportError),
            httpx.Client(
                base_url=self.nodes[0].url,
                headers={"Authorization": f"Bearer {self.first_key}"},
                timeout=15,
                verify=NO_CERTIFICATES,
            ) as client,
        ):
            return client.request(method, path, json=body)
        return None

    def succeeds(self, method: str, path: str, body: object = None) -> bool:
        answer = self.call(method, path, body)
        return answer is not None and answer.status_code == 200

    def note(self, what: str) -> None:
        """Record a step for the failure message."""
        self.done[what.partition(" ")[0]] += 1
        self.history.append(what)

    def accepted_dead(self) -> list[str]:
        return [told for asker in self.askers for told in asker.accepted_dead]

    def close(self) -> None:
        self.go_on()
        for asker in self.askers:
            asker.stopped.set()
        for node in self.nodes:
            node.kill()
        for asker in self.askers:
            asker.join(30)

    # --- changes ---

    def issue(self) -> None:
        self.count += 1
        made = self.call(
            "POST", "/v2/keys", {"name": f"live-promise-{self.count}", "type": "secret"}
        )
        if made is not None and made.status_code == 201:
            body = made.json()
            self.keys.append(Key(body["key"]["id"], [body["kid"]], [body["secret"]]))
            self.watched.texts.append(body["secret"])

    def rotate(self, key: Key, grace: str) -> None:
        made = self.call("POST", f"/v2/keys/{key.id}/rotate", {"grace": grace})
        if made is None or made.status_code != 200:
            return
        if grace == "now":
            self._end(key, key.texts)
        key.texts.append(made.json()["secret"])
        key.kids.append(made.json()["kid"])
        if not key.held:
            self.watched.texts.append(made.json()["secret"])

    def revoke(self, key: Key) -> None:
        if self.succeeds("POST", f"/v2/keys/{key.id}/revoke"):
            self._end(key, key.texts)

    def revoke_secret(self, key: Key, which: int) -> None:
        number = which % len(key.kids)
        if self.succeeds("POST", f"/v2/keys/{key.id}/secrets/{key.kids[number]}/revoke"):
            self._end(key, [key.texts[number]])

    def hold(self, key: Key, why: str) -> None:
        """Disable a key, or bind it to an address that no client has."""
        path = f"/v2/keys/{key.id}"
        if (
            self.succeeds("POST", f"{path}/disable")
            if why == "disabled"
            else self.succeeds("PATCH", path, {"allowed_addresses": ELSEWHERE})
        ) and not key.unsure:
            key.held.add(why)
            self.watched.bind(*key.living)

    def let(self, key: Key, why: str) -> None:
        """Undo what `hold` did."""
        if key.held <= {why}:
            self.watched.free(*key.living)
        path = f"/v2/keys/{key.id}"
        if (
            self.succeeds("POST", f"{path}/enable")
            if why == "disabled"
            else self.succeeds("PATCH", path, {"allowed_addresses": []})
        ):
            key.held.discard(why)
        else:
            key.unsure = True
            self.watched.free(*key.living)

    def describe(self, key: Key) -> None:
        """Edit a field that no verdict depends on, so the key is read again."""
        self.call("PATCH", f"/v2/keys/{key.id}", {"description": f"step {len(self.history)}"})

    def suspend(self) -> None:
        """Suspend the organization from the command line, then reactivate it."""
        if self.nodes[0].cli_here("org", "suspend", "acme").exit_code == 0:
            self.watched.bind(*(text for key in self.keys for text in key.texts))
            asked = sum(asker.judged_dead for asker in self.askers)
            wait_until(lambda: sum(asker.judged_dead for asker in self.askers) > asked + 3)
        self.watched.free(
            *(text for key in self.keys if not key.held or key.unsure for text in key.living)
        )
        # A worker may have been paused during a write.
        wait_until(lambda: self.nodes[0].cli_here("org", "resume", "acme").exit_code == 0, 60)

    def back_up(self) -> None:
        done = self.nodes[0].cli_here("backup", "--force", str(self.folder / "copy.wardkey"))
        self.can_restore = done.exit_code == 0 or self.can_restore
        if done.exit_code == 0:
            self.copied = {key.id: len(key.texts) for key in self.keys}

    def restore(self) -> None:
        """Restore the last backup, which revives no ended secret."""
        if not self.can_restore:
            return
        self.go_on()
        # An edit of the addresses is not carried over, so these are as wide as before.
        widened = [key for key in self.keys if "narrowed" in key.held]
        self.watched.free(*(text for key in widened for text in key.living))
        for node in self.nodes:
            node.kill()

        def restored() -> bool:
            done = self.nodes[0].cli_here("restore", str(self.folder / "copy.wardkey"))
            # A killed process takes a moment to disappear.
            assert done.exit_code == 0 or "already_running" in done.output, done.output
            return done.exit_code == 0

        wait_until(restored)
        for key in widened:
            key.held.discard("narrowed")
        for key in self.keys:
            self._end(key, key.texts[self.copied.get(key.id, 0) :])
        start_all(self.nodes)
        self.keys = [key for key in self.keys if key.id in self.copied]

    def _end(self, key: Key, texts: Iterable[str]) -> None:
        ended = list(texts)
        key.gone.update(ended)
        self.watched.bind(*ended)

    # --- faults ---

    def processes(self) -> list[int]:
        """Return the processes that can be paused or killed."""
        if len(self.nodes) == 1:
            return wait_until(self.nodes[0].workers, 30)
        living = [node.process for node in self.nodes[1:] if node.process is not None]
        return [process.pid for process in living if process.poll() is None]

    def pause(self, pick: int) -> None:
        """Pause one process; the others and the first node keep running."""
        pids = [pid for pid in self.processes() if pid not in self.paused]
        if len(self.nodes) == 1 and self.paused:
            return
        if pids:
            pid = pids[pick % len(pids)]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.paused.add(pid)

    def kill(self, pick: int) -> None:
        """Kill one process; a node stays down until `go_on`, a worker is replaced by its server."""
        pids = self.processes()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(pids[pick % len(pids)], signal.SIGKILL)

    def go_on(self) -> None:
        """Resume paused processes and restart killed nodes."""
        for pid in self.paused:
            # uvicorn replaces a worker that is silent for five seconds.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.paused.clear()
        start_all(
            node for node in self.nodes if node.process is None or node.process.poll() is not None
        )


def start_all(nodes: Iterable[Server]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Server.start, nodes))
