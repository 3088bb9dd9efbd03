"""Settings > Members & roles: members and pending invitations."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.accounts import members
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
from wardkey.dashboard.shell.once import write_once
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
# Ownership is transferred, not assigned as a role.
ASSIGNABLE_ROLES = (Role.ADMIN, Role.MEMBER, Role.VIEWER)


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of a form: an invitation's link, or a dialog with its failure."""

    invited: tuple[Invitation, str] | None = None
    dialog: str = ""
    who: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(_ROUTE)
def list_members(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List members and pending invitations; `?dialog=` opens a dialog, for the member `who`."""
    query = request.query_params
    dialog = query.get("dialog", "")
    result = FormResult(dialog=dialog if dialog in _DIALOGS else "", who=query.get("who", ""))
    return _page(request, current, ctx, result)


@router.post(_ROUTE)
def invite(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Invite a member and show the link in this response only."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        role = _read_role(fields)

        def offer(tx: Transaction, by: Principal) -> tuple[str, tuple[Invitation, str]]:
            invited = members.invite(tx, by, fields.text("email"), role)
            return invited[0].id, invited

        invited, _ = write_once(ctx, current, fields, offer)
    except FormSentBefore:
        return see_other(current.url(PATH), done="invited-before")
    except (Invalid, Conflict) as failure:
        result = FormResult(dialog="invite", failure=failure, sent=fields)
        return _page(request, current, ctx, result)
    return _page(request, current, ctx, FormResult(invited=invited))


@router.get(f"{_ROUTE}/{{some_id}}/{{verb}}")
def back_to_members(current: Visiting) -> Response:
    """Redirect to the list from the URL of a form, for example after a reload."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/{{user_id}}/role")
def change_role(
    user_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change a member's role; `owner` transfers the organization."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        if fields.text("role") == Role.OWNER:
            ctx.runner.write(members.transfer, current.by, user_id)
            return see_other(current.url(PATH), done="ownership-transferred")
        ctx.runner.write(members.change_role, current.by, user_id, _read_role(fields))
    except (Invalid, Conflict) as failure:
        result = FormResult(dialog="role", who=user_id, failure=failure, sent=fields)
        return _page(request, current, ctx, result)
    return see_other(current.url(PATH), done="role-changed")


@router.post(f"{_ROUTE}/{{user_id}}/remove")
def remove(
    user_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Remove a member from the organization."""
    current.by.require(Permission.MEMBERS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        ctx.runner.write(members.remove, current.by, user_id)
    except MemberNotFound:
        # Already removed, for example in another tab.
        pass
    except Conflict as failure:
        result = FormResult(dialog="remove", who=user_id, failure=failure)
        return _page(request, current, ctx, result)
    return see_other(current.url(PATH), done="member-removed")


@router.post(f"{_ROUTE}/{{invitation_id}}/revoke")
def revoke_invitation(
    invitation_id: str,
    request: Request,
    current: Visiting,
    _fields: VerifiedForm,
    ctx: CurrentContext,
) -> Response:
    """Revoke an invitation."""
    try:
        ctx.runner.write(members.revoke_invitation, current.by, invitation_id)
    except Conflict as failure:
        return _page(request, current, ctx, FormResult(failure=failure))
    return see_other(current.url(PATH), done="invitation-revoked")


def _page(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    now = ctx.runner.database.clock()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        invitations = members.list_invitations(tx, by)
        pending = [invitation for invitation in invitations if invitation.status(now) == "pending"]
        return {
            "people": members.list_members(tx, by),
            "invitations": pending,
            "creators": insights.creator_names(tx, by, [item.created_by for item in pending]),
        }

    values = ctx.runner.read(look, current.by)
    people: list[Member] = values["people"]
    why_not = current.why_not(Permission.MEMBERS_WRITE)
    chosen = next((member for member in people if member.user_id == result.who), None)
    dialog = "" if why_not else result.dialog
    if dialog in {"role", "remove"} and (chosen is None or not _can_change(current, chosen)):
        dialog = ""
    failure, invited = result.failure, result.invited
    return render(
        request,
        "members/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        **values,
        changeable=frozenset(item.user_id for item in people if _can_change(current, item)),
        list_url=current.url(PATH),
        now=now,
        why_not=why_not,
        dialog=dialog,
        chosen=chosen,
        owns=current.by.role is Role.OWNER,
        roles=ASSIGNABLE_ROLES,
        fault=fault_of(failure) if failure else None,
        sent=result.sent.texts_by_name() if result.sent else NOTHING_SENT,
        once=secrets.token_hex(16),
        invited=invited[0] if invited else None,
        link=f"{ctx.public_url}/invitations/{invited[1]}" if invited else "",
    )


def _can_change(current: MemberContext, member: Member) -> bool:
    """Return whether the member can be changed or removed: never the owner or yourself."""
    return (
        current.by.holds(Permission.MEMBERS_WRITE)
        and member.role is not Role.OWNER
        and member.user_id != current.by.id
    )


def _read_role(fields: Fields) -> Role:
    try:
        return Role(fields.text("role"))
    except ValueError:
        message = "Choose a role."
        raise InvalidRequest(message, errors=(("role", message),)) from None
