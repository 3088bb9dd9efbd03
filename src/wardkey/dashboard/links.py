"""The page behind a one-time link: choose a password, and be told what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined

from wardkey.actions import members, people
from wardkey.domain.errors import Failure, InvalidLink, Unauthenticated, WrongPassword
from wardkey.web.caller import stranger
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = APIRouter(include_in_schema=False)

_ROOM = Path(__file__).parent
_templates = Templates(
    loader=FileSystemLoader(_ROOM / "templates"), autoescape=True, undefined=StrictUndefined
)
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    # The link stands in the address, so no other page may learn where the person came from.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Password = Annotated[str, Form(max_length=1024)]


@router.get("/static/links.css")
def style() -> FileResponse:
    """Send the page's style sheet."""
    return FileResponse(_ROOM / "static" / "links.css", media_type="text/css")


@router.get("/setup/{token}")
def show_setup(token: str, here: Here) -> HTMLResponse:
    """Ask the owner for a password."""
    try:
        with here.runner.database.read() as tx:
            email = people.link_email(tx, token)
    except InvalidLink as failure:
        return _gone(failure)
    return _page(title="Set up Wardkey", email=email, known=False, fault="")


@router.post("/setup/{token}")
def take_setup(token: str, password: Password, request: Request, here: Here) -> HTMLResponse:
    """Set the password and say how to go on."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            email = people.link_email(tx, token)
        hashed = people.hash_password(password)
        here.runner.change(people.use_setup_link, by, token, hashed)
    except InvalidLink as failure:
        here.throttle.failed(now, f"link {by.address}")
        return _gone(failure)
    except Failure as failure:
        return _page(
            status_of(type(failure)),
            title="Set up Wardkey",
            email=_shown(here, token),
            known=False,
            fault=failure.detail,
        )
    return _done(here, email)


@router.get("/invitations/{token}")
def show_invitation(token: str, here: Here) -> HTMLResponse:
    """Ask the invited person for a password, new or known."""
    try:
        with here.runner.database.read() as tx:
            invitation, known = members.invited(tx, token)
    except InvalidLink as failure:
        return _gone(failure)
    return _page(
        title="Accept the invitation", email=invitation.email, known=known is not None, fault=""
    )


@router.post("/invitations/{token}")
def take_invitation(token: str, password: Password, request: Request, here: Here) -> HTMLResponse:
    """Take the place and say how to go on."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    try:
        here.throttle.check(now, f"link {by.address}")
        with here.runner.database.read() as tx:
            invitation, known = members.invited(tx, token)
    except InvalidLink as failure:
        here.throttle.failed(now, f"link {by.address}")
        return _gone(failure)
    except Failure as failure:
        return _page(
            status_of(type(failure)),
            title="Accept the invitation",
            email="",
            known=False,
            fault=failure.detail,
        )
    try:
        if known is None:
            hashed = people.hash_password(password)
        elif people.check_password(known, password):
            hashed = known
        else:
            raise WrongPassword
        here.runner.change(members.accept, by, token, hashed, known)
    except Failure as failure:
        if isinstance(failure, Unauthenticated):
            here.throttle.failed(now, f"link {by.address}")
        return _page(
            status_of(type(failure)),
            title="Accept the invitation",
            email=invitation.email,
            known=known is not None,
            fault=failure.detail,
        )
    return _done(here, invitation.email)


def _shown(here: Context, token: str) -> str:
    try:
        with here.runner.database.read() as tx:
            return people.link_email(tx, token)
    except Failure:
        return ""


def _page(status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 - template values
    html = _templates.get_template("link.html").render(values)
    return HTMLResponse(html, status, _SAFE)


def _done(here: Context, email: str) -> HTMLResponse:
    html = _templates.get_template("done.html").render(email=email, url=here.public_url)
    return HTMLResponse(html, 200, _SAFE)


def _gone(failure: Failure) -> HTMLResponse:
    html = _templates.get_template("gone.html").render(fault=failure.detail)
    return HTMLResponse(html, status_of(type(failure)), _SAFE)
