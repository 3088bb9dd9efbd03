"""The operator's guide: its recipes and its systemd unit are run or verified unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_backup import result_of
from tests.support.server import Server

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "operator.md").read_text()
BIN = Path(sys.executable).parent


def block(language: str, says: str) -> str:
    """Return the guide's only code block in a language that contains a text."""
    blocks = [b for b in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if says in b]
    assert len(blocks) == 1, says
    return str(blocks[0])


def run(script: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
    done = subprocess.run(
        ["sh", "-euc", script],
        env={**clean, "PATH": f"{BIN}:{clean['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_new_machine_serves_the_restored_backup(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    old, new, safe = start(), tmp_path / "new", tmp_path / "safe"
    safe.mkdir()
    result_of(old.cli("backup", str(safe / "wardkey.bak"), "--json"))
    (safe / "master.key").write_text((old.data_dir / "master.key").read_text())
    recipe = block("sh", "--accept-lost-revocations")
    *steps, last = (
        recipe.replace("/var/lib/wardkey", str(new)).replace("/safe", str(safe)).split("\n")[:-1]
    )
    assert last.startswith("wardkey up ")
    run("\n".join(steps))
    server = Server(new)
    server.start()
    with server.client(old.first_key) as client:
        answer = client.post("/v2/keys/verify", json={"key": old.first_key}).json()
    server.kill()
    assert answer["code"] == "valid"


def test_the_nightly_backup_can_be_restored(start: Callable[..., Server], tmp_path: Path) -> None:
    server, folder = start(), tmp_path / "backups"
    folder.mkdir()
    script = block("sh", "find /var/backups").replace("/var/backups/wardkey", str(folder))
    run(script.replace("/var/lib/wardkey", str(server.data_dir)))
    server.stop()
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    result_of(server.cli("restore", str(file), "--json"))


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "wardkey.service"
    unit.write_text(block("ini", "ExecStart").replace("/opt/wardkey/bin", str(BIN)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "wardkey" not in done.stderr and done.returncode:
        pytest.skip("systemd-analyze cannot work here")
    assert done.returncode == 0, done.stderr
    assert "wardkey.service" not in done.stderr
