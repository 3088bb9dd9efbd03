"""Hooks: the kinds of brokers that ask us over HTTP, and what they may be told of rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardkey.domain.acl import AclRule, Action, Actor, Effect, filled, is_for
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.secret import Environment
from wardkey.domain.topics import clean_filter, clean_topic, overlaps
from wardkey.domain.usernames import parse_username


class HookKind(StrEnum):
    """Which broker asks, and so in which words."""

    EMQX = "emqx"
    VERNEMQ = "vernemq"
    RABBITMQ = "rabbitmq"
    MOSQUITTO = "mosquitto"

    @property
    def keeps_rooms_apart(self) -> bool:
        """Tell whether one such broker can serve organizations that do not see each other."""
        return self is not HookKind.MOSQUITTO

    @property
    def checks_deliveries(self) -> bool:
        """Tell whether the broker asks about each message before it delivers it."""
        return self is HookKind.MOSQUITTO


@dataclass(frozen=True, slots=True)
class Hook:
    """Whose questions a token's holder may ask: of one room, or (both None) of every room."""

    kind: HookKind
    org_id: str | None
    environment: Environment | None

    def serves(self, username: str) -> bool:
        """Tell whether a user name, as on the wire, is of a room that this hook is for."""
        name = parse_username(username)
        if name is None:
            return False
        return self.org_id is None or (name.org_id, name.environment) == (
            self.org_id,
            self.environment,
        )


@dataclass(frozen=True, slots=True)
class ListedRule:
    """One rule of a list that a broker goes through by itself; `exact` filters are one text."""

    effect: Effect
    action: Action
    filter: str
    exact: bool = False


def may(rules: RuleSet, actor: Actor, action: Action, topic: str, *, checked_later: bool) -> bool:
    """Tell whether the rules allow it, on a broker that delivers whatever was subscribed to.

    There a subscription that reaches a denied topic is refused; not if deliveries are
    `checked_later`.
    """
    try:
        (clean_topic if action is Action.PUBLISH else clean_filter)(topic)
    except ValueError:
        return False
    decision = rules.decide(actor, action, topic)
    if not decision.allowed or action is Action.PUBLISH or checked_later:
        return decision.allowed
    return not any(
        overlaps(pattern, topic) for pattern in _denied_above(rules, actor, decision.rule)
    )


def listed(rules: RuleSet, actor: Actor) -> list[ListedRule]:
    """Return an actor's rules for a broker that takes the first match of a list, and denies last.

    Exact for publishing. For subscribing an allowing rule is left out where the broker would let
    more through: it takes no account of denials below a wildcard, and lets `a/+` match `a/#`.
    """
    found = [ListedRule(Effect.DENY, Action.BOTH, "$SYS/#")]
    for rule in rules.rules:
        pattern = filled(rule, actor) if is_for(rule, actor) else None
        if pattern is None:
            continue
        if rule.effect is Effect.DENY:
            found.append(ListedRule(rule.effect, rule.action, pattern))
            continue
        if rule.action is not Action.SUBSCRIBE:
            found.append(ListedRule(rule.effect, Action.PUBLISH, pattern))
        if rule.action is not Action.PUBLISH:
            found += _subscribing(rules, actor, rule, pattern)
    found.append(ListedRule(Effect.DENY, Action.BOTH, "#"))
    return found


def _subscribing(rules: RuleSet, actor: Actor, rule: AclRule, pattern: str) -> list[ListedRule]:
    allowed = ListedRule(Effect.ALLOW, Action.SUBSCRIBE, pattern)
    levels = pattern.split("/")
    if not {"+", "#"} & set(levels):
        return [allowed]
    if any(overlaps(denied, pattern) for denied in _denied_above(rules, actor, rule)):
        return []
    if levels[-1] != "+":
        return [allowed]
    whole = "/".join([*levels[:-1], "#"])
    if rules.decide(actor, Action.SUBSCRIBE, whole).allowed:
        return [allowed]
    if "+" in levels[:-1]:
        return []
    return [ListedRule(Effect.DENY, Action.SUBSCRIBE, whole, exact=True), allowed]


def _denied_above(rules: RuleSet, actor: Actor, below: AclRule | None) -> list[str]:
    """Return the filters of an actor's denials of subscribing that are asked before a rule."""
    found = []
    for rule in rules.rules:
        if rule is below:
            break
        if rule.effect is Effect.DENY and rule.action is not Action.PUBLISH and is_for(rule, actor):
            pattern = filled(rule, actor)
            if pattern is not None:
                found.append(pattern)
    return found
