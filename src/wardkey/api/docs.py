"""The OpenAPI document and its page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi

from wardkey.web.problems import Problem

router = APIRouter(include_in_schema=False)


@router.get("/v2/openapi.json")
def openapi(request: Request) -> dict[str, Any]:
    """Describe every route, with every problem that each can answer."""
    app = request.app
    document: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
    return document
