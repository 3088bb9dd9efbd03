from __future__ import annotations

from pathlib import Path

import pytest

from wardkey.cli.terminal import exit_code
from wardkey.domain.errors import ERRORS_BY_CODE, WardkeyError
from wardkey.web.problems import status_of

PAGES = Path(__file__).parents[2] / "docs" / "problems"


@pytest.mark.parametrize("leaf", ERRORS_BY_CODE.values(), ids=ERRORS_BY_CODE.keys())
def test_each_code_has_a_page_that_says_what_the_code_says(leaf: type[WardkeyError]) -> None:
    page = (PAGES / f"{leaf.code}.md").read_text()
    failure = leaf()
    assert page.startswith(f"# {leaf.code}\n")
    assert f"{leaf.title} · HTTP {status_of(leaf)} · exit code {exit_code(failure)}" in page
    assert failure.detail in page


def test_each_page_has_its_code_and_stands_in_the_index() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == set(ERRORS_BY_CODE)
    index = (PAGES / "index.md").read_text()
    assert all(f"({code}.md)" in index for code in ERRORS_BY_CODE)
