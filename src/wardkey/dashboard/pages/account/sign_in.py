"""Signing in and out, the account page, the theme, and CSP reports."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fastapi import Request, Response

from wardkey.actions.accounts import browser_sessions, identities, passkeys, people
from wardkey.adapters.passkeys import Site
from wardkey.dashboard.shell.auth import (
    COOKIE,
    DEVICE_COOKIE,
    AnonymousForm,
    SignedIn,
    VerifiedForm,
    clear_session_cookie,
    hand_cookies,
    hand_device_cookie,
    take_device_cookie,
)
from wardkey.dashboard.shell.navigation import HOME
from wardkey.dashboard.shell.rendering import (
    THEME_COOKIE,
    THEMES,
    fault_of,
    own_path,
    page_router,
    render,
    see_other,
)
from wardkey.domain.errors import (
    Conflict,
    Invalid,
    Overloaded,
    RateLimited,
    SignedOut,
    WardkeyError,
    WrongPassword,
)
from wardkey.services.throttle import by_address
from wardkey.web.caller import anonymous_principal
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.passwords import check_account_password
from wardkey.web.problems import status_of

log = logging.getLogger(__name__)
router = page_router()

_YEAR_S = 365 * 86_400
_MOST_REPORT = 2_000


@dataclass(frozen=True, slots=True)
class Renaming:
    """A passkey's rejected new name, and the failure."""

    passkey_id: str
    name: str
    failure: WardkeyError


@router.get("/")
def front(person: SignedIn) -> Response:
    """Redirect to the user's first organization."""
    if not person.memberships:
        return see_other("/organizations")
    return see_other(f"/o/{person.memberships[0].slug}/live/{HOME}")


@router.get("/o/{slug}")
@router.get("/o/{slug}/{environment}")
def arrive(slug: str, environment: str = "live") -> Response:
    """Redirect to the first page of an organization."""
    return see_other(own_path(f"/o/{slug}/{environment}/{HOME}"))


@router.get("/sign-in")
def ask_sign_in(request: Request, ctx: CurrentContext, next: str = "/") -> Response:  # noqa: A002 - the parameter's name
    """Show the sign-in form, or redirect users who are signed in."""
    next_path = own_path(next)
    try:
        with ctx.runner.database.read() as tx:
            browser_sessions.find(tx, request.cookies.get(COOKIE, ""))
    except SignedOut:
        return sign_in_page(request, ctx, next_path)
    return see_other(next_path)


@router.post("/sign-in")
def sign_in(request: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Sign in with a password; this browser's previous session, if any, ends."""
    email, next_path = fields.text("email"), own_path(fields.text("next"))
    by = anonymous_principal(request, ctx)
    try:
        password, device = fields.text("password"), request.cookies.get(DEVICE_COOKIE, "")
        user_id, known = check_account_password(ctx, by, email, password, device)
        previous = request.cookies.get(COOKIE, "")
        session = ctx.runner.write(
            browser_sessions.begin_with_password, by, user_id, known, previous
        )
    except (WrongPassword, RateLimited, Overloaded) as failure:
        return sign_in_page(request, ctx, next_path, email, failure)
    response = see_other(next_path)
    hand_cookies(ctx, request, response, session)
    return response


@router.post("/sign-out")
def sign_out(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """End this session, or with `everywhere` all of the user's sessions."""
    if fields.text("everywhere"):
        ctx.runner.write(browser_sessions.end_all, person.by)
        response = see_other("/sign-in", done="signed-out-everywhere")
        take_device_cookie(response)
    else:
        ctx.runner.write(browser_sessions.end, person.by, person.session.id)
        response = see_other("/sign-in", done="signed-out")
    clear_session_cookie(response)
    return response


@router.get("/account")
def account(request: Request, person: SignedIn, ctx: CurrentContext) -> Response:
    """Show the user's sessions, password, passkeys and linked accounts."""
    return account_page(request, person, ctx)


@router.post("/account/sessions/{session_id}/end")
def end_session(
    session_id: str, person: SignedIn, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """End one of the user's sessions."""
    ctx.runner.write(browser_sessions.end, person.by, session_id)
    if session_id == person.session.id:
        response = see_other("/sign-in", done="signed-out")
        clear_session_cookie(response)
        return response
    return see_other("/account", done="session-ended")


@router.post("/account/password")
def change_password(
    request: Request, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change the password, which ends the user's other sessions and tokens."""
    try:
        current = fields.text("current_password")
        _, known = check_account_password(ctx, person.by, person.by.label, current, person.device)
        hashed = people.hash_password(fields.text("password"), person.by.address)
        ctx.runner.write(people.change_password, person.by, known, hashed, person.session.id)
    except WrongPassword:
        wrong = WrongPassword("That isn't your password; try again.", field="current_password")
        return account_page(request, person, ctx, wrong)
    except (Invalid, Conflict, RateLimited, Overloaded) as failure:
        return account_page(request, person, ctx, failure)
    response = see_other("/account", done="password-changed")
    hand_device_cookie(ctx, request, response, person.by.id)
    return response


def account_page(
    request: Request,
    person: SignedIn,
    ctx: AppContext,
    failure: WardkeyError | None = None,
    renaming: Renaming | None = None,
) -> Response:
    """Return the account page, with the failure of a password or of a passkey's name."""
    sessions = ctx.runner.read(browser_sessions.list_sessions, person.by)
    shown_failure = renaming.failure if renaming else failure
    return render(
        request,
        "account.html",
        status_of(type(shown_failure)) if shown_failure else 200,
        person=person,
        sessions=sessions,
        passkeys=ctx.runner.read(passkeys.list_passkeys, person.by),
        passkeys_work=Site.of(ctx.public_url) is not None,
        has_password=ctx.runner.read(people.has_password, person.by),
        identities=ctx.runner.read(identities.list_identities, person.by),
        issuer=ctx.sign_in_issuer,
        now=ctx.runner.database.clock(),
        fault=fault_of(failure) if failure else None,
        renaming=renaming,
    )


def sign_in_page(
    request: Request,
    ctx: AppContext,
    next_path: str,
    email: str = "",
    failure: WardkeyError | None = None,
) -> Response:
    """Return the sign-in form, with the failure of the last attempt."""
    return render(
        request,
        "sign_in.html",
        status_of(type(failure)) if failure else 200,
        next=next_path,
        email=email,
        passkeys_work=Site.of(ctx.public_url) is not None,
        issuer=ctx.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


@router.post("/theme")
def choose_theme(fields: AnonymousForm) -> Response:
    """Save the theme in a cookie."""
    response = see_other(own_path(fields.text("next")))
    theme = fields.text("theme")
    if theme in THEMES:
        response.set_cookie(THEME_COOKIE, theme, _YEAR_S, path="/", httponly=True, samesite="lax")
    return response


@router.post("/csp-reports")
async def take_report(request: Request, ctx: CurrentContext) -> Response:
    """Log and count a CSP violation report, throttled by address."""
    ctx.throttle.take(*by_address("report", anonymous_principal(request, ctx).address))
    report = (await request.body())[:_MOST_REPORT]
    ctx.verifier.metrics.count_csp_report()
    log.warning("a page violated its content security policy: %s", ascii(report))
    return Response(status_code=204)
