"""Settings > Scopes: the catalogue of scopes for the organization's own services."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.keys import scopes
from wardkey.dashboard.pages.keys.key import PATH as KEYS
from wardkey.dashboard.shell.auth import NOTHING_SENT, Fields, MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.navigation import SCOPES, SETTINGS
from wardkey.dashboard.shell.pagination import PAGE, links, page_number
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.errors import Conflict, Invalid, WardkeyError
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
_ROUTE = f"/o/{{slug}}/{{environment}}/{SCOPES}"
_SCOPE = f"{_ROUTE}/{{name}}"
# Lists up to this length have no search.
_SHORT = 10


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of a form: an open dialog, its scope, and a failure."""

    dialog: str = ""
    name: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(_ROUTE)
def list_scopes(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the organization's scopes, with the number of keys that hold each."""
    dialog = request.query_params.get("dialog", "")
    return _page(request, current, ctx, FormResult("create" if dialog == "create" else ""))


@router.post(_ROUTE)
def create_scope(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Add a scope."""
    current.by.require(Permission.SCOPES_GRANT)
    try:
        ctx.runner.write(
            scopes.create, current.by, fields.text("name").strip(), fields.text("description")
        )
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, FormResult("create", failure=failure, sent=fields))
    return see_other(current.url(SCOPES), done="scope-created")


@router.get(_SCOPE)
def show_scope(name: str, request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Open a scope's edit or delete dialog over the list."""
    ctx.runner.read(scopes.get, current.by, name)
    if not current.by.holds(Permission.SCOPES_GRANT):
        return see_other(current.url(SCOPES))
    dialog = "delete" if request.query_params.get("dialog") == "delete" else "edit"
    return _page(request, current, ctx, FormResult(dialog, name))


@router.get(f"{_SCOPE}/{{verb}}")
def back_to_scopes(name: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Redirect to the list from the URL of a form, for example after a reload."""
    return see_other(current.url(SCOPES))


@router.post(f"{_SCOPE}/edit")
def edit_scope(
    name: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change the description."""
    current.by.require(Permission.SCOPES_GRANT)
    try:
        ctx.runner.write(scopes.change, current.by, name, fields.text("description"))
    except Invalid as failure:
        return _page(request, current, ctx, FormResult("edit", name, failure, fields))
    return see_other(current.url(SCOPES), done="scope-changed")


@router.post(f"{_SCOPE}/delete")
def delete_scope(
    name: str, request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete a scope that no key holds."""
    current.by.require(Permission.SCOPES_GRANT)
    try:
        ctx.runner.write(scopes.remove, current.by, name)
    except Conflict as failure:
        return _page(request, current, ctx, FormResult("delete", name, failure))
    return see_other(current.url(SCOPES), done="scope-deleted")


def _page(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    search = request.query_params.get("q", "")[:200]
    number = page_number(request.query_params)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        query = scopes.ScopeQuery(search, limit=PAGE, offset=(number - 1) * PAGE)
        return {
            "rows": scopes.list_scopes(tx, by, query)[:PAGE],
            "total": scopes.count_scopes(tx, by, search),
            "in_all": scopes.count_scopes(tx, by),
            "chosen": scopes.get(tx, by, result.name) if result.name else None,
        }

    failure = result.failure
    path = current.url(SCOPES)
    return render(
        request,
        "settings/scopes.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        **ctx.runner.read(look, current.by),
        search=search,
        number=number,
        size=PAGE,
        short=_SHORT,
        link=links(path, {"q": search, "page": number}),
        url=path,
        keys_url=current.url(KEYS),
        why_not=current.why_not(Permission.SCOPES_GRANT),
        dialog=result.dialog,
        fault=fault_of(failure) if failure else None,
        sent=result.sent.texts_by_name() if result.sent else NOTHING_SENT,
        filled=result.sent is not None,
        longest=scopes.LONGEST_DESCRIPTION,
    )
