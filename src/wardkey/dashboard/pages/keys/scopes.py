"""Settings > Scopes: the catalogue of scopes of the organization's own services."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.keys import scopes
from wardkey.dashboard.pages.keys.key import PATH as KEYS
from wardkey.dashboard.shell.auth import NOTHING_SENT, Checked, Fields, Visiting, Visitor
from wardkey.dashboard.shell.navigation import SCOPES, SETTINGS
from wardkey.dashboard.shell.pagination import PAGE, links, page_number
from wardkey.dashboard.shell.rendering import fault_of, page, pages, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.errors import Conflict, Failure, Invalid
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.web.context import Context, Here
from wardkey.web.problems import status_of

router = pages()
_ROUTE = f"/o/{{slug}}/{{environment}}/{SCOPES}"
_SCOPE = f"{_ROUTE}/{{name}}"
# A list this short needs no search.
_SHORT = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to show of the page: an open dialog, its scope, and a failure's form."""

    dialog: str = ""
    name: str = ""
    failure: Failure | None = None
    sent: Fields | None = None


@router.get(_ROUTE)
def list_scopes(request: Request, visitor: Visiting, here: Here) -> Response:
    """List the organization's scopes, with the number of keys that hold each."""
    wanted = request.query_params.get("dialog", "")
    return _page(request, visitor, here, Outcome("create" if wanted == "create" else ""))


@router.post(_ROUTE)
def create_scope(request: Request, visitor: Visiting, fields: Checked, here: Here) -> Response:
    """Add a scope."""
    visitor.by.require(Permission.SCOPES_GRANT)
    try:
        here.runner.change(
            scopes.create, visitor.by, fields.text("name").strip(), fields.text("description")
        )
    except (Invalid, Conflict) as failure:
        return _page(request, visitor, here, Outcome("create", failure=failure, sent=fields))
    return see_other(visitor.url(SCOPES), done="scope-created")


@router.get(_SCOPE)
def show_scope(name: str, request: Request, visitor: Visiting, here: Here) -> Response:
    """Open the form of a scope over the list, or the question before its deletion."""
    here.runner.look(scopes.get, visitor.by, name)
    if not visitor.by.holds(Permission.SCOPES_GRANT):
        return see_other(visitor.url(SCOPES))
    dialog = "delete" if request.query_params.get("dialog") == "delete" else "edit"
    return _page(request, visitor, here, Outcome(dialog, name))


@router.get(f"{_SCOPE}/{{verb}}")
def back_to_scopes(name: str, verb: str, visitor: Visiting) -> Response:  # noqa: ARG001 - any
    """Go to the list from the address of a form that was sent before."""
    return see_other(visitor.url(SCOPES))


@router.post(f"{_SCOPE}/edit")
def edit_scope(
    name: str, request: Request, visitor: Visiting, fields: Checked, here: Here
) -> Response:
    """Change the description."""
    visitor.by.require(Permission.SCOPES_GRANT)
    try:
        here.runner.change(scopes.change, visitor.by, name, fields.text("description"))
    except Invalid as failure:
        return _page(request, visitor, here, Outcome("edit", name, failure, fields))
    return see_other(visitor.url(SCOPES), done="scope-changed")


@router.post(f"{_SCOPE}/delete")
def delete_scope(
    name: str, request: Request, visitor: Visiting, _fields: Checked, here: Here
) -> Response:
    """Delete a scope that no key holds."""
    visitor.by.require(Permission.SCOPES_GRANT)
    try:
        here.runner.change(scopes.remove, visitor.by, name)
    except Conflict as failure:
        return _page(request, visitor, here, Outcome("delete", name, failure))
    return see_other(visitor.url(SCOPES), done="scope-deleted")


def _page(request: Request, visitor: Visitor, here: Context, outcome: Outcome) -> Response:
    search = request.query_params.get("q", "")[:200]
    number = page_number(request.query_params)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        query = scopes.ScopeQuery(search, limit=PAGE, offset=(number - 1) * PAGE)
        return {
            "rows": scopes.list_scopes(tx, by, query)[:PAGE],
            "total": scopes.count_scopes(tx, by, search),
            "in_all": scopes.count_scopes(tx, by),
            "chosen": scopes.get(tx, by, outcome.name) if outcome.name else None,
        }

    failure = outcome.failure
    path = visitor.url(SCOPES)
    return page(
        request,
        "settings/scopes.html",
        status_of(type(failure)) if failure else 200,
        visitor=visitor,
        tabs=SETTINGS,
        **here.runner.look(look, visitor.by),
        search=search,
        number=number,
        size=PAGE,
        short=_SHORT,
        link=links(path, {"q": search, "page": number}),
        url=path,
        keys_url=visitor.url(KEYS),
        why_not=visitor.why_not(Permission.SCOPES_GRANT),
        dialog=outcome.dialog,
        fault=fault_of(failure) if failure else None,
        sent=outcome.sent.texts_by_name() if outcome.sent else NOTHING_SENT,
        filled=outcome.sent is not None,
        longest=scopes.LONGEST_DESCRIPTION,
    )
