"""`wardkey up` needs only the wheel in a clean environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.server import NO_CERTIFICATES, wait_until

ROOT = Path(__file__).parents[1]
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def find_python(version: str) -> str:
    """Return the path of a Python version, from PATH or pyenv; empty if not installed."""
    found = shutil.which(f"python{version}")
    installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(installed[-1]) if installed else found or ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "version",
    [
        version if version == THIS else pytest.param(version, marks=pytest.mark.soak)
        for version in ("3.11", "3.12", "3.13")
    ],
)
def test_the_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path, version: str) -> None:
    python = sys.executable if version == THIS else find_python(version)
    if not python:
        pytest.skip(f"there is no Python {version} on this machine")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    program = tmp_path / "venv" / "bin"
    install = [str(program / "python"), "-m", "pip", "install", "--quiet"]
    pins = ["--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *pins, str(wheel)], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program / "wardkey"), "up", "--listen", "127.0.0.1:0",
             "--mqtt-listen", "127.0.0.1:0", "--websocket-listen", "127.0.0.1:0"],
            cwd=tmp_path, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        found = wait_until(lambda: re.findall(r"listens on (\S+)", log.read_text()), 60)
        url = found[0]

        def is_ready() -> bool:
            try:
                return httpx.get(f"{url}/readyz", verify=NO_CERTIFICATES).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, 30)
        key = re.search(r"sk_live_\w+", log.read_text())
        assert key is not None
        answer = httpx.get(
            f"{url}/v2/auth", headers={"Authorization": f"Bearer {key[0]}"}, verify=NO_CERTIFICATES
        )
        assert answer.status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
