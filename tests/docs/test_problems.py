from __future__ import annotations

from pathlib import Path

import pytest

from wardkey.api.keys import NewKey
from wardkey.api.schemas import RateShape
from wardkey.bridge.wire import PublishRequest
from wardkey.cli.terminal import exit_code
from wardkey.domain.errors import ERRORS_BY_CODE, WardkeyError
from wardkey.domain.verdict import PROBLEMS, Verdict
from wardkey.web.problems import status_of

PAGES = Path(__file__).parents[2] / "docs" / "problems"


@pytest.mark.parametrize("leaf", ERRORS_BY_CODE.values(), ids=ERRORS_BY_CODE.keys())
def test_every_error_code_has_a_page_that_quotes_its_sentence(leaf: type[WardkeyError]) -> None:
    page = (PAGES / f"{leaf.code}.md").read_text()
    failure = leaf()
    assert page.startswith(f"# {leaf.code}\n")
    assert f"{leaf.title} · HTTP {status_of(leaf)} · exit code {exit_code(failure)}" in page
    assert failure.detail in page


def test_every_problem_page_has_a_code_and_is_in_the_index() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == set(ERRORS_BY_CODE)
    index = (PAGES / "index.md").read_text()
    assert all(f"({code}.md)" in index for code in ERRORS_BY_CODE)


def verdict_rows() -> dict[str, str]:
    """Return the verdict rows of the developer's guide by code."""
    guide = (PAGES.parent / "guide" / "developer.md").read_text()
    section = guide.partition("\n## Verdicts\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines if line.split("`")[1] != "code"}


def test_every_verdict_has_a_line_with_its_status_and_problem() -> None:
    rows = verdict_rows()
    assert list(rows) == [str(verdict) for verdict in Verdict]
    assert set(PROBLEMS) == set(Verdict) - {Verdict.VALID}
    for verdict, leaf in PROBLEMS.items():
        assert f"| {status_of(leaf)} |" in rows[verdict]
        assert f"[{leaf.code}](../problems/{leaf.code}.md)" in rows[verdict]


@pytest.mark.parametrize("verdict", PROBLEMS)
def test_a_problem_named_unlike_its_verdict_mentions_the_verdict(verdict: Verdict) -> None:
    code = PROBLEMS[verdict].code
    if code != verdict:
        assert f"`{verdict}`" in (PAGES / f"{code}.md").read_text()


def test_the_guide_documents_every_field_of_a_key() -> None:
    guide = (PAGES.parent / "guide" / "developer.md").read_text()
    section = guide.partition("\n## Fields of a key\n")[2].partition("\n## ")[0]
    for name in (*NewKey.model_fields, *RateShape.model_fields):
        assert f"`{name}`" in section, name


def test_the_guide_documents_every_field_of_a_message() -> None:
    guide = (PAGES.parent / "guide" / "messaging.md").read_text()
    for name in PublishRequest.__struct_fields__:
        assert f"| `{name}` |" in guide, name
