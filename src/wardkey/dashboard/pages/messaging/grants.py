"""Messaging > Grants: the short-lived logins that tokens were exchanged for, and ending them."""

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
_ENDED = {
    "user": CutoffKind.USER,
    "email": CutoffKind.EMAIL,
    "provider": CutoffKind.PROVIDER,
}


@dataclass(frozen=True, slots=True)
class ListFilters:
    """What the address asks of the list."""

    user: str
    email: str
    provider: str
    state: str
    number: int

    @classmethod
    def of(cls, request: Request) -> ListFilters:
        """Read it from the query."""
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
        """Tell whether somebody or something is named."""
        return bool(self.user or self.email or self.provider)

    @property
    def one_subject(self) -> tuple[str, str] | None:
        """Whose grants these are, if exactly one is named: the kind and the subject."""
        named = {"user": self.user, "email": self.email, "provider": self.provider}
        given = [(kind, subject) for kind, subject in named.items() if subject]
        return given[0] if len(given) == 1 else None

    def query(self) -> GrantQuery:
        """Return it as the action takes it."""
        return GrantQuery(
            self.user,
            self.email,
            self.provider,
            active=None if self.state == "all" else True,
            limit=PAGE,
            offset=(self.number - 1) * PAGE,
        )

    def link(self, path: str) -> Callable[..., str]:
        """Return a function that writes this list's address with some parameters changed."""
        now = {
            "user": self.user,
            "email": self.email,
            "provider": self.provider,
            "state": self.state,
            "page": self.number,
        }
        return links(path, now)


@router.get(_ROUTE)
def list_grants(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List grants, newest first; active ones unless `state=all`."""
    asked = ListFilters.of(request)

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        found = grants.list_grants(tx, by, asked.query())
        named = {one.id: one.spec.name for one in providers.list_providers(tx, by)}
        return {"rows": found[:PAGE], "more": len(found) > PAGE, "providers": named}

    path = current.url(PATH)
    return render(
        request,
        "providers/grants.html",
        current=current,
        **ctx.runner.read(look, current.by),
        asked=asked,
        link=asked.link(path),
        url=path,
        now=ctx.runner.database.clock(),
        ended=ended_sessions(request, current, ctx),
        why_not=current.why_not(Permission.TOKENS_REVOKE),
    )


@router.get(f"{_ROUTE}/revoke")
def back_to_grants(current: Visiting) -> Response:
    """Go to the list from the address of a form that was sent before."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/revoke")
def revoke_grants(current: Visiting, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """End one grant, or every grant of a user, an e-mail address or a provider."""
    current.by.require(Permission.TOKENS_REVOKE)
    subject, kind = fields.text("subject"), fields.text("kind")
    if kind == "grant":
        _, confirmed = ctx.runner.write_confirmed(grants.revoke, current.by, subject)
        done = "grant-revoked"
    elif kind in _ENDED and subject:
        _, confirmed = ctx.runner.write_confirmed(
            grants.revoke_all, current.by, _ENDED[kind], subject
        )
        done = "grants-revoked"
    else:
        raise InvalidRequest("The form is incomplete; load the page again.")
    return see_other(current.url(PATH), done=done, **receipt_query(confirmed))
