"""Settings > Members & roles: who belongs to the organization, and who is invited."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions, members
from wardkey.actions.accounts.members import Invitation, Member
from wardkey.actions.keys import insights
from wardkey.dashboard.shell.auth import (
    NOTHING_SENT,
    Fields,
    MemberContext,
    VerifiedForm,
    Visiting,
    require_recent_sign_in,
)
from wardkey.dashboard.shell.navigation import SETTINGS
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.errors import (
    Conflict,
    FormSentBefore,
    Invalid,
    InvalidRequest,
    MemberNotFound,
    WardkeyError,
)
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.principal import Principal
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
PATH = "settings/members"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"
_DIALOGS = frozenset({"invite", "role", "remove"})
# Ownership is transferred, never given as a role.
GIVEN_ROLES = (Role.ADMIN, Role.MEMBER, Role.VIEWER)


@dataclass(frozen=True, slots=True)
class FormResult:
    """What a form left to show: an invitation's link, or a dialog with its failure."""

    invited: tuple[Invitation, str] | None = None
    dialog: str = ""
    who: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(_ROUTE)
def list_members(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List members and pending invitations; `?dialog=` opens a form, for the member `who`."""
    wanted = request.query_params.get("dialog", "")
    dialog = wanted if wanted in _DIALOGS else ""
    return _show(
        request, current, ctx, FormResult(dialog=dialog, who=request.query_params.get("who", ""))
    )


@router.post(_ROUTE)
def invite(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Invite somebody and show the link: in this answer, and never again."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        once, role = fields.nonce(), _role(fields)

        def offer(tx: Transaction, by: Principal) -> tuple[Invitation, str]:
            def make() -> tuple[str, tuple[Invitation, str]]:
                made = members.invite(tx, by, fields.text("email"), role)
                return made[0].id, made

            done: tuple[Invitation, str] = browser_sessions.consume_form_nonce(
                tx, current.person.session.id, once, make
            )
            return done

        invited = ctx.runner.write(offer, current.by)
    except FormSentBefore:
        return see_other(current.url(PATH), done="invited-before")
    except (Invalid, Conflict) as failure:
        outcome = FormResult(dialog="invite", failure=failure, sent=fields)
        return _show(request, current, ctx, outcome)
    return _show(request, current, ctx, FormResult(invited=invited))


@router.get(f"{_ROUTE}/{{some_id}}/{{verb}}")
def back_to_members(current: Visiting) -> Response:
    """Go to the list from the address of a form that was sent before."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/{{user_id}}/role")
def change_role(
    user_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Give a member another role, or with `owner` the whole organization."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        if fields.text("role") == Role.OWNER:
            ctx.runner.write(members.transfer, current.by, user_id)
            return see_other(current.url(PATH), done="ownership-transferred")
        ctx.runner.write(members.change_role, current.by, user_id, _role(fields))
    except (Invalid, Conflict) as failure:
        outcome = FormResult(dialog="role", who=user_id, failure=failure, sent=fields)
        return _show(request, current, ctx, outcome)
    return see_other(current.url(PATH), done="role-changed")


@router.post(f"{_ROUTE}/{{user_id}}/remove")
def remove(
    user_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Take a member out of the organization."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        ctx.runner.write(members.remove, current.by, user_id)
    except MemberNotFound:
        # Another tab was first; what was wanted is so.
        pass
    except Conflict as failure:
        outcome = FormResult(dialog="remove", who=user_id, failure=failure)
        return _show(request, current, ctx, outcome)
    return see_other(current.url(PATH), done="member-removed")


@router.post(f"{_ROUTE}/{{invitation_id}}/revoke")
def revoke_invitation(
    invitation_id: str,
    request: Request,
    current: Visiting,
    _fields: VerifiedForm,
    ctx: CurrentContext,
) -> Response:
    """Take an invitation back."""
    try:
        ctx.runner.write(members.revoke_invitation, current.by, invitation_id)
    except Conflict as failure:
        return _show(request, current, ctx, FormResult(failure=failure))
    return see_other(current.url(PATH), done="invitation-revoked")


def _show(
    request: Request, current: MemberContext, ctx: AppContext, outcome: FormResult
) -> Response:
    now = ctx.runner.database.clock()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        pending = [one for one in members.list_invitations(tx, by) if one.status(now) == "pending"]
        return {
            "people": members.list_members(tx, by),
            "invitations": pending,
            "makers": insights.creator_names(tx, by, [one.created_by for one in pending]),
        }

    seen = ctx.runner.read(look, current.by)
    why_not = current.why_not(Permission.MEMBERS_WRITE)
    chosen = next((one for one in seen["people"] if one.user_id == outcome.who), None)
    dialog = "" if why_not else outcome.dialog
    if dialog in {"role", "remove"} and (chosen is None or not _may_change(current, chosen)):
        dialog = ""
    failure, invited = outcome.failure, outcome.invited
    return render(
        request,
        "members/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        **seen,
        changeable=frozenset(one.user_id for one in seen["people"] if _may_change(current, one)),
        list_url=current.url(PATH),
        now=now,
        why_not=why_not,
        dialog=dialog,
        chosen=chosen,
        owns=current.by.role is Role.OWNER,
        roles=GIVEN_ROLES,
        fault=fault_of(failure) if failure else None,
        sent=outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT,
        once=secrets.token_hex(16),
        invited=invited[0] if invited else None,
        link=f"{ctx.public_url}/invitations/{invited[1]}" if invited else "",
    )


def _may_change(current: MemberContext, member: Member) -> bool:
    """Tell whether a row offers anything: of others alone, and never of the owner."""
    return (
        current.by.holds(Permission.MEMBERS_WRITE)
        and member.role is not Role.OWNER
        and member.user_id != current.by.id
    )


def _role(fields: Fields) -> Role:
    try:
        return Role(fields.text("role"))
    except ValueError:
        told = "Choose a role."
        raise InvalidRequest(told, errors=(("role", told),)) from None
