"""Messaging > ACL rules: the rules in their order, the presets, and the simulator beside them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions
from wardkey.actions.messaging import acl, simulator
from wardkey.actions.messaging.simulator import Compared
from wardkey.dashboard.pages.messaging.acl_form import Trial, read_rule
from wardkey.dashboard.shell.auth import NOTHING_SENT, Checked, Fields, Visiting, Visitor
from wardkey.dashboard.shell.rendering import fault_of, page, pages, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.acl import Action, ActorKind, Effect, SubjectKind
from wardkey.domain.errors import (
    ClientNotFound,
    Conflict,
    Failure,
    FormSentBefore,
    Invalid,
    InvalidRequest,
    NotFound,
)
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.rule_specs import MOST_PRIORITY, PRESETS, PresetName
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()
PATH = "messaging/acl"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"
_RULE = f"{_ROUTE}/{{rule_id}}"

_DIALOGS = frozenset({"create", "presets"})
_APART = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be shown of the page: an open dialog, its rule, and a failure's form."""

    dialog: str = ""
    rule_id: str = ""
    failure: Failure | None = None
    sent: Fields | None = None
    compared: Compared | None = None


@router.get(_ROUTE)
def list_rules(request: Request, visitor: Visiting, here: Here) -> Response:
    """List the rules; a question in the address is answered by the simulator."""
    wanted = request.query_params.get("dialog", "")
    return _page(request, visitor, here, Outcome(dialog=wanted if wanted in _DIALOGS else ""))


@router.post(_ROUTE)
def create_rule(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Add a rule."""
    visitor.by.require(Permission.ACL_WRITE)
    try:
        once, spec = fields.once(), read_rule(fields)

        def create_rule(tx: Transaction, by: Principal) -> acl.SavedRule:
            def make() -> tuple[str, acl.SavedRule]:
                made = acl.create(tx, by, spec)
                return made.id, made

            done: acl.SavedRule = browser_sessions.once(tx, visitor.person.session.id, once, make)
            return done

        _, confirmed = here.runner.change_confirmed(create_rule, visitor.by)
    except FormSentBefore:
        return see_other(visitor.url(PATH), done="rule-created")
    except (Invalid, Conflict) as failure:
        return _page(request, visitor, here, Outcome("create", failure=failure, sent=fields))
    return see_other(visitor.url(PATH), done="rule-created", **receipt_query(confirmed))


@router.get(f"{_ROUTE}/compare")
@router.get(f"{_ROUTE}/presets")
def back_to_rules(visitor: Visiting) -> Response:
    """Go to the list from the address of a form that was sent before."""
    return see_other(visitor.url(PATH))


@router.post(f"{_ROUTE}/presets")
def apply_preset(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Make a preset's rules, instead of those that the form says are there."""
    visitor.by.require(Permission.ACL_WRITE)
    try:
        if fields.text("preset") not in set(PresetName):
            raise InvalidRequest("Choose a preset.", errors=(("preset", "Choose one."),))
        _, confirmed = here.runner.change_confirmed(
            acl.apply_preset,
            visitor.by,
            PresetName(fields.text("preset")),
            over_others=fields.text("replace") == "1",
        )
    except (Invalid, Conflict) as failure:
        return _page(request, visitor, here, Outcome("presets", failure=failure))
    return see_other(visitor.url(PATH), done="preset-applied", **receipt_query(confirmed))


@router.get(_RULE)
def show_rule(rule_id: str, request: Request, visitor: Visiting, here: Here) -> Response:
    """Open a rule's form over the list, or what asks before it is deleted."""
    here.runner.look(acl.get, visitor.by, rule_id)
    if not visitor.by.holds(Permission.ACL_WRITE):
        return see_other(visitor.url(PATH))
    dialog = "delete" if request.query_params.get("dialog") == "delete" else "edit"
    return _page(request, visitor, here, Outcome(dialog, rule_id))


@router.get(f"{_RULE}/{{verb}}")
def back_from_rule(rule_id: str, verb: str, visitor: Visiting) -> Response:  # noqa: ARG001 - any
    """Go to the list from the address of an action that was sent before."""
    return see_other(visitor.url(PATH))


@router.post(f"{_RULE}/edit")
def edit_rule(
    rule_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Change what the form says of a rule."""
    visitor.by.require(Permission.ACL_WRITE)
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
        _, confirmed = here.runner.change_confirmed(acl.change, visitor.by, rule_id, changes)
    except (Invalid, Conflict) as failure:
        return _page(request, visitor, here, Outcome("edit", rule_id, failure, fields))
    return see_other(visitor.url(PATH), done="rule-changed", **receipt_query(confirmed))


@router.post(f"{_ROUTE}/compare")
def compare_new(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Tell what would change with the rule in the form, which stays there unsaved."""
    return _compared(request, visitor, here, fields, "")


@router.post(f"{_RULE}/compare")
def compare_changed(
    rule_id: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Tell what would change if a rule were as the form says; nothing is saved."""
    return _compared(request, visitor, here, fields, rule_id)


@router.post(f"{_RULE}/delete")
def delete_rule(
    rule_id: str, request: Request, visitor: Visiting, _fields: Checked, here: Here
) -> Response:
    """Delete a rule."""
    try:
        _, confirmed = here.runner.change_confirmed(acl.remove, visitor.by, rule_id)
    except (Invalid, Conflict) as failure:
        return _page(request, visitor, here, Outcome("delete", rule_id, failure))
    return see_other(visitor.url(PATH), done="rule-deleted", **receipt_query(confirmed))


def _compared(
    request: Request, visitor: Visitor, here: Context, fields: Fields, rule_id: str
) -> Response:
    dialog = "edit" if rule_id else "create"
    try:
        with here.runner.noting("compare", visitor.by):
            visitor.by.require(Permission.ACL_WRITE)
        spec, question = read_rule(fields), Trial.of(fields.texts_by_name()).question()

        def compare(tx: Transaction, by: Principal) -> Compared:
            return simulator.compare(tx, by, question, spec, rule_id)

        found = here.runner.look(compare, visitor.by)
    except (Invalid, Conflict, ClientNotFound) as failure:
        return _page(request, visitor, here, Outcome(dialog, rule_id, failure, fields))
    return _page(request, visitor, here, Outcome(dialog, rule_id, None, fields, found))


def _page(request: Request, visitor: Visitor, here: Context, outcome: Outcome) -> Response:
    trial = Trial.of(request.query_params)
    rules = here.runner.look(acl.list_rules, visitor.by)
    simulated, refused = _simulated(visitor, here, trial)
    failure = outcome.failure
    rule = next((one for one in rules if one.id == outcome.rule_id), None)
    last = max((one.spec.priority for one in rules), default=90)
    return page(
        request,
        "acl/list.html",
        status_of(type(failure)) if failure else 200,
        visitor=visitor,
        rules=rules,
        url=visitor.url(PATH),
        why_not=visitor.why_not(Permission.ACL_WRITE),
        ended=ended_sessions(request, visitor, here),
        dialog=outcome.dialog if visitor.by.holds(Permission.ACL_WRITE) else "",
        rule=rule,
        fault=fault_of(failure) if failure else None,
        sent=outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT,
        once=secrets.token_hex(16),
        next_priority=min(MOST_PRIORITY, last + _APART),
        most_priority=MOST_PRIORITY,
        presets=PRESETS,
        subject_kinds=SubjectKind,
        actions=Action,
        effects=Effect,
        actor_kinds=ActorKind,
        trial=trial,
        unsaved=Trial.of(outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT),
        compared=outcome.compared,
        simulated=simulated,
        refused=fault_of(refused) if refused else None,
    )


def _simulated(
    visitor: Visitor, here: Context, trial: Trial
) -> tuple[simulator.Simulated | None, Failure | None]:
    """Return what the saved rules say to the address's question, or why that cannot be asked."""
    if not trial.asked:
        return None, None
    try:
        question = trial.question()

        def simulate(tx: Transaction, by: Principal) -> simulator.Simulated:
            return simulator.simulate(tx, by, question)

        return here.runner.look(simulate, visitor.by), None
    except (Invalid, NotFound) as failure:
        return None, failure
