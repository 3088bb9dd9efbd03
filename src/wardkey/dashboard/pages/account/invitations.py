"""One-time links: setting up an account, and accepting an invitation."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions, members, people
from wardkey.dashboard.shell.auth import (
    COOKIE,
    AnonymousForm,
    SignedIn,
    SignedInUser,
    VerifiedForm,
    hand_cookies,
    person,
)
from wardkey.dashboard.shell.rendering import fault_of, own_path, page_router, render, see_other
from wardkey.domain.errors import InvalidLink, SignedOut, WardkeyError
from wardkey.services.throttle import by_address
from wardkey.web.caller import anonymous_principal
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()

_SET_UP = "Set up Wardkey"
_ACCEPT = "Accept the invitation"
# Set-up links only ask for a password.
_SET_UP_VALUES = {"invitation": "", "has_account": False, "issuer": None}


@router.get("/setup/{token}")
def show_setup(token: str, request: Request, ctx: CurrentContext) -> Response:
    """Show the form for a password."""
    try:
        with ctx.runner.database.read() as tx:
            email = people.link_email(tx, token)
    except InvalidLink as failure:
        return _invalid_link_page(request, failure)
    return render(request, "link.html", title=_SET_UP, email=email, **_SET_UP_VALUES, fault=None)


@router.post("/setup/{token}")
def take_setup(
    token: str, request: Request, fields: AnonymousForm, ctx: CurrentContext
) -> Response:
    """Set the password and sign in."""
    by = anonymous_principal(request, ctx)
    try:
        with ctx.throttle.attempt(*by_address("link", by.address)):
            with ctx.runner.database.read() as tx:
                people.link_email(tx, token)
            hashed = people.hash_password(fields.text("password"), by.address)
            previous = request.cookies.get(COOKIE, "")
            session = ctx.runner.write(
                browser_sessions.begin_with_setup_link, by, token, hashed, previous
            )
    except InvalidLink as failure:
        return _invalid_link_page(request, failure)
    except WardkeyError as failure:
        return render(
            request,
            "link.html",
            status_of(type(failure)),
            title=_SET_UP,
            email=_link_email(ctx, token),
            **_SET_UP_VALUES,
            fault=fault_of(failure),
        )
    return _redirect_signed_in(request, ctx, session)


@router.get("/invitations/{token}")
def show_invitation(token: str, request: Request, ctx: CurrentContext) -> Response:
    """Show an invitation: new users set a password, others sign in and accept."""
    try:
        with ctx.runner.database.read() as tx:
            invited = members.find_invitation(tx, token)
    except InvalidLink as failure:
        return _invalid_link_page(request, failure)
    return _invitation_page(request, ctx, token, invited, None)


@router.post("/invitations/{token}")
def take_invitation(
    token: str, request: Request, fields: AnonymousForm, ctx: CurrentContext
) -> Response:
    """Accept as a new user with the password chosen, and sign in."""
    by = anonymous_principal(request, ctx)
    invited = None
    try:
        with ctx.throttle.attempt(*by_address("link", by.address)):
            with ctx.runner.database.read() as tx:
                invited = members.find_invitation(tx, token)
            members.require_new_account(invited)
            hashed = people.hash_password(fields.text("password"), by.address)
            previous = request.cookies.get(COOKIE, "")
            session = ctx.runner.write(
                browser_sessions.begin_with_invitation, by, token, hashed, previous
            )
    except InvalidLink as failure:
        return _invalid_link_page(request, failure)
    except WardkeyError as failure:
        if invited is None:
            raise
        return _invitation_page(request, ctx, token, invited, failure)
    return _redirect_signed_in(request, ctx, session)


@router.get("/invitations/{token}/accept")
def back_to_invitation(token: str) -> Response:
    """Redirect to the invitation from the URL of its form, for example after a reload."""
    return see_other(own_path(f"/invitations/{token}"))


@router.post("/invitations/{token}/accept")
def accept_invitation(
    token: str, request: Request, person: SignedIn, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Accept as the signed-in user, whose address must be the invited one."""
    try:
        with ctx.throttle.attempt(*by_address("link", person.by.address)):
            ctx.runner.write(members.accept_as_user, person.by, token)
    except InvalidLink as failure:
        return _invalid_link_page(request, failure)
    return see_other("/organizations", done="invitation-accepted")


def _invitation_page(
    request: Request,
    ctx: AppContext,
    token: str,
    invited: members.PendingInvitation,
    failure: WardkeyError | None,
) -> Response:
    return render(
        request,
        "link.html",
        status_of(type(failure)) if failure else 200,
        title=_ACCEPT,
        email=invited.invitation.email,
        invitation=token,
        has_account=invited.has_account,
        has_password=invited.has_password,
        person=(user := _signed_in_user(request, ctx)),
        fits=user is not None and members.is_for(invited, user.by.label),
        issuer=ctx.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


def _signed_in_user(request: Request, ctx: AppContext) -> SignedInUser | None:
    try:
        return person(request, ctx)
    except SignedOut:
        return None


def _link_email(ctx: AppContext, token: str) -> str:
    try:
        with ctx.runner.database.read() as tx:
            return people.link_email(tx, token)
    except WardkeyError:
        return ""


def _redirect_signed_in(
    request: Request, ctx: AppContext, session: browser_sessions.NewSession
) -> Response:
    response = see_other("/")
    hand_cookies(ctx, request, response, session)
    return response


def _invalid_link_page(request: Request, failure: WardkeyError) -> Response:
    return render(request, "gone.html", status_of(type(failure)), fault=failure.detail)
