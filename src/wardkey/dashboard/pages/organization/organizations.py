"""The organizations of whoever is signed in, also where there is none."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.dashboard.shell.auth import SignedIn
from wardkey.dashboard.shell.rendering import page_router, render

router = page_router()


@router.get("/organizations")
def list_organizations(request: Request, person: SignedIn) -> Response:
    """List the person's memberships, or say how one comes by an organization."""
    return render(request, "organizations.html", person=person)
