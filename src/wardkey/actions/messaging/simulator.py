"""The simulator of ACL rules: what they say of somebody and a topic, saved or not."""

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
class Question:
    """May somebody do this with that topic, or filter? Without rules the saved ones are asked."""

    kind: ActorKind
    action: Action
    topic: str
    username: str = ""
    client_id: str = ""
    subject_id: str = ""
    claims: dict[str, str] = field(default_factory=dict)
    rules: tuple[RuleSpec, ...] | None = None


@dataclass(frozen=True, slots=True)
class Simulated:
    """What the rules say; `position` of an unsaved rule counts from 0."""

    decision: Decision
    sentence: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """What the saved rules say, and what they would say with a rule that is not saved."""

    now: Simulated
    then: Simulated

    @property
    def changes(self) -> bool:
        """Tell whether the rule turns the answer around."""
        return self.now.decision.allowed is not self.then.decision.allowed


def simulate(tx: Transaction, by: Principal, question: Question) -> Simulated:
    """Tell whether somebody may publish to a topic or subscribe to a filter, and by which rule.

    Of a client that is named by its id, the user name is the record's. Raises `InvalidTopic`,
    `InvalidTopicFilter`, `ClientNotFound`, and for unsaved rules what `acl.put_rules` raises.
    """
    by.require(Permission.ACL_READ)
    question, actor = _asked(tx, by, question)
    if question.rules is None:
        rules = acl.list_rules(tx, by)
    else:
        rules = acl.planned(tx, by, question.rules)
    decision = RuleSet(_rules(rules)).decide(actor, question.action, question.topic)
    if decision.rule is None or question.rules is None:
        return Simulated(decision, _sentence(question, decision))
    position = [rule.id for rule in rules].index(decision.rule.id)
    which = f"rule {position + 1} of those sent"
    return Simulated(decision, _sentence(question, decision, which), position)


def compare(
    tx: Transaction, by: Principal, question: Question, spec: RuleSpec, rule_id: str = ""
) -> Compared:
    """Tell what the saved rules say, and what they would say with another, which is not written.

    The other is added, or stands in place of `rule_id`. Raises what `simulate` raises, and what
    saving the rule would.
    """
    by.require(Permission.ACL_READ)
    question, actor = _asked(tx, by, question)
    saved = acl.list_rules(tx, by)
    rule = acl.planned_one(tx, by, spec, rule_id)
    now, then = decide_with(
        _rules(saved), rule.spec.rule(rule.id), actor, question.action, question.topic
    )
    by_it = then.rule is not None and then.rule.id == rule.id
    return Compared(
        Simulated(now, _sentence(question, now)),
        Simulated(then, _sentence(question, then, "this rule" if by_it else "")),
    )


def _asked(tx: Transaction, by: Principal, question: Question) -> tuple[Question, Actor]:
    """Return the question with the user name of the client that it names, and who is meant."""
    if question.action is Action.PUBLISH:
        try:
            clean_topic(question.topic)
        except ValueError as error:
            raise InvalidTopic(str(error), field="topic") from None
    else:
        try:
            clean_filter(question.topic)
        except ValueError as error:
            raise InvalidTopicFilter(str(error), field="topic") from None
    if question.kind is ActorKind.CLIENT and question.subject_id:
        username = clients.get(tx, by, question.subject_id).username
        question = replace(question, username=username)
    return question, Actor(
        question.kind,
        by.org_id,
        question.username,
        question.client_id,
        question.subject_id,
        question.claims,
    )


def _rules(saved: Iterable[SavedRule]) -> list[AclRule]:
    return [rule.spec.rule(rule.id) for rule in saved]


def _sentence(question: Question, decision: Decision, which: str = "") -> str:
    does = "publish" if question.action is Action.PUBLISH else "subscribe"
    may = "may" if decision.allowed else "may not"
    who = question.username or question.kind.replace("_", " ")
    rule = decision.rule
    if rule is None:
        why = "no rule fits, and what no rule allows is denied"
    else:
        verb = "allows" if decision.allowed else "denies"
        why = f"{which or f'rule {rule.id}'} (priority {rule.priority}) {verb} {rule.filter}"
    return f"{who} {may} {does} to {question.topic}: {why}."
