"""Hooks: brokers that authorize clients over HTTP, and ACL rules in the form they need."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardkey.domain.acl import AclRule, Action, Actor, Effect, fill_filter, is_for
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.secret import Environment
from wardkey.domain.topics import clean_filter, clean_topic, overlaps
from wardkey.domain.usernames import parse_username


class HookKind(StrEnum):
    """The kind of broker, which determines its request and response format."""

    EMQX = "emqx"
    VERNEMQ = "vernemq"
    RABBITMQ = "rabbitmq"
    MOSQUITTO = "mosquitto"

    @property
    def isolates_tenants(self) -> bool:
        """Return whether one such broker can serve organizations isolated from each other."""
        return self is not HookKind.MOSQUITTO

    @property
    def checks_deliveries(self) -> bool:
        """Return whether the broker checks each message before it delivers it."""
        return self is HookKind.MOSQUITTO


@dataclass(frozen=True, slots=True)
class Hook:
    """What a hook token is valid for: one tenant scope, or all of them if both are None."""

    kind: HookKind
    org_id: str | None
    environment: Environment | None

    def serves(self, username: str) -> bool:
        """Return whether this hook is valid for a user name, as sent over MQTT."""
        name = parse_username(username)
        if name is None:
            return False
        return self.org_id is None or (name.org_id, name.environment) == (
            self.org_id,
            self.environment,
        )


@dataclass(frozen=True, slots=True)
class ListedRule:
    """A rule in a list that a broker evaluates itself; an `exact` filter is compared literally."""

    effect: Effect
    action: Action
    filter: str
    exact: bool = False


def is_allowed(
    rules: RuleSet, actor: Actor, action: Action, topic: str, *, deliveries_checked: bool
) -> bool:
    """Return whether the rules allow an action.

    A subscription that includes a denied topic is rejected, unless the broker checks deliveries:
    other brokers deliver everything that matches the subscription.
    """
    try:
        (clean_topic if action is Action.PUBLISH else clean_filter)(topic)
    except ValueError:
        return False
    decision = rules.decide(actor, action, topic)
    if not decision.allowed or action is Action.PUBLISH or deliveries_checked:
        return decision.allowed
    return not any(
        overlaps(pattern, topic) for pattern in _denied_above(rules, actor, decision.rule)
    )


def list_rules(rules: RuleSet, actor: Actor) -> list[ListedRule]:
    """Return an actor's rules for a broker that applies the first match in a list.

    The list ends with a rule that denies everything. It is exact for publishing. For subscribing,
    an allowing rule is left out if the broker would allow more than it says: the broker ignores
    denials below a wildcard, and lets `a/+` match `a/#`.
    """
    listed = [ListedRule(Effect.DENY, Action.BOTH, "$SYS/#")]
    for rule in rules.rules:
        pattern = fill_filter(rule, actor) if is_for(rule, actor) else None
        if pattern is None:
            continue
        if rule.effect is Effect.DENY:
            listed.append(ListedRule(rule.effect, rule.action, pattern))
            continue
        if rule.action is not Action.SUBSCRIBE:
            listed.append(ListedRule(rule.effect, Action.PUBLISH, pattern))
        if rule.action is not Action.PUBLISH:
            listed += _list_subscribing(rules, actor, rule, pattern)
    listed.append(ListedRule(Effect.DENY, Action.BOTH, "#"))
    return listed


def _list_subscribing(
    rules: RuleSet, actor: Actor, rule: AclRule, pattern: str
) -> list[ListedRule]:
    allowed = ListedRule(Effect.ALLOW, Action.SUBSCRIBE, pattern)
    levels = pattern.split("/")
    if not {"+", "#"} & set(levels):
        return [allowed]
    if any(overlaps(denied, pattern) for denied in _denied_above(rules, actor, rule)):
        return []
    if levels[-1] != "+":
        return [allowed]
    subtree = "/".join([*levels[:-1], "#"])
    if rules.decide(actor, Action.SUBSCRIBE, subtree).allowed:
        return [allowed]
    if "+" in levels[:-1]:
        return []
    return [ListedRule(Effect.DENY, Action.SUBSCRIBE, subtree, exact=True), allowed]


def _denied_above(rules: RuleSet, actor: Actor, below: AclRule | None) -> list[str]:
    """Return the filters of rules before `below` that deny the actor to subscribe."""
    denied = []
    for rule in rules.rules:
        if rule is below:
            break
        if rule.effect is Effect.DENY and rule.action is not Action.PUBLISH and is_for(rule, actor):
            pattern = fill_filter(rule, actor)
            if pattern is not None:
                denied.append(pattern)
    return denied
