"""The page behind a one-time link: choose a password, and be signed in."""

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
# A set-up link is for a password, whatever else there is.
_PLAIN = {"invitation": "", "has_account": False, "issuer": None}


@router.get("/setup/{token}")
def show_setup(token: str, request: Request, ctx: CurrentContext) -> Response:
    """Ask the owner for a password."""
    try:
        with ctx.runner.database.read() as tx:
            email = people.link_email(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return render(request, "link.html", title=_SET_UP, email=email, **_PLAIN, fault=None)


@router.post("/setup/{token}")
def take_setup(
    token: str, request: Request, fields: AnonymousForm, ctx: CurrentContext
) -> Response:
    """Set the password and begin a session."""
    by = anonymous_principal(request, ctx)
    try:
        with ctx.throttle.attempt(*by_address("link", by.address)):
            with ctx.runner.database.read() as tx:
                people.link_email(tx, token)
            hashed = people.hash_password(fields.text("password"), by.address)
            before = request.cookies.get(COOKIE, "")
            begun = ctx.runner.write(
                browser_sessions.begin_with_setup_link, by, token, hashed, before
            )
    except InvalidLink as failure:
        return _gone(request, failure)
    except WardkeyError as failure:
        return render(
            request,
            "link.html",
            status_of(type(failure)),
            title=_SET_UP,
            email=_shown(ctx, token),
            **_PLAIN,
            fault=fault_of(failure),
        )
    return _signed_in(request, ctx, begun)


@router.get("/invitations/{token}")
def show_invitation(token: str, request: Request, ctx: CurrentContext) -> Response:
    """Ask a new user for a password, and a known one to sign in and then to accept."""
    try:
        with ctx.runner.database.read() as tx:
            found = members.invited(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return _invitation_page(request, ctx, token, found, None)


@router.post("/invitations/{token}")
def take_invitation(
    token: str, request: Request, fields: AnonymousForm, ctx: CurrentContext
) -> Response:
    """Take the place of a new user, with the password that they chose, and begin a session."""
    by = anonymous_principal(request, ctx)
    found = None
    try:
        with ctx.throttle.attempt(*by_address("link", by.address)):
            with ctx.runner.database.read() as tx:
                found = members.invited(tx, token)
            members.check_new(found)
            hashed = people.hash_password(fields.text("password"), by.address)
            before = request.cookies.get(COOKIE, "")
            begun = ctx.runner.write(
                browser_sessions.begin_with_invitation, by, token, hashed, before
            )
    except InvalidLink as failure:
        return _gone(request, failure)
    except WardkeyError as failure:
        if found is None:
            raise
        return _invitation_page(request, ctx, token, found, failure)
    return _signed_in(request, ctx, begun)


@router.get("/invitations/{token}/accept")
def back_to_invitation(token: str) -> Response:
    """Go to the invitation from the address of a form that was sent before."""
    return see_other(own_path(f"/invitations/{token}"))


@router.post("/invitations/{token}/accept")
def accept_invitation(
    token: str, request: Request, person: SignedIn, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Take the place as the user who is signed in, whose address must be the invited one."""
    try:
        with ctx.throttle.attempt(*by_address("link", person.by.address)):
            ctx.runner.write(members.accept_as_user, person.by, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return see_other("/organizations", done="invitation-accepted")


def _invitation_page(
    request: Request,
    ctx: AppContext,
    token: str,
    found: members.Invited,
    failure: WardkeyError | None,
) -> Response:
    return render(
        request,
        "link.html",
        status_of(type(failure)) if failure else 200,
        title=_ACCEPT,
        email=found.invitation.email,
        invitation=token,
        has_account=found.has_account,
        has_password=found.has_password,
        person=(visiting := _person(request, ctx)),
        fits=visiting is not None and members.is_for(found, visiting.by.label),
        issuer=ctx.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


def _person(request: Request, ctx: AppContext) -> SignedInUser | None:
    try:
        return person(request, ctx)
    except SignedOut:
        return None


def _shown(ctx: AppContext, token: str) -> str:
    try:
        with ctx.runner.database.read() as tx:
            return people.link_email(tx, token)
    except WardkeyError:
        return ""


def _signed_in(request: Request, ctx: AppContext, begun: browser_sessions.NewSession) -> Response:
    response = see_other("/")
    hand_cookies(ctx, request, response, begun)
    return response


def _gone(request: Request, failure: WardkeyError) -> Response:
    return render(request, "gone.html", status_of(type(failure)), fault=failure.detail)
