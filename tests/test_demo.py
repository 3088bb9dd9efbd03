from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"^ *\d+ ms  ([^:]+): .+$", re.MULTILINE)


def test_the_demo_passes_and_the_readme_shows_its_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every step passed." in done.stdout
    shown = (ROOT / "README.md").read_text().split("$ make demo\n", 1)[1].split("```", 1)[0]
    assert STEP.findall(shown) == STEP.findall(done.stdout)
