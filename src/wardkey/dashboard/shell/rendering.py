"""Page rendering: templates, security headers, and error pages."""

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
from wardkey.domain.times import DAY_MS, HOUR_MS, MINUTE_MS, iso
from wardkey.web.context import AppContext
from wardkey.web.problems import problem_headers, request_id_of, status_of, unexpected

THEMES = ("system", "light", "dark")
THEME_COOKIE = "wardkey-theme"
_OWN_PATH = re.compile(r"/(?:[\w.~%?&=+,;:@-][\w./~%?&=+,;:@-]*)?", re.ASCII)


def day(ms: int) -> str:
    """Return a date such as `Aug 30, 2026`."""
    return _format_day(ms // DAY_MS)


# A page shows the same few days many times.
@lru_cache(maxsize=1024)
def _format_day(number: int) -> str:
    at = datetime.fromtimestamp(number * DAY_MS / 1000, UTC)
    return f"{at:%b} {at.day}, {at.year}"


def moment(ms: int) -> str:
    """Return a time such as `Aug 30, 2026, 14:05 UTC`."""
    return f"{day(ms)}, {datetime.fromtimestamp(ms / 1000, UTC):%H:%M} UTC"


def distance(ms: int, now: int) -> str:
    """Return a relative time such as `2 minutes ago` or `in 3 days`."""
    elapsed = now - ms
    size = abs(elapsed)
    if size < MINUTE_MS:
        return "just now" if elapsed >= 0 else "in a moment"
    for unit, name in ((DAY_MS, "day"), (HOUR_MS, "hour"), (MINUTE_MS, "minute")):
        if size >= unit:
            count = size // unit
            words = f"{count} {name}{'' if count == 1 else 's'}"
            return f"{words} ago" if elapsed >= 0 else f"in {words}"
    return ""


# Pages use about 200 icons, and a macro would take ten times as long.
@lru_cache(maxsize=256)
def icon_of(name: str) -> Markup:
    """Return an icon, hidden from screen readers."""
    svg = '<svg class="icon" aria-hidden="true"><use href="{}#{}"/></svg>'
    return Markup(svg).format(asset_url("icons.svg"), name)  # noqa: S704 - a constant


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
    # `capitalize` would turn ACL into Acl.
    sentence=lambda text: text[:1].upper() + text[1:],
)
_templates.globals.update(
    asset=asset_url,
    icon_of=icon_of,
    texts=strings,
    themes=THEMES,
)


def render(request: Request, template: str, status: int = 200, /, **values: object) -> HTMLResponse:
    """Return a page that no cache stores and that loads nothing from other sites.

    Pages in layout.html pass the member as `current`, and those of Settings also pass `tabs`;
    both menus list only the pages this member can read. Other pages extend card.html. A page that
    opens a WebSocket passes its URL as `socket`.
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
    """Return the security headers of a page; `socket` is a WebSocket URL it may open."""
    parts = urlsplit(socket)
    socket_origin = f" {parts.scheme}://{parts.netloc}" if socket else ""
    policy = (
        "default-src 'none'",
        f"script-src 'nonce-{nonce}'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        f"connect-src 'self'{socket_origin}",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
        "report-uri /csp-reports",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        # A path can contain a one-time link, which must not leak to other sites.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
    }


def see_other(path: str, **query: str) -> RedirectResponse:
    """Redirect to a page of the dashboard; `done` names a message from strings.DONE."""
    target = f"{path}?{urlencode(query)}" if query else path
    return RedirectResponse(target, 303, {"Cache-Control": "no-store"})


def own_path(text: str) -> str:
    """Return `text` if it is a path of this site, or else `/`; for `next=`."""
    return text if _OWN_PATH.fullmatch(text) else "/"


def sign_in_first(request: Request) -> RedirectResponse:
    """Redirect to sign-in, and then back to this page or to the page of the form sent."""
    if request.method == "GET":
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return see_other("/sign-in", next=own_path(back))
    referrer = urlsplit(request.headers.get("referer", ""))
    same_host = referrer.netloc == request.headers.get("host", "")
    back = own_path(referrer.path) if same_host and referrer.path else "/"
    return see_other("/sign-in", next=back, done="signed-out-midway")


async def error_page(request: Request, failure: WardkeyError) -> Response:
    """Return the page for a failure that its route did not handle."""
    if isinstance(failure, errors.SignedOut):
        return sign_in_first(request)
    status = status_of(type(failure))
    if isinstance(failure, errors.PasswordRequired):
        fields = [
            (name, value)
            for name, value in (await read_form(request)).multi_items()
            if isinstance(value, str) and name != "current_password"
        ]
        ctx = request.app.state.context
        ways = await run_in_threadpool(_reauth_methods, request, ctx)
        return render(request, "confirm.html", status, sent=fields, failure=failure, ways=ways)
    response = _render_failure(request, failure, status)
    for name, value in problem_headers(failure).items():
        if name != "WWW-Authenticate":
            response.headers[name] = value
    return response


def _render_failure(request: Request, failure: WardkeyError, status: int) -> HTMLResponse:
    current = getattr(request.state, "current", None)
    if isinstance(failure, errors.Forbidden) and isinstance(current, MemberContext):
        return _render_refusal(request, current, failure, status)
    # Only unexpected errors are logged, so only they have a reference to look up.
    reference = request_id_of(request) if isinstance(failure, errors.InternalError) else ""
    return render(
        request, "failure.html", status, failure=failure, status=status, reference=reference
    )


def _render_refusal(
    request: Request, current: MemberContext, failure: WardkeyError, status: int
) -> HTMLResponse:
    """Render a refusal in the organization's layout, with the roles that have access."""
    is_read = request.method == "GET"
    needs = Permission(failure.needs) if failure.needs in set(Permission) else None
    why_not = current.why_not(needs, seeing=is_read) if needs else ""
    role = current.membership.role
    entry = next(
        (page for page in (*SIDEBAR, *SETTINGS) if current.url(page.path) == request.url.path), None
    )
    members = open_to(current.by, [page for page in SETTINGS if page.path == MEMBERS])
    return render(
        request,
        "refused.html",
        status,
        failure=failure,
        current=current,
        status=status,
        title=entry.label if is_read and entry else strings.REFUSED["title"],
        sentence=why_not or failure.detail,
        more=" ".join(
            text
            for text, applies in (
                (strings.REFUSED["role"].format(role=role, name=current.membership.name), why_not),
                (strings.REFUSED["change"], why_not and role in (Role.MEMBER, Role.VIEWER)),
                (strings.REFUSED["nothing"], not is_read),
            )
            if applies
        ),
        members_url=current.url(MEMBERS) if members else "",
    )


def _reauth_methods(request: Request, ctx: AppContext) -> ReauthMethods:
    return ways_to_confirm(ctx, person(request, ctx))


class PageRoute(APIRoute):
    """A route that renders failures as pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler, which renders failures."""
        handle = super().get_route_handler()

        async def handle_request(request: Request) -> Response:
            try:
                return await handle(request)
            except WardkeyError as failure:
                return await error_page(request, failure)
            except RequestValidationError:
                return await error_page(request, errors.InvalidRequest("The form is incomplete."))
            except Exception as error:  # noqa: BLE001 - logged, and shown as a page
                return await error_page(request, unexpected(request, error))

        return handle_request


def page_router() -> APIRouter:
    """Return a router for pages, which are not part of the OpenAPI document."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def fault_of(failure: WardkeyError) -> Mapping[str, str]:
    """Return a failure as a form shows it: its detail and the field at fault."""
    path = failure.field or ""
    if isinstance(failure, errors.InvalidRequest) and failure.errors:
        path = failure.errors[0][0]
    field = path.partition(".")[0]
    fault = {"detail": failure.detail, "field": field, "code": failure.code, "scopes": ""}
    if isinstance(failure, errors.UnknownScope) and failure.scopes:
        scopes, similar = ", ".join(failure.scopes), " or ".join(failure.similar)
        question = f" Did you mean {similar}?" if similar else ""
        single = len(failure.scopes) == 1
        fault["scopes"] = scopes
        fault["detail"] = (
            f"{scopes} {'is' if single else 'are'} not among your scopes yet.{question} Correct "
            f"the text, or tick the box below to add {'it' if single else 'them'}."
        )
    return fault
