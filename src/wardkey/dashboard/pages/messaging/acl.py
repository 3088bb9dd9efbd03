"""Messaging > ACL rules: the rules in order, the presets, and the simulator."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import Request, Response

from wardkey.actions.messaging import acl, simulator
from wardkey.actions.messaging.simulator import RuleComparison
from wardkey.dashboard.pages.messaging.acl_form import Trial, read_rule
from wardkey.dashboard.shell.auth import NOTHING_SENT, Fields, MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.once import write_once
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.acl import Action, ActorKind, Effect, SubjectKind
from wardkey.domain.errors import (
    ClientNotFound,
    Conflict,
    FormSentBefore,
    Invalid,
    InvalidRequest,
    NotFound,
    WardkeyError,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.rule_specs import MOST_PRIORITY, PRESETS, PresetName
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
PATH = "messaging/acl"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"
_RULE = f"{_ROUTE}/{{rule_id}}"

_DIALOGS = frozenset({"create", "presets"})
_PRIORITY_STEP = 10


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of a form: an open dialog, its rule, a failure, or a comparison."""

    dialog: str = ""
    rule_id: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None
    compared: RuleComparison | None = None


@router.get(_ROUTE)
def list_rules(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the rules; the simulator answers a question in the query."""
    dialog = request.query_params.get("dialog", "")
    return _page(request, current, ctx, FormResult(dialog=dialog if dialog in _DIALOGS else ""))


@router.post(_ROUTE)
def create_rule(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Add a rule."""
    current.by.require(Permission.ACL_WRITE)
    try:
        spec = read_rule(fields)

        def create_rule(tx: Transaction, by: Principal) -> tuple[str, acl.SavedRule]:
            rule = acl.create(tx, by, spec)
            return rule.id, rule

        _, confirmed = write_once(ctx, current, fields, create_rule)
    except FormSentBefore:
        return see_other(current.url(PATH), done="rule-created")
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, FormResult("create", failure=failure, sent=fields))
    return see_other(current.url(PATH), done="rule-created", **receipt_query(confirmed))


@router.get(f"{_ROUTE}/compare")
@router.get(f"{_ROUTE}/presets")
def back_to_rules(current: Visiting) -> Response:
    """Redirect to the list from the URL of a form, for example after a reload."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/presets")
def apply_preset(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Apply a preset; with `replace` it replaces the existing rules."""
    current.by.require(Permission.ACL_WRITE)
    try:
        if fields.text("preset") not in set(PresetName):
            raise InvalidRequest("Choose a preset.", errors=(("preset", "Choose one."),))
        _, confirmed = ctx.runner.write_confirmed(
            acl.apply_preset,
            current.by,
            PresetName(fields.text("preset")),
            replace_existing=fields.text("replace") == "1",
        )
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, FormResult("presets", failure=failure))
    return see_other(current.url(PATH), done="preset-applied", **receipt_query(confirmed))


@router.get(_RULE)
def show_rule(rule_id: str, request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Open a rule's edit or delete dialog over the list."""
    ctx.runner.read(acl.get, current.by, rule_id)
    if not current.by.holds(Permission.ACL_WRITE):
        return see_other(current.url(PATH))
    dialog = "delete" if request.query_params.get("dialog") == "delete" else "edit"
    return _page(request, current, ctx, FormResult(dialog, rule_id))


@router.get(f"{_RULE}/{{verb}}")
def back_from_rule(rule_id: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Redirect to the list from the URL of an action, for example after a reload."""
    return see_other(current.url(PATH))


@router.post(f"{_RULE}/edit")
def edit_rule(
    rule_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Update a rule from the form."""
    current.by.require(Permission.ACL_WRITE)
    try:
        spec = read_rule(fields)
        changes = acl.RuleChanges(
            spec.priority,
            (spec.subject_kind, spec.subject),
            spec.filter,
            spec.action,
            spec.effect,
            spec.description,
        )
        _, confirmed = ctx.runner.write_confirmed(acl.change, current.by, rule_id, changes)
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, FormResult("edit", rule_id, failure, fields))
    return see_other(current.url(PATH), done="rule-changed", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/compare")
def compare_new(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Compare the decision with and without a new rule; nothing is saved."""
    return _compare_page(request, current, ctx, fields, "")


@router.post(f"{_RULE}/compare")
def compare_changed(
    rule_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Compare the decision before and after the edit of a rule; nothing is saved."""
    return _compare_page(request, current, ctx, fields, rule_id)


@router.post(f"{_RULE}/delete")
def delete_rule(
    rule_id: str, request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete a rule."""
    try:
        _, confirmed = ctx.runner.write_confirmed(acl.remove, current.by, rule_id)
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, FormResult("delete", rule_id, failure))
    return see_other(current.url(PATH), done="rule-deleted", **receipt_query(confirmed))


def _compare_page(
    request: Request, current: MemberContext, ctx: AppContext, fields: Fields, rule_id: str
) -> Response:
    dialog = "edit" if rule_id else "create"
    try:
        with ctx.runner.audit_refusals("compare", current.by):
            current.by.require(Permission.ACL_WRITE)
        spec, question = read_rule(fields), Trial.of(fields.texts_by_name()).question()

        def compare(tx: Transaction, by: Principal) -> RuleComparison:
            return simulator.compare(tx, by, question, spec, rule_id)

        compared = ctx.runner.read(compare, current.by)
    except (Invalid, Conflict, ClientNotFound) as failure:
        return _page(request, current, ctx, FormResult(dialog, rule_id, failure, fields))
    return _page(request, current, ctx, FormResult(dialog, rule_id, None, fields, compared))


def _page(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    trial = Trial.of(request.query_params)
    rules = ctx.runner.read(acl.list_rules, current.by)
    simulated, refused = _run_simulator(current, ctx, trial)
    failure = result.failure
    rule = next((saved for saved in rules if saved.id == result.rule_id), None)
    last = max((saved.spec.priority for saved in rules), default=90)
    return render(
        request,
        "acl/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        rules=rules,
        url=current.url(PATH),
        why_not=current.why_not(Permission.ACL_WRITE),
        ended=ended_sessions(request, current, ctx),
        dialog=result.dialog if current.by.holds(Permission.ACL_WRITE) else "",
        rule=rule,
        fault=fault_of(failure) if failure else None,
        sent=result.sent.texts_by_name() if result.sent else NOTHING_SENT,
        once=secrets.token_hex(16),
        next_priority=min(MOST_PRIORITY, last + _PRIORITY_STEP),
        most_priority=MOST_PRIORITY,
        presets=PRESETS,
        subject_kinds=SubjectKind,
        actions=Action,
        effects=Effect,
        actor_kinds=ActorKind,
        trial=trial,
        unsaved=Trial.of(result.sent.texts_by_name() if result.sent else NOTHING_SENT),
        compared=result.compared,
        simulated=simulated,
        refused=fault_of(refused) if refused else None,
    )


def _run_simulator(
    current: MemberContext, ctx: AppContext, trial: Trial
) -> tuple[simulator.SimulationResult | None, WardkeyError | None]:
    """Return the simulator's answer to the question in the query, or its failure."""
    if not trial.is_asked:
        return None, None
    try:
        question = trial.question()

        def simulate(tx: Transaction, by: Principal) -> simulator.SimulationResult:
            return simulator.simulate(tx, by, question)

        return ctx.runner.read(simulate, current.by), None
    except (Invalid, NotFound) as failure:
        return None, failure
