"""ACL rules as NATS permissions, where denials always win, and rules NATS can't express."""

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
    fill_filter,
    is_for,
    patterns_overlap,
)
from wardkey.domain.filter_index import FilterIndex
from wardkey.domain.topics import to_subjects

_EVERYTHING = ">"
_Filters = list[list[str]]


@dataclass(frozen=True, slots=True)
class Subjects:
    """A session's permissions for NATS; denied subjects win over allowed ones."""

    publish_allow: tuple[str, ...]
    publish_deny: tuple[str, ...]
    subscribe_allow: tuple[str, ...]
    subscribe_deny: tuple[str, ...]


def compile_subjects(rules: Iterable[AclRule], actor: Actor) -> Subjects:
    """Return an actor's rules, in their order, as NATS subjects.

    Exact for rules in which `find_exception` and `find_loose_wildcard` find nothing; for others
    narrower, never wider.
    """
    own_rules = [
        (rule, pattern.split("/"))
        for rule in rules
        if is_for(rule, actor) and (pattern := fill_filter(rule, actor)) is not None
    ]
    publish = _split_filters(own_rules, Action.PUBLISH)
    allowed, denied = _split_filters(own_rules, Action.SUBSCRIBE)
    allowed, extra_denied = _tighten(allowed)
    return Subjects(*_to_subjects(*publish), *_to_subjects(allowed, denied + extra_denied))


def find_exception(rules: Sequence[AclRule]) -> tuple[AclRule, AclRule] | None:
    """Return an allowing rule and a later denying rule that it is an exception to, or None.

    The broker can't express such a pair, because its denials always win. A denial without an
    overlapping allowing rule after it is redundant and is ignored. `rules` are in their order.
    """
    rule_index = _RuleIndex(rules)
    for number, denial in enumerate(rules):
        if denial.effect is not Effect.DENY:
            continue
        overlapping = rule_index.filters.find_overlapping(rule_index.levels[number])
        overlapping &= rule_index.allowing[denial.action]
        above, below = overlapping & ((1 << number) - 1), overlapping >> number
        if above and below:
            shared = rule_index.find_sharing_actors(denial)
            if above & shared and below & shared >> number:
                return rules[_lowest(above & shared)], denial
    return None


def find_loose_wildcard(rules: Iterable[AclRule]) -> AclRule | None:
    """Return a rule that allows `a/+` but would make the broker allow `a/#` too, or None.

    `compile_subjects` can prevent that only if no other rule allows anything below `a/+`.
    """
    subscribing = [
        rule for rule in rules if rule.effect is Effect.ALLOW and rule.action is not Action.PUBLISH
    ]
    rule_index = _RuleIndex(subscribing)
    for number, rule in enumerate(subscribing):
        # A level with a variable is not a wildcard, but its filter may be narrower than indexed.
        if rule.filter.endswith("+"):
            possible, levels = rule_index.find_sharing_actors(rule), rule_index.levels[number]
            certain = possible & rule_index.find_certain(rule)
            filters = rule_index.filters
            loose = _is_loose(levels, filters, possible, certain)
            if loose and _allows_below(levels, filters, possible):
                return rule
    return None


class _RuleIndex:
    """Rules indexed by their widest possible filters and by subject; results are bit sets."""

    def __init__(self, rules: Iterable[AclRule]) -> None:
        rules = tuple(rules)
        self.levels = [
            [ANY if "{" in level else level for level in rule.filter.split("/")] for rule in rules
        ]
        self.filters = FilterIndex(self.levels)
        self._by_subject: defaultdict[tuple[SubjectKind, str], int] = defaultdict(int)
        self._by_kind: defaultdict[SubjectKind, int] = defaultdict(int)
        self._without_variables = 0
        # Results of `_find_overlapping_names` by user name or pattern.
        self._overlapping: dict[str, int] = {}
        self._starts, self._ends = _Prefixes(), _Prefixes()
        self.allowing = dict.fromkeys(Action, 0)
        for number, rule in enumerate(rules):
            bit = 1 << number
            self._by_kind[rule.subject_kind] |= bit
            self._by_subject[rule.subject_kind, rule.subject] |= bit
            if "{" not in rule.filter:
                self._without_variables |= bit
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

    def find_sharing_actors(self, rule: AclRule) -> int:
        """Return the rules that can apply to an actor to whom `rule` applies.

        It is empty for publishable keys, which never connect to the broker.
        """
        kinds, kind = self._by_kind, rule.subject_kind
        if kind is SubjectKind.PUBLISHABLE:
            return 0
        everyone, named = kinds[SubjectKind.EVERYONE], kinds[SubjectKind.USERNAME]
        single = kinds[SubjectKind.CLIENT] | kinds[SubjectKind.PROVIDER]
        if kind is SubjectKind.EVERYONE:
            return everyone | named | single
        if kind is SubjectKind.USERNAME:
            return everyone | single | self._find_overlapping_names(rule.subject)
        return everyone | named | self._by_subject[kind, rule.subject]

    def find_certain(self, rule: AclRule) -> int:
        """Return the rules that apply to every actor of `rule`, with exactly their own filter."""
        same_subject = self._by_subject[rule.subject_kind, rule.subject]
        return self._without_variables & (self._by_kind[SubjectKind.EVERYONE] | same_subject)

    def _find_overlapping_names(self, pattern: str) -> int:
        """Return the rules that `patterns_overlap` finds, without calling it for each pair."""
        if pattern not in self._overlapping:
            start, end = pattern.partition("*")[0], pattern.rpartition("*")[2]
            matches = _find_compatible(start, self._starts) & _find_compatible(
                end[::-1], self._ends
            )
            for other, bits in self._names.items() if "*" in pattern else self._patterns.items():
                if matches & bits and not patterns_overlap(pattern, other):
                    matches &= ~bits
            self._overlapping[pattern] = matches
        return self._overlapping[pattern]


class _Prefixes:
    """Texts with the bits of their rules, by the whole text and by each of its prefixes."""

    def __init__(self) -> None:
        self.by_text: defaultdict[str, int] = defaultdict(int)
        self.by_prefix: defaultdict[str, int] = defaultdict(int)

    def add(self, text: str, bits: int) -> None:
        self.by_text[text] |= bits
        for end in range(len(text) + 1):
            self.by_prefix[text[:end]] |= bits


def _find_compatible(text: str, prefixes: _Prefixes) -> int:
    """Return the rules whose text starts with `text`, or with whose text `text` starts."""
    matches = prefixes.by_prefix.get(text, 0)
    for end in range(len(text)):
        matches |= prefixes.by_text.get(text[:end], 0)
    return matches


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _split_filters(
    rules: list[tuple[AclRule, list[str]]], action: Action
) -> tuple[_Filters, _Filters]:
    """Return the allowed and the denied filters, without redundant denials."""
    relevant = [item for item in rules if item[0].action in (Action.BOTH, action)]
    allowed = [levels for rule, levels in relevant if rule.effect is Effect.ALLOW]
    index, above = FilterIndex(allowed), 0
    denied: _Filters = []
    for rule, levels in relevant:
        if rule.effect is Effect.ALLOW:
            above += 1
        elif index.find_overlapping(levels) >> above:
            denied.append(levels)
    return allowed, denied


def _tighten(allowed: _Filters) -> tuple[_Filters, _Filters]:
    """Return the filters to allow, and those to deny so `a/+` does not allow `a/#`.

    nats-server 2.15 lets `*` at a permission's end match the `>` of a subscription.
    """
    index, every = FilterIndex(allowed), (1 << len(allowed)) - 1
    tightened: _Filters = []
    denied: _Filters = []
    for levels in allowed:
        loose = _is_loose(levels, index, every, every)
        if loose and _allows_below(levels, index, every):
            continue
        if loose:
            denied.append([*levels, "+", "#"])
        tightened.append(levels)
    return tightened, denied


def _is_loose(levels: list[str], index: FilterIndex, possible: int, certain: int) -> bool:
    """Return whether the broker would accept `a/#` for `a/+` although no rule allows it.

    It checks `a/#` as two subscriptions, one of which is `a`. `possible` are the filters that may
    be allowed, `certain` those that are.
    """
    if levels[-1] != "+":
        return False
    parent = levels[:-1]
    if parent and not index.find_overlapping(parent) & possible:
        return False
    return not index.find_covering_subtree(parent) & certain


def _allows_below(levels: list[str], index: FilterIndex, possible: int) -> bool:
    return bool(index.find_overlapping([*levels, "+", "#"]) & possible)


def _to_subjects(allowed: _Filters, denied: _Filters) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not allowed:
        # To NATS, an empty list of allowed subjects means that everything is allowed.
        return (), (_EVERYTHING,)
    return _unique_subjects(allowed), _unique_subjects(denied)


def _unique_subjects(filters: _Filters) -> tuple[str, ...]:
    subjects = (subject for levels in filters for subject in to_subjects("/".join(levels)))
    return tuple(dict.fromkeys(subjects))
