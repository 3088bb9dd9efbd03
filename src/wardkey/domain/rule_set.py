"""The ACL rule matcher: the first matching rule decides, and without one the action is denied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from wardkey.domain.acl import (
    AclRule,
    Action,
    Actor,
    ActorKind,
    Decision,
    Effect,
    SubjectKind,
    fill_level,
    matches_pattern,
)


class _ActorKeys(NamedTuple):
    """The keys to find an actor's rules: exact subjects, and the user name for patterns."""

    subjects: tuple[tuple[SubjectKind, str], ...]
    username: str


@dataclass(slots=True)
class _End:
    """The rules whose filter ends at a node, by subject; only the first of each can decide."""

    first: dict[tuple[SubjectKind, str], int] = field(default_factory=dict)
    patterns: dict[str, int] = field(default_factory=dict)

    def add(self, rule: AclRule, number: int) -> None:
        if rule.subject_kind is SubjectKind.USERNAME and "*" in rule.subject:
            self.patterns.setdefault(rule.subject, number)
        else:
            self.first.setdefault((rule.subject_kind, rule.subject), number)

    def find_best(self, keys: _ActorKeys, best: int) -> int:
        """Return the number of the first rule here for the actor, or `best` if that is lower."""
        for subject in keys.subjects:
            best = min(best, self.first.get(subject, best))
        if self.patterns and keys.username:
            for pattern, number in self.patterns.items():
                if number >= best:
                    break
                if matches_pattern(pattern, keys.username):
                    return number
        return best


@dataclass(slots=True)
class _Node:
    """A node for one level of the rules' filters: its children, and the rules that end here.

    Levels with variables are separate for allowing and denying rules, because a missing value
    matches nothing in the former and everything in the latter.
    """

    least: int
    exact: dict[str, _Node] = field(default_factory=dict)
    plus: _Node | None = None
    variable: dict[tuple[str, Effect], _Node] = field(default_factory=dict)
    ends: _End | None = None
    denies: _End | None = None
    hash_ends: _End | None = None
    hash_denies: _End | None = None

    def add(self, rule: AclRule, number: int) -> None:
        node = self
        for level in rule.filter.split("/"):
            if level == "#":
                node.hash_ends = _add_to_end(node.hash_ends, rule, number)
                if rule.effect is Effect.DENY:
                    node.hash_denies = _add_to_end(node.hash_denies, rule, number)
                return
            node = node._child(level, rule, number)
        node.ends = _add_to_end(node.ends, rule, number)
        if rule.effect is Effect.DENY:
            node.denies = _add_to_end(node.denies, rule, number)

    def _child(self, level: str, rule: AclRule, number: int) -> _Node:
        if level == "+":
            if self.plus is None:
                self.plus = _Node(number)
            return self.plus
        key = (level, rule.effect)
        if "{" in level:
            if key not in self.variable:
                self.variable[key] = _Node(number)
            return self.variable[key]
        if level not in self.exact:
            self.exact[level] = _Node(number)
        return self.exact[level]

    def matching_children(self, level: str, actor: Actor) -> Iterator[_Node]:
        """Yield the children that match a level of a topic or filter."""
        if self.plus is not None:
            yield self.plus
        if level in self.exact:
            yield self.exact[level]
        for (text, effect), node in self.variable.items():
            value = fill_level(text, actor)
            if value == level or (value is None and effect is Effect.DENY):
                yield node


def _add_to_end(end: _End | None, rule: AclRule, number: int) -> _End:
    end = end or _End()
    end.add(rule, number)
    return end


def _find_best(end: _End | None, keys: _ActorKeys, best: int) -> int:
    return best if end is None else end.find_best(keys, best)


class RuleSet:
    """The rules of a tenant scope in evaluation order: by priority, then by id.

    Finding the deciding rule takes time in proportion to a topic's levels, not to the number of
    rules. A set is immutable, so it can be cached and shared.
    """

    def __init__(self, rules: Iterable[AclRule]) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: (rule.priority, rule.id)))
        self._roots = {Action.PUBLISH: _Node(0), Action.SUBSCRIBE: _Node(0)}
        for number, rule in enumerate(self.rules):
            for action, root in self._roots.items():
                if rule.action in (Action.BOTH, action):
                    root.add(rule, number)

    def decide(self, actor: Actor, action: Action, topic: str) -> Decision:
        """Return the decision of the first matching rule on publishing or subscribing to a topic.

        A rule matches a subscription if its filter covers all of it. Denied topics within an
        allowed subscription are not delivered. But like the broker, this denies `a/#` as a whole
        if `a` or `a/+` is denied; `a/+/#` denies `a/+` too.
        """
        keys = _keys_of(actor)
        best = len(self.rules)
        levels = topic.split("/")
        # No rule's filter starts with $, and no wildcard matches it (MQTT 3.1.1 §4.7.2).
        todo = [] if topic.startswith("$") else [(self._roots[action], 0)]
        while todo:
            node, depth = todo.pop()
            if node.least >= best:
                continue
            best = _find_best(node.hash_ends, keys, best)
            if depth == len(levels):
                best = _find_best(node.ends, keys, best)
            elif levels[depth] == "#":
                best = _find_best(node.denies, keys, best)
                for child in node.matching_children("+", actor):
                    best = _find_best(child.denies, keys, best)
                    best = _find_best(child.hash_denies, keys, best)
            else:
                children = node.matching_children(levels[depth], actor)
                todo += [(child, depth + 1) for child in children]
        rule = self.rules[best] if best < len(self.rules) else None
        return Decision(rule is not None and rule.effect is Effect.ALLOW, rule)


def _keys_of(actor: Actor) -> _ActorKeys:
    """Return the keys of the rules that apply to an actor; consistent with `acl.is_for`."""
    if actor.kind is ActorKind.PUBLISHABLE_KEY:
        return _ActorKeys(((SubjectKind.PUBLISHABLE, ""),), "")
    everyone = (SubjectKind.EVERYONE, "")
    if actor.kind is ActorKind.SECRET_KEY:
        return _ActorKeys((everyone,), "")
    kind = SubjectKind.CLIENT if actor.kind is ActorKind.CLIENT else SubjectKind.PROVIDER
    own_name = (SubjectKind.USERNAME, actor.username)
    return _ActorKeys((everyone, (kind, actor.subject_id), own_name), actor.username)


def decide_with(
    rules: Iterable[AclRule], rule: AclRule, actor: Actor, action: Action, topic: str
) -> tuple[Decision, Decision]:
    """Return the decision of `rules`, and their decision with `rule` added or replaced by id."""
    current = RuleSet(rules)
    changed = RuleSet([*(other for other in current.rules if other.id != rule.id), rule])
    return current.decide(actor, action, topic), changed.decide(actor, action, topic)
