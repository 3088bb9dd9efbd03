"""Routes of a rotation's end: who still uses which secret, and the guarded finish."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from wardkey.actions.keys import rotations
from wardkey.api.schemas import Id, ReceiptShape, receipt_shape, when
from wardkey.domain import errors
from wardkey.domain.times import iso
from wardkey.verify.pending import merge_pending
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import CallerShape, caller_shape, problem_responses, require_json

router = APIRouter(tags=["keys"], dependencies=[Depends(require_json)])


class HourShape(BaseModel):
    """The verdicts of one hour, counted by code."""

    at: str = Field(description="When the hour began.")
    counts: dict[str, int] = Field(json_schema_extra={"example": {"valid": 1_204, "expired": 3}})


class SecretCallersShape(BaseModel):
    """Who used one secret: its heaviest callers, at most 50, the latest first."""

    kid: str
    prefix: str
    created_at: str
    grace_ends_at: str | None
    revoked_at: str | None
    last_seen_at: str | None
    callers: list[CallerShape]
    hours: list[HourShape] = Field(description="Of the last 24 hours, the latest first.")


class KeyCallersShape(BaseModel):
    """Who used each secret of a key, the newest secret first; a second late at most."""

    secrets: list[SecretCallersShape]


class FinishShape(BaseModel):
    """The end of a rotation; without receipts nothing old was live and nothing was changed."""

    key_id: str
    kept: str | None = Field(description="The kid of the secret that goes on.")
    receipts: list[ReceiptShape]


@router.get(
    "/v2/keys/{key_id:id}/callers",
    responses=problem_responses(errors.KeyNotFound, errors.SecretNotFound),
)
def list_callers(
    key_id: Id,
    caller: CurrentCaller,
    ctx: CurrentContext,
    secret: Annotated[
        str, Query(max_length=12, description="The kid of one secret; all without it.")
    ] = "",
) -> KeyCallersShape:
    """Show who used the key's secrets: address, program and route, with first and last time."""
    ctx.usage.catch_up()
    found = ctx.runner.read(rotations.list_callers, caller.by, key_id, secret)
    return KeyCallersShape(secrets=[_shape(item) for item in found])


@router.post(
    "/v2/keys/{key_id:id}/finish",
    responses=problem_responses(errors.KeyNotFound, errors.KeyRevoked, errors.StillInUse),
)
def finish_rotation(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> FinishShape:
    """End a rotation: revoke every live secret but the newest, unless an old one is in use."""
    # Where a use may stand that cannot be merged, nothing is finished.
    merge_pending(ctx.runner.database)
    used = ctx.runner.read(rotations.callers_to_finish, caller.by, key_id)
    done, confirmed = ctx.runner.write_confirmed(rotations.finish, caller.by, key_id, used)
    return FinishShape(
        key_id=key_id,
        kept=done.kept or None,
        receipts=[receipt_shape(receipt, confirmed) for receipt in done.receipts],
    )


def _shape(item: rotations.SecretCallers) -> SecretCallersShape:
    secret = item.secret
    return SecretCallersShape(
        kid=secret.kid,
        prefix=secret.prefix,
        created_at=iso(secret.created_at),
        grace_ends_at=when(secret.expires_at),
        revoked_at=when(secret.revoked_at),
        last_seen_at=when(item.callers[0].last_at if item.callers else None),
        callers=[caller_shape(one) for one in item.callers],
        hours=[HourShape(at=iso(hour.at), counts=dict(hour.counts)) for hour in item.hours],
    )
