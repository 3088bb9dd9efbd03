"""The JSON shapes that several routes share, and how records are rendered into them."""

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
    """`{…:id}` in a path: only what looks like an id, so that `/v2/keys/import` is none."""

    regex = "[A-Za-z]+_[0-9A-Za-z]{1,60}"


register_url_convertor("id", IdConvertor())

Id = Annotated[str, Path(pattern=f"^{IdConvertor.regex}$", examples=["key_0fA3xQ2LmN7pR9sT1uV4wY"])]
Kid = Annotated[str, Path(pattern="^[0-9A-Za-z]{12}$", examples=["7QdRk2mVx9Ta"])]

# What the domain checks is only written down here, so that each fault keeps its own code. The
# formats that JSON Schema does not know are rules of Unicode and networks, told in words.
PREFIX = "^[A-Za-z][A-Za-z0-9_-]{2,31}$"
SCOPE = "^[a-z][a-z0-9_.-]{0,31}(:[a-z0-9_.-]{1,32}){1,2}$"
_LARGEST = 2**53
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
        description="At most 500 characters; of those that control, only tab and line break.",
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
        description="https://host[:port], where *. before the host takes all below it, or the "
        "exact origin of an app, such as capacitor://localhost.",
        json_schema_extra={"format": "origin"},
    ),
]
Grantable = Annotated[
    str,
    Field(
        description="One of Wardkey's own, or a scope of your catalogue such as invoices:read.",
        json_schema_extra={"format": "permission", "maxLength": 98},
    ),
]
_PLAIN_VALUE: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST},
    {"type": "string", "format": "text", "maxLength": 500},
    {"type": "null"},
]
Metadata = Annotated[
    dict[str, Any],
    Field(
        description="Short names and JSON values of up to five levels, 8 KiB in all. Lists and "
        "objects may hold others.",
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
    """A request body or a part of one: unknown fields are refused, numbers never read from strings.

    Null stands for a field that is left out, but where the field itself takes null.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, dict) or None not in value.values():
            return value
        absent = _absent_as_null(cls)
        return {
            name: item for name, item in value.items() if item is not None or name not in absent
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema, in which each field that null leaves out takes null."""
        made: dict[str, Any] = handler(core_schema)
        if handler.mode == "validation":
            properties = handler.resolve_ref_schema(made).get("properties", {})
            for name in _absent_as_null(cls) & properties.keys():
                properties[name] = or_null(properties[name])
        return made


@lru_cache
def _absent_as_null(shape: type[BaseModel]) -> frozenset[str]:
    """Return the names of optional fields whose own type does not take null."""
    return frozenset(
        name
        for name, field in shape.model_fields.items()
        if not field.is_required() and NoneType not in get_args(field.annotation)
    )


class RateShape(Input):
    """At most `limit` requests in `period_s` seconds, of which `burst` may come at once."""

    limit: StrictInt = Field(ge=1, le=1_000_000_000)
    period_s: StrictInt = Field(ge=1, le=2_678_400)
    burst: StrictInt = Field(ge=1, le=1_000_000_000)


class LastUse(BaseModel):
    """When and from where a secret was last used; at most two seconds late."""

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
    """Which organization something belongs to."""

    id: str
    name: str


class IssuedShape(BaseModel):
    """A key with its new secret, which is never shown again."""

    key: KeyShape
    kid: str
    secret: str = Field(description="Shown this once; store it where only its program reads it.")
    organization: NamedOrganization
    warnings: list[str]


class EndedSessionsShape(BaseModel):
    """How many live MQTT sessions a change has ended."""

    receipt_id: str | None = Field(
        description="For `GET /v2/sessions/receipts/{receipt_id}`; null where the change concerns "
        "no session."
    )
    ended: int | None = Field(description="Null while the broker cannot be asked.")
    pending: bool = Field(
        description="A login that was in flight at that moment may still open a session, which is "
        "then ended and counted too."
    )
    pending_until: str | None = Field(
        description="2.1 s after the change; null if nothing is pending, or the broker is away."
    )

    @classmethod
    def of(cls, sessions: EndedSessions) -> EndedSessionsShape:
        """Render what became of live sessions."""
        return cls(
            receipt_id=sessions.receipt_id or None,
            ended=sessions.ended,
            pending=sessions.pending,
            pending_until=when(sessions.pending_until),
        )


_Ended = Annotated[
    EndedSessionsShape | None,
    Field(description="Null without messaging, and in an answer that changes nothing."),
]


class WithSessions(BaseModel):
    """An answer to a change that may end live sessions."""

    sessions: _Ended = None


class ReceiptShape(WithSessions):
    """Proof of a revocation: from this revision of the change feed on nothing accepts the key."""

    id: str
    key_id: str
    kid: str | None = Field(description="The one secret, or null where the key was revoked.")
    epoch: str
    revision: int
    revoked_at: str
    reason: str
    reach: Reach = Field(
        description="`everywhere`: no verifier accepts it any more; `bounded`: `late_verifiers` "
        "that go on without the database may, for at most `staleness_s`."
    )
    verifiers: int = Field(description="How many verifier processes were asked.")
    late_verifiers: int
    staleness_s: float
    took_ms: float = Field(description="From the commit until every verifier knew.")


def when(ms: int | None) -> str | None:
    """Return an RFC 3339 time, or None for none."""
    return None if ms is None else iso(ms)


def read_time(text: str | None, field: str) -> int | None:
    """Return epoch milliseconds of a caller's time; raises `InvalidTime`."""
    if text is None:
        return None
    try:
        return parse_iso(text)
    except ValueError:
        raise InvalidTime(field=field) from None


def key_shape(key: KeyRecord, now: int) -> KeyShape:
    """Render a key as it is at `now`."""
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
        rate_limit=_rate_shape(key.rate_limit),
        metadata=dict(key.metadata),
        created_at=iso(key.created_at),
        created_by=key.created_by,
        updated_at=iso(key.updated_at),
        rotated_at=iso(key.rotated_at),
        rotation_due=key.rotation_due(now),
        expires_at=when(key.expires_at),
        disabled_at=when(key.disabled_at),
        revoked_at=when(key.revoked_at),
        revoke_reason=key.revoke_reason,
        revoke_comment=key.revoke_comment,
        secrets=[_secret_shape(secret, key, now) for secret in key.secrets],
    )


def issued_shape(issued: Issued, now: int) -> IssuedShape:
    """Render a new secret: the one place besides the command line where its text leaves."""
    return IssuedShape(
        key=key_shape(issued.key, now),
        kid=issued.kid,
        secret=issued.secret.text,
        organization=NamedOrganization(id=issued.key.org_id, name=issued.organization_name),
        warnings=list(issued.warnings),
    )


def ended_shape(sessions: EndedSessions | None) -> EndedSessionsShape | None:
    """Render what became of live sessions; None without messaging."""
    return None if sessions is None else EndedSessionsShape.of(sessions)


def receipt_shape(receipt: Receipt, confirmed: Confirmation) -> ReceiptShape:
    """Render a receipt and how far its revocation has reached."""
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
        sessions=ended_shape(confirmed.sessions),
    )


def _rate_shape(rate: Rate | None) -> RateShape | None:
    if rate is None:
        return None
    return RateShape(limit=rate.limit, period_s=rate.period_s, burst=rate.burst)


def _secret_shape(secret: SecretRecord, key: KeyRecord, now: int) -> SecretShape:
    used = None
    if secret.last_used_at is not None:
        used = LastUse(
            at=iso(secret.last_used_at),
            address=secret.last_used_address or "",
            user_agent=secret.last_used_agent or "",
        )
    return SecretShape(
        kid=secret.kid,
        prefix=secret.prefix,
        created_at=iso(secret.created_at),
        created_by=secret.created_by,
        grace_ends_at=when(secret.expires_at),
        revoked_at=when(secret.revoked_at),
        revoke_reason=secret.revoke_reason,
        revoke_comment=secret.revoke_comment,
        imported=secret.imported,
        live=secret.live(now) and key.revoked_at is None,
        last_used=used,
    )
