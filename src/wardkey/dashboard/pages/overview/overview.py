"""The overview: first steps, alerts, health, usage and latest changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import members
from wardkey.actions.core import audit
from wardkey.actions.keys import insights, keys, usage
from wardkey.actions.keys.keys import KeyOrder, KeyQuery
from wardkey.actions.messaging import acl
from wardkey.actions.operations.first_start import FIRST_KEY_NAME
from wardkey.dashboard.pages.keys.key import PATH as KEYS
from wardkey.dashboard.pages.keys.snippets import verify_snippet
from wardkey.dashboard.shell import charts, strings
from wardkey.dashboard.shell.auth import MemberContext, Visiting
from wardkey.dashboard.shell.navigation import AUDIT, HOME, SETTINGS, SIDEBAR, USAGE
from wardkey.dashboard.shell.rendering import page_router, render
from wardkey.db.engine import Transaction
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.web.context import AppContext, CurrentContext

router = page_router()

_PAGES = (*SIDEBAR, *SETTINGS)
_EVENTS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A first step: its page, if any, and `why_not` if the member can't do it."""

    name: str
    done: bool
    why_not: str = ""

    @property
    def path(self) -> str:
        """Return the path relative to the organization's environment, or ""."""
        text = strings.STEPS[self.name]
        return text.path or next((entry.path for entry in _PAGES if entry.label == text.page), "")


@dataclass(frozen=True, slots=True)
class HealthSign:
    """The health of one part: a color, a label and a sentence."""

    part: str
    kind: str
    label: str
    more: str


@router.get(f"/o/{{slug}}/{{environment}}/{HOME}")
def show_overview(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the overview of an organization's environment."""
    ctx.usage.catch_up()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        events = []
        if by.holds(Permission.AUDIT_READ):
            events = audit.list_events(tx, by, audit.AuditQuery(limit=_EVENTS))
        return {
            "steps": _steps(tx, by, current),
            "alerts": insights.list_alerts(tx, by),
            "total": keys.count_keys(tx, by, KeyQuery()),
            "chart": charts.bars(usage.days_in_all(tx, by)),
            "events": events,
        }

    values = ctx.runner.read(look, current.by)
    return render(
        request,
        "overview.html",
        current=current,
        **values,
        health=_health(ctx),
        snippet=verify_snippet(ctx.public_url),
        keys_url=current.url(KEYS),
        audit_url=current.url(AUDIT),
        usage_url=current.url(USAGE) if current.by.holds(Permission.USAGE_READ) else "",
        why_not=current.why_not(Permission.KEYS_WRITE),
        now=ctx.runner.database.clock(),
    )


def _steps(tx: Transaction, by: Principal, current: MemberContext) -> list[Step]:
    """Return the first steps, except those on pages the member can't see."""
    newest = keys.list_keys(tx, by, KeyQuery(limit=1))
    used = keys.list_keys(tx, by, KeyQuery(limit=1, order=KeyOrder.USED_DOWN))
    steps = [
        Step(
            "key",
            any(key.name != FIRST_KEY_NAME for key in newest),
            current.why_not(Permission.KEYS_WRITE),
        ),
        Step("use", any(secret.last_used_at for key in used for secret in key.secrets)),
    ]
    if by.holds(Permission.ACL_READ):
        steps.append(
            Step("rule", bool(acl.list_rules(tx, by)), current.why_not(Permission.ACL_WRITE))
        )
    if by.holds(Permission.MEMBERS_READ):
        has_company = len(members.list_members(tx, by)) > 1 or bool(
            members.list_invitations(tx, by)
        )
        steps.append(Step("company", has_company, current.why_not(Permission.MEMBERS_WRITE)))
    return steps


def _health(ctx: AppContext) -> list[HealthSign]:
    """Return the health of each part that concerns tenants."""
    live = ctx.verifier.live
    verifiers = f"{live} verifier{'' if live == 1 else 's'} running"
    signs = [HealthSign("Verifying keys", "", "Running", verifiers)]
    if ctx.link is None:
        signs.append(HealthSign("Messaging", "off", "Off", strings.HEALTH["messaging_off"]))
    elif ctx.link.is_connected:
        signs.append(HealthSign("Messaging", "", "Running", strings.HEALTH["broker_reached"]))
    else:
        signs.append(
            HealthSign("Messaging", "bad", "Broker unreachable", strings.HEALTH["broker_lost"])
        )
    return signs
