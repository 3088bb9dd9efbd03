import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wardkey.domain.rate import RateLimit, admit

NOW = 1_800_000_000_000

limits = st.builds(
    RateLimit,
    limit=st.integers(1, 1_000_000),
    period_ms=st.sampled_from([1_000, 7_777, 60_000, 3_600_000, 86_400_000]),
    burst=st.integers(1, 50),
)
small_steps = st.lists(st.integers(0, 400), min_size=1, max_size=60)
any_steps = st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=60)


def test_a_burst_is_admitted_at_once_and_the_next_request_waits() -> None:
    limit, tat = RateLimit(limit=10, period_ms=1_000, burst=3), 0.0
    seen = []
    for _ in range(4):
        admission = admit(limit, tat, NOW)
        tat = admission.tat
        seen.append(admission)
    assert [a.admitted for a in seen] == [True, True, True, False]
    assert [a.remaining for a in seen] == [2, 1, 0, 0]
    assert [a.retry_after_ms for a in seen] == [0, 0, 0, 100]
    assert [a.reset_ms for a in seen] == [100, 200, 300, 300]


@given(limits)
@example(RateLimit(7, 1_000, 7))
@example(RateLimit(3, 1_000, 3))
@example(RateLimit(10**9, 1_000, 1_000))
def test_exactly_the_burst_is_admitted_at_one_instant(limit: RateLimit) -> None:
    tat, admitted = 0.0, 0
    for _ in range(limit.burst + 5):
        admission = admit(limit, tat, NOW)
        tat, admitted = admission.tat, admitted + admission.admitted
    assert admitted == limit.burst


@given(limits, small_steps, st.lists(st.integers(0, 5), min_size=60, max_size=60))
def test_no_window_admits_more_than_the_burst_and_the_rate(
    limit: RateLimit, steps: list[int], costs: list[int]
) -> None:
    tat, now = 0.0, NOW
    spent: list[tuple[int, int]] = []
    for step, cost in zip(steps, costs, strict=False):
        now += step
        admission = admit(limit, tat, now, cost)
        tat = admission.tat
        if admission.admitted:
            spent.append((now, cost))
    for first, (start, _) in enumerate(spent):
        total = 0
        for end, cost in spent[first:]:
            total += cost
            assert (total - limit.burst) * limit.period_ms <= limit.limit * (end - start)


@given(limits, small_steps, st.integers(1, 50))
def test_a_request_is_admitted_exactly_after_the_stated_wait(
    limit: RateLimit, steps: list[int], cost: int
) -> None:
    tat, now = 0.0, NOW
    for step in steps:
        now += step
        admission = admit(limit, tat, now, cost)
        if not admission.admitted and admission.retry_after_ms is not None:
            later = now + admission.retry_after_ms
            assert admit(limit, admission.tat, later, cost).admitted
            assert not admit(limit, admission.tat, later - 1, cost).admitted
        tat = admission.tat


@given(limits, st.integers(1, 100))
def test_a_cost_above_the_burst_is_refused_without_a_wait(limit: RateLimit, beyond: int) -> None:
    admission = admit(limit, 0, NOW, limit.burst + beyond)
    assert (admission.admitted, admission.retry_after_ms) == (False, None)
    assert admission.remaining == limit.burst
    assert admission.tat == 0


@given(limits, small_steps)
def test_the_remaining_count_is_then_admitted(limit: RateLimit, steps: list[int]) -> None:
    tat, now = 0.0, NOW
    for step in steps:
        now += step
        tat = admit(limit, tat, now).tat
    left = admit(limit, tat, now, 0).remaining
    for expected in range(left - 1, -1, -1):
        admission = admit(limit, tat, now)
        assert (admission.admitted, admission.remaining) == (True, expected)
        tat = admission.tat
    assert not admit(limit, tat, now).admitted


@given(limits, st.integers(1, 50), st.lists(st.integers(0, 10_000), min_size=2, max_size=20))
def test_the_remaining_count_only_grows_while_nothing_is_spent(
    limit: RateLimit, spent: int, steps: list[int]
) -> None:
    tat, now = 0.0, NOW
    for _ in range(spent):
        tat = admit(limit, tat, now).tat
    before = -1
    for step in steps:
        now += step
        remaining = admit(limit, tat, now, 0).remaining
        assert before <= remaining <= limit.burst
        before = remaining


@given(limits, st.integers(0, 50))
def test_a_request_with_cost_zero_changes_nothing(limit: RateLimit, spent: int) -> None:
    tat = 0.0
    for _ in range(spent):
        tat = admit(limit, tat, NOW).tat
    asked = admit(limit, tat, NOW, 0)
    assert (asked.admitted, asked.tat) == (True, tat)


def test_a_negative_cost_cannot_buy_credit() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        admit(RateLimit(1, 1_000, 1), 0, NOW, -1)


@given(limits, any_steps)
def test_a_jumping_clock_admits_no_more_than_its_latest_time_would(
    limit: RateLimit, steps: list[int]
) -> None:
    tat, now, admitted = 0.0, NOW, 0
    reached = [NOW]
    for step in steps:
        now += step
        admission = admit(limit, tat, now)
        tat, admitted = admission.tat, admitted + admission.admitted
        reached.append(now)
    span = max(reached) - min(reached)
    assert (admitted - limit.burst) * limit.period_ms <= limit.limit * span


@given(limits, st.integers(1, 1_000_000))
def test_a_clock_set_back_after_the_burst_admits_nothing(limit: RateLimit, back: int) -> None:
    tat = 0.0
    for _ in range(limit.burst):
        tat = admit(limit, tat, NOW).tat
    assert not admit(limit, tat, NOW - back).admitted


@given(limits)
def test_the_whole_burst_is_available_after_the_reset(limit: RateLimit) -> None:
    admission = admit(limit, 0, NOW)
    assert admit(limit, admission.tat, NOW + admission.reset_ms, 0).remaining == limit.burst


@given(
    st.integers(1, 10**9), st.integers(1, 31 * 86_400_000), st.integers(1, 10**9),
    st.floats(0, 2.0**42), st.integers(0, 2**41), st.integers(0, 10**9),
)  # fmt: skip
def test_the_largest_settings_still_work(
    limit: int, period: int, burst: int, tat: float, now: int, cost: int
) -> None:
    admission = admit(RateLimit(limit, period, burst), tat, now, cost)
    assert math.isfinite(admission.tat)
    assert 0 <= admission.remaining <= burst
    assert admission.reset_ms >= 0


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_a_limit_below_one_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        RateLimit(*wrong)
