from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.topics import (
    MOST_LEVELS,
    MOST_TOPIC,
    clean_filter,
    clean_topic,
    covers,
    overlaps,
    to_subject,
    to_subjects,
)

LEVELS = ("", "a", "b")
FILTERS = [
    "/".join(levels)
    for depth in range(1, 4)
    for levels in product((*LEVELS, "+", "#"), repeat=depth)
    if "#" not in levels[:-1] and levels != ("",)
]
# One level more than any filter has, to test that # matches deeper levels.
TOPICS = [
    "/".join(levels)
    for depth in range(1, 5)
    for levels in product((*LEVELS, "c"), repeat=depth)
    if levels != ("",)
]


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1 §4.7.1, word for word, level by level."""
    if pattern == "#":
        return True
    head, more, rest = pattern.partition("/")
    level, deeper, below = topic.partition("/")
    if head not in ("+", level):
        return False
    if not deeper:
        return not more or rest == "#"
    return bool(more) and matches(rest, below)


MATCHED = {pattern: {t for t in TOPICS if matches(pattern, t)} for pattern in FILTERS}
filters = st.sampled_from(FILTERS)
levels = st.text("ab./é-", max_size=3).map(lambda text: text.replace("/", ""))
topics = st.lists(levels, min_size=1, max_size=6).map("/".join)


def test_a_filter_covers_exactly_the_topics_that_mqtt_says_it_matches() -> None:
    for pattern, found in MATCHED.items():
        assert {topic for topic in TOPICS if covers(pattern, topic)} == found, pattern


@given(filters, filters)
def test_a_filter_covers_another_if_it_matches_all_its_topics(one: str, other: str) -> None:
    # `+/#` matches what `#` does; neither we nor the broker take one for the other.
    if not (one.startswith("+/#") and other == "#"):
        assert covers(one, other) == (MATCHED[other] <= MATCHED[one])


@given(filters, filters)
def test_two_filters_overlap_if_both_match_a_topic(one: str, other: str) -> None:
    # These two share only the empty topic, which cannot be published to.
    if {one, other} != {"+", "/#"}:
        assert overlaps(one, other) == overlaps(other, one) == bool(MATCHED[one] & MATCHED[other])


@pytest.mark.parametrize("pattern", ["#", "+", "+/#", "+/a"])
def test_no_wildcard_matches_a_dollar_at_the_start(pattern: str) -> None:
    assert not covers(pattern, "$SYS")
    assert not covers(pattern, "$SYS/a")
    assert covers("a/#", "a/$SYS")


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("a/b", "a.b"),
        ("/", "/./"),
        ("/a", "/.a"),
        ("a/", "a./"),
        ("a//b", "a./.b"),
        ("a.b", "a//b"),
        ("./a..", "//.a////"),
        ("a/+/b", "a.*.b"),
        ("a/#", "a.>"),
        ("#", ">"),
    ],
)
def test_topics_are_converted_to_subjects_as_the_broker_does(topic: str, subject: str) -> None:
    assert to_subject(topic) == subject


@given(topics, topics)
def test_two_topics_never_share_a_subject(one: str, other: str) -> None:
    assert (to_subject(one) == to_subject(other)) == (one == other)


def nats_matches(pattern: str, subject: str) -> bool:
    parts, tokens = pattern.split("."), subject.split(".")
    if parts[-1] == ">":
        return len(tokens) >= len(parts) and nats_matches(
            ".".join(parts[:-1]), ".".join(tokens[: len(parts) - 1])
        )
    return len(parts) == len(tokens) and all(
        a in ("*", b) for a, b in zip(parts, tokens, strict=True)
    )


@given(filters, st.sampled_from(TOPICS))
def test_the_subjects_of_a_filter_match_the_same_topics(pattern: str, topic: str) -> None:
    found = any(nats_matches(subject, to_subject(topic)) for subject in to_subjects(pattern))
    assert found == (topic in MATCHED[pattern])


@given(topics)
def test_a_valid_topic_is_unchanged(topic: str) -> None:
    if topic:
        assert clean_topic(topic) == clean_filter(topic) == topic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a b", "U+0020 at position 2"),
        ("a/b\t", "U+0009 at position 4"),
        ("a\u00a0b", "U+00A0 at position 2"),
        ("a\0", "U+0000 at position 2"),
        ("a\u202eb", "U+202E at position 2"),
        ("\ud800", "U+D800 at position 1"),
        ("a/*", "U+002A at position 3"),
        ("a/>", "U+003E at position 3"),
        ("$SYS/a", r"starts with \$"),
        ("é" * (MOST_TOPIC // 2) + "a", "longer than 1024 bytes"),
        ("/" * MOST_LEVELS, "more than 64 levels"),
    ],
)
def test_topics_that_the_broker_rejects_are_refused_with_the_position(
    text: str, message: str
) -> None:
    for check in (clean_topic, clean_filter):
        with pytest.raises(ValueError, match=message.replace("+", r"\+")) as caught:
            check(text)
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a/+", r"\+ at position 3"), ("#", "# at position 1"), ("a/b#", "# at position 4")],
)
def test_a_topic_with_a_wildcard_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_topic(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#/a", "# at position 1"),
        ("a/#/b", "# at position 3"),
        ("a/b#", "# at position 4"),
        ("a/##", "# at position 3"),
        ("ab/+c/d", r"\+ at position 4"),
        ("a/c+", r"\+ at position 4"),
        ("a/++", r"\+ at position 3"),
    ],
)
def test_a_misplaced_wildcard_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_filter(text)


def test_the_longest_topic_is_accepted() -> None:
    assert clean_topic("a" * MOST_TOPIC)
    assert clean_filter("/".join("a" * MOST_LEVELS))
