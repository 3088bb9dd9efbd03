"""Routes of keys: issue, list, change, rotate, revoke, and import keys issued elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from wardkey.actions.keys import imports, keys, revocations
from wardkey.actions.messaging import session_receipts
from wardkey.api.idempotency import IdempotencyKey, RawBody, build_retry, write_idempotently
from wardkey.api.schemas import (
    PREFIX,
    Grantable,
    Id,
    Input,
    IssuedShape,
    KeyShape,
    Kid,
    Metadata,
    Name,
    Network,
    Origin,
    RateShape,
    ReceiptShape,
    Text,
    Time,
    read_time,
    render_issued_key,
    render_key,
    render_receipt,
)
from wardkey.db.engine import Transaction
from wardkey.domain import errors
from wardkey.domain.keys import GRACE_MS, KeySpec, KeyStatus, Rate, Reason
from wardkey.domain.permissions import KeyType, Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["keys"], dependencies=[Depends(require_json)])

_SPEC_ERRORS = (
    errors.InvalidName,
    errors.InvalidText,
    errors.InvalidMetadata,
    errors.InvalidAddress,
    errors.InvalidOrigin,
    errors.OriginsNotForType,
    errors.InvalidRateLimit,
    errors.InvalidTime,
    errors.ExpiryInPast,
    errors.UnknownPermission,
    errors.UnknownScope,
    errors.TooManyScopes,
    errors.LiveKeyRequired,
    errors.PermissionNotForType,
    errors.TooManyItems,
    errors.ExceedsOwnPermissions,
    errors.ExceedsOwnLimits,
    errors.DuplicateName,
)


class KeyFields(Input):
    """The fields of a key that can be set when it is issued and changed later."""

    permissions: list[Grantable] | None = Field(default=None, max_length=100)
    description: Text = ""
    allowed_addresses: list[Network] = Field(default=[], max_length=100)
    allowed_origins: list[Origin] = Field(default=[], max_length=100)
    allow_native: StrictBool = False
    rate_limit: RateShape | None = None
    metadata: Metadata = Field(default={})
    expires_at: Time | None = Field(default=None, description="In the future, or null for never.")
    create_scopes: StrictBool = Field(
        default=False,
        description="Add missing scopes to the catalogue; requires scopes:grant.",
    )

    @property
    def new_scopes(self) -> tuple[str, ...]:
        """Return the permissions that can be added to the catalogue."""
        return tuple(self.permissions or ()) if self.create_scopes else ()


class NewKey(KeyFields):
    """A key to issue; without permissions it gets the defaults of its type."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "live-billing-webhooks",
                "type": "secret",
                "permissions": ["keys:verify", "invoices:read"],
                "allowed_addresses": ["203.0.113.0/24"],
                "expires_at": "2030-01-31T00:00:00Z",
            }
        },
    )

    name: Name
    type: KeyType
    environment: Environment | None = Field(
        default=None,
        description="Keys issue keys in their own environment; users choose, live by default.",
    )

    def spec(self, environment: Environment) -> KeySpec:
        """Return the key as the domain's record."""
        return KeySpec(
            name=self.name,
            type=self.type,
            environment=environment,
            permissions=None if self.permissions is None else tuple(self.permissions),
            expires_at=read_time(self.expires_at, "expires_at"),
            description=self.description,
            allowed_addresses=tuple(self.allowed_addresses),
            allowed_origins=tuple(self.allowed_origins),
            allow_native=self.allow_native,
            rate_limit=_read_rate(self.rate_limit),
            metadata=self.metadata,
        )


class KeyChanges(KeyFields):
    """The fields to change; omitted fields stay. `expires_at` null removes the expiry."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"description": "Used by the nightly job"}}
    )

    name: Name | None = Field(default=None, description="Null keeps it.")

    def changes(self) -> dict[str, Any]:
        """Return the fields that were sent, as the domain's values."""
        readers: dict[str, Callable[[Any], Any]] = {
            "permissions": lambda value: None if value is None else tuple(value),
            "allowed_addresses": tuple,
            "allowed_origins": tuple,
            "expires_at": lambda value: read_time(value, "expires_at"),
            "rate_limit": _read_rate,
        }
        return {
            name: readers.get(name, lambda value: value)(getattr(self, name))
            for name in self.model_fields_set
            if name != "create_scopes" and not (name == "name" and self.name is None)
        }


class ChangedKey(BaseModel):
    """The changed key, with warnings about a new name."""

    key: KeyShape
    warnings: list[str]


class KeyPage(BaseModel):
    """A page of keys, newest first; `next_cursor` is null on the last."""

    keys: list[KeyShape]
    next_cursor: str | None
    total: int


class Rotation(Input):
    """How long older secrets stay valid."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"grace": "24h"}})

    grace: str = Field(
        default="24h",
        description="now, 1h, 24h, 7d, until_revoked or an RFC 3339 time in the future.",
        json_schema_extra={
            "anyOf": [{"enum": ["now", *GRACE_MS, "until_revoked"]}, {"format": "date-time"}]
        },
    )


class Revocation(Input):
    """The reason for a revocation."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"reason": "keyCompromise", "comment": "found in a log"}},
    )

    reason: str = Field(
        default=Reason.UNSPECIFIED,
        description="The reasons of RFC 5280 §5.3.1 that apply to a key.",
        json_schema_extra={"enum": [str(reason) for reason in Reason]},
    )
    comment: Text = ""


class NewImport(KeyFields):
    """A key issued elsewhere, identified by the SHA-256 of its text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "live-legacy-reports",
                "environment": "live",
                "prefix": "acme_",
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "entropy_bits": 160,
            }
        },
    )

    name: Name
    environment: Environment
    prefix: str
    sha256: str = Field(
        description="64 lower-case hexadecimal digits.",
        json_schema_extra={"pattern": "^[0-9a-f]{64}$"},
    )
    entropy_bits: StrictInt = Field(
        description="Bits of randomness in the text.",
        json_schema_extra={"minimum": imports.LEAST_BITS},
    )


class NewPrefix(Input):
    """A prefix of imported keys."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"prefix": "acme_"}})

    prefix: str = Field(
        description="Not one that Wardkey's own secrets start with.",
        json_schema_extra={"pattern": PREFIX},
    )


class PrefixShape(BaseModel):
    """A registered prefix."""

    prefix: str
    created_at: str
    created_by: str


class PrefixList(BaseModel):
    """The organization's import prefixes."""

    prefixes: list[PrefixShape]


@router.post(
    "/v2/keys",
    status_code=201,
    responses=problem_responses(
        *_SPEC_ERRORS, errors.WeakIdempotencyKey, errors.IdempotencyKeyReused, body=True
    ),
)
def issue_key(  # noqa: PLR0917 - FastAPI's parameters
    request: Request,
    body: NewKey,
    caller: CurrentCaller,
    ctx: CurrentContext,
    raw_body: RawBody,
    idempotency_key: IdempotencyKey = None,
) -> IssuedShape:
    """Issue a key.

    Its secret is shown only in this response.
    """
    by = caller.acting_in(body.environment)
    spec = body.spec(body.environment or by.environment)

    def issue(tx: Transaction, by: Principal) -> dict[str, Any]:
        return render_issued_key(keys.issue(tx, by, spec, body.new_scopes), tx.now).model_dump(
            mode="json"
        )

    retry = build_retry(request, caller, raw_body, idempotency_key)
    return IssuedShape.model_validate(
        write_idempotently(ctx, by, issue, retry, needs=Permission.KEYS_WRITE)[0]
    )


@router.get("/v2/keys", responses=problem_responses(errors.InvalidCursor))
def list_keys(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    search: Annotated[
        str, Query(max_length=200, description="Part of the name, description or prefix.")
    ] = "",
    type: Annotated[KeyType | None, Query()] = None,  # noqa: A002 - the parameter's name
    environment: Environment | None = None,
    status: KeyStatus | None = None,
    unused_days: Annotated[int | None, Query(ge=1, le=3650)] = None,
    rotation_due: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    expiring: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> KeyPage:
    """List the keys of the organization's environment, newest first."""
    by = caller.acting_in(environment)
    if environment is not None and environment is not by.environment:
        raise errors.WrongEnvironment
    query = keys.KeyQuery(search, type, status, unused_days, rotation_due, expiring, None, limit)
    vault = ctx.runner.database.vault
    binding = json.dumps(
        ["keys", *by.scope, search, type, status, unused_days, rotation_due, expiring]
    )
    if cursor:
        created_at, key_id = read_cursor(vault, binding, cursor)
        query = keys.KeyQuery(
            search, type, status, unused_days, rotation_due, expiring, (created_at, key_id), limit
        )

    def look(tx: Transaction, by: Principal) -> KeyPage:
        records = keys.list_keys(tx, by, query)
        page = records[:limit]
        has_more = len(records) > limit
        return KeyPage(
            keys=[render_key(key, tx.now) for key in page],
            next_cursor=write_cursor(vault, binding, [page[-1].created_at, page[-1].id])
            if has_more
            else None,
            total=keys.count_keys(tx, by, query),
        )

    ctx.usage.catch_up()
    return ctx.runner.read(look, by)


@router.get("/v2/keys/{key_id:id}", responses=problem_responses(errors.KeyNotFound))
def get_key(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> KeyShape:
    """Get a key and its secrets, without their texts."""
    ctx.usage.catch_up()
    key = ctx.runner.read(keys.get, caller.by, key_id)
    return render_key(key, ctx.runner.database.clock())


@router.patch(
    "/v2/keys/{key_id:id}",
    responses=problem_responses(
        *_SPEC_ERRORS,
        errors.KeyNotFound,
        errors.KeyRevoked,
        body=True,
    ),
)
def change_key(
    key_id: Id, body: KeyChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedKey:
    """Change a key.

    Access that the key loses is refused from the moment the call returns.
    """
    key, warnings = ctx.runner.write(
        keys.change, caller.by, key_id, body.changes(), body.new_scopes
    )
    return ChangedKey(key=render_key(key, ctx.runner.database.clock()), warnings=list(warnings))


@router.post(
    "/v2/keys/{key_id:id}/disable",
    responses=problem_responses(errors.KeyNotFound, errors.KeyRevoked),
)
def disable_key(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> KeyShape:
    """Disable a key until it is enabled again."""
    key = ctx.runner.write(keys.disable, caller.by, key_id)
    return render_key(key, ctx.runner.database.clock())


@router.post(
    "/v2/keys/{key_id:id}/enable",
    responses=problem_responses(errors.KeyNotFound, errors.KeyRevoked, errors.ExceedsOwnLimits),
)
def enable_key(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> KeyShape:
    """Enable a disabled key."""
    key = ctx.runner.write(keys.enable, caller.by, key_id)
    return render_key(key, ctx.runner.database.clock())


@router.post(
    "/v2/keys/{key_id:id}/rotate",
    responses=problem_responses(
        errors.KeyNotFound,
        errors.KeyRevoked,
        errors.InvalidGrace,
        errors.ExpiryInPast,
        errors.TooManySecrets,
        errors.ExceedsOwnPermissions,
        errors.ExceedsOwnLimits,
        errors.WeakIdempotencyKey,
        errors.IdempotencyKeyReused,
        body=True,
    ),
)
def rotate_key(  # noqa: PLR0917 - FastAPI's parameters
    request: Request,
    key_id: Id,
    caller: CurrentCaller,
    ctx: CurrentContext,
    raw_body: RawBody,
    body: Rotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> IssuedShape:
    """Add a secret to a key; its older secrets expire after the chosen grace."""
    grace = (body or Rotation()).grace

    def rotate(tx: Transaction, by: Principal) -> dict[str, Any]:
        return render_issued_key(keys.rotate(tx, by, key_id, grace), tx.now).model_dump(mode="json")

    retry = build_retry(request, caller, raw_body, idempotency_key)
    return IssuedShape.model_validate(
        write_idempotently(ctx, caller.by, rotate, retry, needs=Permission.KEYS_WRITE)[0]
    )


@router.post(
    "/v2/keys/{key_id:id}/revoke",
    responses=problem_responses(
        errors.KeyNotFound, errors.InvalidReason, errors.InvalidText, body=True
    ),
)
def revoke_key(
    key_id: Id, caller: CurrentCaller, ctx: CurrentContext, body: Revocation | None = None
) -> ReceiptShape:
    """Revoke a key and all its secrets permanently.

    Once the call returns, nothing accepts the key.
    """
    revocation = body or Revocation()
    receipt, confirmed = ctx.runner.write_confirmed(
        revocations.revoke, caller.by, key_id, revocation.reason, revocation.comment
    )
    return render_receipt(receipt, confirmed)


@router.delete("/v2/keys/{key_id:id}", responses=problem_responses(errors.KeyNotFound))
def delete_key(key_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ReceiptShape:
    """Revoke a key; its record stays for the audit."""
    receipt, confirmed = ctx.runner.write_confirmed(
        revocations.revoke, caller.by, key_id, Reason.UNSPECIFIED, ""
    )
    return render_receipt(receipt, confirmed)


@router.post(
    "/v2/keys/{key_id:id}/secrets/{kid}/revoke",
    responses=problem_responses(
        errors.KeyNotFound,
        errors.SecretNotFound,
        errors.InvalidReason,
        errors.InvalidText,
        body=True,
    ),
)
def revoke_secret(
    key_id: Id,
    kid: Kid,
    caller: CurrentCaller,
    ctx: CurrentContext,
    body: Revocation | None = None,
) -> ReceiptShape:
    """Revoke one secret of a key; its other secrets stay valid."""
    revocation = body or Revocation()
    receipt, confirmed = ctx.runner.write_confirmed(
        revocations.revoke_secret, caller.by, key_id, kid, revocation.reason, revocation.comment
    )
    return render_receipt(receipt, confirmed)


@router.get("/v2/receipts/{receipt_id:id}", responses=problem_responses(errors.ReceiptNotFound))
def get_receipt(receipt_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ReceiptShape:
    """Get the receipt of a revocation, with the sessions ended so far."""
    receipt = ctx.runner.read(revocations.get_receipt, caller.by, receipt_id)
    confirmed = ctx.runner.confirm(receipt.epoch, receipt.revision)
    if ctx.link is not None:
        sessions = ctx.runner.read(
            session_receipts.of_revision, caller.by, receipt.epoch, receipt.revision
        )
        confirmed = replace(confirmed, sessions=sessions)
    return render_receipt(receipt, confirmed)


@router.post(
    "/v2/keys/import",
    status_code=201,
    responses=problem_responses(
        *_SPEC_ERRORS,
        errors.InvalidImport,
        errors.WeakImport,
        errors.PrefixNotFound,
        errors.DuplicateImport,
        body=True,
    ),
)
def import_key(body: NewImport, caller: CurrentCaller, ctx: CurrentContext) -> KeyShape:
    """Import a secret key by the SHA-256 of its text, so it keeps working."""
    by = caller.acting_in(body.environment)
    spec = NewKey(
        type=KeyType.SECRET,
        **body.model_dump(exclude={"prefix", "sha256", "entropy_bits"}),
    ).spec(body.environment)
    new_import = imports.Import(spec, body.prefix, body.sha256, body.entropy_bits)
    key = ctx.runner.write(imports.import_key, by, new_import, body.new_scopes)
    return render_key(key, ctx.runner.database.clock())


@router.get("/v2/import-prefixes", responses=problem_responses())
def list_prefixes(caller: CurrentCaller, ctx: CurrentContext) -> PrefixList:
    """List the prefixes of imported keys."""
    prefixes = ctx.runner.read(imports.list_prefixes, caller.by)
    return PrefixList(prefixes=[_render_prefix(item) for item in prefixes])


@router.post(
    "/v2/import-prefixes",
    status_code=201,
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.InvalidPrefix,
        errors.DuplicatePrefix,
        errors.TooManyPrefixes,
        body=True,
    ),
)
def register_prefix(body: NewPrefix, caller: CurrentCaller, ctx: CurrentContext) -> PrefixShape:
    """Register a prefix for the organization's imported keys."""
    return _render_prefix(ctx.runner.write(imports.register_prefix, caller.by, body.prefix))


@router.delete(
    "/v2/import-prefixes/{prefix}",
    status_code=204,
    responses=problem_responses(errors.LiveKeyRequired, errors.PrefixNotFound, errors.PrefixInUse),
)
def release_prefix(
    prefix: Annotated[str, Path(pattern=PREFIX)], caller: CurrentCaller, ctx: CurrentContext
) -> None:
    """Release a prefix that no live key uses."""
    ctx.runner.write(imports.release_prefix, caller.by, prefix)


def _read_rate(rate: RateShape | None) -> Rate | None:
    return None if rate is None else Rate(rate.limit, rate.period_s, rate.burst)


def _render_prefix(prefix: imports.ImportPrefix) -> PrefixShape:
    return PrefixShape(
        prefix=prefix.prefix, created_at=iso(prefix.created_at), created_by=prefix.created_by
    )
