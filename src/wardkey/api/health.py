"""Routes of health checks and problem pages."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from wardkey.db.maintenance import check_storage
from wardkey.domain.errors import ERRORS_BY_CODE, RouteNotFound, WardkeyError
from wardkey.domain.verdict import PROBLEMS
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses, status_of

router = APIRouter(tags=["health"])

_BY_VERDICT: dict[str, type[WardkeyError]] = {
    str(verdict): error for verdict, error in PROBLEMS.items()
}


class Health(BaseModel):
    """The status, always `ok`."""

    status: str = "ok"


@router.get("/healthz", responses=problem_responses(anonymous=True))
def alive() -> Health:
    """Report that the process is running."""
    return Health()


@router.get("/readyz", responses=problem_responses(anonymous=True))
def ready(ctx: CurrentContext) -> Health:
    """Report that the database is available."""
    check_storage(ctx.runner.database)
    return Health()


@router.get(
    "/problems/{code}",
    response_class=PlainTextResponse,
    responses=problem_responses(RouteNotFound, anonymous=True),
)
def problem(code: str) -> str:
    """Explain a problem code, or the code of a verdict, and how to fix it."""
    error = ERRORS_BY_CODE.get(code) or _BY_VERDICT.get(code)
    if error is None:
        raise RouteNotFound
    return f"{error.title} ({error.code}, HTTP {status_of(error)})\n\n{error().detail}\n"
