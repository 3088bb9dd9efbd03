"""ACL rules of MQTT: who may publish and subscribe to what, decided by the first rule that fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from wardkey.domain.topics import clean_filter, covers, overlaps, to_subjects

MOST_RULES = 1_000
_VARIABLE = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_-]{1,64})?)\}")
# A level with a variable in it may be filled with anything.
_VARIABLE_LEVEL = re.compile(r"[^/]*\{[^/]*")
_PLAIN = frozenset({"username", "client_id", "org"})
_CLAIM = "claim."
# What stands for a variable whose value cannot be filled in, where denying more is safe.
_ANY = "+"


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

    They are `{username}`, `{client_id}`, `{org}` and `{claim.NAME}`. Raises `ValueError` with the place of the fault.
    """
    for found in _VARIABLE.finditer(text):
        name = found[1]
        if name not in _PLAIN and not name.startswith(_CLAIM):
            raise ValueError(
                f"There is no variable {{{name}}} (place {found.start() + 1}); take {{username}}, "
                "{client_id}, {org} or {claim.NAME}."
            )
    plain = _VARIABLE.sub("x", text)
    for bracket in "{}":
        if bracket in plain:
            place = text.index(bracket) + 1
            raise ValueError(f"A lone {bracket} at place {place} is no variable; close it.")
    clean_filter(plain)
    return text


def decide(rules: Iterable[AclRule], actor: Actor, action: Action, topic: str) -> Decision:
    """Return what the first rule that fits says of publishing to `topic`, or of subscribing to it.

    `rules` are in the order of their priorities. A rule fits a subscription's filter if it covers
    it wholly; of an accepted subscription, topics that a rule denies are not delivered.
    """
    for rule in rules:
        if rule.action in (Action.BOTH, action) and is_for(rule, actor):
            pattern = filled(rule, actor)
            if pattern is not None and covers(pattern, topic):
                return Decision(rule.effect is Effect.ALLOW, rule)
    return Decision(allowed=False, rule=None)


def exception_to(rules: Iterable[AclRule]) -> tuple[AclRule, AclRule] | None:
    """Return an allowing rule and a denying one below it that it touches, or None.

    Such a pair cannot be held by the broker, for which what is denied is denied; so sets of rules
    with one are refused. `rules` are in the order of their priorities.
    """
    above: list[AclRule] = []
    for rule in rules:
        if rule.effect is Effect.ALLOW:
            above.append(rule)
            continue
        mine = _VARIABLE_LEVEL.sub(_ANY, rule.filter)
        for other in above:
            theirs = _VARIABLE_LEVEL.sub(_ANY, other.filter)
            if _same_action(rule, other) and _may_meet(rule, other) and overlaps(mine, theirs):
                return other, rule
    return None


def _same_action(one: AclRule, other: AclRule) -> bool:
    return one.action is other.action or Action.BOTH in (one.action, other.action)


def _may_meet(one: AclRule, other: AclRule) -> bool:
    """Tell whether somebody may be meant by both; publishable keys never reach the broker."""
    kinds = {one.subject_kind, other.subject_kind}
    if SubjectKind.PUBLISHABLE in kinds:
        return False
    if one.subject_kind is other.subject_kind and one.subject_kind is not SubjectKind.USERNAME:
        return one.subject == other.subject
    return kinds != {SubjectKind.CLIENT, SubjectKind.PROVIDER}


def is_for(rule: AclRule, actor: Actor) -> bool:
    """Tell whether a rule is for an actor; secret keys act for the organization itself."""
    match rule.subject_kind:
        case SubjectKind.EVERYONE:
            return actor.kind is not ActorKind.PUBLISHABLE_KEY
        case SubjectKind.CLIENT:
            return actor.kind is ActorKind.CLIENT and rule.subject == actor.subject_id
        case SubjectKind.USERNAME:
            named = actor.kind in (ActorKind.CLIENT, ActorKind.GRANT)
            return named and _pattern(rule.subject).fullmatch(actor.username) is not None
        case SubjectKind.PROVIDER:
            return actor.kind is ActorKind.GRANT and rule.subject == actor.subject_id
        case SubjectKind.PUBLISHABLE:
            return actor.kind is ActorKind.PUBLISHABLE_KEY


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def filled(rule: AclRule, actor: Actor) -> str | None:
    """Return the rule's filter with the actor's values; None if an allowing rule cannot be filled.

    A value with `/`, `+`, `#`, `*`, `>` or white space never widens what is allowed; a denying rule
    denies every value then.
    """
    if "{" not in rule.filter:
        return rule.filter
    levels = []
    for level in rule.filter.split("/"):
        made: str | None = ""
        end = 0
        for found in _VARIABLE.finditer(level):
            value = _value(found[1], actor)
            if value is None:
                made = None
                break
            made = f"{made}{level[end : found.start()]}{value}"
            end = found.end()
        if made is None:
            if rule.effect is Effect.ALLOW:
                return None
            made = _ANY
        else:
            made += level[end:]
        levels.append(made)
    return "/".join(levels)


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


@dataclass(frozen=True, slots=True)
class Subjects:
    """What a session may do, as NATS permissions: denied ones win over allowed ones."""

    publish_allow: tuple[str, ...]
    publish_deny: tuple[str, ...]
    subscribe_allow: tuple[str, ...]
    subscribe_deny: tuple[str, ...]


def compiled(rules: Iterable[AclRule], actor: Actor) -> Subjects:
    """Return an actor's rules as NATS subjects.

    Exact as long as no denying rule stands below an allowing one that it touches: see `exceptions`.
    """
    found: dict[tuple[Action, Effect], list[str]] = {
        (action, effect): [] for action in (Action.PUBLISH, Action.SUBSCRIBE) for effect in Effect
    }
    for rule in rules:
        if not is_for(rule, actor):
            continue
        pattern = filled(rule, actor)
        if pattern is None:
            continue
        for action in (Action.PUBLISH, Action.SUBSCRIBE):
            if rule.action in (Action.BOTH, action):
                found[action, rule.effect] += to_subjects(pattern)
    return Subjects(
        tuple(found[Action.PUBLISH, Effect.ALLOW]),
        tuple(found[Action.PUBLISH, Effect.DENY]),
        tuple(found[Action.SUBSCRIBE, Effect.ALLOW]),
        tuple(found[Action.SUBSCRIBE, Effect.DENY]),
    )
