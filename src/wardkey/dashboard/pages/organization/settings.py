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
    InvalidRotationPolicy,
    WardkeyError,
)
from wardkey.domain.keys import ROTATION_BOUNDS
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.times import DAY_MS, HOUR_MS, SESSION_IDLE_MS
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
GENERAL = "settings/general"
SECURITY = "settings/security"
ROTATION = "settings/rotation-policy"
_BASE = "/o/{slug}/{environment}"
_DIALOGS = frozenset({"leave", "delete"})
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of a form: its dialog, failure and fields."""

    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(f"{_BASE}/settings")
def arrive(current: Visiting) -> Response:
    """Redirect to the first tab the member can open."""
    return see_other(current.url(open_to(current.by, SETTINGS)[0].path))


@router.get(f"{_BASE}/{GENERAL}")
def show_general_page(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the organization's name and slug; `?dialog=` opens a dialog of the danger zone."""
    dialog = request.query_params.get("dialog", "")
    return _general_page(request, current, ctx, FormResult(dialog if dialog in _DIALOGS else ""))


@router.post(f"{_BASE}/{GENERAL}")
def rename(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change the name and slug; dashboard URLs contain the slug."""
    try:
        organization = ctx.runner.write(
            organizations.change, current.by, name=fields.text("name"), slug=fields.text("slug")
        )
    except (Invalid, Conflict) as failure:
        return _general_page(request, current, ctx, FormResult(failure=failure, sent=fields))
    path = f"/o/{organization.slug}/{current.by.environment}/{GENERAL}"
    return see_other(path, done="organization-changed")


@router.get(f"{_BASE}/{GENERAL}/{{verb}}")
def back_to_general(current: Visiting) -> Response:
    """Redirect to the page from the URL of a form, for example after a reload."""
    return see_other(current.url(GENERAL))


@router.post(f"{_BASE}/{GENERAL}/leave")
def leave(
    request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Leave the organization."""
    try:
        ctx.runner.write(members.remove, current.by, current.by.id)
    except Conflict as failure:
        return _general_page(request, current, ctx, FormResult("leave", failure))
    return see_other("/organizations", done="left")


@router.post(f"{_BASE}/{GENERAL}/delete")
def delete(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete the organization; the form must contain its name."""
    require_recent_sign_in(ctx, current.person, fields)
    try:
        name = ctx.runner.read(organizations.public, current.by).name
        if current.by.role is Role.OWNER:
            fields.require_typed(name, "organization's name")
        ctx.runner.write(organizations.close, current.by)
    except Invalid as failure:
        return _general_page(request, current, ctx, FormResult("delete", failure))
    return see_other("/organizations", done="organization-deleted")


@router.get(f"{_BASE}/{SECURITY}")
def show_security(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the rules for passwords, sign-in and sessions."""
    policy = ctx.sign_in_policy
    return render(
        request,
        "settings/security.html",
        current=current,
        tabs=SETTINGS,
        longest_days=browser_sessions.LONGEST_MS // DAY_MS,
        idle_days=SESSION_IDLE_MS // DAY_MS,
        fresh_hours=browser_sessions.FRESH_MS // HOUR_MS,
        issuer=ctx.sign_in_issuer,
        domains=", ".join(sorted(policy.domains)),
        joins=policy.role if policy.organization == current.membership.slug else "",
    )


@router.get(f"{_BASE}/{ROTATION}")
def show_rotation_page(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show after how many days secret keys are due for rotation."""
    return _rotation_page(request, current, ctx, FormResult())


@router.post(f"{_BASE}/{ROTATION}")
def change_rotation(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change after how many days secret keys are due for rotation."""
    current.by.require(Permission.ORGANIZATION_WRITE)
    try:
        days = fields.text("rotation_days").strip()
        if not (days.isascii() and days.isdecimal() and len(days) < _DIGITS):
            raise InvalidRotationPolicy(field="rotation_days")
        ctx.runner.write(organizations.change, current.by, rotation_days=int(days))
    except Invalid as failure:
        return _rotation_page(request, current, ctx, FormResult(failure=failure, sent=fields))
    return see_other(current.url(ROTATION), done="rotation-policy-changed")


def _general_page(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    is_owner = current.by.role is Role.OWNER
    # Only the owner can delete, and only others can leave.
    dialog = result.dialog if result.dialog == ("delete" if is_owner else "leave") else ""
    return _page(
        request,
        current,
        ctx,
        "settings/general.html",
        result,
        url=current.url(GENERAL),
        members_url=current.url("settings/members"),
        dialog=dialog,
        owns=is_owner,
    )


def _rotation_page(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    return _page(
        request,
        current,
        ctx,
        "settings/rotation.html",
        result,
        url=current.url(ROTATION),
        keys_url=current.url("settings/api-keys"),
        bounds=ROTATION_BOUNDS,
    )


def _page(
    request: Request,
    current: MemberContext,
    ctx: AppContext,
    template: str,
    result: FormResult,
    **values: object,
) -> Response:
    organization: Organization = ctx.runner.read(organizations.public, current.by)
    failure = result.failure
    return render(
        request,
        template,
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        organization=organization,
        why_not=current.why_not(Permission.ORGANIZATION_WRITE),
        fault=fault_of(failure) if failure else None,
        sent=result.sent.texts_by_name() if result.sent else NOTHING_SENT,
        filled=result.sent is not None,
        **values,
    )
