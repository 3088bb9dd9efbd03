"""`python -m bench [PART …] [--quick] [--write] [--keep FOLDER]`; runs all parts by default."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from bench.dashboard import dashboard
from bench.exchange import exchange
from bench.http import against_peers, full_plan, over_http, quick_plan
from bench.messaging import messaging
from bench.page import FILE, Page, spread
from bench.revoke import revoke
from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys
from wardkey.config import load_config
from wardkey.db.engine import connect_sqlite
from wardkey.deployment import open_deployment
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment, parse
from wardkey.domain.verdict import VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

ROUNDS = 5
PARTS = [
    "http", "peers", "messaging", "exchange", "revoke", "dashboard", "create", "verdict",
]  # fmt: skip


def add_figure(page: Page, name: str, rates: list[float], unit: str) -> float:
    """Add a line with the spread of `rates`; return their median."""
    page.say(f"- {name}: {spread(rates, ',.1f')} {unit}")
    return statistics.median(rates)


def create(page: Page, runner: Runner, by: Principal, folder: Path, count: int) -> None:
    """Issue keys durably, alternating with plain durable inserts of as many rows."""
    raw = connect_sqlite(folder / "bare.db", bytes(32))
    for table in range(4):
        raw.execute(f"CREATE TABLE t{table} (id INTEGER PRIMARY KEY, body BLOB)")
    ours, bare = [], []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        for n in range(count):
            spec = KeySpec(f"live-bench-{turn}-{n}", KeyType.SECRET, Environment.LIVE)
            runner.write(keys.issue, by, spec)
        ours.append(count / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(count):
            raw.execute("BEGIN IMMEDIATE")
            for table in range(4):
                raw.execute(f"INSERT INTO t{table} (body) VALUES (?)", (os.urandom(200),))
            raw.execute("COMMIT")
        bare.append(count / (time.perf_counter() - began))
    raw.close()
    issue_rate = add_figure(page, "issue with audit, durable, one thread", ours, "a second")
    insert_rate = add_figure(page, "plain durable inserts of four rows", bare, "a second")
    page.say(f"- the first ÷ the second: {issue_rate / insert_rate:.2f}")


def verdict(page: Page, runner: Runner, by: Principal, count: int) -> None:
    """Time the verdict on a cached key in process, and its parts."""
    verifier = Verifier(runner.database, Usage(runner.database))
    issued = runner.write(
        keys.issue, by, KeySpec("live-bench-hot", KeyType.SECRET, Environment.LIVE)
    )
    text, vault = issued.secret.text, runner.database.vault
    request = VerificationRequest(text)
    known = verifier.directory.find(issued.kid)
    assert known is not None
    parts: dict[str, Callable[[], object]] = {
        "whole verdict, cached key": lambda: verifier.verify(request),
        "parse": lambda: parse(text),
        "freshness and lookup": lambda: verifier.directory.find_cached(issued.kid),
        "hash and compare": lambda: vault.matches(text, known.digest, known.pepper_version),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            began = time.perf_counter()
            for _ in range(count):
                part()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    for name, samples in times.items():
        add_figure(page, name, samples, "µs")
    verifier.directory.close()


def measure_in_process(page: Page, parts: list[str], *, quick: bool) -> None:
    """Run the parts that need no server."""
    page.section("In one process")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with open_deployment(load_config({}, {"data_dir": folder / "data"})) as runner:
            org, user = runner.write(organizations.create, operator(), "Acme", "owner@acme.example")
            by = member(
                user_id=user,
                email="owner@acme.example",
                org_id=org.id,
                role=Role.OWNER,
                environment=Environment.LIVE,
            )
            if "create" in parts:
                create(page, runner, by, folder, 200 if quick else 1_000)
            if "verdict" in parts:
                verdict(page, runner, by, 2_000 if quick else 20_000)


def main() -> None:
    """Run the parts named on the command line."""
    parser = ArgumentParser(prog="python -m bench")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar=" ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="short rounds, fewer keys")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--keep", type=Path, help="keep the filled deployments in this folder")
    options = parser.parse_args()
    parts = options.parts or PARTS
    page = Page(quick=options.quick)
    page.machine()
    with tempfile.TemporaryDirectory() as place:
        folder = (options.keep or Path(place)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        plan = (quick_plan if options.quick else full_plan)(folder)
        if "http" in parts:
            over_http(page, plan)
        if "peers" in parts:
            against_peers(page, plan)
        if "messaging" in parts:
            messaging(page, quick=options.quick)
        if "exchange" in parts:
            exchange(page, quick=options.quick)
        if "revoke" in parts:
            page.section("Revocation")
            revoke(page, 500 if options.quick else 10_000)
        if "dashboard" in parts:
            dashboard(page, quick=options.quick)
        if {"create", "verdict"} & set(parts):
            measure_in_process(page, parts, quick=options.quick)
    if options.write:
        page.write()


main()
