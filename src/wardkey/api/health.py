"""Routes that say whether this process lives and can answer, and what a problem code means."""

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

_BY_VERDICT: dict[str, type[WardkeyError]] = {str(one): leaf for one, leaf in PROBLEMS.items()}


class Health(BaseModel):
    """`ok`, and nothing more."""

    status: str = "ok"


@router.get("/healthz", responses=problem_responses(anonymous=True))
def alive() -> Health:
    """Answer as long as the process lives."""
    return Health()


@router.get("/readyz", responses=problem_responses(anonymous=True))
def ready(ctx: CurrentContext) -> Health:
    """Answer once the database answers."""
    check_storage(ctx.runner.database)
    return Health()


@router.get(
    "/problems/{code}",
    response_class=PlainTextResponse,
    responses=problem_responses(RouteNotFound, anonymous=True),
)
def problem(code: str) -> str:
    """Say what a problem code, or the code of a verdict, means and how to fix it."""
    failure = ERRORS_BY_CODE.get(code) or _BY_VERDICT.get(code)
    if failure is None:
        raise RouteNotFound
    return f"{failure.title} ({failure.code}, HTTP {status_of(failure)})\n\n{failure().detail}\n"
