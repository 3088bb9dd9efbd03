"""Watching revocations from outside: constant requests, and since when each secret is dead."""

from __future__ import annotations

import json
import random
import select
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# Requests continue without responses: a paused process first answers the requests that
# were sent while it was paused.
MOST_OUTSTANDING = 150
IMPATIENCE_S = 0.03
# Then it reconnects, so each worker behind a port gets its share of the requests.
ANSWERS_EACH = 300


@dataclass
class Watched:
    """Secrets, and since when (`time.monotonic`) each must not be accepted.

    A secret is removed from `dead` before a call that makes it valid again.
    """

    texts: list[str] = field(default_factory=list)
    dead: dict[str, float] = field(default_factory=dict)
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bind(self, *texts: str) -> None:
        """Note that a call that ends these secrets has just returned."""
        now = time.monotonic()
        with self.lock:
            for text in texts:
                if text not in self.dead:
                    self.dead[text] = now
                    self.ended.append(text)

    def free(self, *texts: str) -> None:
        """Note that a call that makes these secrets valid again is about to begin."""
        with self.lock:
            for text in texts:
                self.dead.pop(text, None)

    def pick(self, chance: random.Random) -> tuple[str, float | None] | None:
        """Return a secret to verify, often one that just ended, and since when it is dead."""
        with self.lock:
            recent = self.ended if self.ended and chance.random() < 0.5 else self.texts[-40:]
            if not recent:
                return None
            text = chance.choice(recent)
            return text, self.dead.get(text)


class Asker(threading.Thread):
    """Verifies secrets at one server over one connection, as fast as it can.

    With `caller` it authenticates with that key to `POST /v2/keys/verify`, otherwise it sends
    the secrets themselves to `GET /v2/auth`.
    """

    def __init__(self, url: str, watched: Watched, seed: int, caller: str = "") -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url)
        self.watched = watched
        self.caller = caller
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.accepted_dead: list[str] = []
        self.verdicts: Counter[str] = Counter()
        # Responses about dead secrets; and of those, the ones that took so long that their
        # process must have been paused.
        self.judged_dead = self.judged_dead_late = 0

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                address = (str(self.address.hostname), self.address.port or 80)
                with socket.create_connection(address, timeout=20) as connection:
                    self._ask(connection)
            except OSError:
                self.stopped.wait(0.02)

    def _ask(self, connection: socket.socket) -> None:
        outstanding: deque[tuple[str, float | None, float]] = deque()
        buffer = b""
        asked_at = 0.0
        answered = 0
        while not self.stopped.is_set():
            waits = bool(outstanding)
            if answered > ANSWERS_EACH and not waits:
                return
            if not waits or (
                len(outstanding) < MOST_OUTSTANDING and time.monotonic() - asked_at > IMPATIENCE_S
            ):
                # Leaves CPU time for the servers and the steps.
                time.sleep(0 if waits else 0.002)
                picked = self.watched.pick(self.random)
                if picked is None:
                    continue
                asked_at = time.monotonic()
                outstanding.append((*picked, asked_at))
                connection.sendall(self._request(picked[0]))
            if not select.select([connection], [], [], IMPATIENCE_S)[0]:
                continue
            data = connection.recv(65_536)
            if not data:
                return
            buffer += data
            while (cut := _whole(buffer)) is not None:
                self._judge(buffer[:cut], *outstanding.popleft())
                buffer = buffer[cut:]
                answered += 1

    def _request(self, text: str) -> bytes:
        if not self.caller:
            return (
                "GET /v2/auth?environment=live HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {text}\r\n\r\n"
            ).encode()
        body = json.dumps({"key": text, "environment": "live"})
        return (
            f"POST /v2/keys/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.caller}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def _judge(self, answer: bytes, text: str, dead_since: float | None, began: float) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        accepted = head.startswith(b"HTTP/1.1 200") and (
            not self.caller or json.loads(body)["valid"] is True
        )
        self.verdicts["valid" if accepted else str(json.loads(body)["code"])] += 1
        if dead_since is None:
            return
        with self.watched.lock:
            still = self.watched.dead.get(text) == dead_since
        if not still:
            return
        self.judged_dead += 1
        self.judged_dead_late += time.monotonic() - began > 0.5
        if accepted:
            late_ms = (began - dead_since) * 1000
            self.accepted_dead.append(f"{text[:20]}… {late_ms:.1f} ms after the call")


def _whole(buffer: bytes) -> int | None:
    """Return where the first response in `buffer` ends, if it is complete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    size = 0
    for line in buffer[:end].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    return end + 4 + size if len(buffer) >= end + 4 + size else None
