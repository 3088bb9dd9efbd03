"""MQTT ACL rules: which actors a rule applies to, and its topic filter for an actor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wardkey.domain.topics import clean_filter

MOST_RULES = 1_000
_VARIABLE = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_-]{1,64})?)\}")
_USERNAME_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,64}")
_VARIABLES = frozenset({"username", "client_id", "org"})
_CLAIM = "claim."
# Replaces a variable without a usable value in denying rules, where denying more is safe.
ANY = "+"


class Effect(StrEnum):
    """The effect of a rule that matches."""

    ALLOW = "allow"
    DENY = "deny"


class Action(StrEnum):
    """What a client does with a topic; `both` only in rules."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    BOTH = "both"


class SubjectKind(StrEnum):
    """The kind of actors a rule applies to."""

    EVERYONE = "everyone"
    CLIENT = "client"
    USERNAME = "username"
    PROVIDER = "provider"
    PUBLISHABLE = "publishable"


class ActorKind(StrEnum):
    """The kind of actor: a client, a grant from a provider's token, or a key."""

    CLIENT = "client"
    GRANT = "grant"
    PUBLISHABLE_KEY = "publishable_key"
    SECRET_KEY = "secret_key"


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule; within a tenant scope, the rule with the lowest `priority` is evaluated first.

    `subject` is empty for everyone and for publishable keys, else a client's id, a user name
    pattern with `*`, or a provider's id.
    """

    id: str
    priority: int
    subject_kind: SubjectKind
    subject: str
    filter: str
    action: Action
    effect: Effect


@dataclass(frozen=True, slots=True)
class Actor:
    """A publisher or subscriber; `username` is without the organization suffix."""

    kind: ActorKind
    org_id: str
    username: str = ""
    client_id: str = ""
    subject_id: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is allowed, and the deciding rule; without a matching rule it is denied."""

    allowed: bool
    rule: AclRule | None


def clean_rule_filter(text: str) -> str:
    """Return a rule's topic filter, in which a variable may replace a level or a part of one.

    The variables are `{username}`, `{client_id}`, `{org}` and `{claim.NAME}`. Raises `ValueError`
    with the position of the error.
    """
    for match in _VARIABLE.finditer(text):
        name = match[1]
        if name not in _VARIABLES and not name.startswith(_CLAIM):
            raise ValueError(
                f"{{{name}}} at position {match.start() + 1} is not a variable; use {{username}}, "
                "{client_id}, {org} or {claim.NAME}."
            )
    # The replacement has the same length, so the positions in errors stay correct.
    plain = _VARIABLE.sub(lambda match: "x" * len(match[0]), text)
    for position, character in enumerate(plain, 1):
        if character in "{}":
            raise ValueError(
                f"The {character} at position {position} is not part of a variable; use "
                "{username}, {client_id}, {org} or {claim.NAME}."
            )
    clean_filter(plain)
    return text


def clean_username_pattern(text: str) -> str:
    """Return a user name pattern, in which `*` matches any number of characters.

    Raises `ValueError` with a sentence that says how to fix it.
    """
    if not _USERNAME_PATTERN.fullmatch(text):
        raise ValueError(
            "A user name pattern has 1 to 64 characters from a-z, A-Z, 0-9, _, . and -, and * for "
            "any of them; leave the organization out."
        )
    return text


def is_for(rule: AclRule, actor: Actor) -> bool:
    """Return whether a rule applies to an actor; secret keys act for the organization itself."""
    match rule.subject_kind:
        case SubjectKind.EVERYONE:
            return actor.kind is not ActorKind.PUBLISHABLE_KEY
        case SubjectKind.CLIENT:
            return actor.kind is ActorKind.CLIENT and rule.subject == actor.subject_id
        case SubjectKind.USERNAME:
            has_username = actor.kind in (ActorKind.CLIENT, ActorKind.GRANT)
            return has_username and matches_pattern(rule.subject, actor.username)
        case SubjectKind.PROVIDER:
            return actor.kind is ActorKind.GRANT and rule.subject == actor.subject_id
        case SubjectKind.PUBLISHABLE:
            return actor.kind is ActorKind.PUBLISHABLE_KEY


def matches_pattern(pattern: str, name: str) -> bool:
    """Return whether a pattern with `*` matches a user name, in time linear in both.

    A regular expression with many stars would take exponential time.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    last = rest.pop()
    end = len(name) - len(last)
    if not (name.startswith(first) and name.endswith(last) and end >= len(first)):
        return False
    position = len(first)
    for part in rest:
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


def patterns_overlap(left: str, right: str) -> bool:
    """Return whether a user name exists that matches both patterns."""
    if "*" not in left:
        return matches_pattern(right, left)
    if "*" not in right:
        return matches_pattern(left, right)
    starts = left.partition("*")[0], right.partition("*")[0]
    ends = left.rpartition("*")[2], right.rpartition("*")[2]
    return (starts[0].startswith(starts[1]) or starts[1].startswith(starts[0])) and (
        ends[0].endswith(ends[1]) or ends[1].endswith(ends[0])
    )


def fill_filter(rule: AclRule, actor: Actor) -> str | None:
    """Return the rule's filter with the actor's values; None if an allowing rule lacks a value.

    A value with `/`, `+`, `#`, `*`, `>` or white space is not used, so it can't widen what is
    allowed; a denying rule then denies every value.
    """
    if "{" not in rule.filter:
        return rule.filter
    levels = []
    for level in rule.filter.split("/"):
        filled = fill_level(level, actor)
        if filled is None:
            if rule.effect is Effect.ALLOW:
                return None
            filled = ANY
        levels.append(filled)
    return "/".join(levels)


def fill_level(level: str, actor: Actor) -> str | None:
    """Return one level of a rule's filter with the actor's values; None if one is missing."""
    filled, end = "", 0
    for match in _VARIABLE.finditer(level):
        value = _find_value(match[1], actor)
        if value is None:
            return None
        filled = f"{filled}{level[end : match.start()]}{value}"
        end = match.end()
    return filled + level[end:]


def _find_value(name: str, actor: Actor) -> str | None:
    if name.startswith(_CLAIM):
        value = actor.claims.get(name.removeprefix(_CLAIM), "")
    else:
        value = {
            "username": actor.username,
            "client_id": actor.client_id,
            "org": actor.org_id,
        }[name]
    if not value or value.startswith("$") or not value.isprintable():
        return None
    if any(character in "/+#*>{}" or character.isspace() for character in value):
        return None
    return value
