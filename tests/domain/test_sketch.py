from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.heavy_hitters import Sighting, merge

MOST = 5
# Streams of batches over more callers than are kept, some of them much heavier than others.
batches = st.lists(
    st.dictionaries(
        st.integers(0, 30), st.integers(1, 4) | st.integers(1, 200), min_size=1, max_size=20
    ),
    min_size=1,
    max_size=25,
)


def told(stream: list[dict[int, int]]) -> tuple[dict[int, Sighting], Counter[int]]:
    kept: dict[int, Sighting] = {}
    truth: Counter[int] = Counter()
    for turn, batch in enumerate(stream):
        new = {who: Sighting(count, turn, turn) for who, count in batch.items()}
        kept = merge(kept, new, MOST)
        truth.update(batch)
    return kept, truth


@given(batches)
def test_whoever_is_heavier_than_his_share_is_kept(stream: list[dict[int, int]]) -> None:
    kept, truth = told(stream)
    heavy = {who for who, count in truth.items() if count * MOST > truth.total()}
    assert heavy <= set(kept)


@given(batches)
def test_the_bound_is_never_passed_and_room_is_used(stream: list[dict[int, int]]) -> None:
    kept, truth = told(stream)
    assert len(kept) == min(MOST, len(truth))


@given(batches)
def test_counts_are_too_high_by_at_most_the_lowest_and_never_too_low(
    stream: list[dict[int, int]],
) -> None:
    kept, truth = told(stream)
    lowest = min(seen.count for seen in kept.values()) if len(kept) == MOST else 0
    for who, seen in kept.items():
        assert truth[who] <= seen.count <= truth[who] + lowest
    assert sum(seen.count for seen in kept.values()) == truth.total()


@given(batches, st.integers(0, 30))
def test_whoever_came_last_is_kept_however_light(stream: list[dict[int, int]], who: int) -> None:
    kept, _ = told([*stream, {who: 1}])
    assert kept[who].last_at == len(stream)


@given(batches)
def test_first_and_last_sightings_are_true(stream: list[dict[int, int]]) -> None:
    kept, _ = told(stream)
    for who, seen in kept.items():
        turns = [turn for turn, batch in enumerate(stream) if who in batch]
        assert seen.last_at == turns[-1]
        assert seen.first_at in turns


def test_few_callers_are_counted_exactly() -> None:
    kept, truth = told([{1: 3, 2: 1}, {1: 1}, {3: 7}])
    assert {who: seen.count for who, seen in kept.items()} == dict(truth)
    assert kept[1] == Sighting(4, 0, 1)


def test_within_one_batch_the_last_seen_is_kept() -> None:
    new = {who: Sighting(1, who, who) for who in (9, 1, 8, 2, 7, 3, 6, 4, 5)}
    assert 9 in merge({}, new, 1)
