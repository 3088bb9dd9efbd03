"""Measures the dashboard: the size of its first page, and the server's time for the keys page."""

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
# The goals.
FIRST_PAGE_KIB, STYLE_KIB, SCRIPT_KIB, CPU_MS, RATIO = 100, 15, 50, 25, 3


def dashboard(page: Page, *, quick: bool) -> None:
    """Measure one deployment with a growing number of keys."""
    page.section("The dashboard")
    with (
        tempfile.TemporaryDirectory() as folder,
        deployment(Path(folder) / "data") as (parent, output),
    ):
        url = _find(r"listens on (\S+)", output)
        key = _find(r"\b(sk_live_\w+)", output)
        with (
            httpx.Client(base_url=url, timeout=60) as browser,
            httpx.Client(
                base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"}
            ) as program,
        ):
            _add_sizes(page, browser)
            cookie = _set_up(browser, _find(r"/setup/(\w+)", output))
            browser.headers["Cookie"] = cookie
            turns = 20 if quick else 100
            _create_keys(program, 1, FEW)
            few = _measure_times(browser, turns)
            _create_keys(program, FEW, CPU_KEYS)
            cpu = _measure_cpu_ms(parent, lambda: _load_keys_page(browser), turns)
            _create_keys(program, CPU_KEYS, MANY)
            many = _measure_times(browser, turns)
    page.say(
        f"- keys page with {CPU_KEYS} keys: {cpu:.1f} ms of the server's CPU (at most {CPU_MS})"
    )
    medians = {FEW: statistics.median(few), MANY: statistics.median(many)}
    for count, ms in medians.items():
        page.say(f"- keys page with {count:,} keys: p50 {ms:.1f} ms")
    page.say(f"- the second ÷ the first: {medians[MANY] / medians[FEW]:.2f} (at most {RATIO})")


def _add_sizes(page: Page, browser: httpx.Client) -> None:
    """Add the bytes that a browser with an empty cache loads for its first page."""
    html = browser.get("/sign-in").text
    assets = sorted(set(re.findall(r"/static/[\w.-]+", html)))
    sheet = next(path for path in assets if path.endswith(".css"))
    # The style sheet names fonts without a folder, including those that the page preloads.
    fonts = {f"/static/{name}" for name in re.findall(r"url\(([\w.-]+)\)", browser.get(sheet).text)}
    sizes = {path: _transfer_size(browser, path) for path in {"/sign-in", *assets, *fonts}}
    page.say(
        f"- first page with fonts: {sum(sizes.values()) / _KIB:.1f} KiB over the wire "
        f"(at most {FIRST_PAGE_KIB})"
    )
    for name, suffix, limit in (("style", ".css", STYLE_KIB), ("script", ".js", SCRIPT_KIB)):
        kib = sum(size for path, size in sizes.items() if path.endswith(suffix)) / _KIB
        page.say(f"- {name}, compressed: {kib:.1f} KiB (at most {limit})")


def _transfer_size(browser: httpx.Client, path: str) -> int:
    with browser.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        return sum(len(part) for part in answer.iter_raw())


def _set_up(browser: httpx.Client, link: str) -> str:
    """Submit the set-up form; return the session's cookie."""
    answer = browser.post(f"/setup/{link}", data={"password": "a password of some length"})
    assert answer.status_code == 303, answer.text
    browser.cookies.clear()
    return answer.headers["set-cookie"].partition(";")[0]


def _create_keys(program: httpx.Client, first: int, end: int) -> None:
    for number in range(first, end):
        body = {"name": f"live-service-{number:04d}", "type": "secret"}
        assert program.post("/v2/keys", json=body).status_code == 201


def _load_keys_page(browser: httpx.Client) -> None:
    answer = browser.get(KEYS)
    assert answer.status_code == 200, answer.text


def _measure_times(browser: httpx.Client, turns: int) -> list[float]:
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        _load_keys_page(browser)
        times.append((time.perf_counter() - began) * 1000)
    return times


def _measure_cpu_ms(parent: int, load: Callable[[], None], turns: int) -> float:
    """Return the CPU ms of the worker processes for each turn, without their idle use."""
    began, before = time.perf_counter(), _workers_cpu(parent)
    for _ in range(turns):
        load()
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


def _find(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    assert match is not None
    return match[1]
