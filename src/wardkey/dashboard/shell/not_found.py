"""The answer for paths of the dashboard that no page has."""

from __future__ import annotations

from wardkey.dashboard.shell.auth import SignedIn
from wardkey.dashboard.shell.rendering import page_router
from wardkey.domain.errors import RouteNotFound

router = page_router()


@router.get("/o/{rest:path}")
def nowhere(rest: str, _person: SignedIn) -> None:  # noqa: ARG001 - the path decides alone
    """Say as a page that there is none here."""
    raise RouteNotFound
