"""Every cell of a table stays text in every spreadsheet."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.spreadsheets import escape_cell

SEPARATORS = ",;\t|"
BEFORE = ["", " ", '"', '" ', "\u00a0", "\u200b", "\ufeff", "\0"]
# Spreadsheets skip invisible characters.
FORMULA = re.compile(r'[\s"\x00-\x1f\x7f-\x9f\u200b-\u200f\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]')

parts = st.lists(
    st.one_of(
        st.sampled_from(["=1+1", "+1", "-1", "@A1", "\uff1d1", *SEPARATORS, "\n", "\r", *BEFORE]),
        st.text(max_size=3),
    ),
    max_size=8,
).map("".join)


def read(text: str, separator: str) -> list[str]:
    """Read cells as CSV, and also by a plain split that ignores quotes."""
    cells = [
        cell
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        for cell in row
    ]
    lines = re.split(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", text)
    return [*cells, *(cell for line in lines for cell in line.split(separator))]


def written(cells: list[str]) -> str:
    into = io.StringIO(newline="")
    csv.writer(into, quoting=csv.QUOTE_ALL).writerow([escape_cell(cell) for cell in cells])
    return into.getvalue()


@given(st.lists(parts, min_size=1, max_size=3))
def test_no_cell_begins_a_formula_with_any_separator(cells: list[str]) -> None:
    text = written(cells)
    for separator in SEPARATORS:
        for cell in read(text, separator):
            assert not FORMULA.match(cell), (text, separator, cell)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("separator", SEPARATORS)
def test_an_inner_separator_begins_no_formula(separator: str, before: str) -> None:
    text = f"Mozilla{separator}{before}=1+1"
    assert escape_cell(text) == f"Mozilla{separator}'{before}=1+1"


@pytest.mark.parametrize(
    "text", ["", "curl/8.5.0", "2026-11-28T05:00:00Z", '{"n": -1, "m": 2}', "a=b"]
)
def test_text_without_a_formula_stays_as_it_is(text: str) -> None:
    assert escape_cell(text) == text
