"""Watching the promise from outside: askers that never rest, and what each revocation bound."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Watched:
    """Secrets by text, and since when (`time.monotonic`) nothing may accept each of them.

    A secret that is about to be let in again leaves `dead` before the call that does it.
    """

    texts: list[str] = field(default_factory=list)
    dead: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bind(self, *texts: str) -> None:
        """Say that a call which ends these secrets has just returned."""
        now = time.monotonic()
        with self.lock:
            for text in texts:
                self.dead.setdefault(text, now)

    def free(self, *texts: str) -> None:
        """Say that a call which lets these secrets in again is about to begin."""
        with self.lock:
            for text in texts:
                self.dead.pop(text, None)


class Asker(threading.Thread):
    """Asks one server for secrets over one connection, as fast as it can."""

    def __init__(self, url: str, watched: Watched, seed: int) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url)
        self.watched = watched
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.accepted_dead: list[str] = []
        self.verdicts: dict[str, int] = {}

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.stopped.is_set():
            # Leaves the servers and the steps some of the machine.
            time.sleep(0.002)
            if not self.watched.texts:
                continue
            recent = self.watched.texts[-40:]
            text = self.random.choice(recent)
            with self.watched.lock:
                dead_since = self.watched.dead.get(text)
            began = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection(
                    str(self.address.hostname), self.address.port or 80, timeout=20
                )
                headers = {"Authorization": f"Bearer {text}"}
                connection.request("GET", "/v2/auth?environment=live", headers=headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.01)
                continue
            verdict = answer.getheader("wardkey-verdict") or json.loads(body)["code"]
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
            if answer.status == 200 and dead_since is not None:
                with self.watched.lock:
                    still = self.watched.dead.get(text) == dead_since
                if still:
                    late_ms = (began - dead_since) * 1000
                    self.accepted_dead.append(f"{text[:20]}… {late_ms:.1f} ms after the call")
        if connection is not None:
            connection.close()
