"""A real PostgreSQL server for tests, in its own folder, that tests can stop, pause and crash."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import psycopg
import pytest
from psycopg import sql

from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

SUPERUSER: Final = "wardkey"
PATIENCE: Final = 30.0

# Waits until the test process has ended in any way, then does the work of close().
# PostgreSQL's processes are found by their working directory, which is the data folder.
GUARDIAN: Final = """
    cat >/dev/null
    signal() {
        for process in /proc/[0-9]*; do
            if [ "$(readlink "$process/cwd")" = "$1/data" ]; then kill "$2" "${process#/proc/}"; fi
        done
    }
    [ -d "$1" ] || exit 0
    signal "$1" -CONT; signal "$1" -QUIT; sleep 1; signal "$1" -KILL; rm -rf "$1"
"""


class Postgres:
    """A PostgreSQL server on a loopback port that stays the same across restarts."""

    def __init__(self, *, durable: bool = False) -> None:
        """Create and start a server; with `durable` it syncs to disk as in production."""
        self._binaries = _binaries()
        self._account = _account()
        self._durable = durable
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        # Short and not in a private folder, because the server may run as another user.
        self._folder = Path(tempfile.mkdtemp(prefix="wardkey-postgres-")).resolve()
        self._data = self._folder / "data"
        self.log = self._folder / "server.log"
        self.port = 0
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", GUARDIAN, "guardian", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._initialize()
            self._settle_on_port()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The `postgres` database, as superuser."""
        return self._url("postgres")

    def create_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self._command(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database even if clients are connected."""
        name = url.rpartition("/")[2]
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._command(statement.format(sql.Identifier(name)))

    def start(self) -> None:
        """Start a stopped server and return when it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            # Files in the data folder, so even a killed server leaves nothing behind.
            "dynamic_shared_memory_type": "mmap",
        }
        if not self._durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = self._spawn("postgres", "-D", str(self._data), *settings, output=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError as refused:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._failed("start") from refused
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop the server cleanly: sessions are ended and data is flushed."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Kill every process of the server at once, without a shutdown."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Restart on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Pause the server: connections stay open without responses until resume()."""
        # The postmaster first, so it starts no more children meanwhile.
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused server."""
        self._signal_all(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._guardian.communicate()

    def _initialize(self) -> None:
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        password = self._folder / "password"
        password.write_text(self._password)
        password.chmod(0o444)
        self.log.touch()
        with self.log.open("ab") as log:
            made = self._spawn(
                "initdb",
                f"--pgdata={self._data}",
                f"--username={SUPERUSER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
                output=log,
            )
        if made.wait() != 0:
            raise self._failed("initialize")
        password.unlink()

    def _settle_on_port(self) -> None:
        for attempt in range(10):
            (self.port,) = free_ports(1)
            try:
                self.start()
            except RuntimeError:
                # Another process may have taken the port meanwhile.
                if attempt == 9 or "Address already in use" not in self.log.read_text():
                    raise
            else:
                return

    def _spawn(self, program: str, *arguments: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        account = self._account
        return subprocess.Popen(
            [self._binaries / program, *arguments],
            cwd=self._folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to the tests, which then stop the server cleanly.
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            process.kill()
            self._signal_all(how)
        else:
            self.resume()
            process.send_signal(how)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            self._signal_all(signal.SIGKILL)
            process.wait()
        # A start would be refused while a child of the last server still uses the data.
        deadline = time.monotonic() + PATIENCE
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _processes(self) -> list[int]:
        """Return the processes in the data folder: the postmaster and its children."""
        pids = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (directory / "cwd").readlink() == self._data:
                    pids.append(int(directory.name))
        return pids

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def _command(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def _failed(self, what: str) -> RuntimeError:
        tail = self.log.read_text(errors="replace")[-2000:]
        return RuntimeError(f"PostgreSQL did not {what}. The end of its log:\n{tail}")


def _binaries() -> Path:
    """Return the program folder of Debian's newest PostgreSQL, or of the one on PATH."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(installed, key=lambda path: float(path.parts[-3]), default=None)
    program = newest or shutil.which("postgres")
    if program is None:
        raise RuntimeError("PostgreSQL is not installed; `make test` installs it on Debian")
    return Path(program).parent


def _account() -> pwd.struct_passwd | None:
    """Return the user that runs the server under root, since PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Run a server for one test, for tests that stop, pause or crash it."""
    server = Postgres(durable=durable)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run one server shared by all tests of a worker, which must leave it running."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """Return the URL of a new database, dropped after the test."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)
