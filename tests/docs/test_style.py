from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The style page shows what not to write; migrations and vendored files are left as they are.
FILES = sorted(
    path
    for pattern in ("src/wardkey/**/*.py", "src/wardkey/**/*.html", "docs/**/*.md", "*.md")
    for path in ROOT.glob(pattern)
    if path.name != "style.md" and "migrations" not in path.parts
)
WORDS = re.compile(
    r"\b(whoever|somebody|nobody|anew|for ever|mend(?:s|ed|ing)?|such a one|tells? whether"
    r"|told|he|his|him|himself)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_uses_words_that_the_style_page_forbids(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line.strip()}" for number, line in lines if WORDS.search(line)] == []
