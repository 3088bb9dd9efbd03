from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.server import Server, wait_until

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
# Commands that install or start something are tested elsewhere.
ELSEWHERE = ("make ", "sudo ", "wardkey up", "pip ", "pipx ", "git ", "nginx ", "caddy ", "docker ")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return each command of a page's console blocks with its documented output."""
    examples = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            count = 1
            while lines[count - 1].endswith("\\"):
                count += 1
            examples.append(("\n".join(lines[:count]), "\n".join(lines[count:]).strip()))
    return examples


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_console_example_prints_what_the_page_shows(
    page: Path, server: Server, start: Callable[..., Server]
) -> None:
    if page.stem == "messaging":
        server = start(no_messaging=0)
        with server.client(server.first_key) as client:
            wait_until(lambda: client.get("/v2/sessions").status_code == 200)
    variables = {**server.environment, "URL": server.url, "KEY": server.first_key}
    script = (ROOT / ".venv" / "bin").as_posix()
    variables["PATH"] = f"{script}:{variables['PATH']}"
    for command, expected in blocks(page):
        if command.startswith(ELSEWHERE):
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        printed = (done.stdout + done.stderr).replace("\r", "")
        pattern = ".*".join(re.escape(part.strip()) for part in expected.split("…"))
        # Header names are case-insensitive, and the two HTTP layers write them differently.
        assert re.search(pattern, printed, re.DOTALL | re.IGNORECASE), f"{command}\n{printed}"
        for name, value in re.findall(r'"(secret|id)": ?"(\S+?)"', printed):
            variables[name.upper()] = value
