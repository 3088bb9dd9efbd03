"""Actions that read, change and plan the ACL rules of a tenant scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import acl_rules, clients
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import (
    MOST_RULES,
    AclRule,
    Action,
    Effect,
    SubjectKind,
)
from wardkey.domain.broker_acl import find_exception, find_loose_wildcard
from wardkey.domain.errors import (
    AclExceptionAboveDenial,
    AclLooseWildcard,
    AclRuleNotFound,
    AclRulesExist,
    InvalidAclSubject,
    TooManyAclRules,
)
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import ALL_SUBJECTS
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.rule_specs import PRESETS, PresetName, RuleSpec, clean_rule

_TARGET = "acl"


@dataclass(frozen=True, slots=True)
class SavedRule:
    """A rule as it is saved; times in epoch milliseconds."""

    id: str
    spec: RuleSpec
    created_at: int
    created_by: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class RuleChanges:
    """The new values of a rule; None leaves a value unchanged."""

    priority: int | None = None
    subject: tuple[SubjectKind, str] | None = None
    filter: str | None = None
    action: Action | None = None
    effect: Effect | None = None
    description: str | None = None


def create(tx: Transaction, by: Principal, spec: RuleSpec) -> SavedRule:
    """Add a rule.

    Raises what `clean_rule` raises, `TooManyAclRules`, `AclExceptionAboveDenial`,
    `AclLooseWildcard`.
    """
    by.require(Permission.ACL_WRITE)
    spec = _clean_spec(tx, by, spec)
    [rule] = _new_rules(tx, by, [spec])
    _check_set([*_load_rules(tx, by), rule])
    _insert(tx, by, [rule])
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.created", Target(_TARGET, rule.id), _details(spec))
    return rule


def list_rules(tx: Transaction, by: Principal) -> list[SavedRule]:
    """Return the rules in the order in which they are evaluated."""
    by.require(Permission.ACL_READ)
    return _load_rules(tx, by)


def get(tx: Transaction, by: Principal, rule_id: str) -> SavedRule:
    """Return one rule; raises `AclRuleNotFound`."""
    by.require(Permission.ACL_READ)
    return _get(tx, by, rule_id)


def change(tx: Transaction, by: Principal, rule_id: str, changes: RuleChanges) -> SavedRule:
    """Change a rule; raises `AclRuleNotFound`, and what `create` raises."""
    by.require(Permission.ACL_WRITE)
    before = _get(tx, by, rule_id)
    kind, subject = changes.subject or (before.spec.subject_kind, before.spec.subject)
    spec = RuleSpec(
        before.spec.priority if changes.priority is None else changes.priority,
        kind,
        subject,
        before.spec.filter if changes.filter is None else changes.filter,
        changes.action or before.spec.action,
        changes.effect or before.spec.effect,
        before.spec.description if changes.description is None else changes.description,
    )
    after = replace(before, spec=_clean_spec(tx, by, spec), updated_at=tx.now)
    if after.spec == before.spec:
        return before
    _check_set([*(rule for rule in _load_rules(tx, by) if rule.id != rule_id), after])
    tx.connection.execute(
        update(acl_rules)
        .where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
        .values(**_columns(after.spec), updated_at=tx.now)
    )
    details = {**_details(after.spec), "old": _details(before.spec)}
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.updated", Target(_TARGET, rule_id), details)
    return after


def remove(tx: Transaction, by: Principal, rule_id: str) -> None:
    """Delete a rule.

    Raises `AclRuleNotFound`, and `AclExceptionAboveDenial` or `AclLooseWildcard` if the remaining
    rules can't be enforced by the broker.
    """
    by.require(Permission.ACL_WRITE)
    before = _get(tx, by, rule_id)
    _check_set([rule for rule in _load_rules(tx, by) if rule.id != rule_id])
    tx.connection.execute(
        delete(acl_rules).where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
    )
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.deleted", Target(_TARGET, rule_id), _details(before.spec))


def put_rules(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Replace all rules atomically; rules with equal priorities are evaluated in the given order.

    Raises what `create` raises, with fields named below `rules`.
    """
    by.require(Permission.ACL_WRITE)
    return _replace(tx, by, specs, {})


def apply_preset(
    tx: Transaction, by: Principal, preset: PresetName, *, replace_existing: bool = False
) -> list[SavedRule]:
    """Create a preset's rules; raises `AclRulesExist` if there are rules that it can't replace."""
    by.require(Permission.ACL_WRITE)
    count = len(_load_rules(tx, by))
    if count and not replace_existing:
        raise AclRulesExist(
            f"There are already {count} rules in {by.environment}; send replace: true to replace "
            "them with the preset, or add single rules.",
        )
    return _replace(tx, by, PRESETS[preset].rules, {"preset": preset})


def plan_rules(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Return the rules that `put_rules` would save; raises what it raises, writes nothing."""
    by.require(Permission.ACL_READ)
    return _plan_rules(tx, by, specs)


def plan_rule(tx: Transaction, by: Principal, spec: RuleSpec, rule_id: str = "") -> SavedRule:
    """Return the rule that would be added, or that would replace `rule_id`; writes nothing.

    Raises what `create` and `change` raise.
    """
    by.require(Permission.ACL_READ)
    spec = _clean_spec(tx, by, spec)
    rule = replace(_get(tx, by, rule_id), spec=spec) if rule_id else _new_rules(tx, by, [spec])[0]
    _check_set([*(saved for saved in _load_rules(tx, by) if saved.id != rule.id), rule])
    return rule


def _replace(
    tx: Transaction, by: Principal, specs: Sequence[RuleSpec], extra_details: dict[str, object]
) -> list[SavedRule]:
    new_rules = _plan_rules(tx, by, specs)
    deleted = tx.connection.execute(delete(acl_rules).where(in_scope(acl_rules, by.scope)))
    _insert(tx, by, new_rules)
    details = {"rules": len(new_rules), "old_rules": deleted.rowcount, **extra_details}
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rules.replaced", Target(_TARGET, by.environment), details)
    return sorted(new_rules, key=_sort_key)


def _plan_rules(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    new_rules = _new_rules(tx, by, _clean_specs(tx, by, specs))
    _check_set(new_rules)
    return new_rules


def _clean_specs(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[RuleSpec]:
    if len(specs) > MOST_RULES:
        raise TooManyAclRules(
            f"{len(specs):,} rules were given; at most {MOST_RULES:,} are allowed."
        )
    clean = [clean_rule(spec, f"rules.{number}.") for number, spec in enumerate(specs)]
    client_ids = {spec.subject for spec in clean if spec.subject_kind is SubjectKind.CLIENT}
    known = set(
        tx.connection.execute(
            select(clients.c.id).where(
                clients.c.id.in_(client_ids),
                in_scope(clients, by.scope),
            )
        ).scalars()
    )
    for number, spec in enumerate(clean):
        if spec.subject_kind is SubjectKind.CLIENT and spec.subject not in known:
            raise _unknown_client(spec, f"rules.{number}.")
    return clean


def _clean_spec(tx: Transaction, by: Principal, spec: RuleSpec) -> RuleSpec:
    spec = clean_rule(spec)
    if spec.subject_kind is SubjectKind.CLIENT and _username(tx, by, spec.subject) is None:
        raise _unknown_client(spec)
    return spec


def _username(tx: Transaction, by: Principal, client_id: str) -> str | None:
    """Return the user name of a client in the caller's tenant scope."""
    return tx.connection.execute(
        select(clients.c.username).where(
            clients.c.id == client_id,
            in_scope(clients, by.scope),
        )
    ).scalar_one_or_none()


def _unknown_client(spec: RuleSpec, field_prefix: str = "") -> InvalidAclSubject:
    return InvalidAclSubject(
        f"This environment has no client {spec.subject}; create it first, or use a user name "
        "pattern.",
        field=f"{field_prefix}subject.value",
    )


def _new_rules(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Return new rules whose ids sort in the order of `specs`."""
    ids = sorted(new_id("acl", tx.now) for _ in specs)
    return [
        SavedRule(rule_id, spec, tx.now, by.id, tx.now)
        for rule_id, spec in zip(ids, specs, strict=True)
    ]


def _check_set(saved: Sequence[SavedRule]) -> None:
    """Raise `TooManyAclRules`, or an error for rules that the broker can't enforce."""
    if len(saved) > MOST_RULES:
        raise TooManyAclRules
    rules = RuleSet(_acl_rules(saved)).rules
    pair = find_exception(rules)
    if pair is not None:
        above, below = map(_describe, pair)
        raise AclExceptionAboveDenial(
            f"{above} allows part of what {below}, further down, denies, and a rule below that "
            "allows more of it; the broker can't enforce such an exception. Move the denying rule "
            "above it, or deny less.",
        )
    loose = find_loose_wildcard(rules)
    if loose is not None:
        widened = f"{loose.filter[:-1]}#"
        raise AclLooseWildcard(
            f"{_describe(loose)} would make the broker accept a subscription to {widened}, because "
            "the level above it and topics below it are allowed too; allow "
            f"{widened}, or remove one of these rules.",
        )


def _describe(rule: AclRule) -> str:
    return f"Rule {rule.id} (priority {rule.priority}, {rule.effect} {rule.filter})"


def _load_rules(tx: Transaction, by: Principal) -> list[SavedRule]:
    rows = tx.connection.execute(select(acl_rules).where(in_scope(acl_rules, by.scope)))
    # Sorted here, because databases use different collations.
    return sorted(map(_saved_rule, rows), key=_sort_key)


def _get(tx: Transaction, by: Principal, rule_id: str) -> SavedRule:
    row = tx.connection.execute(
        select(acl_rules).where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
    ).one_or_none()
    if row is None:
        raise AclRuleNotFound
    return _saved_rule(row)


def _insert(tx: Transaction, by: Principal, new_rules: Sequence[SavedRule]) -> None:
    if new_rules:
        scope = {"org_id": by.org_id, "environment": by.environment}
        tx.connection.execute(
            insert(acl_rules),
            [
                {
                    **scope,
                    **_columns(rule.spec),
                    "id": rule.id,
                    "created_at": rule.created_at,
                    "created_by": rule.created_by,
                    "updated_at": rule.updated_at,
                }
                for rule in new_rules
            ],
        )


def _columns(spec: RuleSpec) -> dict[str, Any]:
    return {
        "priority": spec.priority,
        "subject_kind": str(spec.subject_kind),
        "subject": spec.subject,
        "filter": spec.filter,
        "action": str(spec.action),
        "effect": str(spec.effect),
        "description": spec.description,
    }


def _details(spec: RuleSpec) -> dict[str, object]:
    return {name: value for name, value in _columns(spec).items() if name != "description"}


def _saved_rule(row: Row[Any]) -> SavedRule:
    spec = RuleSpec(
        row.priority,
        SubjectKind(row.subject_kind),
        row.subject,
        row.filter,
        Action(row.action),
        Effect(row.effect),
        row.description,
    )
    return SavedRule(row.id, spec, row.created_at, row.created_by, row.updated_at)


def _acl_rules(saved: Sequence[SavedRule]) -> list[AclRule]:
    return [rule.spec.rule(rule.id) for rule in saved]


def _sort_key(rule: SavedRule) -> tuple[int, str]:
    return rule.spec.priority, rule.id
