"""Settings > General with its danger zone, Security, and Rotation policy."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions, members, organizations
from wardkey.actions.accounts.organizations import Organization
from wardkey.dashboard.shell.auth import (
    NOTHING_SENT,
    Checked,
    Fields,
    Visiting,
    Visitor,
    require_fresh,
)
from wardkey.dashboard.shell.navigation import SETTINGS, open_to
from wardkey.dashboard.shell.rendering import fault_of, page, pages, see_other
from wardkey.domain.errors import Conflict, Failure, Invalid, InvalidRequest, InvalidRotationPolicy
from wardkey.domain.keys import ROTATION_BOUNDS
from wardkey.domain.permissions import Permission, Role
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()
GENERAL = "settings/general"
SECURITY = "settings/security"
ROTATION = "settings/rotation-policy"
_PLACE = "/o/{slug}/{environment}"
_DIALOGS = frozenset({"leave", "delete"})
_HOUR, _DAY = 3_600_000, 86_400_000
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a form left to show: a dialog, the failure and what was sent."""

    dialog: str = ""
    failure: Failure | None = None
    sent: Fields | None = None


@router.get(f"{_PLACE}/settings")
def arrive(visitor: Visiting) -> Response:
    """Go on to the first tab that the visitor may see."""
    return see_other(visitor.url(open_to(visitor.by, SETTINGS)[0].path))


@router.get(f"{_PLACE}/{GENERAL}")
def show_general(request: Request, visitor: Visiting, here: Here) -> Response:
    """Show the organization's names; `?dialog=` opens one of the danger zone's."""
    wanted = request.query_params.get("dialog", "")
    return _general(request, visitor, here, Outcome(wanted if wanted in _DIALOGS else ""))


@router.post(f"{_PLACE}/{GENERAL}")
def rename(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Change name and slug; the dashboard's addresses follow the slug."""
    try:
        changed = here.runner.change(
            organizations.change, visitor.by, name=fields.text("name"), slug=fields.text("slug")
        )
    except (Invalid, Conflict) as failure:
        return _general(request, visitor, here, Outcome(failure=failure, sent=fields))
    place = f"/o/{changed.slug}/{visitor.by.environment}/{GENERAL}"
    return see_other(place, done="organization-changed")


@router.get(f"{_PLACE}/{GENERAL}/{{verb}}")
def back_to_general(visitor: Visiting) -> Response:
    """Go to the page from the address of a form that was sent before."""
    return see_other(visitor.url(GENERAL))


@router.post(f"{_PLACE}/{GENERAL}/leave")
def leave(request: Request, visitor: Visiting, _fields: Checked, here: Here) -> Response:
    """Leave the organization."""
    try:
        here.runner.change(members.remove, visitor.by, visitor.by.id)
    except Conflict as failure:
        return _general(request, visitor, here, Outcome("leave", failure))
    return see_other("/organizations", done="left")


@router.post(f"{_PLACE}/{GENERAL}/delete")
def delete(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """End the organization for good, after its name was typed."""
    require_fresh(here, visitor.person, fields)
    try:
        name = here.runner.look(organizations.public, visitor.by).name
        if visitor.by.role is Role.OWNER and fields.text("confirmation").strip() != name:
            told = "Type the organization's name as it stands there."
            raise InvalidRequest(told, errors=(("confirmation", told),))
        here.runner.change(organizations.close, visitor.by)
    except Invalid as failure:
        return _general(request, visitor, here, Outcome("delete", failure))
    return see_other("/organizations", done="organization-deleted")


@router.get(f"{_PLACE}/{SECURITY}")
def show_security(request: Request, visitor: Visiting, here: Here) -> Response:
    """Say how people sign in and how long that holds."""
    welcome = here.welcome
    return page(
        request,
        "settings/security.html",
        visitor=visitor,
        tabs=SETTINGS,
        longest_days=browser_sessions.LONGEST_MS // _DAY,
        idle_days=browser_sessions.IDLE_MS // _DAY,
        fresh_hours=browser_sessions.FRESH_MS // _HOUR,
        issuer=here.sign_in_issuer,
        domains=", ".join(sorted(welcome.domains)),
        joins=welcome.role if welcome.organization == visitor.membership.slug else "",
    )


@router.get(f"{_PLACE}/{ROTATION}")
def show_rotation(request: Request, visitor: Visiting, here: Here) -> Response:
    """Show after how many days a secret key is due for rotation."""
    return _rotation(request, visitor, here, Outcome())


@router.post(f"{_PLACE}/{ROTATION}")
def change_rotation(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Set the days."""
    visitor.by.require(Permission.ORGANIZATION_WRITE)
    try:
        days = fields.text("rotation_days").strip()
        if not (days.isascii() and days.isdecimal() and len(days) < _DIGITS):
            raise InvalidRotationPolicy(field="rotation_days")
        here.runner.change(organizations.change, visitor.by, rotation_days=int(days))
    except Invalid as failure:
        return _rotation(request, visitor, here, Outcome(failure=failure, sent=fields))
    return see_other(visitor.url(ROTATION), done="rotation-policy-changed")


def _general(request: Request, visitor: Visitor, here: Context, outcome: Outcome) -> Response:
    owns = visitor.by.role is Role.OWNER
    # The owner cannot leave, and nobody else can delete.
    dialog = outcome.dialog if outcome.dialog == ("delete" if owns else "leave") else ""
    return _page(
        request,
        visitor,
        here,
        "settings/general.html",
        outcome,
        url=visitor.url(GENERAL),
        members_url=visitor.url("settings/members"),
        dialog=dialog,
        owns=owns,
    )


def _rotation(request: Request, visitor: Visitor, here: Context, outcome: Outcome) -> Response:
    return _page(
        request,
        visitor,
        here,
        "settings/rotation.html",
        outcome,
        url=visitor.url(ROTATION),
        keys_url=visitor.url("settings/api-keys"),
        bounds=ROTATION_BOUNDS,
    )


def _page(
    request: Request,
    visitor: Visitor,
    here: Context,
    template: str,
    outcome: Outcome,
    **values: object,
) -> Response:
    organization: Organization = here.runner.look(organizations.public, visitor.by)
    failure = outcome.failure
    return page(
        request,
        template,
        status_of(type(failure)) if failure else 200,
        visitor=visitor,
        tabs=SETTINGS,
        organization=organization,
        why_not=visitor.why_not(Permission.ORGANIZATION_WRITE),
        fault=fault_of(failure) if failure else None,
        sent=outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT,
        filled=outcome.sent is not None,
        **values,
    )
