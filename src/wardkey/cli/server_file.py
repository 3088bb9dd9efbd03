"""The file `server` in the data folder: the serving process and the result of its last reload."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from wardkey.db.engine import storage_errors
from wardkey.domain.errors import ServerNotRunning, UnusableFile


@dataclass(frozen=True, slots=True)
class Serving:
    """A server's process and its reloads; `fault` is the last reload's error, or empty."""

    pid: int
    # The pid namespace; the pid is meaningless in another container.
    namespace: str
    reloads: int = 0
    reloading: bool = False
    fault: str = ""

    @property
    def is_here(self) -> bool:
        """Return whether the process runs in this container or machine."""
        return self.namespace == _namespace()


class ServerFile:
    """The locked file of a running server; a second server on the folder writes nothing."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._serving = Serving(os.getpid(), _namespace())

    def begin_reload(self) -> None:
        """Record that a start or a reload has begun."""
        self._write(replace(self._serving, reloading=True))

    def end_reload(self, fault: str) -> None:
        """Record the result; `fault` is empty on success."""
        count = self._serving.reloads + 1
        self._write(replace(self._serving, reloads=count, reloading=False, fault=fault))

    def _write(self, serving: Serving) -> None:
        self._serving = serving
        if self._file is None:
            return
        # On a full disk the server keeps running; only `wardkey reload` needs this file.
        with suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(asdict(serving)) + "\n")
            self._file.flush()


@contextmanager
def hold_server_file(data_dir: Path) -> Iterator[ServerFile]:
    """Hold the file during the block; its lock shows that a server is running."""
    with storage_errors(), _path(data_dir).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield ServerFile(None)
            return
        server_file = ServerFile(file)
        # `wardkey reload` waits for `end_reload`, so no signal comes before the server is ready.
        server_file.begin_reload()
        yield server_file


def find_server(data_dir: Path) -> Serving:
    """Return the server running on a data folder.

    Raises `ServerNotRunning`, and `UnusableFile` while the file is being written.
    """
    path = _path(data_dir)
    try:
        with path.open(encoding="utf-8") as file:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                raise ServerNotRunning(
                    f"No server is running on {data_dir}; start it with `wardkey up`."
                )
            return Serving(**json.loads(file.read()))
    except (FileNotFoundError, NotADirectoryError):
        raise ServerNotRunning(
            f"No server is running on {data_dir}; name its folder with --data-dir, or start it "
            "with `wardkey up`."
        ) from None
    except (ValueError, TypeError):
        raise UnusableFile(f"{path} is being written or is damaged; try again.") from None


def _path(data_dir: Path) -> Path:
    return data_dir / "server"


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
