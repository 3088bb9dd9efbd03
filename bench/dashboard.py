"""The dashboard: how much its first page weighs, and what the page of keys costs the server."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx

from bench.page import Page
from demo.__main__ import deployment

KEYS = "/o/acme/live/settings/api-keys"
FEW, CPU_KEYS, MANY = 25, 31, 1_000
_KIB = 1024
# What issue 6 asks for.
FIRST_PAGE_KIB, STYLE_KIB, SCRIPT_KIB, CPU_MS, RATIO = 100, 15, 50, 25, 3


def dashboard(page: Page, *, quick: bool) -> None:
    """Measure one deployment as its keys become more."""
    page.section("The dashboard")
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder) / "data") as (parent, output),
    ):
        url = _found(r"listens on (\S+)", output)
        key = _found(r"\b(sk_live_\w+)", output)
        with (
            httpx.Client(base_url=url, timeout=60) as browser,
            httpx.Client(
                base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}
            ) as program,
        ):
            _sizes(page, browser)
            cookie = _cookie(browser, _found(r"/setup/(\w+)", output))
            browser.headers["Cookie"] = cookie
            turns = 20 if quick else 100
            _fill(program, 1, FEW)
            few = _times(browser, turns)
            _fill(program, FEW, CPU_KEYS)
            cpu = _cpu_ms(parent, lambda: _ask(browser), turns)
            _fill(program, CPU_KEYS, MANY)
            many = _times(browser, turns)
    page.say(
        f"- keys page with {CPU_KEYS} keys: {cpu:.1f} ms of the server's CPU (at most {CPU_MS})"
    )
    told = {FEW: statistics.median(few), MANY: statistics.median(many)}
    for count, ms in told.items():
        page.say(f"- keys page with {count:,} keys: p50 {ms:.1f} ms")
    page.say(f"- the second ÷ the first: {told[MANY] / told[FEW]:.2f} (at most {RATIO})")


def _sizes(page: Page, browser: httpx.Client) -> None:
    """Tell what a browser without anything kept loads for its first page."""
    html = browser.get("/sign-in").text
    named = sorted(set(re.findall(r"/static/[\w.-]+", html)))
    sheet = next(path for path in named if path.endswith(".css"))
    # The sheet names its fonts without a folder, those that the page loads already among them.
    fonts = {f"/static/{name}" for name in re.findall(r"url\(([\w.-]+)\)", browser.get(sheet).text)}
    sizes = {path: _wire(browser, path) for path in {"/sign-in", *named, *fonts}}
    page.say(
        f"- first page with fonts: {sum(sizes.values()) / _KIB:.1f} KiB over the wire "
        f"(at most {FIRST_PAGE_KIB})"
    )
    for what, suffix, most in (("style", ".css", STYLE_KIB), ("script", ".js", SCRIPT_KIB)):
        kib = sum(size for path, size in sizes.items() if path.endswith(suffix)) / _KIB
        page.say(f"- {what}, compressed: {kib:.1f} KiB (at most {most})")


def _wire(browser: httpx.Client, path: str) -> int:
    with browser.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        return sum(len(part) for part in answer.iter_raw())


def _cookie(browser: httpx.Client, link: str) -> str:
    """Take the set-up link as its form does; return the session's cookie."""
    answer = browser.post(f"/setup/{link}", data={"password": "a password of some length"})
    assert answer.status_code == 303, answer.text
    browser.cookies.clear()
    return answer.headers["set-cookie"].partition(";")[0]


def _fill(program: httpx.Client, have: int, wanted: int) -> None:
    for number in range(have, wanted):
        body = {"name": f"live-service-{number:04d}", "type": "secret"}
        assert program.post("/v2/keys", json=body).status_code == 201


def _ask(browser: httpx.Client) -> None:
    answer = browser.get(KEYS)
    assert answer.status_code == 200, answer.text


def _times(browser: httpx.Client, turns: int) -> list[float]:
    took = []
    for _ in range(turns):
        began = time.perf_counter()
        _ask(browser)
        took.append((time.perf_counter() - began) * 1000)
    return took


def _cpu_ms(parent: int, ask: Callable[[], None], turns: int) -> float:
    """Return what the worker processes used for each turn, but for what they use when idle."""
    began, before = time.perf_counter(), _workers_cpu(parent)
    for _ in range(turns):
        ask()
    seconds, used = time.perf_counter() - began, _workers_cpu(parent) - before
    before = _workers_cpu(parent)
    time.sleep(seconds)
    idle = _workers_cpu(parent) - before
    return (used - idle) / turns * 1000


def _workers_cpu(parent: int) -> float:
    children = Path(f"/proc/{parent}/task").glob("*/children")
    pids = {int(pid) for file in children for pid in file.read_text().split()}
    ticks = 0
    for pid in pids:
        if b"nats-server" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _found(pattern: str, output: str) -> str:
    found = re.search(pattern, output)
    assert found is not None
    return found[1]
