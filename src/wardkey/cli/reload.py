"""`wardkey reload`: a running server reads its certificate anew and replaces its workers."""

from __future__ import annotations

import os
import signal
import time

import click

from wardkey.cli.server_file import Serving, find_server
from wardkey.cli.terminal import STORAGE, as_json, print_output, settings
from wardkey.config import Config
from wardkey.domain.errors import ReloadRefused, ServerNotRunning, UnusableFile

_LOOK_S = 0.1
_LONGEST_S = 600


@click.command()
@as_json
@settings(*STORAGE)
def reload(config: Config, *, as_json: bool) -> None:
    """Have the running server read a renewed TLS certificate, and wait until it did.

    With two workers or more they are replaced one by one, too. No HTTP request fails. Where the
    certificate is another one, the broker starts again with it, so MQTT clients connect anew.
    Settings are read at a start only.
    """
    before = _wait_until_idle(config)
    if not before.is_here:
        raise ReloadRefused(
            "The server runs in another container; run this command there, or send its first "
            "process SIGHUP."
        )
    _send(config, before.pid)
    after = _wait_for_answer(config, before)
    if after.fault:
        raise ReloadRefused(f"The server goes on as before: {after.fault}")
    text = f"Process {after.pid} has reloaded."
    print_output({"pid": after.pid, "reloads": after.reloads}, as_json=as_json, text=text)


def _wait_until_idle(config: Config) -> Serving:
    """Return the server once no other reload is under way, whose end would be taken for ours."""
    until = time.monotonic() + _LONGEST_S
    while time.monotonic() < until:
        found = _look(config)
        if found is not None and not found.reloading:
            return found
        time.sleep(_LOOK_S)
    raise ReloadRefused("Another reload is under way and does not end.")


def _send(config: Config, pid: int) -> None:
    """Send SIGHUP to the process that holds the file, and to no later one with its number."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ServerNotRunning from None
    try:
        if find_server(config.data_dir).pid == pid:
            signal.pidfd_send_signal(process, signal.SIGHUP)
    except PermissionError:
        raise ReloadRefused(
            f"The server, process {pid}, belongs to another user; run this as that user."
        ) from None
    finally:
        os.close(process)


def _wait_for_answer(config: Config, before: Serving) -> Serving:
    until = time.monotonic() + _LONGEST_S
    while time.monotonic() < until:
        found = _look(config)
        if found is not None and found.pid != before.pid:
            raise ReloadRefused("The server was started anew meanwhile.")
        if found is not None and found.reloads > before.reloads and not found.reloading:
            return found
        time.sleep(_LOOK_S)
    raise ReloadRefused(f"The server did not answer for {_LONGEST_S} s; look at its log.")


def _look(config: Config) -> Serving | None:
    """Return what the server says; None while it writes that."""
    try:
        return find_server(config.data_dir)
    except UnusableFile:
        return None
