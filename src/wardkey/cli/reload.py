"""`wardkey reload`: a running server rereads its TLS certificate and replaces its workers."""

from __future__ import annotations

import os
import signal
import time

import click

from wardkey.cli.server_file import Serving, find_server
from wardkey.cli.terminal import STORAGE, as_json, print_output, settings
from wardkey.config import Config
from wardkey.domain.errors import ReloadRefused, ServerNotRunning, UnusableFile

_POLL_S = 0.1
_TIMEOUT_S = 600


@click.command()
@as_json
@settings(*STORAGE)
def reload(config: Config, *, as_json: bool) -> None:
    """Make the running server read a renewed TLS certificate, and wait until it has.

    Two or more workers are also replaced, one by one. No HTTP request fails. If the certificate
    changed, the broker restarts with it, so MQTT clients reconnect. Settings are only read at
    start-up.
    """
    before = _wait_until_idle(config)
    if not before.is_here:
        raise ReloadRefused(
            "The server runs in another container; run this command there, or send SIGHUP to its "
            "first process."
        )
    _send(config, before.pid)
    after = _wait_for_answer(config, before)
    if after.fault:
        raise ReloadRefused(f"The server keeps running as before: {after.fault}")
    text = f"Process {after.pid} reloaded."
    print_output({"pid": after.pid, "reloads": after.reloads}, as_json=as_json, text=text)


def _wait_until_idle(config: Config) -> Serving:
    """Return the server once no other reload is running; its end would be mistaken for ours."""
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        server = _read_server(config)
        if server is not None and not server.reloading:
            return server
        time.sleep(_POLL_S)
    raise ReloadRefused(
        f"Another reload has been running for {_TIMEOUT_S} s; check the server's log."
    )


def _send(config: Config, pid: int) -> None:
    """Send SIGHUP to the process that holds the file, never to a later one with the same pid."""
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
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        server = _read_server(config)
        if server is not None and server.pid != before.pid:
            raise ReloadRefused("The server was restarted during the reload; run it again.")
        if server is not None and server.reloads > before.reloads and not server.reloading:
            return server
        time.sleep(_POLL_S)
    raise ReloadRefused(
        f"The server did not finish reloading within {_TIMEOUT_S} s; check its log."
    )


def _read_server(config: Config) -> Serving | None:
    """Return the server's state, or None while it is being written."""
    try:
        return find_server(config.data_dir)
    except UnusableFile:
        return None
