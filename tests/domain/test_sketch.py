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


def summarize(stream: list[dict[int, int]]) -> tuple[dict[int, Sighting], Counter[int]]:
    kept: dict[int, Sighting] = {}
    truth: Counter[int] = Counter()
    for turn, batch in enumerate(stream):
        new = {who: Sighting(count, turn, turn) for who, count in batch.items()}
        kept = merge(kept, new, MOST)
        truth.update(batch)
    return kept, truth


@given(batches)
def test_callers_heavier_than_their_share_are_kept(stream: list[dict[int, int]]) -> None:
    kept, truth = summarize(stream)
    heavy = {who for who, count in truth.items() if count * MOST > truth.total()}
    assert heavy <= set(kept)


@given(batches)
def test_the_limit_is_never_exceeded_and_always_used(stream: list[dict[int, int]]) -> None:
    kept, truth = summarize(stream)
    assert len(kept) == min(MOST, len(truth))


@given(batches)
def test_counts_exceed_the_truth_by_at_most_the_lowest_and_are_never_too_low(
    stream: list[dict[int, int]],
) -> None:
    kept, truth = summarize(stream)
    lowest = min(seen.count for seen in kept.values()) if len(kept) == MOST else 0
    for who, seen in kept.items():
        assert truth[who] <= seen.count <= truth[who] + lowest
    assert sum(seen.count for seen in kept.values()) == truth.total()


@given(batches, st.integers(0, 30))
def test_the_last_caller_is_kept_however_light(stream: list[dict[int, int]], who: int) -> None:
    kept, _ = summarize([*stream, {who: 1}])
    assert kept[who].last_at == len(stream)


@given(batches)
def test_first_and_last_sightings_are_exact(stream: list[dict[int, int]]) -> None:
    kept, _ = summarize(stream)
    for who, seen in kept.items():
        turns = [turn for turn, batch in enumerate(stream) if who in batch]
        assert seen.last_at == turns[-1]
        assert seen.first_at in turns


def test_few_callers_are_counted_exactly() -> None:
    kept, truth = summarize([{1: 3, 2: 1}, {1: 1}, {3: 7}])
    assert {who: seen.count for who, seen in kept.items()} == dict(truth)
    assert kept[1] == Sighting(4, 0, 1)


def test_within_one_batch_the_last_seen_is_kept() -> None:
    new = {who: Sighting(1, who, who) for who in (9, 1, 8, 2, 7, 3, 6, 4, 5)}
    assert 9 in merge({}, new, 1)
