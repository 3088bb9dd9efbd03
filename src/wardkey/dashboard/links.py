"""The page behind a one-time link: choose a password, and be signed in."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.actions import browser_sessions, members, people
from wardkey.dashboard.frame import fault_of, page, pages, see_other
from wardkey.dashboard.visitor import COOKIE, Unsigned, hand_cookie
from wardkey.domain.errors import Failure, InvalidLink, Unauthenticated, WrongPassword
from wardkey.web.caller import stranger
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()

_SET_UP = "Set up Wardkey"
_ACCEPT = "Accept the invitation"


@router.get("/setup/{token}")
def show_setup(token: str, request: Request, here: Here) -> Response:
    """Ask the owner for a password."""
    try:
        with here.runner.database.read() as tx:
            email = people.link_email(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return page(request, "link.html", title=_SET_UP, email=email, known=False, fault=None)


@router.post("/setup/{token}")
def take_setup(token: str, request: Request, fields: Unsigned, here: Here) -> Response:
    """Set the password and begin a session."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            people.link_email(tx, token)
        hashed = people.hash_password(fields.text("password"))
        before = request.cookies.get(COOKIE, "")
        begun = here.runner.change(
            browser_sessions.begin_with_setup_link, by, token, hashed, before
        )
    except InvalidLink as failure:
        here.throttle.failed(now, f"link {by.address}")
        return _gone(request, failure)
    except Failure as failure:
        return page(
            request,
            "link.html",
            status_of(type(failure)),
            title=_SET_UP,
            email=_shown(here, token),
            known=False,
            fault=fault_of(failure),
        )
    return _signed_in(begun)


@router.get("/invitations/{token}")
def show_invitation(token: str, request: Request, here: Here) -> Response:
    """Ask the invited person for a password, new or known."""
    try:
        with here.runner.database.read() as tx:
            invitation, known = members.invited(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return page(
        request,
        "link.html",
        title=_ACCEPT,
        email=invitation.email,
        known=known is not None,
        fault=None,
    )


@router.post("/invitations/{token}")
def take_invitation(token: str, request: Request, fields: Unsigned, here: Here) -> Response:
    """Take the place and begin a session."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    email, known = "", None
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            invitation, known = members.invited(tx, token)
        email = invitation.email
        password = fields.text("password")
        if known is None:
            hashed = people.hash_password(password)
        elif people.check_password(known, password):
            hashed = known
        else:
            raise WrongPassword
        before = request.cookies.get(COOKIE, "")
        begun = here.runner.change(
            browser_sessions.begin_with_invitation, by, token, hashed, known, before
        )
    except InvalidLink as failure:
        here.throttle.failed(now, f"link {by.address}")
        return _gone(request, failure)
    except Failure as failure:
        if isinstance(failure, Unauthenticated):
            here.throttle.failed(now, f"link {by.address}")
        return page(
            request,
            "link.html",
            status_of(type(failure)),
            title=_ACCEPT,
            email=email,
            known=known is not None,
            fault=fault_of(failure),
        )
    return _signed_in(begun)


def _shown(here: Context, token: str) -> str:
    try:
        with here.runner.database.read() as tx:
            return people.link_email(tx, token)
    except Failure:
        return ""


def _signed_in(begun: browser_sessions.Begun) -> Response:
    response = see_other("/")
    hand_cookie(response, begun.text)
    return response


def _gone(request: Request, failure: Failure) -> Response:
    return page(request, "gone.html", status_of(type(failure)), fault=failure.detail)
