"""Idempotency keys of routes that return a secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import Field

from wardkey.actions.core.idempotency import Retry, run_idempotently
from wardkey.db.engine import Transaction
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import Confirmation
from wardkey.web.caller import Caller
from wardkey.web.context import AppContext


async def _read_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_read_body)]
IdempotencyText = Annotated[str, Field(json_schema_extra={"format": "idempotency-key"})]
IdempotencyKey = Annotated[
    IdempotencyText | None,
    Header(
        description="A text with 128 bits of randomness, such as a version 4 UUID. For 10 minutes, "
        "the same request returns the same response, secret included.",
        examples=["8f14e45f-ceea-467f-a8d3-9c6f2b1e7a05"],
    ),
]


def build_retry(
    request: Request, caller: Caller, body: bytes, idempotency_key: str | None
) -> Retry | None:
    """Return what binds a stored response to this request; None without an idempotency key."""
    if idempotency_key is None:
        return None
    route = f"{request.method} {request.url.path}"
    return Retry(idempotency_key, route, body, caller.credential)


def write_idempotently(
    ctx: AppContext,
    by: Principal,
    act: Callable[[Transaction, Principal], dict[str, Any]],
    retry: Retry | None,
    *,
    needs: Permission,
) -> tuple[dict[str, Any], Confirmation]:
    """Run a writing action, or return its earlier response to the same request.

    `needs` is the permission that the action requires.
    """
    if retry is None:
        return ctx.runner.write_confirmed(act, by)

    def run_or_replay(tx: Transaction, by: Principal) -> dict[str, Any]:
        return run_idempotently(tx, by, retry, lambda: act(tx, by), needs=needs)

    run_or_replay.__name__ = act.__name__
    return ctx.runner.write_confirmed(run_or_replay, by)
