"""The filter index gives the same results as testing each filter by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.filter_index import FilterIndex
from wardkey.domain.topics import covers, levels_overlap

levels = st.lists(st.sampled_from(["a", "b", "+", ""]), min_size=1, max_size=4)
filters = st.one_of(levels, st.lists(st.sampled_from(["a", "b", "+"]), max_size=3).map(
    lambda some: [*some, "#"]
))  # fmt: skip


@given(st.lists(filters, max_size=20), filters)
def test_overlapping_filters_are_found(known: list[list[str]], asked: list[str]) -> None:
    bits = FilterIndex(known).find_overlapping(asked)
    assert [bool(bits >> n & 1) for n in range(len(known))] == [
        levels_overlap(one, asked) for one in known
    ]


@given(st.lists(filters, max_size=20), levels)
def test_filters_that_cover_a_subtree_are_found(known: list[list[str]], parent: list[str]) -> None:
    bits = FilterIndex(known).find_covering_subtree(parent)
    whole = "/".join([*parent, "#"])
    assert [bool(bits >> n & 1) for n in range(len(known))] == [
        one[-1] == "#" and covers("/".join(one), whole) for one in known
    ]
