from __future__ import annotations

import re
from pathlib import Path

from tests.docs.test_console import PAGES

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def test_pictures_on_pages_exist_and_are_small() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text())
    }
    assert len(shown) >= 3
    assert shown <= set(PICTURES.iterdir())
    assert all(picture.stat().st_size <= 160 * 1024 for picture in PICTURES.iterdir())
