"""MQTT topics and topic filters: what is refused, what matches, and their form on NATS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_TOPIC = 1_024
MOST_LEVELS = 64
_WILD = frozenset("+#")
# The broker takes `*` and `>` for wildcards of its own, and white space ends its lines.
_BROKEN = frozenset("*>")
# What most topics are made of needs no look at each character.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/-]{1,1024}")


def _levels(text: str, what: str) -> list[str]:
    if not text:
        raise ValueError(f"The {what} is empty; write one such as agents/agent-01/state.")
    if len(text.encode("utf-8", "surrogatepass")) > MOST_TOPIC:
        raise ValueError(f"The {what} is longer than {MOST_TOPIC} bytes of UTF-8; shorten it.")
    for place, character in enumerate(text, 1):
        if character.isspace() or not character.isprintable() or character in _BROKEN:
            raise ValueError(
                f"The {what} has U+{ord(character):04X} at place {place}; white space, control "
                "characters, * and > are not taken."
            )
    if text.startswith("$"):
        raise ValueError(f"A {what} that starts with $ belongs to the broker; take another.")
    levels = text.split("/")
    if len(levels) > MOST_LEVELS:
        raise ValueError(f"The {what} has more than {MOST_LEVELS} levels; take fewer.")
    return levels


def clean_topic(text: str) -> str:
    """Return a topic that can be published to; raises `ValueError` with the place of the fault.

    MQTT 3.1.1 §4.7 takes more (white space, `*`, `>`); a broker on NATS does not.
    """
    if _PLAIN.fullmatch(text) and text.count("/") < MOST_LEVELS:
        return text
    for place, character in enumerate(text, 1):
        if character in _WILD:
            raise ValueError(
                f"The topic has the wildcard {character} at place {place}; publish to one topic."
            )
    _levels(text, "topic")
    return text


def clean_filter(text: str) -> str:
    """Return a topic filter; raises `ValueError` with the place of the fault.

    `+` stands alone in its level, `#` alone in the last one (MQTT 3.1.1 §4.7.1).
    """
    levels, place = _levels(text, "topic filter"), 1
    for number, level in enumerate(levels):
        if "#" in level and (level != "#" or number != len(levels) - 1):
            raise ValueError(
                f"# at place {place + level.index('#')} must be the whole of the last level."
            )
        if "+" in level and level != "+":
            raise ValueError(
                f"+ at place {place + level.index('+')} must be the whole of its level."
            )
        place += len(level) + 1
    return text


def covers(pattern: str, other: str) -> bool:
    """Tell whether every topic that the filter `other` matches is matched by `pattern`.

    `other` may be a topic. As §4.7.1.2 says, `a/#` matches `a` itself, and as §4.7.2 does, no
    wildcard matches a `$` at the start. `+/#` is not taken for `#`, as the broker does not.
    """
    if other.startswith("$") and pattern.startswith(("+", "#")):
        return False
    mine, theirs = pattern.split("/"), other.split("/")
    for place, level in enumerate(mine):
        if level == "#":
            return True
        if place == len(theirs):
            return False
        their = theirs[place]
        if their == "#" or level not in ("+", their):
            return False
    return len(mine) == len(theirs)


def overlaps(one: str, other: str) -> bool:
    """Tell whether some topic, which never starts with `$`, is matched by both filters."""
    return levels_overlap(one.split("/"), other.split("/"))


def levels_overlap(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Tell what `overlaps` does of two filters that were split into levels before."""
    if len(mine) != len(theirs) and mine[-1] != "#" and theirs[-1] != "#":
        return False
    for left, right in zip(mine, theirs, strict=False):
        if left == "#" or right == "#":
            return True
        if left not in ("+", right) and right != "+":
            return False
    if len(mine) == len(theirs):
        return True
    # One of them ends here, which `#` as the next level of the other still matches.
    longer, shorter = (mine, theirs) if len(mine) > len(theirs) else (theirs, mine)
    return longer[len(shorter)] == "#"


def to_subject(topic: str) -> str:
    """Return the NATS subject of a topic or filter, as nats-server's MQTT gateway maps it.

    An empty level is `/`, a dot in a level `//`.
    """
    return ".".join(
        {"+": "*", "#": ">", "": "/"}.get(level) or level.replace(".", "//")
        for level in topic.split("/")
    )


def to_subjects(pattern: str) -> tuple[str, ...]:
    """Return the subjects that together match what the filter matches: `a/#` is `a.>` and `a`."""
    if pattern.endswith("/#"):
        return to_subject(pattern), to_subject(pattern[:-2])
    return (to_subject(pattern),)


def from_subject(subject: str) -> str:
    """Return the topic or filter of a NATS subject, the inverse of `to_subject`."""
    return "/".join(
        {"*": "+", ">": "#", "/": ""}.get(token, token.replace("//", "."))
        for token in subject.split(".")
    )


def filters_of(subjects: Iterable[str]) -> list[str]:
    """Return the filters of subscriptions, which NATS holds as subjects, each once.

    NATS holds `a/#` as two, of which one is for `a` itself.
    """
    filters = {from_subject(subject): None for subject in subjects}
    return [name for name in filters if f"{name}/#" not in filters]
