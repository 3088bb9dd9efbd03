"""Measures verdicts over HTTP: against constant responses, against peers, with 10 million keys."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fill import Filled, get_deployment, text_of
from bench.load import BenchmarkError, Case, Server, running, take_turns
from bench.page import Page, spread
from bench.sides import PEER_NOTES, constants, peers, wardkey

_PIPELINED = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """The amount of measuring."""

    folder: Path
    sizes: tuple[int, int, int]
    rounds: int
    seconds: float
    starts: int
    distinct: int
    flood: int


def quick_plan(folder: Path) -> Plan:
    """Return the plan for a short run."""
    return Plan(folder, (10_000, 100_000, 300_000), 2, 1, 2, 10_000, 50_000)


def full_plan(folder: Path) -> Plan:
    """Return the plan for numbers to publish."""
    return Plan(folder, (10_000, 1_000_000, 10_000_000), 5, 5, 3, 100_000, 3_000_000)


def over_http(page: Page, plan: Plan) -> None:
    """Compare Wardkey with constant responses, and with itself at other numbers of keys."""
    few, many, most = (get_deployment(plan.folder, size) for size in plan.sizes)
    page.section("Over HTTP")
    page.say(
        f"One worker on one core, wrk on the other with 32 connections; {plan.distinct:,} distinct "
        "keys in random order, each sent once before the rounds begin; "
        f"{plan.rounds} rounds of {plan.seconds:g} s each. The constant servers receive the same "
        "bytes as Wardkey. *Alone* is the median time of one request at a time.\n"
    )
    _, verify, auth = wardkey(plan.folder, many, plan.distinct)
    _, verify_small, _ = wardkey(plan.folder, few, plan.distinct)
    big, verify_big, _ = wardkey(plan.folder, most, plan.distinct)
    baselines = constants(plan.folder, verify, auth)
    cases = [verify, auth, verify_small, verify_big, *baselines]
    with running(list({id(case.server): case.server for case in cases}.values())):
        take_turns(cases, plan.rounds, plan.seconds)
    _table(page, cases)
    ratios: list[tuple[Case, Case, float]] = []
    goals = {"Go net/http": 1.25, "uvicorn, in place": 0.65, "uvicorn, raw ASGI": 0.65,
             "nginx": 0.65}  # fmt: skip
    for case in baselines:
        ours = verify if case.name.endswith("POST") else auth
        ratios.append((ours, case, goals[case.name.rpartition(",")[0]]))
    ratios.append((verify_big, verify_small, 0.8))
    _ratios(page, ratios)
    alone = statistics.median(verify.alone_us)
    page.say(f"One verify at a time: p50 {alone:.0f} µs (goal: at most 100).\n")
    _many_keys(page, plan, (few, many, most), big, verify_big)


def against_peers(page: Page, plan: Plan) -> None:
    """Compare Wardkey with libraries that a Python or Node team would choose."""
    page.section("Against peers")
    few = get_deployment(plan.folder, plan.sizes[0])
    server, verify, _ = wardkey(plan.folder, few, plan.distinct)
    page.say(
        "Each verifies one of 10,000 keys, stored in SQLite (WAL, `synchronous=NORMAL` for the "
        "peers, `FULL` and encrypted for Wardkey), with one process on one core.\n"
    )
    rivals = peers(plan.folder, page.say)
    cases = [verify, *rivals]
    with running([server, *(case.server for case in rivals)]):
        take_turns(cases, plan.rounds, plan.seconds)
    _table(page, cases)
    _ratios(page, [(verify, peer, 10) for peer in rivals])
    page.say("What each peer does and doesn't do:\n")
    for peer in rivals:
        page.say(f"- **{peer.name}**: {PEER_NOTES[peer.name]}")
    page.say("- The npm registry has no package `keyshield`; the one measured here is from PyPI.")


def _table(page: Page, cases: Sequence[Case]) -> None:
    page.table(
        ("case", "requests/s", "CPU µs a request", "alone, µs"),
        [
            (case.name, spread(case.rates), spread(case.cpu_us, ",.1f"), spread(case.alone_us))
            for case in cases
        ],
    )


def _ratios(page: Page, pairs: Sequence[tuple[Case, Case, float]]) -> None:
    rows = []
    for ours, other, goal in pairs:
        # Within one round, so that disturbances affect both.
        rates = [a / b for a, b in zip(ours.rates, other.rates, strict=True)]
        cpu = [b / a for a, b in zip(ours.cpu_us, other.cpu_us, strict=True)]
        met = "met" if statistics.median(rates) >= goal else "missed"
        names = f"{ours.name} ÷ {other.name}"
        rows.append((names, spread(rates, ",.2f"), spread(cpu, ",.2f"), f"≥ {goal:g}", met))
    page.table(
        ("ratio", "of requests/s", "of requests a CPU second", "goal", "by requests/s"), rows
    )


def _many_keys(
    page: Page, plan: Plan, deployments: tuple[Filled, ...], server: Server, verify: Case
) -> None:
    most = deployments[-1]
    starts: list[float] = []
    for _ in range(plan.starts):
        with running([server]):
            began = time.perf_counter()
            starts.append(server.wait(verify.sample(len(starts)), verify.expected) - began)
    with running([server]):
        server.wait(verify.sample(0), verify.expected)
        before = server.memory()
        count = min(plan.flood, most.count)
        _flood(server, most, count)
        after = server.memory()
    page.say(f"With {most.count:,} keys:\n")
    page.say(f"- process start to first verdict: {spread(starts, ',.2f')} s (goal: at most 2)")
    page.say(
        f"- memory of the worker: {before:.0f} MiB before, {after:.0f} MiB after {count:,} "
        "distinct keys (setting: `directory_memory`, 256 MiB, in addition to the process itself)"
    )
    for deployment in deployments:
        size = (deployment.data_dir / "wardkey.db").stat().st_size
        page.say(
            f"- filling {deployment.count:,} keys without audit events took "
            f"{deployment.seconds:,.0f} s and {size / 2**20:,.0f} MiB of disk"
        )


def _flood(server: Server, deployment: Filled, count: int) -> None:
    """Verify `count` distinct keys, pipelined; raises `BenchmarkError` if one is not valid."""
    step = deployment.count // count
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for first in range(0, count, _PIPELINED):
            numbers = range(first, min(first + _PIPELINED, count))
            connection.sendall(
                b"".join(
                    b"GET /v2/auth HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n"
                    % text_of(n * step, deployment.count).encode()
                    for n in numbers
                )
            )
            answers = b""
            while answers.count(b"\r\n\r\n") < len(numbers):
                part = connection.recv(262_144)
                if not part:
                    raise BenchmarkError("the server closed the connection")
                answers += part
            if answers.count(b"HTTP/1.1 200 ") != len(numbers):
                raise BenchmarkError(f"not all were valid: {answers[:500]!r}")
