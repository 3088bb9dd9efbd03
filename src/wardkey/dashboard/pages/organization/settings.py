"""Settings > General with its danger zone, Security, and Rotation policy."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions, members, organizations
from wardkey.actions.accounts.organizations import Organization
from wardkey.dashboard.shell.auth import (
    NOTHING_SENT,
    Fields,
    MemberContext,
    VerifiedForm,
    Visiting,
    require_recent_sign_in,
)
from wardkey.dashboard.shell.navigation import SETTINGS, open_to
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.domain.errors import (
    Conflict,
    Invalid,
    InvalidRequest,
    InvalidRotationPolicy,
    WardkeyError,
)
from wardkey.domain.keys import ROTATION_BOUNDS
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.times import SESSION_IDLE_MS
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
GENERAL = "settings/general"
SECURITY = "settings/security"
ROTATION = "settings/rotation-policy"
_PLACE = "/o/{slug}/{environment}"
_DIALOGS = frozenset({"leave", "delete"})
_HOUR, _DAY = 3_600_000, 86_400_000
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class FormResult:
    """What a form left to show: a dialog, the failure and what was sent."""

    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(f"{_PLACE}/settings")
def arrive(current: Visiting) -> Response:
    """Go on to the first tab that the visitor may see."""
    return see_other(current.url(open_to(current.by, SETTINGS)[0].path))


@router.get(f"{_PLACE}/{GENERAL}")
def show_general(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the organization's names; `?dialog=` opens one of the danger zone's."""
    wanted = request.query_params.get("dialog", "")
    return _general(request, current, ctx, FormResult(wanted if wanted in _DIALOGS else ""))


@router.post(f"{_PLACE}/{GENERAL}")
def rename(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change name and slug; the dashboard's addresses follow the slug."""
    try:
        changed = ctx.runner.write(
            organizations.change, current.by, name=fields.text("name"), slug=fields.text("slug")
        )
    except (Invalid, Conflict) as failure:
        return _general(request, current, ctx, FormResult(failure=failure, sent=fields))
    place = f"/o/{changed.slug}/{current.by.environment}/{GENERAL}"
    return see_other(place, done="organization-changed")


@router.get(f"{_PLACE}/{GENERAL}/{{verb}}")
def back_to_general(current: Visiting) -> Response:
    """Go to the page from the address of a form that was sent before."""
    return see_other(current.url(GENERAL))


@router.post(f"{_PLACE}/{GENERAL}/leave")
def leave(
    request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Leave the organization."""
    try:
        ctx.runner.write(members.remove, current.by, current.by.id)
    except Conflict as failure:
        return _general(request, current, ctx, FormResult("leave", failure))
    return see_other("/organizations", done="left")


@router.post(f"{_PLACE}/{GENERAL}/delete")
def delete(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """End the organization for good, after its name was typed."""
    require_recent_sign_in(ctx, current.person, fields)
    try:
        name = ctx.runner.read(organizations.public, current.by).name
        if current.by.role is Role.OWNER and fields.text("confirmation").strip() != name:
            told = "Type the organization's name as it stands there."
            raise InvalidRequest(told, errors=(("confirmation", told),))
        ctx.runner.write(organizations.close, current.by)
    except Invalid as failure:
        return _general(request, current, ctx, FormResult("delete", failure))
    return see_other("/organizations", done="organization-deleted")


@router.get(f"{_PLACE}/{SECURITY}")
def show_security(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Say how people sign in and how long that holds."""
    welcome = ctx.welcome
    return render(
        request,
        "settings/security.html",
        current=current,
        tabs=SETTINGS,
        longest_days=browser_sessions.LONGEST_MS // _DAY,
        idle_days=SESSION_IDLE_MS // _DAY,
        fresh_hours=browser_sessions.FRESH_MS // _HOUR,
        issuer=ctx.sign_in_issuer,
        domains=", ".join(sorted(welcome.domains)),
        joins=welcome.role if welcome.organization == current.membership.slug else "",
    )


@router.get(f"{_PLACE}/{ROTATION}")
def show_rotation(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show after how many days a secret key is due for rotation."""
    return _rotation(request, current, ctx, FormResult())


@router.post(f"{_PLACE}/{ROTATION}")
def change_rotation(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Set the days."""
    current.by.require(Permission.ORGANIZATION_WRITE)
    try:
        days = fields.text("rotation_days").strip()
        if not (days.isascii() and days.isdecimal() and len(days) < _DIGITS):
            raise InvalidRotationPolicy(field="rotation_days")
        ctx.runner.write(organizations.change, current.by, rotation_days=int(days))
    except Invalid as failure:
        return _rotation(request, current, ctx, FormResult(failure=failure, sent=fields))
    return see_other(current.url(ROTATION), done="rotation-policy-changed")


def _general(
    request: Request, current: MemberContext, ctx: AppContext, outcome: FormResult
) -> Response:
    owns = current.by.role is Role.OWNER
    # The owner cannot leave, and nobody else can delete.
    dialog = outcome.dialog if outcome.dialog == ("delete" if owns else "leave") else ""
    return _page(
        request,
        current,
        ctx,
        "settings/general.html",
        outcome,
        url=current.url(GENERAL),
        members_url=current.url("settings/members"),
        dialog=dialog,
        owns=owns,
    )


def _rotation(
    request: Request, current: MemberContext, ctx: AppContext, outcome: FormResult
) -> Response:
    return _page(
        request,
        current,
        ctx,
        "settings/rotation.html",
        outcome,
        url=current.url(ROTATION),
        keys_url=current.url("settings/api-keys"),
        bounds=ROTATION_BOUNDS,
    )


def _page(
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    template: str,
    outcome: FormResult,
    **values: object,
) -> Response:
    organization: Organization = ctx.runner.read(organizations.public, current.by)
    failure = outcome.failure
    return render(
        request,
        template,
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        organization=organization,
        why_not=current.why_not(Permission.ORGANIZATION_WRITE),
        fault=fault_of(failure) if failure else None,
        sent=outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT,
        filled=outcome.sent is not None,
        **values,
    )
