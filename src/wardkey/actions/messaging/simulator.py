"""The ACL simulator: what saved or proposed rules decide for an actor and a topic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from wardkey.actions.messaging import acl, clients
from wardkey.actions.messaging.acl import SavedRule
from wardkey.db.engine import Transaction
from wardkey.domain.acl import AclRule, Action, Actor, ActorKind, Decision
from wardkey.domain.errors import InvalidTopic, InvalidTopicFilter
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.rule_set import RuleSet, decide_with
from wardkey.domain.rule_specs import RuleSpec
from wardkey.domain.topics import clean_filter, clean_topic


@dataclass(frozen=True, slots=True)
class SimulationQuery:
    """An actor, an action, and a topic or filter; `rules` replace the saved rules if given."""

    kind: ActorKind
    action: Action
    topic: str
    username: str = ""
    client_id: str = ""
    subject_id: str = ""
    claims: dict[str, str] = field(default_factory=dict)
    rules: tuple[RuleSpec, ...] | None = None


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The decision of the rules; `position` is the index of the deciding unsaved rule, from 0."""

    decision: Decision
    sentence: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class RuleComparison:
    """The decision of the saved rules, without and with an unsaved rule."""

    now: SimulationResult
    then: SimulationResult

    @property
    def changes(self) -> bool:
        """Whether the unsaved rule reverses the decision."""
        return self.now.decision.allowed is not self.then.decision.allowed


def simulate(tx: Transaction, by: Principal, query: SimulationQuery) -> SimulationResult:
    """Return whether an actor can publish to a topic or subscribe to a filter, and by which rule.

    A client given by its id is evaluated with its stored user name. Raises `InvalidTopic`,
    `InvalidTopicFilter`, `ClientNotFound`, and for unsaved rules what `acl.put_rules` raises.
    """
    by.require(Permission.ACL_READ)
    query, actor = _resolve_actor(tx, by, query)
    unsaved = query.rules
    rules = acl.list_rules(tx, by) if unsaved is None else acl.plan_rules(tx, by, unsaved)
    decision = RuleSet(_acl_rules(rules)).decide(actor, query.action, query.topic)
    if decision.rule is None or unsaved is None:
        return SimulationResult(decision, _explain(query, decision))
    position = [rule.id for rule in rules].index(decision.rule.id)
    label = f"rule {position + 1} of those sent"
    return SimulationResult(decision, _explain(query, decision, label), position)


def compare(
    tx: Transaction, by: Principal, query: SimulationQuery, spec: RuleSpec, rule_id: str = ""
) -> RuleComparison:
    """Return the decision of the saved rules, without and with a rule that is not saved.

    The rule is added, or replaces `rule_id`. Raises what `simulate` raises, and what saving the
    rule would raise.
    """
    by.require(Permission.ACL_READ)
    query, actor = _resolve_actor(tx, by, query)
    saved = acl.list_rules(tx, by)
    rule = acl.plan_rule(tx, by, spec, rule_id)
    now, then = decide_with(
        _acl_rules(saved), rule.spec.rule(rule.id), actor, query.action, query.topic
    )
    decided_by_it = then.rule is not None and then.rule.id == rule.id
    return RuleComparison(
        SimulationResult(now, _explain(query, now)),
        SimulationResult(then, _explain(query, then, "this rule" if decided_by_it else "")),
    )


def _resolve_actor(
    tx: Transaction, by: Principal, query: SimulationQuery
) -> tuple[SimulationQuery, Actor]:
    """Check the topic; return the query with the client's stored user name, and its actor."""
    if query.action is Action.PUBLISH:
        try:
            clean_topic(query.topic)
        except ValueError as error:
            raise InvalidTopic(str(error), field="topic") from None
    else:
        try:
            clean_filter(query.topic)
        except ValueError as error:
            raise InvalidTopicFilter(str(error), field="topic") from None
    if query.kind is ActorKind.CLIENT and query.subject_id:
        username = clients.get(tx, by, query.subject_id).username
        query = replace(query, username=username)
    return query, Actor(
        query.kind,
        by.org_id,
        query.username,
        query.client_id,
        query.subject_id,
        query.claims,
    )


def _acl_rules(saved: Iterable[SavedRule]) -> list[AclRule]:
    return [rule.spec.rule(rule.id) for rule in saved]


def _explain(query: SimulationQuery, decision: Decision, rule_label: str = "") -> str:
    verb = "publish" if query.action is Action.PUBLISH else "subscribe"
    can = "can" if decision.allowed else "can't"
    actor = query.username or query.kind.replace("_", " ")
    rule = decision.rule
    if rule is None:
        why = "no rule matches, and access that no rule allows is denied"
    else:
        effect = "allows" if decision.allowed else "denies"
        why = f"{rule_label or f'rule {rule.id}'} (priority {rule.priority}) {effect} {rule.filter}"
    return f"{actor} {can} {verb} to {query.topic}: {why}."
