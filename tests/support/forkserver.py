"""Wardkey processes, forked from a process that has its modules loaded.

Loading them takes two seconds, too long for each of hundreds of test processes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from wardkey.cli.terminal import COMMANDS

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        __name__,
        "uvicorn.supervisors",
        "uvicorn.loops.uvloop",
        "wardkey.app",
        "wardkey.web.fast_path",
        *(f"wardkey.cli.{module}" for module, _ in COMMANDS.values()),
    ]
)


class Warm:
    """`wardkey …` in its own process and group, with the parts of Popen that tests use."""

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        self.args = args
        self._process = _FORKING.Process(
            target=_run, args=(list(args), dict(env), str(stdout), str(stderr))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Workers:
    """Starts uvicorn's workers in the same way and group; uvicorn would start them cold."""

    def __init__(self, stdout: str, stderr: str) -> None:
        self._output = (stdout, stderr)

    def Process(  # noqa: N802 - as multiprocessing names it
        self, *, target: Callable[..., None], kwargs: dict[str, Any]
    ) -> ForkServerProcess:
        group, env = os.getpgrp(), dict(os.environ)
        return _FORKING.Process(target=_work, args=(group, env, *self._output, target, kwargs))


def _run(args: list[str], env: dict[str, str], stdout: str, stderr: str) -> None:
    from uvicorn import _subprocess

    from wardkey.cli import main

    os.setpgid(0, 0)
    _take(env, stdout, stderr)
    # It has the address of its parent's fork server, and would start another.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    _subprocess.spawn = _Workers(stdout, stderr)  # type: ignore[assignment]
    main(args, prog_name="wardkey")


def _work(
    group: int,
    env: dict[str, str],
    stdout: str,
    stderr: str,
    target: Callable[..., None],
    kwargs: dict[str, Any],
) -> None:
    os.setpgid(0, group)
    _take(env, stdout, stderr)
    target(**kwargs)


def _take(env: dict[str, str], stdout: str, stderr: str) -> None:
    # Objects loaded before are not garbage, and scanning them would copy all their memory.
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        with Path(path).open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
