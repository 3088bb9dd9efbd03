"""What routes that hand out a secret do with an Idempotency-Key."""

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


async def _body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_body)]
IdempotencyText = Annotated[str, Field(json_schema_extra={"format": "idempotency-key"})]
IdempotencyKey = Annotated[
    IdempotencyText | None,
    Header(
        description="A text with 128 bits of randomness, such as a UUID of version 4. The same "
        "request with it gets the same answer, secret included, for 10 minutes.",
        examples=["8f14e45f-ceea-467f-a8d3-9c6f2b1e7a05"],
    ),
]


def retry_of(
    request: Request, caller: Caller, body: bytes, idempotency_key: str | None
) -> Retry | None:
    """Return what binds a kept answer to this request; None where it names no key."""
    if idempotency_key is None:
        return None
    route = f"{request.method} {request.url.path}"
    return Retry(idempotency_key, route, body, caller.credential)


def change_once(
    ctx: AppContext,
    by: Principal,
    act: Callable[[Transaction, Principal], dict[str, Any]],
    retry: Retry | None,
    *,
    needs: Permission,
) -> tuple[dict[str, Any], Confirmation]:
    """Run an action that writes, or give the answer that it gave to the same request before.

    `needs` is the permission that the action requires.
    """
    if retry is None:
        return ctx.runner.write_confirmed(act, by)

    def replayed(tx: Transaction, by: Principal) -> dict[str, Any]:
        return run_idempotently(tx, by, retry, lambda: act(tx, by), needs=needs)

    replayed.__name__ = act.__name__
    return ctx.runner.write_confirmed(replayed, by)
