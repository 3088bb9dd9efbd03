"""ACL rules as permissions of NATS, in which what is denied is denied, and what it cannot hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wardkey.domain.acl import (
    ANY,
    AclRule,
    Action,
    Actor,
    Effect,
    SubjectKind,
    filled,
    is_for,
    patterns_meet,
)
from wardkey.domain.topics import covers, levels_overlap, to_subjects

_EVERYTHING = ">"
_Filters = list[list[str]]


@dataclass(frozen=True, slots=True)
class Subjects:
    """What a session may do, as NATS permissions: denied ones win over allowed ones."""

    publish_allow: tuple[str, ...]
    publish_deny: tuple[str, ...]
    subscribe_allow: tuple[str, ...]
    subscribe_deny: tuple[str, ...]


def compiled(rules: Iterable[AclRule], actor: Actor) -> Subjects:
    """Return an actor's rules, in their order, as NATS subjects.

    Exact for rules of which `exception_to` and `loose_wildcard` find nothing; narrower, never
    wider, for others.
    """
    mine = [
        (rule, pattern.split("/"))
        for rule in rules
        if is_for(rule, actor) and (pattern := filled(rule, actor)) is not None
    ]
    publish = _of(mine, Action.PUBLISH)
    allowed, denied = _of(mine, Action.SUBSCRIBE)
    allowed, more = _tightened(allowed)
    return Subjects(*_subjects(*publish), *_subjects(allowed, denied + more))


def exception_to(rules: Iterable[AclRule]) -> tuple[AclRule, AclRule] | None:
    """Return an allowing rule and a denying one below it that it is an exception to, or None.

    The broker cannot hold such a pair: there what is denied is denied. A denial that touches
    nothing allowed below it says no more than that nothing else is allowed, and is left out.
    `rules` are in their order.
    """
    wide = [_Wide(rule) for rule in rules]
    for number, denial in enumerate(wide):
        if denial.rule.effect is Effect.DENY:
            above = next((one for one in wide[:number] if one.allows_some_of(denial)), None)
            if above and any(one.allows_some_of(denial) for one in wide[number + 1 :]):
                return above.rule, denial.rule
    return None


def loose_wildcard(rules: Iterable[AclRule]) -> AclRule | None:
    """Return a rule that allows `a/+` where the broker would then let `a/#` through, or None.

    See `compiled`, which can mend it only where nothing below `a/+` is allowed by another rule.
    """
    wide = [
        one
        for one in map(_Wide, rules)
        if one.rule.effect is Effect.ALLOW and one.rule.action is not Action.PUBLISH
    ]
    for one in wide:
        # A level with a variable is no wildcard, but what has one may be narrower than it looks.
        if one.rule.filter.endswith("+"):
            theirs = [other for other in wide if _may_meet(one.rule, other.rule)]
            sure = [other.levels for other in theirs if other.sure_for(one)]
            may = [other.levels for other in theirs]
            if _loose(one.levels, may, sure) and _reached_below(one.levels, may):
                return one.rule
    return None


class _Wide:
    """A rule with the widest filter that it can have for anybody."""

    __slots__ = ("levels", "rule")

    def __init__(self, rule: AclRule) -> None:
        self.rule = rule
        self.levels = [ANY if "{" in level else level for level in rule.filter.split("/")]

    def allows_some_of(self, denial: _Wide) -> bool:
        return (
            self.rule.effect is Effect.ALLOW
            and _same_action(self.rule, denial.rule)
            and levels_overlap(self.levels, denial.levels)
            and _may_meet(self.rule, denial.rule)
        )

    def sure_for(self, other: _Wide) -> bool:
        """Tell whether whoever is meant by the other is meant by this one, just as it stands."""
        if "{" in self.rule.filter:
            return False
        mine = self.rule.subject_kind, self.rule.subject
        theirs = other.rule.subject_kind, other.rule.subject
        return self.rule.subject_kind is SubjectKind.EVERYONE or mine == theirs


def _same_action(one: AclRule, other: AclRule) -> bool:
    return one.action is other.action or Action.BOTH in (one.action, other.action)


def _may_meet(one: AclRule, other: AclRule) -> bool:
    """Tell whether somebody may be meant by both; publishable keys never reach the broker."""
    kinds = {one.subject_kind, other.subject_kind}
    if SubjectKind.PUBLISHABLE in kinds:
        return False
    if kinds == {SubjectKind.USERNAME}:
        return patterns_meet(one.subject, other.subject)
    if len(kinds) == 1:
        return one.subject == other.subject
    return kinds != {SubjectKind.CLIENT, SubjectKind.PROVIDER}


def _of(mine: list[tuple[AclRule, list[str]]], action: Action) -> tuple[_Filters, _Filters]:
    """Return what is allowed and denied; a denial with nothing to allow below it is idle."""
    allowed: _Filters = []
    denied: _Filters = []
    for rule, levels in reversed(mine):
        if rule.action not in (Action.BOTH, action):
            continue
        if rule.effect is Effect.ALLOW:
            allowed.append(levels)
        elif any(levels_overlap(levels, one) for one in allowed):
            denied.append(levels)
    return allowed[::-1], denied[::-1]


def _tightened(allowed: _Filters) -> tuple[_Filters, _Filters]:
    """Return what is allowed, and what to deny so that `a/+` does not let `a/#` through.

    nats-server 2.15 lets `*` at a permission's end match the `>` of a subscription.
    """
    kept: _Filters = []
    denied: _Filters = []
    for levels in allowed:
        loose = _loose(levels, allowed, allowed)
        if loose and _reached_below(levels, allowed):
            continue
        if loose:
            denied.append([*levels, "+", "#"])
        kept.append(levels)
    return kept, denied


def _loose(levels: list[str], may: _Filters, sure: _Filters) -> bool:
    """Tell whether the broker would take a subscription above `a/+` that nothing allows.

    It asks about `a/#` as two subscriptions, of which one is `a`. `may` are filters that may be
    allowed, `sure` those that are.
    """
    if levels[-1] != "+":
        return False
    parent = levels[:-1]
    if parent and not any(levels_overlap(one, parent) for one in may):
        return False
    whole = "/".join([*parent, "#"])
    return not any(one[-1] == "#" and covers("/".join(one), whole) for one in sure)


def _reached_below(levels: list[str], may: _Filters) -> bool:
    below = [*levels, "+", "#"]
    return any(levels_overlap(one, below) for one in may)


def _subjects(allowed: _Filters, denied: _Filters) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not allowed:
        # An empty list of what is allowed means everything to NATS.
        return (), (_EVERYTHING,)
    return _flat(allowed), _flat(denied)


def _flat(filters: _Filters) -> tuple[str, ...]:
    found = (subject for levels in filters for subject in to_subjects("/".join(levels)))
    return tuple(dict.fromkeys(found))
