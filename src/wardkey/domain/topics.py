"""MQTT topics and topic filters: validation, matching, and conversion to NATS subjects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_TOPIC = 1_024
MOST_LEVELS = 64
_WILDCARDS = frozenset("+#")
# `*` and `>` are wildcards in NATS, and white space breaks its line protocol.
_REJECTED = frozenset("*>")
# Most topics match this, which is faster than checking each character.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/-]{1,1024}")


def _split_levels(text: str, label: str) -> list[str]:
    if not text:
        raise ValueError(f"The {label} is empty; send one such as agents/agent-01/state.")
    if len(text.encode("utf-8", "surrogatepass")) > MOST_TOPIC:
        raise ValueError(f"The {label} is longer than {MOST_TOPIC} bytes of UTF-8; shorten it.")
    for position, character in enumerate(text, 1):
        if character.isspace() or not character.isprintable() or character in _REJECTED:
            raise ValueError(
                f"The {label} has U+{ord(character):04X} at position {position}; remove it, as "
                "white space, control characters, * and > are not allowed."
            )
    if text.startswith("$"):
        raise ValueError(f"A {label} that starts with $ is reserved for the broker; use another.")
    levels = text.split("/")
    if len(levels) > MOST_LEVELS:
        raise ValueError(f"The {label} has more than {MOST_LEVELS} levels; use fewer.")
    return levels


def clean_topic(text: str) -> str:
    """Return a topic to publish to; raises `ValueError` with the position of the error.

    MQTT 3.1.1 §4.7 allows more (white space, `*`, `>`), but a broker on NATS does not.
    """
    if _PLAIN.fullmatch(text) and text.count("/") < MOST_LEVELS:
        return text
    for position, character in enumerate(text, 1):
        if character in _WILDCARDS:
            raise ValueError(
                f"The topic has the wildcard {character} at position {position}; publish to a "
                "single topic."
            )
    _split_levels(text, "topic")
    return text


def clean_filter(text: str) -> str:
    """Return a topic filter; raises `ValueError` with the position of the error.

    `+` must be alone in its level, `#` alone in the last one (MQTT 3.1.1 §4.7.1).
    """
    levels, position = _split_levels(text, "topic filter"), 1
    for number, level in enumerate(levels):
        if "#" in level and (level != "#" or number != len(levels) - 1):
            raise ValueError(
                f"# at position {position + level.index('#')} must be the whole last level."
            )
        if "+" in level and level != "+":
            raise ValueError(f"+ at position {position + level.index('+')} must be a whole level.")
        position += len(level) + 1
    return text


def covers(pattern: str, other: str) -> bool:
    """Return whether `pattern` matches every topic that the filter `other` matches.

    `other` may be a topic. `a/#` matches `a` itself (MQTT 3.1.1 §4.7.1.2), and no wildcard matches
    a `$` at the start (§4.7.2). Like in the broker, `+/#` does not cover `#`.
    """
    if other.startswith("$") and pattern.startswith(("+", "#")):
        return False
    levels, other_levels = pattern.split("/"), other.split("/")
    for depth, level in enumerate(levels):
        if level == "#":
            return True
        if depth == len(other_levels):
            return False
        other_level = other_levels[depth]
        if other_level == "#" or level not in ("+", other_level):
            return False
    return len(levels) == len(other_levels)


def overlaps(pattern: str, other: str) -> bool:
    """Return whether some topic matches both filters; topics that start with `$` don't count."""
    return levels_overlap(pattern.split("/"), other.split("/"))


def levels_overlap(levels: Sequence[str], other: Sequence[str]) -> bool:
    """Return the same as `overlaps`, for filters already split into levels."""
    if len(levels) != len(other) and levels[-1] != "#" and other[-1] != "#":
        return False
    for left, right in zip(levels, other, strict=False):
        if left == "#" or right == "#":
            return True
        if left not in ("+", right) and right != "+":
            return False
    if len(levels) == len(other):
        return True
    # One filter ends here; a `#` as the next level of the other still matches.
    longer, shorter = (levels, other) if len(levels) > len(other) else (other, levels)
    return longer[len(shorter)] == "#"


def to_subject(topic: str) -> str:
    """Return the NATS subject of a topic or filter, as nats-server's MQTT support maps it.

    An empty level is `/`, a dot in a level `//`.
    """
    return ".".join(
        {"+": "*", "#": ">", "": "/"}.get(level) or level.replace(".", "//")
        for level in topic.split("/")
    )


def to_subjects(pattern: str) -> tuple[str, ...]:
    """Return the subjects that together match the same as the filter: `a/#` is `a.>` and `a`."""
    if pattern.endswith("/#"):
        return to_subject(pattern), to_subject(pattern[:-2])
    return (to_subject(pattern),)


def from_subject(subject: str) -> str:
    """Return the topic or filter for a NATS subject; the inverse of `to_subject`."""
    return "/".join(
        {"*": "+", ">": "#", "/": ""}.get(token, token.replace("//", "."))
        for token in subject.split(".")
    )


def filters_of(subjects: Iterable[str]) -> list[str]:
    """Return the filters of subscriptions, which NATS lists as subjects, without duplicates.

    NATS lists `a/#` as two subjects, one of which is `a` itself.
    """
    filters = {from_subject(subject): None for subject in subjects}
    return [name for name in filters if f"{name}/#" not in filters]
