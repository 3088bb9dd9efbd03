"""The list of the signed-in user's organizations."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.dashboard.shell.auth import SignedIn
from wardkey.dashboard.shell.rendering import page_router, render

router = page_router()


@router.get("/organizations")
def list_organizations(request: Request, person: SignedIn) -> Response:
    """List the user's organizations, or explain how to get one."""
    return render(request, "organizations.html", person=person)
