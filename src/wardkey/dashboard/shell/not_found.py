"""The catch-all route for dashboard paths without a page."""

from __future__ import annotations

from wardkey.dashboard.shell.auth import SignedIn
from wardkey.dashboard.shell.rendering import page_router
from wardkey.domain.errors import RouteNotFound

router = page_router()


@router.get("/o/{rest:path}")
def nowhere(rest: str, _person: SignedIn) -> None:  # noqa: ARG001 - only matches the path
    """Return the dashboard's 404 page."""
    raise RouteNotFound
