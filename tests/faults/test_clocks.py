"""Revocations hold even on machines whose clocks are wrong or changed while running."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STORAGES
from tests.support.postgres import Postgres
from tests.support.server import Server

HOUR_S = 3600
# libfaketime 0.9.10 cannot sleep until a time on a clock that it does not fake, which is how
# Python sleeps.
SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


def clock(offset: str, *, fake_monotonic: bool = False) -> dict[str, str]:
    """Return the environment of a process with a wrong clock; `offset` may be a file path."""
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert libraries, "faketime is not installed; `make test` installs it on Debian"
    where = {"FAKETIME_TIMESTAMP_FILE": offset, "FAKETIME_NO_CACHE": "1"}
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_DONT_FAKE_MONOTONIC": "0" if fake_monotonic else "1",
        **(where if offset.startswith("/") else {"FAKETIME": offset}),
    }


class Machines:
    """A node with a correct clock, `here`, and other nodes by their clock's fault."""

    def __init__(self, folder: Path, url: str, wrong: Mapping[str, Mapping[str, str]]) -> None:
        sleep = folder / "sleep"
        sleep.mkdir()
        (sleep / "sitecustomize.py").write_text(SLEEP)
        self.here = Server(folder / "data", database_url=url)
        self.here.start()
        self.wrong: dict[str, Server] = {}
        for name, around in wrong.items():
            data = self.here.data_dir
            if url:
                data = folder / name
                data.mkdir(mode=0o700)
                shutil.copy(self.here.data_dir / "master.key", data / "master.key")
            around = {**around, "PYTHONPATH": str(sleep)}  # noqa: PLW2901
            self.wrong[name] = Server(data, around, database_url=url)
        self.all = [self.here, *self.wrong.values()]
        # Servers in one folder share a log and are distinguished by their start time.
        with ThreadPoolExecutor(4 if url else 1) as pool:
            list(pool.map(Server.start, self.wrong.values()))

    def close(self) -> None:
        for server in self.all:
            server.kill()

    def ask(self, server: Server, text: str) -> dict[str, Any]:
        with server.client(self.here.first_key) as client:
            body: dict[str, Any] = client.post("/v2/keys/verify", json={"key": text}).json()
        return body

    def verdicts(self, text: str) -> set[str]:
        return {self.ask(server, text)["code"] for server in self.all}

    def ahead_s(self, server: Server) -> float:
        """Return how far a server's wall clock is ahead of the test's."""
        as_of = datetime.fromisoformat(self.ask(server, self.here.first_key)["as_of"])
        return (as_of - datetime.now(UTC)).total_seconds()

    def issue(self, name: str) -> tuple[str, str]:
        with self.here.client(self.here.first_key) as client:
            made = client.post("/v2/keys", json={"name": name, "type": "secret"}).json()
        return made["key"]["id"], made["secret"]

    def revoke(self, server: Server, key_id: str) -> dict[str, Any]:
        with server.client(self.here.first_key) as client:
            done = client.post(f"/v2/keys/{key_id}/revoke")
        assert done.status_code == 200, done.text
        body: dict[str, Any] = done.json()
        return body


@pytest.fixture(scope="module")
def offset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that contains the clock offset of `jumping`."""
    return tmp_path_factory.mktemp("clock") / "offset"


@pytest.fixture(scope="module", params=STORAGES)
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, offset: Path
) -> Iterator[Machines]:
    url = ""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database()
    offset.write_text("+0")
    wrong = {
        "behind": clock("-1h"),
        "jumping": clock(str(offset)),
        # Its monotonic clocks differ too.
        "ahead": clock("+2h", fake_monotonic=True),
    }
    made = Machines(tmp_path_factory.mktemp("machines"), url, wrong)
    yield made
    made.close()


def test_a_revocation_holds_whatever_the_wall_clocks_say(machines: Machines, offset: Path) -> None:
    wrong = machines.wrong
    assert abs(machines.ahead_s(wrong["behind"]) + HOUR_S) < 30
    assert abs(machines.ahead_s(wrong["ahead"]) - 2 * HOUR_S) < 30
    for turn, jump in enumerate(("-1h", "+1h")):
        offset.write_text(jump)
        wanted = HOUR_S * int(jump.rstrip("h"))
        assert abs(machines.ahead_s(wrong["jumping"]) - wanted) < 30
        for number, where in enumerate(machines.all):
            key_id, text = machines.issue(f"live-clock-{turn}-{number}")
            assert machines.verdicts(text) == {"valid"}
            receipt = machines.revoke(where, key_id)
            assert receipt["reach"] == "everywhere"
            assert machines.verdicts(text) == {"revoked"}


@pytest.mark.parametrize("machines", ["postgresql"], indirect=True)
def test_a_lease_expires_even_if_the_wall_clock_is_set_back(
    machines: Machines, offset: Path
) -> None:
    there = machines.wrong["jumping"]
    key_id, text = machines.issue("live-clock")
    assert machines.verdicts(text) == {"valid"}
    assert there.process is not None
    os.kill(there.process.pid, signal.SIGSTOP)
    offset.write_text("-1h")
    receipt = machines.revoke(machines.here, key_id)
    assert receipt["took_ms"] > 500
    os.kill(there.process.pid, signal.SIGCONT)
    assert machines.ask(there, text)["code"] == "revoked"
    assert machines.ahead_s(there) < -HOUR_S + 30


def test_the_clock_of_the_machine_that_answers_decides_when_a_grace_ends(
    machines: Machines,
) -> None:
    key_id, text = machines.issue("live-grace")
    with machines.here.client(machines.here.first_key) as client:
        rotated = client.post(f"/v2/keys/{key_id}/rotate", json={"grace": "1h"})
    assert rotated.status_code == 200, rotated.text
    assert machines.ask(machines.here, text)["code"] == "valid"
    assert machines.ask(machines.wrong["ahead"], text)["code"] == "expired"
    text = rotated.json()["secret"]
    assert machines.verdicts(text) == {"valid"}
    machines.revoke(machines.here, key_id)
    assert machines.verdicts(text) == {"revoked"}
