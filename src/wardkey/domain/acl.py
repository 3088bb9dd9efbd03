"""ACL rules of MQTT: whom a rule is for, and what its topic filter is for somebody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wardkey.domain.topics import clean_filter

MOST_RULES = 1_000
_VARIABLE = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_-]{1,64})?)\}")
_USERNAMES = re.compile(r"[A-Za-z0-9_.*-]{1,64}")
_PLAIN = frozenset({"username", "client_id", "org"})
_CLAIM = "claim."
# What stands for a variable whose value cannot be filled in, where denying more is safe.
ANY = "+"


class Effect(StrEnum):
    """What a rule that fits says."""

    ALLOW = "allow"
    DENY = "deny"


class Action(StrEnum):
    """What a client does with a topic; `both` in rules only."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    BOTH = "both"


class SubjectKind(StrEnum):
    """Whom a rule is for."""

    EVERYONE = "everyone"
    CLIENT = "client"
    USERNAME = "username"
    PROVIDER = "provider"
    PUBLISHABLE = "publishable"


class ActorKind(StrEnum):
    """Who asks: a client, a grant that a provider's token was exchanged for, or a key."""

    CLIENT = "client"
    GRANT = "grant"
    PUBLISHABLE_KEY = "publishable_key"
    SECRET_KEY = "secret_key"


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule; of an organization's rules in an environment the lowest `priority` is asked first.

    `subject` is empty for everyone and for publishable keys, else a client's id, a pattern of user
    names with `*`, or a provider's id.
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
    """Who publishes or subscribes; `username` without the organization behind it."""

    kind: ActorKind
    org_id: str
    username: str = ""
    client_id: str = ""
    subject_id: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it is allowed, and by which rule; None where no rule fits, which denies."""

    allowed: bool
    rule: AclRule | None


def clean_rule_filter(text: str) -> str:
    """Return a rule's topic filter, in which variables may stand for a level or a part of one.

    They are `{username}`, `{client_id}`, `{org}` and `{claim.NAME}`. Raises `ValueError` with the
    place of the fault.
    """
    for found in _VARIABLE.finditer(text):
        name = found[1]
        if name not in _PLAIN and not name.startswith(_CLAIM):
            raise ValueError(
                f"There is no variable {{{name}}} (place {found.start() + 1}); take {{username}}, "
                "{client_id}, {org} or {claim.NAME}."
            )
    # As long as before, so that the places of faults stay.
    plain = _VARIABLE.sub(lambda found: "x" * len(found[0]), text)
    for place, character in enumerate(plain, 1):
        if character in "{}":
            raise ValueError(
                f"The {character} at place {place} is part of no variable; take {{username}}, "
                "{client_id}, {org} or {claim.NAME}."
            )
    clean_filter(plain)
    return text


def clean_username_pattern(text: str) -> str:
    """Return a pattern of user names, in which `*` stands for any characters, or none.

    Raises `ValueError` with a sentence that says how to mend it.
    """
    if not _USERNAMES.fullmatch(text):
        raise ValueError(
            "A pattern of user names has 1 to 64 characters of a-z, A-Z, 0-9, _, . and -, and * "
            "for any of them; the organization is left out."
        )
    return text


def is_for(rule: AclRule, actor: Actor) -> bool:
    """Tell whether a rule is for an actor; secret keys act for the organization itself."""
    match rule.subject_kind:
        case SubjectKind.EVERYONE:
            return actor.kind is not ActorKind.PUBLISHABLE_KEY
        case SubjectKind.CLIENT:
            return actor.kind is ActorKind.CLIENT and rule.subject == actor.subject_id
        case SubjectKind.USERNAME:
            named = actor.kind in (ActorKind.CLIENT, ActorKind.GRANT)
            return named and fits_pattern(rule.subject, actor.username)
        case SubjectKind.PROVIDER:
            return actor.kind is ActorKind.GRANT and rule.subject == actor.subject_id
        case SubjectKind.PUBLISHABLE:
            return actor.kind is ActorKind.PUBLISHABLE_KEY


def fits_pattern(pattern: str, name: str) -> bool:
    """Tell whether a pattern with `*` fits a user name; in time linear in both.

    A regular expression would take for ever with many stars.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    last = rest.pop()
    end = len(name) - len(last)
    if not (name.startswith(first) and name.endswith(last) and end >= len(first)):
        return False
    place = len(first)
    for part in rest:
        place = name.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


def patterns_meet(one: str, other: str) -> bool:
    """Tell whether some user name fits both patterns."""
    if "*" not in one:
        return fits_pattern(other, one)
    if "*" not in other:
        return fits_pattern(one, other)
    starts = one.partition("*")[0], other.partition("*")[0]
    ends = one.rpartition("*")[2], other.rpartition("*")[2]
    return (starts[0].startswith(starts[1]) or starts[1].startswith(starts[0])) and (
        ends[0].endswith(ends[1]) or ends[1].endswith(ends[0])
    )


def filled(rule: AclRule, actor: Actor) -> str | None:
    """Return the rule's filter with the actor's values; None if an allowing rule cannot be filled.

    A value with `/`, `+`, `#`, `*`, `>` or white space never widens what is allowed; a denying rule
    denies every value then.
    """
    if "{" not in rule.filter:
        return rule.filter
    levels = []
    for level in rule.filter.split("/"):
        made = filled_level(level, actor)
        if made is None:
            if rule.effect is Effect.ALLOW:
                return None
            made = ANY
        levels.append(made)
    return "/".join(levels)


def filled_level(level: str, actor: Actor) -> str | None:
    """Return one level of a rule's filter with the actor's values; None where one cannot be."""
    made, end = "", 0
    for found in _VARIABLE.finditer(level):
        value = _value(found[1], actor)
        if value is None:
            return None
        made = f"{made}{level[end : found.start()]}{value}"
        end = found.end()
    return made + level[end:]


def _value(name: str, actor: Actor) -> str | None:
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
