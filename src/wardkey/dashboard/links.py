"""The page behind a one-time link: choose a password, and be signed in."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.actions import browser_sessions, members, people
from wardkey.actions.hashing import check_password
from wardkey.dashboard.frame import fault_of, page, pages, see_other
from wardkey.dashboard.visitor import COOKIE, Unsigned, hand_cookie
from wardkey.domain.errors import Failure, InvalidLink, Unauthenticated, WrongPassword
from wardkey.web.caller import stranger
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()

_SET_UP = "Set up Wardkey"
_ACCEPT = "Accept the invitation"
# A set-up link is for a password, whatever else there is.
_PLAIN = {"known": False, "nameless": False, "invitation": "", "issuer": None}


@router.get("/setup/{token}")
def show_setup(token: str, request: Request, here: Here) -> Response:
    """Ask the owner for a password."""
    try:
        with here.runner.database.read() as tx:
            email = people.link_email(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return page(request, "link.html", title=_SET_UP, email=email, **_PLAIN, fault=None)


@router.post("/setup/{token}")
def take_setup(token: str, request: Request, fields: Unsigned, here: Here) -> Response:
    """Set the password and begin a session."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            people.link_email(tx, token)
        hashed = people.hash_password(fields.text("password"), by.address)
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
            **_PLAIN,
            fault=fault_of(failure),
        )
    return _signed_in(begun)


@router.get("/invitations/{token}")
def show_invitation(token: str, request: Request, here: Here) -> Response:
    """Ask the invited person for a password, new or known, or to sign in at the issuer."""
    try:
        with here.runner.database.read() as tx:
            found = members.invited(tx, token)
    except InvalidLink as failure:
        return _gone(request, failure)
    return _invitation_page(request, here, token, found, None)


@router.post("/invitations/{token}")
def take_invitation(token: str, request: Request, fields: Unsigned, here: Here) -> Response:
    """Take the place and begin a session."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    found = None
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            found = members.invited(tx, token)
        password, known = fields.text("password"), found.password_hash
        if known is None:
            hashed = people.hash_password(password, by.address)
        elif check_password(known, password, by.address):
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
        if found is None:
            raise
        if isinstance(failure, Unauthenticated):
            here.throttle.failed(now, f"link {by.address}")
        return _invitation_page(request, here, token, found, failure)
    return _signed_in(begun)


def _invitation_page(
    request: Request, here: Context, token: str, found: members.Invited, failure: Failure | None
) -> Response:
    return page(
        request,
        "link.html",
        status_of(type(failure)) if failure else 200,
        title=_ACCEPT,
        email=found.invitation.email,
        known=found.password_hash is not None,
        nameless=found.has_account and found.password_hash is None,
        invitation=token,
        issuer=here.sign_in_issuer,
        fault=fault_of(failure) if failure else None,
    )


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
