"""How a page leaves: the templates, the headers that make it safe, and failures as pages."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wardkey.dashboard.shell import strings
from wardkey.dashboard.shell.assets import asset_url
from wardkey.dashboard.shell.auth import (
    MemberContext,
    ReauthMethods,
    person,
    read_form,
    ways_to_confirm,
)
from wardkey.dashboard.shell.navigation import MEMBERS, SETTINGS, SIDEBAR, open_to
from wardkey.dashboard.shell.user_agents import browser_name
from wardkey.domain import errors
from wardkey.domain.errors import WardkeyError
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.times import iso
from wardkey.web.context import AppContext
from wardkey.web.problems import problem_headers, request_id_of, status_of, unexpected

THEMES = ("system", "light", "dark")
THEME_COOKIE = "wardkey-theme"
_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000
_OWN_PATH = re.compile(r"/(?:[\w.~%?&=+,;:@-][\w./~%?&=+,;:@-]*)?", re.ASCII)


def day(ms: int) -> str:
    """Return a day as `Aug 30, 2026`."""
    return _named(ms // _DAY)


# A page names the same few days again and again.
@lru_cache(maxsize=1024)
def _named(number: int) -> str:
    at = datetime.fromtimestamp(number * _DAY / 1000, UTC)
    return f"{at:%b} {at.day}, {at.year}"


def moment(ms: int) -> str:
    """Return a time as `Aug 30, 2026, 14:05 UTC`."""
    return f"{day(ms)}, {datetime.fromtimestamp(ms / 1000, UTC):%H:%M} UTC"


def distance(ms: int, now: int) -> str:
    """Return a time as `2 minutes ago` or `in 3 days`."""
    gone = now - ms
    size = abs(gone)
    if size < _MINUTE:
        return "just now" if gone >= 0 else "in a moment"
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if size >= unit:
            count = size // unit
            words = f"{count} {name}{'' if count == 1 else 's'}"
            return f"{words} ago" if gone >= 0 else f"in {words}"
    return ""


# A macro would take ten times as long, two hundred times a page.
@lru_cache(maxsize=256)
def icon_of(name: str) -> Markup:
    """Return an icon, which says nothing to a screen reader."""
    form = '<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>'
    return Markup(form).format(asset_url("icons.svg"), name)  # noqa: S704 - the form is ours


_templates = Templates(
    loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    iso=iso,
    day=day,
    moment=moment,
    distance=distance,
    browser=browser_name,
    number=lambda count: f"{count:,}",
    # `capitalize` would make ACL into acl.
    sentence=lambda text: text[:1].upper() + text[1:],
)
_templates.globals.update(
    asset=asset_url,
    icon_of=icon_of,
    texts=strings,
    themes=THEMES,
)


def render(request: Request, template: str, status: int = 200, /, **values: object) -> HTMLResponse:
    """Return a page; it is never kept by a cache, and runs and shows nothing but our own.

    `values` hold `visitor` for pages in the frame (layout.html), and `tabs` for those of Settings;
    of both what the visitor may see is listed. Others extend card.html. A page that opens a
    WebSocket names its address as `socket`.
    """
    nonce = secrets.token_urlsafe(16)
    theme = request.cookies.get(THEME_COOKIE, "")
    ctx = {
        "nonce": nonce,
        "theme": theme if theme in THEMES else "system",
        "path": request.url.path,
        "done": strings.DONE.get(request.query_params.get("done", ""), ""),
    }
    current = values.get("current")
    if isinstance(current, MemberContext):
        values["sidebar"] = open_to(current.by, SIDEBAR)
        if "tabs" in values:
            values["tabs"] = open_to(current.by, SETTINGS)
    html = _templates.get_template(template).render({**ctx, **values})
    return HTMLResponse(html, status, safe_headers(nonce, str(values.get("socket", ""))))


def safe_headers(nonce: str, socket: str = "") -> dict[str, str]:
    """Return the header fields of every page; `socket` is a WebSocket that it may open."""
    parts = urlsplit(socket)
    reached = f" {parts.scheme}://{parts.netloc}" if socket else ""
    policy = (
        "default-src 'none'",
        f"script-src 'nonce-{nonce}'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        f"connect-src 'self'{reached}",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
        "report-uri /csp-reports",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        # A path can hold a one-time link; other sites learn of none.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
    }


def see_other(path: str, **query: str) -> RedirectResponse:
    """Send the browser to a page of ours; `done` names a sentence to show there."""
    target = f"{path}?{urlencode(query)}" if query else path
    return RedirectResponse(target, 303, {"Cache-Control": "no-store"})


def own_path(text: str) -> str:
    """Return `text` if it is a path of this site, else the front page; for `next=`."""
    return text if _OWN_PATH.fullmatch(text) else "/"


def sign_in_first(request: Request) -> RedirectResponse:
    """Send somebody to sign in and back: to this page, or to the one whose form he sent."""
    if request.method == "GET":
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return see_other("/sign-in", next=own_path(back))
    referrer = urlsplit(request.headers.get("referer", ""))
    own = referrer.netloc == request.headers.get("host", "")
    back = own_path(referrer.path) if own and referrer.path else "/"
    return see_other("/sign-in", next=back, done="signed-out-midway")


async def error_page(request: Request, failure: WardkeyError) -> Response:
    """Return the page that tells a failure which its route left alone."""
    if isinstance(failure, errors.SignedOut):
        return sign_in_first(request)
    status = status_of(type(failure))
    if isinstance(failure, errors.PasswordRequired):
        sent = [
            (name, value)
            for name, value in (await read_form(request)).multi_items()
            if isinstance(value, str) and name != "current_password"
        ]
        ctx = request.app.state.context
        ways = await run_in_threadpool(_ways, request, ctx)
        return render(request, "confirm.html", status, sent=sent, failure=failure, ways=ways)
    response = _refusal(request, failure, status)
    for name, value in problem_headers(failure).items():
        if name != "WWW-Authenticate":
            response.headers[name] = value
    return response


def _refusal(request: Request, failure: WardkeyError, status: int) -> HTMLResponse:
    current = getattr(request.state, "current", None)
    if isinstance(failure, errors.Forbidden) and isinstance(current, MemberContext):
        return _refused(request, current, failure, status)
    # Only what nobody expected stands in the log.
    reference = request_id_of(request) if isinstance(failure, errors.InternalError) else ""
    return render(
        request, "failure.html", status, failure=failure, status=status, reference=reference
    )


def _refused(
    request: Request, current: MemberContext, failure: WardkeyError, status: int
) -> HTMLResponse:
    """Whoever came as far as an organization stays in its frame, and learns who can."""
    seeing = request.method == "GET"
    needs = Permission(failure.needs) if failure.needs in set(Permission) else None
    why_not = current.why_not(needs, seeing=seeing) if needs else ""
    role = current.membership.role
    asked = next(
        (one for one in (*SIDEBAR, *SETTINGS) if current.url(one.path) == request.url.path), None
    )
    members = open_to(current.by, [one for one in SETTINGS if one.path == MEMBERS])
    return render(
        request,
        "refused.html",
        status,
        failure=failure,
        current=current,
        status=status,
        title=asked.label if seeing and asked else strings.REFUSED["title"],
        sentence=why_not or failure.detail,
        more=" ".join(
            text
            for text, fits in (
                (strings.REFUSED["role"].format(role=role, name=current.membership.name), why_not),
                (strings.REFUSED["change"], why_not and role in (Role.MEMBER, Role.VIEWER)),
                (strings.REFUSED["nothing"], not seeing),
            )
            if fits
        ),
        members_url=current.url(MEMBERS) if members else "",
    )


def _ways(request: Request, ctx: AppContext) -> ReauthMethods:
    return ways_to_confirm(ctx, person(request, ctx))


class PageRoute(APIRoute):
    """A route whose failures are told as pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler with its failures caught."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except WardkeyError as failure:
                return await error_page(request, failure)
            except RequestValidationError:
                return await error_page(request, errors.InvalidRequest("The form is incomplete."))
            except Exception as error:  # noqa: BLE001 - the edge: it is logged, and a page says so
                return await error_page(request, unexpected(request, error))

        return answer


def page_router() -> APIRouter:
    """Return a router for pages, which the OpenAPI document leaves out."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def fault_of(failure: WardkeyError) -> Mapping[str, str]:
    """Return what a form shows of a failure: its sentence and the field at fault."""
    named = failure.field or ""
    if isinstance(failure, errors.InvalidRequest) and failure.errors:
        named = failure.errors[0][0]
    field = named.partition(".")[0]
    shown = {"detail": failure.detail, "field": field, "code": failure.code, "scopes": ""}
    if isinstance(failure, errors.UnknownScope) and failure.scopes:
        scopes, similar = ", ".join(failure.scopes), " or ".join(failure.similar)
        question = f" Did you mean {similar}?" if similar else ""
        one = len(failure.scopes) == 1
        shown["scopes"] = scopes
        shown["detail"] = (
            f"{scopes} {'is' if one else 'are'} not among your scopes yet.{question} Correct the "
            f"text, or tick the box below to add {'it' if one else 'them'}."
        )
    return shown
