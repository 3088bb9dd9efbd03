"""The organizations of whoever is signed in, also where there is none."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.dashboard.frame import page, pages
from wardkey.dashboard.visitor import SignedIn

router = pages()


@router.get("/organizations")
def list_organizations(request: Request, person: SignedIn) -> Response:
    """List the person's memberships, or say how one comes by an organization."""
    return page(request, "organizations.html", person=person)
