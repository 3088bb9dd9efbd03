import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.ids import new_id

LAST = 253_402_300_799_999
moments = st.integers(0, 62**8 - 1)


def test_an_id_consists_of_a_prefix_the_time_and_randomness() -> None:
    assert re.fullmatch(r"key_00000000[0-9A-Za-z]{14}", new_id("key", 0))
    assert re.fullmatch(r"org_0000000z[0-9A-Za-z]{14}", new_id("org", 61))
    assert re.fullmatch(r"org_00000010[0-9A-Za-z]{14}", new_id("org", 62))


@given(moments, moments)
def test_ids_of_different_times_sort_by_age(a: int, b: int) -> None:
    if a != b:
        assert (new_id("key", a) < new_id("key", b)) == (a < b)


@pytest.mark.parametrize("at", [0, LAST])
def test_an_id_of_any_time_fits_its_column(at: int) -> None:
    assert len(new_id("prefix", at)) <= 40


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id("key", 7) for _ in range(10_000)}) == 10_000
