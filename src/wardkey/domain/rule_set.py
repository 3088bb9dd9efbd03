"""The matcher of ACL rules: of those that fit, the first decides; where none fits, it is denied."""

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
    filled_level,
    fits_pattern,
)


class _Meant(NamedTuple):
    """Under what an actor's rules are found: subjects by name, and patterns by the user name."""

    subjects: tuple[tuple[SubjectKind, str], ...]
    username: str


@dataclass(slots=True)
class _End:
    """The rules that end at one place, by whom they are for: only the first of each counts."""

    first: dict[tuple[SubjectKind, str], int] = field(default_factory=dict)
    patterns: dict[str, int] = field(default_factory=dict)

    def add(self, rule: AclRule, number: int) -> None:
        if rule.subject_kind is SubjectKind.USERNAME and "*" in rule.subject:
            self.patterns.setdefault(rule.subject, number)
        else:
            self.first.setdefault((rule.subject_kind, rule.subject), number)

    def best(self, meant: _Meant, best: int) -> int:
        """Return the number of the first rule here for somebody, if it is below `best`."""
        for subject in meant.subjects:
            best = min(best, self.first.get(subject, best))
        if self.patterns and meant.username:
            for pattern, number in self.patterns.items():
                if number >= best:
                    break
                if fits_pattern(pattern, meant.username):
                    return number
        return best


@dataclass(slots=True)
class _Node:
    """One level of the rules' filters: what may follow it, and which rules end here.

    A level with variables is kept for allowing and denying rules apart, because what cannot be
    filled in fits nothing in the one and everything in the other.
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
                node.hash_ends = _added(node.hash_ends, rule, number)
                if rule.effect is Effect.DENY:
                    node.hash_denies = _added(node.hash_denies, rule, number)
                return
            node = node._child(level, rule, number)
        node.ends = _added(node.ends, rule, number)
        if rule.effect is Effect.DENY:
            node.denies = _added(node.denies, rule, number)

    def _child(self, level: str, rule: AclRule, number: int) -> _Node:
        if level == "+":
            if self.plus is None:
                self.plus = _Node(number)
            return self.plus
        place = (level, rule.effect)
        if "{" in level:
            if place not in self.variable:
                self.variable[place] = _Node(number)
            return self.variable[place]
        if level not in self.exact:
            self.exact[level] = _Node(number)
        return self.exact[level]

    def following(self, level: str, actor: Actor) -> Iterator[_Node]:
        """Yield what fits a level of a topic or filter."""
        if self.plus is not None:
            yield self.plus
        if level in self.exact:
            yield self.exact[level]
        for (text, effect), node in self.variable.items():
            value = filled_level(text, actor)
            if value == level or (value is None and effect is Effect.DENY):
                yield node


def _added(end: _End | None, rule: AclRule, number: int) -> _End:
    end = end or _End()
    end.add(rule, number)
    return end


def _best(end: _End | None, meant: _Meant, best: int) -> int:
    return best if end is None else end.best(meant, best)


class RuleSet:
    """The rules of an organization and environment, in the order in which they are asked.

    That is by priority, then by id. To find the one that decides takes as long as a topic has
    levels, not as there are rules. Nothing in it changes, so it may be kept and shared.
    """

    def __init__(self, rules: Iterable[AclRule]) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: (rule.priority, rule.id)))
        self._roots = {Action.PUBLISH: _Node(0), Action.SUBSCRIBE: _Node(0)}
        for number, rule in enumerate(self.rules):
            for action, root in self._roots.items():
                if rule.action in (Action.BOTH, action):
                    root.add(rule, number)

    def decide(self, actor: Actor, action: Action, topic: str) -> Decision:
        """Return what the first rule that fits says of publishing to a topic, or subscribing to it.

        A rule fits a subscription's filter if it covers it wholly. Of an accepted one, topics that
        a rule denies are not delivered; but, as the broker does it, `a/#` is denied as a whole
        where `a` or `a/+` is, which `a/+/#` denies too.
        """
        meant = _meant(actor)
        best = len(self.rules)
        levels = topic.split("/")
        # No filter of a rule begins with $, and no wildcard matches it (§4.7.2).
        todo = [] if topic.startswith("$") else [(self._roots[action], 0)]
        while todo:
            node, depth = todo.pop()
            if node.least >= best:
                continue
            best = _best(node.hash_ends, meant, best)
            if depth == len(levels):
                best = _best(node.ends, meant, best)
            elif levels[depth] == "#":
                best = _best(node.denies, meant, best)
                for following in node.following("+", actor):
                    best = _best(following.denies, meant, best)
                    best = _best(following.hash_denies, meant, best)
            else:
                todo += [(found, depth + 1) for found in node.following(levels[depth], actor)]
        rule = self.rules[best] if best < len(self.rules) else None
        return Decision(rule is not None and rule.effect is Effect.ALLOW, rule)


def _meant(actor: Actor) -> _Meant:
    """Return whom rules are for that mean this actor; as `acl.is_for` tells of one rule."""
    if actor.kind is ActorKind.PUBLISHABLE_KEY:
        return _Meant(((SubjectKind.PUBLISHABLE, ""),), "")
    everyone = (SubjectKind.EVERYONE, "")
    if actor.kind is ActorKind.SECRET_KEY:
        return _Meant((everyone,), "")
    kind = SubjectKind.CLIENT if actor.kind is ActorKind.CLIENT else SubjectKind.PROVIDER
    named = (SubjectKind.USERNAME, actor.username)
    return _Meant((everyone, (kind, actor.subject_id), named), actor.username)


def decide_with(
    rules: Iterable[AclRule], rule: AclRule, actor: Actor, action: Action, topic: str
) -> tuple[Decision, Decision]:
    """Return what rules decide, and what they would with `rule`, in place of one of its id."""
    now = RuleSet(rules)
    then = RuleSet([*(one for one in now.rules if one.id != rule.id), rule])
    return now.decide(actor, action, topic), then.decide(actor, action, topic)
