"""ACL rules as permissions of NATS, in which what is denied is denied, and what it cannot hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
from wardkey.domain.filter_index import FilterIndex
from wardkey.domain.topics import to_subjects

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


def exception_to(rules: Sequence[AclRule]) -> tuple[AclRule, AclRule] | None:
    """Return an allowing rule and a denying one below it that it is an exception to, or None.

    The broker cannot hold such a pair: there what is denied is denied. A denial that touches
    nothing allowed below it says no more than that nothing else is allowed, and is left out.
    `rules` are in their order.
    """
    wide = _Wide(rules)
    for number, denial in enumerate(rules):
        if denial.effect is not Effect.DENY:
            continue
        found = wide.index.meeting(wide.levels[number]) & wide.allowing[denial.action]
        above, below = found & ((1 << number) - 1), found >> number
        if above and below:
            met = wide.meet(denial)
            if above & met and below & met >> number:
                return rules[_lowest(above & met)], denial
    return None


def loose_wildcard(rules: Iterable[AclRule]) -> AclRule | None:
    """Return a rule that allows `a/+` where the broker would then let `a/#` through, or None.

    See `compiled`, which can mend it only where nothing below `a/+` is allowed by another rule.
    """
    mine = [
        rule for rule in rules if rule.effect is Effect.ALLOW and rule.action is not Action.PUBLISH
    ]
    wide = _Wide(mine)
    for number, rule in enumerate(mine):
        # A level with a variable is no wildcard, but what has one may be narrower than it looks.
        if rule.filter.endswith("+"):
            may, levels = wide.meet(rule), wide.levels[number]
            sure = may & wide.sure_for(rule)
            if _loose(levels, wide.index, may, sure) and _reached_below(levels, wide.index, may):
                return rule
    return None


class _Wide:
    """Rules with the widest filters that they can have for anybody; sets of them are bits."""

    def __init__(self, rules: Iterable[AclRule]) -> None:
        rules = tuple(rules)
        self.levels = [
            [ANY if "{" in level else level for level in rule.filter.split("/")] for rule in rules
        ]
        self.index = FilterIndex(self.levels)
        self._by_subject: defaultdict[tuple[SubjectKind, str], int] = defaultdict(int)
        self._by_kind: defaultdict[SubjectKind, int] = defaultdict(int)
        self._plain = 0
        # Of user names and their patterns.
        self._met: dict[str, int] = {}
        self._starts, self._ends = _Beginnings(), _Beginnings()
        self.allowing = dict.fromkeys(Action, 0)
        for number, rule in enumerate(rules):
            bit = 1 << number
            self._by_kind[rule.subject_kind] |= bit
            self._by_subject[rule.subject_kind, rule.subject] |= bit
            if "{" not in rule.filter:
                self._plain |= bit
            if rule.effect is Effect.ALLOW:
                for action in Action:
                    if action is rule.action or Action.BOTH in (action, rule.action):
                        self.allowing[action] |= bit
        self._patterns = {
            subject: bits
            for (kind, subject), bits in self._by_subject.items()
            if kind is SubjectKind.USERNAME
        }
        self._names = {name: bits for name, bits in self._patterns.items() if "*" not in name}
        for pattern, bits in self._patterns.items():
            self._starts.add(pattern.partition("*")[0], bits)
            self._ends.add(pattern.rpartition("*")[2][::-1], bits)

    def meet(self, rule: AclRule) -> int:
        """Return the rules that somebody may be meant by who is meant by this one.

        Publishable keys never reach the broker.
        """
        kinds, kind = self._by_kind, rule.subject_kind
        if kind is SubjectKind.PUBLISHABLE:
            return 0
        everyone, named = kinds[SubjectKind.EVERYONE], kinds[SubjectKind.USERNAME]
        single = kinds[SubjectKind.CLIENT] | kinds[SubjectKind.PROVIDER]
        if kind is SubjectKind.EVERYONE:
            return everyone | named | single
        if kind is SubjectKind.USERNAME:
            return everyone | single | self._named_alike(rule.subject)
        return everyone | named | self._by_subject[kind, rule.subject]

    def sure_for(self, rule: AclRule) -> int:
        """Return the rules that mean whoever is meant by this one, just as they stand."""
        mine = self._by_subject[rule.subject_kind, rule.subject]
        return self._plain & (self._by_kind[SubjectKind.EVERYONE] | mine)

    def _named_alike(self, pattern: str) -> int:
        """Return what `patterns_meet` finds, without asking it of each pair."""
        if pattern not in self._met:
            start, end = pattern.partition("*")[0], pattern.rpartition("*")[2]
            found = _alike(start, self._starts) & _alike(end[::-1], self._ends)
            for other, bits in self._names.items() if "*" in pattern else self._patterns.items():
                if found & bits and not patterns_meet(pattern, other):
                    found &= ~bits
            self._met[pattern] = found
        return self._met[pattern]


class _Beginnings:
    """Texts with the bits of their rules: by themselves, and by everything that they begin with."""

    def __init__(self) -> None:
        self.whole: defaultdict[str, int] = defaultdict(int)
        self.begun: defaultdict[str, int] = defaultdict(int)

    def add(self, text: str, bits: int) -> None:
        self.whole[text] |= bits
        for end in range(len(text) + 1):
            self.begun[text[:end]] |= bits


def _alike(text: str, known: _Beginnings) -> int:
    """Return whose text begins with this one, or this one with theirs."""
    found = known.begun.get(text, 0)
    for end in range(len(text)):
        found |= known.whole.get(text[:end], 0)
    return found


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _of(mine: list[tuple[AclRule, list[str]]], action: Action) -> tuple[_Filters, _Filters]:
    """Return what is allowed and denied; a denial with nothing to allow below it is idle."""
    asked = [one for one in mine if one[0].action in (Action.BOTH, action)]
    allowed = [levels for rule, levels in asked if rule.effect is Effect.ALLOW]
    index, above = FilterIndex(allowed), 0
    denied: _Filters = []
    for rule, levels in asked:
        if rule.effect is Effect.ALLOW:
            above += 1
        elif index.meeting(levels) >> above:
            denied.append(levels)
    return allowed, denied


def _tightened(allowed: _Filters) -> tuple[_Filters, _Filters]:
    """Return what is allowed, and what to deny so that `a/+` does not let `a/#` through.

    nats-server 2.15 lets `*` at a permission's end match the `>` of a subscription.
    """
    index, every = FilterIndex(allowed), (1 << len(allowed)) - 1
    kept: _Filters = []
    denied: _Filters = []
    for levels in allowed:
        loose = _loose(levels, index, every, every)
        if loose and _reached_below(levels, index, every):
            continue
        if loose:
            denied.append([*levels, "+", "#"])
        kept.append(levels)
    return kept, denied


def _loose(levels: list[str], index: FilterIndex, may: int, sure: int) -> bool:
    """Tell whether the broker would take a subscription above `a/+` that nothing allows.

    It asks about `a/#` as two subscriptions, of which one is `a`. `may` are filters that may be
    allowed, `sure` those that are.
    """
    if levels[-1] != "+":
        return False
    parent = levels[:-1]
    if parent and not index.meeting(parent) & may:
        return False
    return not index.hashes_above(parent) & sure


def _reached_below(levels: list[str], index: FilterIndex, may: int) -> bool:
    return bool(index.meeting([*levels, "+", "#"]) & may)


def _subjects(allowed: _Filters, denied: _Filters) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not allowed:
        # An empty list of what is allowed means everything to NATS.
        return (), (_EVERYTHING,)
    return _flat(allowed), _flat(denied)


def _flat(filters: _Filters) -> tuple[str, ...]:
    found = (subject for levels in filters for subject in to_subjects("/".join(levels)))
    return tuple(dict.fromkeys(found))
