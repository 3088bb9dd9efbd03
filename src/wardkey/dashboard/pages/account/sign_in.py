"""Signing in and out with a browser, one's sessions and password, the theme."""

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
    """A passkey's new name that was refused, and why."""

    passkey_id: str
    name: str
    failure: WardkeyError


@router.get("/")
def front(person: SignedIn) -> Response:
    """Go on to the person's first organization."""
    if not person.memberships:
        return see_other("/organizations")
    return see_other(f"/o/{person.memberships[0].slug}/live/{HOME}")


@router.get("/o/{slug}")
@router.get("/o/{slug}/{environment}")
def arrive(slug: str, environment: str = "live") -> Response:
    """Go on to the first page of an organization."""
    return see_other(own_path(f"/o/{slug}/{environment}/{HOME}"))


@router.get("/sign-in")
def ask_sign_in(request: Request, ctx: CurrentContext, next: str = "/") -> Response:  # noqa: A002 - the parameter's name
    """Ask for e-mail address and password; whoever is signed in goes on."""
    onward = own_path(next)
    try:
        with ctx.runner.database.read() as tx:
            browser_sessions.find(tx, request.cookies.get(COOKIE, ""))
    except SignedOut:
        return sign_in_page(request, ctx, onward)
    return see_other(onward)


@router.post("/sign-in")
def sign_in(request: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Begin a session; the one before, if this browser had one, ends."""
    email, onward = fields.text("email"), own_path(fields.text("next"))
    by = anonymous_principal(request, ctx)
    try:
        password, device = fields.text("password"), request.cookies.get(DEVICE_COOKIE, "")
        user_id, known = check_account_password(ctx, by, email, password, device)
        before = request.cookies.get(COOKIE, "")
        begun = ctx.runner.write(browser_sessions.begin_with_password, by, user_id, known, before)
    except (WrongPassword, RateLimited, Overloaded) as failure:
        return sign_in_page(request, ctx, onward, email, failure)
    response = see_other(onward)
    hand_cookies(ctx, request, response, begun)
    return response


@router.post("/sign-out")
def sign_out(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """End this session, or with `everywhere` all of the person's."""
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
    """Show the person's sessions and a form for another password."""
    return account_page(request, person, ctx)


@router.post("/account/sessions/{session_id}/end")
def end_session(
    session_id: str, person: SignedIn, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """End one session of the person's own."""
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
    """Take another password; every other session and token of the person ends."""
    try:
        current = fields.text("current_password")
        _, known = check_account_password(ctx, person.by, person.by.label, current, person.device)
        hashed = people.hash_password(fields.text("password"), person.by.address)
        ctx.runner.write(people.change_password, person.by, known, hashed, person.session.id)
    except WrongPassword:
        told = WrongPassword("That is not your password; try again.", field="current_password")
        return account_page(request, person, ctx, told)
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
    """Return the person's page, with what went wrong with the password or a passkey's name."""
    sessions = ctx.runner.read(browser_sessions.list_sessions, person.by)
    wrong = renaming.failure if renaming else failure
    return render(
        request,
        "account.html",
        status_of(type(wrong)) if wrong else 200,
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
    onward: str,
    email: str = "",
    failure: WardkeyError | None = None,
) -> Response:
    """Return the form, with what went wrong before."""
    return render(
        request,
        "sign_in.html",
        status_of(type(failure)) if failure else 200,
        next=onward,
        email=email,
        passkeys_work=Site.of(ctx.public_url) is not None,
        issuer=ctx.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


@router.post("/theme")
def choose_theme(fields: AnonymousForm) -> Response:
    """Keep light, dark or the system's choice in a cookie of its own."""
    response = see_other(own_path(fields.text("next")))
    theme = fields.text("theme")
    if theme in THEMES:
        response.set_cookie(THEME_COOKIE, theme, _YEAR_S, path="/", httponly=True, samesite="lax")
    return response


@router.post("/csp-reports")
async def take_report(request: Request, ctx: CurrentContext) -> Response:
    """Note that a page tried what its policy forbids, as often as somebody may guess."""
    ctx.throttle.take(*by_address("report", anonymous_principal(request, ctx).address))
    report = (await request.body())[:_MOST_REPORT]
    ctx.verifier.metrics.count_csp_report()
    log.warning("a page broke its content security policy: %s", ascii(report))
    return Response(status_code=204)
