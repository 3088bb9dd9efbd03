"""Routes that end a rotation: list each secret's callers, and finish."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from wardkey.actions.keys import rotations
from wardkey.api.schemas import Id, ReceiptShape, iso_or_none, render_receipt
from wardkey.domain import errors
from wardkey.domain.times import iso
from wardkey.verify.pending import merge_pending
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import CallerShape, caller_shape, problem_responses, require_json

router = APIRouter(tags=["keys"], dependencies=[Depends(require_json)])


class HourShape(BaseModel):
    """The verdicts of an hour, counted by code."""

    at: str = Field(description="The start of the hour.")
    counts: dict[str, int] = Field(json_schema_extra={"example": {"valid": 1_204, "expired": 3}})


class SecretCallersShape(BaseModel):
    """The most frequent callers of a secret, at most 50, latest first."""

    kid: str
    prefix: str
    created_at: str
    grace_ends_at: str | None
    revoked_at: str | None
    last_seen_at: str | None
    callers: list[CallerShape]
    hours: list[HourShape] = Field(description="The last 24 hours, latest first.")


class KeyCallersShape(BaseModel):
    """The callers of each secret of a key, newest secret first; up to a second old."""

    secrets: list[SecretCallersShape]


class FinishShape(BaseModel):
    """A finished rotation; without receipts, no old secret was live and nothing changed."""

    key_id: str
    kept: str | None = Field(description="The kid of the secret that stays valid.")
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
        str, Query(max_length=12, description="The kid of one secret; all by default.")
    ] = "",
) -> KeyCallersShape:
    """List the callers of a key's secrets: address, program and route, with first and last use."""
    ctx.usage.catch_up()
    secrets = ctx.runner.read(rotations.list_callers, caller.by, key_id, secret)
    return KeyCallersShape(secrets=[_render_secret(secret) for secret in secrets])


@router.post(
    "/v2/keys/{key_id:id}/finish",
    responses=problem_responses(errors.KeyNotFound, errors.KeyRevoked, errors.StillInUse),
)
def finish_rotation(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> FinishShape:
    """Finish a rotation: revoke all live secrets but the newest, unless an old one is in use."""
    # Raises if pending uses can't be merged: one of them may be of an old secret.
    merge_pending(ctx.runner.database)
    callers = ctx.runner.read(rotations.callers_to_finish, caller.by, key_id)
    finished, confirmed = ctx.runner.write_confirmed(rotations.finish, caller.by, key_id, callers)
    return FinishShape(
        key_id=key_id,
        kept=finished.kept or None,
        receipts=[render_receipt(receipt, confirmed) for receipt in finished.receipts],
    )


def _render_secret(usage: rotations.SecretCallers) -> SecretCallersShape:
    secret = usage.secret
    return SecretCallersShape(
        kid=secret.kid,
        prefix=secret.prefix,
        created_at=iso(secret.created_at),
        grace_ends_at=iso_or_none(secret.expires_at),
        revoked_at=iso_or_none(secret.revoked_at),
        last_seen_at=iso_or_none(usage.callers[0].last_at if usage.callers else None),
        callers=[caller_shape(caller) for caller in usage.callers],
        hours=[HourShape(at=iso(hour.at), counts=dict(hour.counts)) for hour in usage.hours],
    )
