"""Ports on which something listens that a test stops and starts again."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress

# Below what the kernel hands to clients: one of them could have the port while nobody listens.
_FIRST, _COUNT = 20_000, 12_000


def free_ports(count: int) -> list[int]:
    """Return so many ports of 127.0.0.1, each another one, on which nothing listens."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = _FIRST + secrets.randbelow(_COUNT)
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
        return found


def free_addresses(count: int) -> list[str]:
    """Return so many of them as `host:port`."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]
