"""Messaging > Grants: the logins that users got in exchange for tokens, and their revocation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.grants import grants, providers
from wardkey.actions.grants.grants import GrantQuery
from wardkey.dashboard.shell.auth import VerifiedForm, Visiting
from wardkey.dashboard.shell.pagination import PAGE, links, page_number
from wardkey.dashboard.shell.rendering import page_router, render, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.errors import InvalidRequest
from wardkey.domain.grants import CutoffKind
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.web.context import CurrentContext

router = page_router()
PATH = "messaging/grants"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"

_LONGEST = 255
_CUTOFF_KINDS = {
    "user": CutoffKind.USER,
    "email": CutoffKind.EMAIL,
    "provider": CutoffKind.PROVIDER,
}


@dataclass(frozen=True, slots=True)
class ListFilters:
    """The list's filters and page from the URL."""

    user: str
    email: str
    provider: str
    state: str
    number: int

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read the filters from the query."""
        query = request.query_params
        return cls(
            query.get("user", "").strip()[:_LONGEST],
            query.get("email", "").strip().lower()[:_LONGEST],
            query.get("provider", "")[:64],
            "all" if query.get("state") == "all" else "",
            page_number(query),
        )

    @property
    def filtered(self) -> bool:
        """Return whether a user, an e-mail address or a provider is set."""
        return bool(self.user or self.email or self.provider)

    @property
    def one_subject(self) -> tuple[str, str] | None:
        """The kind and subject of the only filter set, or None."""
        filters = {"user": self.user, "email": self.email, "provider": self.provider}
        subjects = [(kind, subject) for kind, subject in filters.items() if subject]
        return subjects[0] if len(subjects) == 1 else None

    def query(self) -> GrantQuery:
        """Return the filters as the action's query."""
        return GrantQuery(
            self.user,
            self.email,
            self.provider,
            active=None if self.state == "all" else True,
            limit=PAGE,
            offset=(self.number - 1) * PAGE,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that builds links to this list with some parameters changed."""
        current = {
            "user": self.user,
            "email": self.email,
            "provider": self.provider,
            "state": self.state,
            "page": self.number,
        }
        return links(path, current)


@router.get(_ROUTE)
def list_grants(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List grants, newest first; active ones unless `state=all`."""
    filters = ListFilters.of(request)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        rows = grants.list_grants(tx, by, filters.query())
        names = {provider.id: provider.spec.name for provider in providers.list_providers(tx, by)}
        return {"rows": rows[:PAGE], "more": len(rows) > PAGE, "providers": names}

    path = current.url(PATH)
    return render(
        request,
        "providers/grants.html",
        current=current,
        **ctx.runner.read(look, current.by),
        filters=filters,
        link=filters.link(path),
        url=path,
        now=ctx.runner.database.clock(),
        ended=ended_sessions(request, current, ctx),
        why_not=current.why_not(Permission.TOKENS_REVOKE),
    )


@router.get(f"{_ROUTE}/revoke")
def back_to_grants(current: Visiting) -> Response:
    """Redirect to the list from the URL of a form, for example after a reload."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/revoke")
def revoke_grants(current: Visiting, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Revoke one grant, or all grants of a user, an e-mail address or a provider."""
    current.by.require(Permission.TOKENS_REVOKE)
    subject, kind = fields.text("subject"), fields.text("kind")
    if kind == "grant":
        _, confirmed = ctx.runner.write_confirmed(grants.revoke, current.by, subject)
        done = "grant-revoked"
    elif kind in _CUTOFF_KINDS and subject:
        _, confirmed = ctx.runner.write_confirmed(
            grants.revoke_all, current.by, _CUTOFF_KINDS[kind], subject
        )
        done = "grants-revoked"
    else:
        raise InvalidRequest("The form is incomplete; reload the page.")
    return see_other(current.url(PATH), done=done, **receipt_query(confirmed))
