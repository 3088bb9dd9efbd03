"""`wardkey up` in a terminal: Ctrl-C and a closed terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.server import Server, wait_until


def up_in_terminal(server: Server) -> tuple[int, int]:
    """Start the server as a terminal's foreground process; return its pid and the terminal."""
    pid, terminal = pty.fork()
    if not pid:
        command = [sys.executable, "-m", "wardkey", "up"]
        os.execve(command[0], command, server.environment)  # noqa: S606 - the pty is its terminal
    os.set_blocking(terminal, False)
    return pid, terminal


def read_until_end(terminal: int, end: bytes) -> bytes:
    """Return the output up to `end`, or until the other side closes."""
    output = b""
    until = time.monotonic() + 60
    while end not in output or not end:
        assert time.monotonic() < until, output
        try:
            output += os.read(terminal, 65_536)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # reading a closed terminal raises it
            break
    return output


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_everything_silently(tmp_path: Path, workers: int) -> None:
    server = Server(tmp_path / "data", no_messaging=0, workers=workers)
    pid, terminal = up_in_terminal(server)
    started = read_until_end(terminal, b"Stop with Ctrl-C")
    match = re.search(rb"listens on (\S+)", started)
    assert match is not None
    url = match[1].decode()
    wait_until(lambda: is_ready(url), 30)
    os.write(terminal, b"\x03")
    output = read_until_end(terminal, b"")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for word in (b"ERROR", b"WARNING", b"DO NOT USE", b"Traceback"):
        assert word not in started + output


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_the_terminal_stops_the_server(tmp_path: Path, workers: int) -> None:
    server = Server(tmp_path / "data", workers=workers)
    pid, terminal = up_in_terminal(server)
    match = re.search(rb"listens on (\S+)", read_until_end(terminal, b"Stop with Ctrl-C"))
    assert match is not None
    url = match[1].decode()
    wait_until(lambda: is_ready(url), 30)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wait_until(lambda: not is_ready(url))
