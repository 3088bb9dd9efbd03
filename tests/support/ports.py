"""Ports for servers that a test stops and starts again."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress

# Below the ephemeral ports, because a client could take the port while the server is down.
_FIRST, _COUNT = 20_000, 12_000


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports of 127.0.0.1."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = _FIRST + secrets.randbelow(_COUNT)
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports


def free_addresses(count: int) -> list[str]:
    """Return `count` free addresses as `host:port`."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]
