"""ACL rules of one organization and environment: written, read, and planned."""

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

_CHANGE = "acl"


@dataclass(frozen=True, slots=True)
class SavedRule:
    """A rule as its organization sees it; times in epoch milliseconds."""

    id: str
    spec: RuleSpec
    created_at: int
    created_by: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class RuleChanges:
    """What to change of a rule; None stays."""

    priority: int | None = None
    subject: tuple[SubjectKind, str] | None = None
    filter: str | None = None
    action: Action | None = None
    effect: Effect | None = None
    description: str | None = None


def create(tx: Transaction, by: Principal, spec: RuleSpec) -> SavedRule:
    """Add a rule; raises what `clean_rule` raises, and what the set as a whole breaks."""
    by.require(Permission.ACL_WRITE)
    spec = _clean(tx, by, spec)
    made = _made(tx, by, [spec])
    _check_set([*_saved(tx, by), *made])
    _insert(tx, by, made)
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.created", Target(_CHANGE, made[0].id), _details(spec))
    return made[0]


def list_rules(tx: Transaction, by: Principal) -> list[SavedRule]:
    """Return the rules in the order in which they are asked."""
    by.require(Permission.ACL_READ)
    return _saved(tx, by)


def get(tx: Transaction, by: Principal, rule_id: str) -> SavedRule:
    """Return one rule; raises `AclRuleNotFound`."""
    by.require(Permission.ACL_READ)
    return _get(tx, by, rule_id)


def change(tx: Transaction, by: Principal, rule_id: str, wanted: RuleChanges) -> SavedRule:
    """Change a rule; raises `AclRuleNotFound`, and what `create` raises."""
    by.require(Permission.ACL_WRITE)
    before = _get(tx, by, rule_id)
    kind, subject = wanted.subject or (before.spec.subject_kind, before.spec.subject)
    spec = RuleSpec(
        before.spec.priority if wanted.priority is None else wanted.priority,
        kind,
        subject,
        before.spec.filter if wanted.filter is None else wanted.filter,
        wanted.action or before.spec.action,
        wanted.effect or before.spec.effect,
        before.spec.description if wanted.description is None else wanted.description,
    )
    after = replace(before, spec=_clean(tx, by, spec), updated_at=tx.now)
    if after.spec == before.spec:
        return before
    _check_set([*(rule for rule in _saved(tx, by) if rule.id != rule_id), after])
    tx.connection.execute(
        update(acl_rules)
        .where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
        .values(**_columns(after.spec), updated_at=tx.now)
    )
    details = {**_details(after.spec), "old": _details(before.spec)}
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.updated", Target(_CHANGE, rule_id), details)
    return after


def remove(tx: Transaction, by: Principal, rule_id: str) -> None:
    """Delete a rule; raises `AclRuleNotFound`, `AclLooseWildcard` for those that stay."""
    by.require(Permission.ACL_WRITE)
    before = _get(tx, by, rule_id)
    _check_set([rule for rule in _saved(tx, by) if rule.id != rule_id])
    tx.connection.execute(
        delete(acl_rules).where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
    )
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rule.deleted", Target(_CHANGE, rule_id), _details(before.spec))


def put_rules(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Replace every rule, or none; of equal priorities the one that stands first is asked first.

    Raises what `create` raises, the fields under `rules`.
    """
    by.require(Permission.ACL_WRITE)
    return _replace(tx, by, specs, {})


def apply_preset(
    tx: Transaction, by: Principal, preset: PresetName, *, over_others: bool = False
) -> list[SavedRule]:
    """Make a preset's rules, instead of the present ones if that is said; `AclRulesExist`."""
    by.require(Permission.ACL_WRITE)
    count = len(_saved(tx, by))
    if count and not over_others:
        raise AclRulesExist(
            f"There are {count} rules in {by.environment} already; send replace: true to have the "
            "preset in their stead, or add single rules.",
        )
    return _replace(tx, by, PRESETS[preset].rules, {"preset": preset})


def planned(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Return the rules that `put_rules` would make; raises what it raises, and writes nothing."""
    by.require(Permission.ACL_READ)
    return _planned(tx, by, specs)


def planned_one(tx: Transaction, by: Principal, spec: RuleSpec, rule_id: str = "") -> SavedRule:
    """Return the rule that would be added, or would stand in place of `rule_id`.

    Raises what `create` and `change` raise, and writes nothing.
    """
    by.require(Permission.ACL_READ)
    spec = _clean(tx, by, spec)
    rule = replace(_get(tx, by, rule_id), spec=spec) if rule_id else _made(tx, by, [spec])[0]
    _check_set([*(one for one in _saved(tx, by) if one.id != rule.id), rule])
    return rule


def _replace(
    tx: Transaction, by: Principal, specs: Sequence[RuleSpec], more: dict[str, object]
) -> list[SavedRule]:
    made = _planned(tx, by, specs)
    gone = tx.connection.execute(delete(acl_rules).where(in_scope(acl_rules, by.scope))).rowcount
    _insert(tx, by, made)
    details = {"rules": len(made), "old_rules": gone, **more}
    tx.affected_subjects.add(ALL_SUBJECTS)
    record(tx, by, "acl_rules.replaced", Target(_CHANGE, by.environment), details)
    return sorted(made, key=_order)


def _planned(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    made = _made(tx, by, _clean_all(tx, by, specs))
    _check_set(made)
    return made


def _clean_all(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[RuleSpec]:
    if len(specs) > MOST_RULES:
        raise TooManyAclRules(f"That are {len(specs)} rules; {MOST_RULES:,} are the most.")
    clean = [clean_rule(spec, f"rules.{number}.") for number, spec in enumerate(specs)]
    named = {spec.subject for spec in clean if spec.subject_kind is SubjectKind.CLIENT}
    known = set(
        tx.connection.execute(
            select(clients.c.id).where(
                clients.c.id.in_(named),
                in_scope(clients, by.scope),
            )
        ).scalars()
    )
    for number, spec in enumerate(clean):
        if spec.subject_kind is SubjectKind.CLIENT and spec.subject not in known:
            raise _no_client(spec, f"rules.{number}.")
    return clean


def _clean(tx: Transaction, by: Principal, spec: RuleSpec) -> RuleSpec:
    spec = clean_rule(spec)
    if spec.subject_kind is SubjectKind.CLIENT and _username(tx, by, spec.subject) is None:
        raise _no_client(spec)
    return spec


def _username(tx: Transaction, by: Principal, client_id: str) -> str | None:
    """Return the user name of a client that is here."""
    return tx.connection.execute(
        select(clients.c.username).where(
            clients.c.id == client_id,
            in_scope(clients, by.scope),
        )
    ).scalar_one_or_none()


def _no_client(spec: RuleSpec, where: str = "") -> InvalidAclSubject:
    return InvalidAclSubject(
        f"There is no client {spec.subject} here; make it first, or name user names by a pattern.",
        field=f"{where}subject.value",
    )


def _made(tx: Transaction, by: Principal, specs: Sequence[RuleSpec]) -> list[SavedRule]:
    """Return new rules whose ids stand in the order of `specs`."""
    ids = sorted(new_id("acl", tx.now) for _ in specs)
    return [
        SavedRule(rule_id, spec, tx.now, by.id, tx.now)
        for rule_id, spec in zip(ids, specs, strict=True)
    ]


def _check_set(saved: Sequence[SavedRule]) -> None:
    """Raise what the broker could not hold, and `TooManyAclRules`."""
    if len(saved) > MOST_RULES:
        raise TooManyAclRules
    rules = RuleSet(_rules(saved)).rules
    pair = find_exception(rules)
    if pair is not None:
        above, below = map(_named, pair)
        raise AclExceptionAboveDenial(
            f"{above} allows some of what {below}, further down, denies, while a rule below that "
            "allows more of it; the broker cannot hold such an exception. Move the denying rule "
            "above it, or deny less.",
        )
    loose = find_loose_wildcard(rules)
    if loose is not None:
        whole = f"{loose.filter[:-1]}#"
        raise AclLooseWildcard(
            f"With {_named(loose)} the broker would take a subscription to {whole}, because the "
            f"level above it and topics below it are allowed too; write {whole}, or leave one out.",
        )


def _named(rule: AclRule) -> str:
    return f"The rule {rule.id} (priority {rule.priority}, {rule.effect} {rule.filter})"


def _saved(tx: Transaction, by: Principal) -> list[SavedRule]:
    found = tx.connection.execute(select(acl_rules).where(in_scope(acl_rules, by.scope)))
    # Sorted here, because databases order texts by different collations.
    return sorted(map(_rule, found), key=_order)


def _get(tx: Transaction, by: Principal, rule_id: str) -> SavedRule:
    row = tx.connection.execute(
        select(acl_rules).where(acl_rules.c.id == rule_id, in_scope(acl_rules, by.scope))
    ).one_or_none()
    if row is None:
        raise AclRuleNotFound
    return _rule(row)


def _insert(tx: Transaction, by: Principal, made: Sequence[SavedRule]) -> None:
    if made:
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
                for rule in made
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


def _rule(row: Row[Any]) -> SavedRule:
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


def _rules(saved: Sequence[SavedRule]) -> list[AclRule]:
    return [rule.spec.rule(rule.id) for rule in saved]


def _order(rule: SavedRule) -> tuple[int, str]:
    return rule.spec.priority, rule.id
