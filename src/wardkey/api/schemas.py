"""The schemas that several routes share, and functions that render records into them."""

from __future__ import annotations

from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, get_args

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StrictInt, model_validator
from pydantic_core import CoreSchema
from starlette.convertors import StringConvertor, register_url_convertor

from wardkey.actions.keys.keys import Issued
from wardkey.actions.keys.revocations import Receipt
from wardkey.domain.errors import InvalidTime
from wardkey.domain.keys import KeyRecord, KeyStatus, Rate, SecretRecord
from wardkey.domain.permissions import KeyType
from wardkey.domain.receipts import Confirmation, EndedSessions, Reach
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso, parse_iso
from wardkey.verify.json_body import or_null


class IdConvertor(StringConvertor):
    """`{…:id}` in a path: matches only ids, so `/v2/keys/import` is a route of its own."""

    regex = "[A-Za-z]+_[0-9A-Za-z]{1,60}"


register_url_convertor("id", IdConvertor())

Id = Annotated[str, Path(pattern=f"^{IdConvertor.regex}$", examples=["key_0fA3xQ2LmN7pR9sT1uV4wY"])]
Kid = Annotated[str, Path(pattern="^[0-9A-Za-z]{12}$", examples=["7QdRk2mVx9Ta"])]

# The domain checks these values, so each error has its own code; here they are only documented.
# Formats that JSON Schema does not define are rules of Unicode and networks, described in words.
PREFIX = "^[A-Za-z][A-Za-z0-9_-]{2,31}$"
SCOPE = "^[a-z][a-z0-9_.-]{0,31}(:[a-z0-9_.-]{1,32}){1,2}$"
_MAX_NUMBER = 2**53
Name = Annotated[
    str,
    Field(
        description="1 to 100 visible characters.",
        json_schema_extra={"format": "name", "minLength": 1, "maxLength": 100},
    ),
]
Text = Annotated[
    str,
    Field(
        description="At most 500 characters; of control characters, only tab and line break.",
        json_schema_extra={"format": "text", "maxLength": 500},
    ),
]
Time = Annotated[
    str,
    Field(
        description="RFC 3339 with an offset, from 1970 on.",
        json_schema_extra={"format": "date-time"},
    ),
]
Email = Annotated[str, Field(json_schema_extra={"format": "email", "maxLength": 254})]
Slug = Annotated[str, Field(json_schema_extra={"pattern": "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"})]
Network = Annotated[
    str,
    Field(description="An address or CIDR network.", json_schema_extra={"format": "cidr"}),
]
Origin = Annotated[
    str,
    Field(
        description="https://host[:port], *.host for all its subdomains, or an app's origin such "
        "as capacitor://localhost.",
        json_schema_extra={"format": "origin"},
    ),
]
Grantable = Annotated[
    str,
    Field(
        description="A Wardkey permission, or a scope such as invoices:read.",
        json_schema_extra={"format": "permission", "maxLength": 98},
    ),
]
_PLAIN_VALUE: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "number", "minimum": -_MAX_NUMBER, "maximum": _MAX_NUMBER},
    {"type": "string", "format": "text", "maxLength": 500},
    {"type": "null"},
]
Metadata = Annotated[
    dict[str, Any],
    Field(
        description="Short names and JSON values, nested up to five levels, 8 KiB in total.",
        json_schema_extra={
            "maxProperties": 50,
            "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,64}$"},
            "additionalProperties": {
                "anyOf": [
                    *_PLAIN_VALUE,
                    {"type": "array", "maxItems": 50, "items": {"anyOf": _PLAIN_VALUE}},
                    {
                        "type": "object",
                        "maxProperties": 50,
                        "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,64}$"},
                        "additionalProperties": {"anyOf": _PLAIN_VALUE},
                    },
                ]
            },
        },
    ),
]


class Input(BaseModel):
    """A request body or a part of one: unknown fields are rejected, strings aren't read as numbers.

    Null means that a field is omitted, unless the field itself takes null.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, dict) or None not in value.values():
            return value
        omittable = _fields_omitted_by_null(cls)
        return {
            name: item for name, item in value.items() if item is not None or name not in omittable
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema, in which each field that null omits takes null."""
        schema: dict[str, Any] = handler(core_schema)
        if handler.mode == "validation":
            properties = handler.resolve_ref_schema(schema).get("properties", {})
            for name in _fields_omitted_by_null(cls) & properties.keys():
                properties[name] = or_null(properties[name])
        return schema


@lru_cache
def _fields_omitted_by_null(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of optional fields whose type does not take null."""
    return frozenset(
        name
        for name, field in model.model_fields.items()
        if not field.is_required() and NoneType not in get_args(field.annotation)
    )


class RateShape(Input):
    """At most `limit` requests in `period_s` seconds, of which `burst` may come at once."""

    limit: StrictInt = Field(ge=1, le=1_000_000_000)
    period_s: StrictInt = Field(ge=1, le=2_678_400)
    burst: StrictInt = Field(ge=1, le=1_000_000_000)


class LastUse(BaseModel):
    """The last use of a secret; up to two seconds old."""

    at: str
    address: str
    user_agent: str


class SecretShape(BaseModel):
    """One secret of a key, without its text."""

    kid: str
    prefix: str
    created_at: str
    created_by: str
    grace_ends_at: str | None
    revoked_at: str | None
    revoke_reason: str | None
    revoke_comment: str | None
    imported: bool
    live: bool
    last_used: LastUse | None


class KeyShape(BaseModel):
    """A key as its organization sees it."""

    id: str
    name: str
    type: KeyType
    environment: Environment
    status: KeyStatus
    description: str
    permissions: list[str]
    allowed_addresses: list[str]
    allowed_origins: list[str]
    allow_native: bool
    rate_limit: RateShape | None
    metadata: dict[str, Any]
    created_at: str
    created_by: str
    updated_at: str
    rotated_at: str
    rotation_due: bool
    expires_at: str | None
    disabled_at: str | None
    revoked_at: str | None
    revoke_reason: str | None
    revoke_comment: str | None
    secrets: list[SecretShape]


class NamedOrganization(BaseModel):
    """The organization that owns the key."""

    id: str
    name: str


class IssuedShape(BaseModel):
    """A key with its new secret, which is never shown again."""

    key: KeyShape
    kid: str
    secret: str = Field(description="Shown only once; store it where only its program can read it.")
    organization: NamedOrganization
    warnings: list[str]


class EndedSessionsShape(BaseModel):
    """The live MQTT sessions that a change ended."""

    receipt_id: str | None = Field(
        description="For `GET /v2/sessions/receipts/{receipt_id}`; null if the change affects "
        "no session."
    )
    ended: int | None = Field(description="Null while the broker is unreachable.")
    pending: bool = Field(
        description="A login in flight during the change may still open a session, which is then "
        "ended and counted too."
    )
    pending_until: str | None = Field(
        description="2.1 s after the change; null if none is pending or the broker is unreachable."
    )

    @classmethod
    def of(cls, sessions: EndedSessions) -> EndedSessionsShape:
        """Render the ended sessions."""
        return cls(
            receipt_id=sessions.receipt_id or None,
            ended=sessions.ended,
            pending=sessions.pending,
            pending_until=iso_or_none(sessions.pending_until),
        )


_Ended = Annotated[
    EndedSessionsShape | None,
    Field(description="Null without messaging, or if nothing changed."),
]


class WithSessions(BaseModel):
    """A response to a change that may end live sessions."""

    sessions: _Ended = None


class ReceiptShape(WithSessions):
    """Proof of a revocation: nothing accepts the key from this change feed revision on."""

    id: str
    key_id: str
    kid: str | None = Field(description="The revoked secret; null if the key was revoked.")
    epoch: str
    revision: int
    revoked_at: str
    reason: str
    reach: Reach = Field(
        description="`everywhere`: no verifier accepts it any more; `bounded`: `late_verifiers` "
        "without the database still may, for at most `staleness_s`."
    )
    verifiers: int = Field(description="The number of verifier processes.")
    late_verifiers: int
    staleness_s: float
    took_ms: float = Field(description="From the commit until every verifier knew.")


def iso_or_none(ms: int | None) -> str | None:
    """Return an RFC 3339 time; None stays None."""
    return None if ms is None else iso(ms)


def read_time(text: str | None, field: str) -> int | None:
    """Parse a time into epoch milliseconds; raises `InvalidTime`."""
    if text is None:
        return None
    try:
        return parse_iso(text)
    except ValueError:
        raise InvalidTime(field=field) from None


def render_key(key: KeyRecord, now: int) -> KeyShape:
    """Render a key and its status at `now`."""
    return KeyShape(
        id=key.id,
        name=key.name,
        type=key.type,
        environment=key.environment,
        status=key.status(now),
        description=key.description,
        permissions=list(key.permissions),
        allowed_addresses=list(key.allowed_addresses),
        allowed_origins=list(key.allowed_origins),
        allow_native=key.allow_native,
        rate_limit=_render_rate(key.rate_limit),
        metadata=dict(key.metadata),
        created_at=iso(key.created_at),
        created_by=key.created_by,
        updated_at=iso(key.updated_at),
        rotated_at=iso(key.rotated_at),
        rotation_due=key.rotation_due(now),
        expires_at=iso_or_none(key.expires_at),
        disabled_at=iso_or_none(key.disabled_at),
        revoked_at=iso_or_none(key.revoked_at),
        revoke_reason=key.revoke_reason,
        revoke_comment=key.revoke_comment,
        secrets=[_render_secret(secret, key, now) for secret in key.secrets],
    )


def render_issued_key(issued: Issued, now: int) -> IssuedShape:
    """Render a new secret; only this and the command line return its text."""
    return IssuedShape(
        key=render_key(issued.key, now),
        kid=issued.kid,
        secret=issued.secret.text,
        organization=NamedOrganization(id=issued.key.org_id, name=issued.organization_name),
        warnings=list(issued.warnings),
    )


def render_ended_sessions(sessions: EndedSessions | None) -> EndedSessionsShape | None:
    """Render the ended sessions; None without messaging."""
    return None if sessions is None else EndedSessionsShape.of(sessions)


def render_receipt(receipt: Receipt, confirmed: Confirmation) -> ReceiptShape:
    """Render a receipt with the reach of its revocation."""
    return ReceiptShape(
        id=receipt.id,
        key_id=receipt.key_id,
        kid=receipt.kid or None,
        epoch=receipt.epoch,
        revision=receipt.revision,
        revoked_at=iso(receipt.revoked_at),
        reason=receipt.reason,
        reach=confirmed.reach,
        verifiers=confirmed.verifiers,
        late_verifiers=confirmed.late,
        staleness_s=confirmed.staleness_s,
        took_ms=round(confirmed.took_ms, 1),
        sessions=render_ended_sessions(confirmed.sessions),
    )


def _render_rate(rate: Rate | None) -> RateShape | None:
    if rate is None:
        return None
    return RateShape(limit=rate.limit, period_s=rate.period_s, burst=rate.burst)


def _render_secret(secret: SecretRecord, key: KeyRecord, now: int) -> SecretShape:
    last_used = None
    if secret.last_used_at is not None:
        last_used = LastUse(
            at=iso(secret.last_used_at),
            address=secret.last_used_address or "",
            user_agent=secret.last_used_agent or "",
        )
    return SecretShape(
        kid=secret.kid,
        prefix=secret.prefix,
        created_at=iso(secret.created_at),
        created_by=secret.created_by,
        grace_ends_at=iso_or_none(secret.expires_at),
        revoked_at=iso_or_none(secret.revoked_at),
        revoke_reason=secret.revoke_reason,
        revoke_comment=secret.revoke_comment,
        imported=secret.imported,
        live=secret.live(now) and key.revoked_at is None,
        last_used=last_used,
    )
