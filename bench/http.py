"""Verdicts over HTTP: against constants, against peers, and with ten million keys."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fill import Filled, filled, text_of
from bench.load import Broken, Case, Server, running, take_turns
from bench.page import Page, spread
from bench.sides import TOLD, constants, peers, wardkey

_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    place: Path
    sizes: tuple[int, int, int]
    rounds: int
    seconds: float
    starts: int
    asked: int
    flood: int


def quick_plan(place: Path) -> Plan:
    """Return the plan of a look in passing."""
    return Plan(place, (10_000, 100_000, 300_000), 2, 1, 2, 10_000, 50_000)


def full_plan(place: Path) -> Plan:
    """Return the plan whose numbers are worth writing down."""
    return Plan(place, (10_000, 1_000_000, 10_000_000), 5, 5, 3, 100_000, 3_000_000)


def over_http(page: Page, plan: Plan) -> None:
    """Measure Wardkey against constants, and itself with few keys and with many."""
    few, many, most = (filled(plan.place, size) for size in plan.sizes)
    page.section("Over HTTP")
    page.say(
        f"One worker on one core, wrk on the other with 32 connections, {plan.asked:,} distinct "
        "keys asked in no order, each once before the rounds begin. "
        f"{plan.rounds} rounds of {plan.seconds:g} s each. The constants get the very bytes that "
        "Wardkey gets. *Alone* is the median time of one request at a time.\n"
    )
    _, verify, auth = wardkey(plan.place, many, plan.asked)
    _, verify_small, _ = wardkey(plan.place, few, plan.asked)
    big, verify_big, _ = wardkey(plan.place, most, plan.asked)
    held = constants(plan.place, verify, auth)
    cases = [verify, auth, verify_small, verify_big, *held]
    with running(list({id(case.server): case.server for case in cases}.values())):
        take_turns(cases, plan.rounds, plan.seconds)
    _table(page, cases)
    ratios: list[tuple[Case, Case, float]] = []
    goals = {"Go net/http": 1.25, "uvicorn, in place": 0.65, "uvicorn, raw ASGI": 0.65,
             "nginx": 0.65}  # fmt: skip
    for case in held:
        mine = verify if case.name.endswith("POST") else auth
        ratios.append((mine, case, goals[case.name.rpartition(",")[0]]))
    ratios.append((verify_big, verify_small, 0.8))
    _ratios(page, ratios)
    alone = statistics.median(verify.alone_us)
    page.say(f"One verify alone: p50 {alone:.0f} µs (goal: at most 100).\n")
    _many_keys(page, plan, (few, many, most), big, verify_big)


def against_peers(page: Page, plan: Plan) -> None:
    """Measure Wardkey against what a Python or Node team would pick."""
    page.section("Against peers")
    few = filled(plan.place, plan.sizes[0])
    server, verify, _ = wardkey(plan.place, few, plan.asked)
    page.say(
        "Each verifies one of 10,000 keys, kept in SQLite (WAL, `synchronous=NORMAL` for the "
        "peers, `FULL` and encrypted for Wardkey), one process on one core.\n"
    )
    found = peers(plan.place, page.say)
    cases = [verify, *found]
    with running([server, *(case.server for case in found)]):
        take_turns(cases, plan.rounds, plan.seconds)
    _table(page, cases)
    _ratios(page, [(verify, peer, 10) for peer in found])
    page.say("What each peer does and does not do:\n")
    for peer in found:
        page.say(f"- **{peer.name}**: {TOLD[peer.name]}")
    page.say(
        "- The npm registry has no package `keyshield`; the one measured is PyPI's of that name."
    )


def _table(page: Page, cases: Sequence[Case]) -> None:
    page.table(
        ("asked", "requests/s", "CPU µs a request", "alone, µs"),
        [
            (case.name, spread(case.rates), spread(case.cpu_us, ",.1f"), spread(case.alone_us))
            for case in cases
        ],
    )


def _ratios(page: Page, pairs: Sequence[tuple[Case, Case, float]]) -> None:
    rows = []
    for mine, other, goal in pairs:
        # Of the same round, so that what slowed one slowed the other.
        seen = [a / b for a, b in zip(mine.rates, other.rates, strict=True)]
        cpu = [b / a for a, b in zip(mine.cpu_us, other.cpu_us, strict=True)]
        met = "met" if statistics.median(seen) >= goal else "missed"
        names = f"{mine.name} ÷ {other.name}"
        rows.append((names, spread(seen, ",.2f"), spread(cpu, ",.2f"), f"≥ {goal:g}", met))
    page.table(
        ("ratio", "of requests/s", "of requests a CPU second", "goal", "by requests/s"), rows
    )


def _many_keys(
    page: Page, plan: Plan, made: tuple[Filled, ...], server: Server, verify: Case
) -> None:
    most = made[-1]
    starts: list[float] = []
    for _ in range(plan.starts):
        with running([server]):
            began = time.perf_counter()
            starts.append(server.wait(verify.sample(len(starts)), verify.expected) - began)
    with running([server]):
        server.wait(verify.sample(0), verify.expected)
        before = server.memory()
        asked = min(plan.flood, most.count)
        _flood(server, most, asked)
        after = server.memory()
    page.say(f"With {most.count:,} keys:\n")
    page.say(
        f"- start of the process to its first verdict: {spread(starts, ',.2f')} s (goal: at most 2)"
    )
    page.say(
        f"- memory of the worker: {before:.0f} MiB before, {after:.0f} MiB after {asked:,} "
        "distinct keys were asked (setting: `directory_memory`, 256 MiB, beside what the process "
        "needs)"
    )
    for deployment in made:
        size = (deployment.data_dir / "wardkey.db").stat().st_size
        page.say(
            f"- filling {deployment.count:,} keys past the audit took {deployment.seconds:,.0f} s "
            f"and {size / 2**20:,.0f} MiB of disk"
        )


def _flood(server: Server, deployment: Filled, count: int) -> None:
    """Ask for `count` distinct keys, pipelined; raises `Broken` if one is not valid."""
    step = deployment.count // count
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for first in range(0, count, _AT_ONCE):
            asked = range(first, min(first + _AT_ONCE, count))
            connection.sendall(
                b"".join(
                    b"GET /v2/auth HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n"
                    % text_of(n * step, deployment.count).encode()
                    for n in asked
                )
            )
            answers = b""
            while answers.count(b"\r\n\r\n") < len(asked):
                part = connection.recv(262_144)
                if not part:
                    raise Broken("the server closed the connection")
                answers += part
            if answers.count(b"HTTP/1.1 200 ") != len(asked):
                raise Broken(f"not all were valid: {answers[:500]!r}")
