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
    Checked,
    SignedIn,
    Unsigned,
    hand_cookies,
    hand_device_cookie,
    take_cookie,
    take_device_cookie,
)
from wardkey.dashboard.shell.navigation import HOME
from wardkey.dashboard.shell.rendering import (
    THEME_COOKIE,
    THEMES,
    fault_of,
    own_path,
    page,
    pages,
    see_other,
)
from wardkey.domain.errors import (
    Conflict,
    Failure,
    Invalid,
    Overloaded,
    RateLimited,
    SignedOut,
    WrongPassword,
)
from wardkey.services.throttle import by_address
from wardkey.web.caller import stranger
from wardkey.web.context import Context, Here
from wardkey.web.passwords import check_account_password
from wardkey.web.problems import status_of

log = logging.getLogger("wardkey")
router = pages()

_YEAR_S = 365 * 86_400
_MOST_REPORT = 2_000


@dataclass(frozen=True, slots=True)
class Renaming:
    """A passkey's new name that was refused, and why."""

    passkey_id: str
    name: str
    failure: Failure


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
def ask_sign_in(request: Request, here: Here, next: str = "/") -> Response:  # noqa: A002 - the parameter's name
    """Ask for e-mail address and password; whoever is signed in goes on."""
    onward = own_path(next)
    try:
        with here.runner.database.read() as tx:
            browser_sessions.find(tx, request.cookies.get(COOKIE, ""))
    except SignedOut:
        return sign_in_page(request, here, onward)
    return see_other(onward)


@router.post("/sign-in")
def sign_in(request: Request, fields: Unsigned, here: Here) -> Response:
    """Begin a session; the one before, if this browser had one, ends."""
    email, onward = fields.text("email"), own_path(fields.text("next"))
    by = stranger(request, here)
    try:
        password, device = fields.text("password"), request.cookies.get(DEVICE_COOKIE, "")
        user_id, known = check_account_password(here, by, email, password, device)
        before = request.cookies.get(COOKIE, "")
        begun = here.runner.change(browser_sessions.begin_with_password, by, user_id, known, before)
    except (WrongPassword, RateLimited, Overloaded) as failure:
        return sign_in_page(request, here, onward, email, failure)
    response = see_other(onward)
    hand_cookies(here, request, response, begun)
    return response


@router.post("/sign-out")
def sign_out(person: SignedIn, fields: Checked, here: Here) -> Response:
    """End this session, or with `everywhere` all of the person's."""
    if fields.text("everywhere"):
        here.runner.change(browser_sessions.end_all, person.by)
        response = see_other("/sign-in", done="signed-out-everywhere")
        take_device_cookie(response)
    else:
        here.runner.change(browser_sessions.end, person.by, person.session.id)
        response = see_other("/sign-in", done="signed-out")
    take_cookie(response)
    return response


@router.get("/account")
def account(request: Request, person: SignedIn, here: Here) -> Response:
    """Show the person's sessions and a form for another password."""
    return account_page(request, person, here)


@router.post("/account/sessions/{session_id}/end")
def end_session(session_id: str, person: SignedIn, _fields: Checked, here: Here) -> Response:
    """End one session of the person's own."""
    here.runner.change(browser_sessions.end, person.by, session_id)
    if session_id == person.session.id:
        response = see_other("/sign-in", done="signed-out")
        take_cookie(response)
        return response
    return see_other("/account", done="session-ended")


@router.post("/account/password")
def change_password(request: Request, person: SignedIn, fields: Checked, here: Here) -> Response:
    """Take another password; every other session and token of the person ends."""
    try:
        current = fields.text("current_password")
        _, known = check_account_password(here, person.by, person.by.label, current, person.device)
        hashed = people.hash_password(fields.text("password"), person.by.address)
        here.runner.change(people.change_password, person.by, known, hashed, person.session.id)
    except WrongPassword:
        told = WrongPassword("That is not your password; try again.", field="current_password")
        return account_page(request, person, here, told)
    except (Invalid, Conflict, RateLimited, Overloaded) as failure:
        return account_page(request, person, here, failure)
    response = see_other("/account", done="password-changed")
    hand_device_cookie(here, request, response, person.by.id)
    return response


def account_page(
    request: Request,
    person: SignedIn,
    here: Context,
    failure: Failure | None = None,
    renaming: Renaming | None = None,
) -> Response:
    """Return the person's page, with what went wrong with the password or a passkey's name."""
    sessions = here.runner.look(browser_sessions.list_sessions, person.by)
    wrong = renaming.failure if renaming else failure
    return page(
        request,
        "account.html",
        status_of(type(wrong)) if wrong else 200,
        person=person,
        sessions=sessions,
        passkeys=here.runner.look(passkeys.list_passkeys, person.by),
        passkeys_work=Site.of(here.public_url) is not None,
        has_password=here.runner.look(people.has_password, person.by),
        identities=here.runner.look(identities.list_identities, person.by),
        issuer=here.sign_in_issuer,
        now=here.runner.database.clock(),
        fault=fault_of(failure) if failure else None,
        renaming=renaming,
    )


def sign_in_page(
    request: Request, here: Context, onward: str, email: str = "", failure: Failure | None = None
) -> Response:
    """Return the form, with what went wrong before."""
    return page(
        request,
        "sign_in.html",
        status_of(type(failure)) if failure else 200,
        next=onward,
        email=email,
        passkeys_work=Site.of(here.public_url) is not None,
        issuer=here.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


@router.post("/theme")
def choose_theme(fields: Unsigned) -> Response:
    """Keep light, dark or the system's choice in a cookie of its own."""
    response = see_other(own_path(fields.text("next")))
    theme = fields.text("theme")
    if theme in THEMES:
        response.set_cookie(THEME_COOKIE, theme, _YEAR_S, path="/", httponly=True, samesite="lax")
    return response


@router.post("/csp-reports")
async def take_report(request: Request, here: Here) -> Response:
    """Note that a page tried what its policy forbids, as often as somebody may guess."""
    here.throttle.take(*by_address("report", stranger(request, here).address))
    report = (await request.body())[:_MOST_REPORT]
    here.verifier.metrics.count_csp_report()
    log.warning("a page broke its content security policy: %s", ascii(report))
    return Response(status_code=204)
