"""`python -m bench [create|verdict|revoke] [--quick]`: what is measured, on which machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlcipher3.dbapi2 as sqlcipher

from bench.revoke import revoke
from wardkey.actions import keys, organizations
from wardkey.actions.run import Runner
from wardkey.app import open_deployment
from wardkey.config import load_config
from wardkey.db.engine import connect_sqlite
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment, parse
from wardkey.domain.verdict import Question
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

ROUNDS = 5


def machine() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "?")
    print(f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, SQLite {sqlcipher.sqlite_version}")


def told(name: str, rates: list[float], unit: str) -> float:
    middle = statistics.median(rates)
    print(f"{name:34} {middle:10,.1f} {unit}  ({min(rates):,.1f} to {max(rates):,.1f})")
    return middle


def create(runner: Runner, by: Principal, folder: Path, count: int) -> None:
    """Issue keys durably, in turn with bare durable inserts of as many rows."""
    raw = connect_sqlite(folder / "bare.db", bytes(32))
    for table in range(4):
        raw.execute(f"CREATE TABLE t{table} (id INTEGER PRIMARY KEY, body BLOB)")
    ours, bare = [], []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        for n in range(count):
            spec = KeySpec(f"live-bench-{turn}-{n}", KeyType.SECRET, Environment.LIVE)
            runner.change(keys.issue, by, spec)
        ours.append(count / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(count):
            raw.execute("BEGIN IMMEDIATE")
            for table in range(4):
                raw.execute(f"INSERT INTO t{table} (body) VALUES (?)", (os.urandom(200),))
            raw.execute("COMMIT")
        bare.append(count / (time.perf_counter() - began))
    raw.close()
    mine = told("issue with audit, durable, 1 thread", ours, "/s")
    print(f"{'÷ bare durable inserts':34} {mine / told('bare, 4 rows each', bare, '/s'):10.2f}")


def verdict(runner: Runner, by: Principal, count: int) -> None:
    """Time a hot key's verdict in process, and its parts."""
    verifier = Verifier(runner.database, Usage(runner.database))
    made = runner.change(
        keys.issue, by, KeySpec("live-bench-hot", KeyType.SECRET, Environment.LIVE)
    )
    text, vault = made.secret.text, runner.database.keys
    asked = Question(text)
    known = verifier.directory.find(made.kid)
    assert known is not None
    parts: dict[str, Callable[[], object]] = {
        "whole verdict, hot": lambda: verifier.verify(asked),
        "parse": lambda: parse(text),
        "data_version and look-up": lambda: verifier.directory.find(made.kid),
        "hash and compare": lambda: vault.matches(text, known.digest, known.pepper_version),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            began = time.perf_counter()
            for _ in range(count):
                part()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    for name, seen in times.items():
        told(name, seen, "µs")
    verifier.directory.close()


def main() -> None:
    quick = "--quick" in sys.argv
    named = [a for a in sys.argv[1:] if not a.startswith("-")] or ["create", "verdict", "revoke"]
    machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with open_deployment(load_config({}, {"data_dir": folder / "data"})) as runner:
            org, user = runner.change(
                organizations.create, operator(), "Acme", "owner@acme.example"
            )
            by = member(
                user_id=user,
                email="owner@acme.example",
                org_id=org.id,
                role=Role.OWNER,
                environment=Environment.LIVE,
            )
            if "create" in named:
                create(runner, by, folder, 200 if quick else 1_000)
            if "verdict" in named:
                verdict(runner, by, 2_000 if quick else 20_000)
    if "revoke" in named:
        revoke(500 if quick else 10_000)


main()
