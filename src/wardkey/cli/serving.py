"""Runs the HTTP server processes on one listening socket and reloads them on SIGHUP."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn.supervisors import Multiprocess

from wardkey.cli.server_file import ServerFile
from wardkey.config import Config
from wardkey.domain.errors import WardkeyError

log = logging.getLogger("wardkey")

DRAIN_S = 30
# A new worker may wait for a restarting broker, which takes longer than uvicorn's health check.
_START_S = 60

Renew = Callable[[], None]


def serve(config: Config, listening: socket.socket, file: ServerFile, renew: Renew) -> None:
    """Serve requests until a signal ends it; SIGHUP calls `renew`, then loads the certificate."""
    os.environ.update(config.environment())
    settings = uvicorn.Config(
        "wardkey.app:create_app",
        factory=True,
        workers=config.workers,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=config.tls_cert or None,
        ssl_keyfile=config.tls_key or None,
        http="wardkey.web.fast_path:FastPathProtocol",
        ws="none",
        timeout_keep_alive=config.keep_alive,
        loop="uvloop",
    )
    # After draining, uvicorn raises the signal again; exit with 0 then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if config.workers > 1:
        _start_resource_tracker()
        workers = _Workers(settings, listening, file, renew)
        file.end_reload("")
        workers.run()
        return

    def reload() -> None:
        renew()
        # Open connections keep their certificate.
        if settings.ssl is not None:
            settings.ssl.load_cert_chain(config.tls_cert, config.tls_key)

    has_terminal = _has_terminal()

    def handle(*_: object) -> None:
        if has_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            _report(reload, file)

    signal.signal(signal.SIGHUP, handle)
    file.end_reload("")
    uvicorn.Server(settings).run(sockets=[listening])


class _Workers(Multiprocess):
    """uvicorn's worker processes, replaced one by one at a reload."""

    def __init__(
        self, settings: uvicorn.Config, listening: socket.socket, file: ServerFile, renew: Renew
    ) -> None:
        super().__init__(settings, sockets=[listening])
        self._file, self._renew, self._has_terminal = file, renew, _has_terminal()

    def handle_hup(self) -> None:
        """Reload, or exit if the terminal was closed."""
        if self._has_terminal and not _has_terminal():
            self.should_exit.set()
        else:
            _report(self._reload, self._file)

    def _reload(self) -> None:
        self._renew()
        before, timeout = list(self.processes), self.config.timeout_worker_healthcheck
        self.config.timeout_worker_healthcheck = _START_S
        try:
            self.restart_all()
        finally:
            self.config.timeout_worker_healthcheck = timeout
        if set(before) & set(self.processes):
            raise RuntimeError("a new worker did not start; check the server's log")


def _report(reload: Callable[[], None], file: ServerFile) -> None:
    """Reload; a failure is logged and recorded in the file, and the server keeps running."""
    file.begin_reload()
    fault = ""
    try:
        reload()
    except WardkeyError as error:
        fault = error.detail
    except Exception as error:  # noqa: BLE001 - a failed reload must not end the server
        fault = str(error)
    if fault:
        log.error("reload failed: %s", fault)
    else:
        log.info("reloaded")
    file.end_reload(fault)


def _has_terminal() -> bool:
    """Return whether there is a terminal; SIGHUP after it was closed means exit."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _start_resource_tracker() -> None:
    """Start multiprocessing's shared resource tracker, without WARDKEY_ variables (secrets)."""
    from multiprocessing import resource_tracker

    settings = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("WARDKEY_")}
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.update(settings)
