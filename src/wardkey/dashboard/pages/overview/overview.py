"""Where somebody arrives: what to do first, what asks for care, how all runs, how much is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import members
from wardkey.actions.core import audit
from wardkey.actions.keys import insights, keys
from wardkey.actions.keys.keys import KeyOrder, KeyQuery
from wardkey.actions.messaging import acl
from wardkey.actions.operations.first_start import FIRST_KEY_NAME
from wardkey.dashboard.pages.keys.key import PATH as KEYS
from wardkey.dashboard.pages.keys.snippets import verify_snippet
from wardkey.dashboard.shell import charts, strings
from wardkey.dashboard.shell.auth import Visiting, Visitor
from wardkey.dashboard.shell.navigation import AUDIT, HOME, SETTINGS, SIDEBAR, USAGE
from wardkey.dashboard.shell.rendering import page, pages
from wardkey.db.engine import Transaction
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.web.context import Context, Here

router = pages()

_PLACES = (*SIDEBAR, *SETTINGS)
_EVENTS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do first: where, if that has a page, or who can, if the visitor cannot."""

    name: str
    done: bool
    why_not: str = ""

    @property
    def path(self) -> str:
        """Return the path below the organization's environment; empty where there is none."""
        text = strings.STEPS[self.name]
        return text.path or next((one.path for one in _PLACES if one.label == text.page), "")


@dataclass(frozen=True, slots=True)
class Sign:
    """A line of the health: how a part is, in a colour, a word and a sentence."""

    part: str
    kind: str
    label: str
    more: str


@router.get(f"/o/{{slug}}/{{environment}}/{HOME}")
def show_overview(request: Request, visitor: Visiting, here: Here) -> Response:
    """Show the organization's environment at a glance."""
    here.usage.catch_up()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        events = []
        if by.holds(Permission.AUDIT_READ):
            events = audit.list_events(tx, by, audit.AuditQuery(limit=_EVENTS))
        return {
            "steps": _steps(tx, by, visitor),
            "cares": insights.cares(tx, by),
            "total": keys.count_keys(tx, by, KeyQuery()),
            "chart": charts.bars(insights.days_in_all(tx, by)),
            "events": events,
        }

    seen = here.runner.look(look, visitor.by)
    return page(
        request,
        "overview.html",
        visitor=visitor,
        **seen,
        health=_health(visitor, here),
        snippet=verify_snippet(here.public_url),
        keys_url=visitor.url(KEYS),
        audit_url=visitor.url(AUDIT),
        usage_url=visitor.url(USAGE) if visitor.by.holds(Permission.USAGE_READ) else "",
        why_not=visitor.why_not(Permission.KEYS_WRITE),
        now=here.runner.database.clock(),
    )


def _steps(tx: Transaction, by: Principal, visitor: Visitor) -> list[Step]:
    """Return what to do first; what the visitor may not even see is left out."""
    newest = keys.list_keys(tx, by, KeyQuery(limit=1))
    used = keys.list_keys(tx, by, KeyQuery(limit=1, order=KeyOrder.USED_DOWN))
    steps = [
        Step(
            "key",
            any(key.name != FIRST_KEY_NAME for key in newest),
            visitor.why_not(Permission.KEYS_WRITE),
        ),
        Step("use", any(one.last_used_at for key in used for one in key.secrets)),
    ]
    if by.holds(Permission.ACL_READ):
        steps.append(
            Step("rule", bool(acl.list_rules(tx, by)), visitor.why_not(Permission.ACL_WRITE))
        )
    if by.holds(Permission.MEMBERS_READ):
        company = len(members.list_members(tx, by)) > 1 or bool(members.list_invitations(tx, by))
        steps.append(Step("company", company, visitor.why_not(Permission.MEMBERS_WRITE)))
    return steps


def _health(visitor: Visitor, here: Context) -> list[Sign]:
    """Return how the parts are; what only the operator can mend is told to admins and owners."""
    live = here.verifier.live
    words = f"{live} verifier{'' if live == 1 else 's'} answer{'s' if live == 1 else ''}"
    signs = [Sign("Verifying keys", "", "Running", words)]
    if here.link is None:
        signs.append(Sign("Messaging", "off", "Off", strings.HEALTH["messaging_off"]))
    elif here.link.is_connected:
        signs.append(Sign("Messaging", "", "Running", strings.HEALTH["broker_reached"]))
    else:
        signs.append(Sign("Messaging", "bad", "Broker unreachable", strings.HEALTH["broker_lost"]))
    if here.key_beside_data and visitor.by.holds(Permission.ORGANIZATION_WRITE):
        signs.append(
            Sign("Master key", "warn", "Beside the database", strings.HEALTH["key_beside"])
        )
    return signs
