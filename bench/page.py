"""What a run found, told as it goes and written as docs/performance.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import sqlcipher3.dbapi2 as sqlcipher

FILE = Path(__file__).parents[1] / "docs" / "performance.md"
_INTRO = """# Performance

Made by `make bench ARGS=--write`, all of it in one run; no number is typed by hand. Machines
differ and are noisy, so look at the ratios: what they compare ran in turns, A B C A B C, within
seconds of each other. Each number is a median, with the least and the most in parentheses.

`make bench` measures without writing, `ARGS=--quick` in short rounds with fewer keys,
`ARGS="http peers"` only those (of: create verdict revoke http peers messaging exchange dashboard),
and `ARGS="--keep FOLDER"` keeps the filled deployments for the next run. It installs wrk, Go and
nginx from Debian, and the peers from PyPI and npm into `.bench/`.
"""


class Page:
    """Lines of Markdown, printed at once and kept."""

    def __init__(self, *, quick: bool) -> None:
        self._lines: list[str] = [_INTRO]
        if quick:
            self.say("**This was a quick run**: short rounds, fewer keys, wide spreads.\n")

    def say(self, line: str = "") -> None:
        """Add a line."""
        print(line, flush=True)
        self._lines.append(line)

    def section(self, title: str) -> None:
        """Begin a section."""
        self.say(f"\n## {title}\n")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; all columns but the first are numbers."""
        self.say("| " + " | ".join(heads) + " |")
        self.say("|---" + "|---:" * (len(heads) - 1) + "|")
        for row in rows:
            self.say("| " + " | ".join(row) + " |")
        self.say()

    def machine(self) -> None:
        """Say where it runs and on what."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "?")
        kib = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
        gib = int(kib[1]) / 2**20 if kib else 0
        self.section("Machine and versions")
        self.say(f"- {cpu}, {os.cpu_count()} cores, {gib:.0f} GiB, Linux {platform.release()}")
        self.say(f"- load average when it began: {os.getloadavg()[0]:.1f}")
        names = ("wardkey", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy")
        told = [f"{name} {version(name)}" for name in names]
        self.say(f"- Python {platform.python_version()}, {', '.join(told)}")
        self.say(f"- SQLite {sqlcipher.sqlite_version} in SQLCipher")
        for command in (["go", "version"], ["nginx", "-v"], ["wrk", "-v"], ["node", "--version"]):
            self.say(f"- {_told(command)}")

    def write(self) -> None:
        """Write the file."""
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines))
        FILE.write_text(text.rstrip() + "\n")


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median with the least and the most."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}}–{max(values):{form}})"


def _told(command: list[str]) -> str:
    path = f"/usr/sbin:{os.environ['PATH']}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path},
                              check=False)  # fmt: skip
    except FileNotFoundError:
        return f"{command[0]}: not found"
    line = (done.stdout or done.stderr).splitlines()[0]
    line = line.partition(" Copyright")[0]
    return line if command[0] in line else f"{command[0]} {line}"
