"""Request and response bodies of verification, parsed strictly without the framework."""

from __future__ import annotations

from email.utils import formatdate
from typing import Annotated, Any, TypeVar

import msgspec

from wardkey.domain.callers import MOST_ADDRESS, MOST_ROUTE
from wardkey.domain.errors import InvalidCost, TooManyItems
from wardkey.domain.permissions import KeyType, check_permission_names
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest
from wardkey.verify.body_faults import body_failure
from wardkey.verify.json_body import decode_body, or_null
from wardkey.verify.verifier import VerificationResult

T = TypeVar("T")

MAX_ITEMS = 100
MAX_COST = 1_000_000
# More than servers accept in one header; the stored part is shorter.
MAX_USER_AGENT = 8_192


class VerifyRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v2/keys/verify`; every field but `key` adds a requirement."""

    key: str
    permissions: list[str] = []
    environment: Environment | None = None
    type: KeyType | None = None
    organization: str = ""
    address: Annotated[str, msgspec.Meta(max_length=MOST_ADDRESS)] = ""
    origin: str = ""
    user_agent: Annotated[str, msgspec.Meta(max_length=MAX_USER_AGENT)] = ""
    route: Annotated[str, msgspec.Meta(max_length=MOST_ROUTE)] = ""
    cost: int = 1

    def __repr__(self) -> str:
        """Hide the key."""
        return "VerifyRequest(…)"


class VerifyBatch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Up to a hundred requests, answered in their order."""

    items: list[VerifyRequest]


_DESCRIPTIONS = {
    "key": "The text that your client presented. White space around it is ignored.",
    "permissions": "The permissions that the key must have, all of them, such as your scope "
    "invoices:read; without them any live key is valid. A text that no key can ever have is an "
    "error: unknown_permission.",
    "environment": "The environment that the key must belong to. The default for a calling key is "
    "its own, and it can't send the other; without it a service key accepts both.",
    "type": "The type of key that you accept; without it both.",
    "organization": "The organization whose keys you accept, by id. A key and a person can only "
    "verify keys of their own; a service key names one here (a slug works too), or leaves it out "
    "to accept keys of all.",
    "address": "The address of your client, checked against the key's allowed_addresses. Without "
    "it a key with allowed addresses is refused.",
    "origin": "The Origin header of your client, if it sent one, checked against a publishable "
    "key's allowed_origins. A secret key with an origin came from a browser and is refused.",
    "user_agent": "The User-Agent of your client, for the list of a key's callers.",
    "route": "What the key was used for, such as GET /v1/invoices, for the list of its callers; "
    "the default is verify.",
    "cost": "How many requests this one counts as against the key's rate limit; 0 verifies without "
    "counting.",
}
_request = msgspec.json.Decoder(VerifyRequest)
_batch = msgspec.json.Decoder(VerifyBatch)
_encoder = msgspec.json.Encoder()
_VALID = Verdict.VALID


def read_request(body: bytes) -> VerifyRequest:
    """Parse one request.

    Raises `MalformedJson`, `InvalidRequest`, `InvalidCost`, `TooManyItems`, `UnknownPermission`.
    """
    request = _decode(_request, body)
    _check(request)
    return request


def read_batch(body: bytes) -> list[VerifyRequest]:
    """Parse a batch; raises the same errors as `read_request`."""
    batch = _decode(_batch, body)
    if len(batch.items) > MAX_ITEMS:
        raise TooManyItems(f"A batch can have at most {MAX_ITEMS} items; split it.", field="items")
    for index, item in enumerate(batch.items):
        _check(item, f"items.{index}.permissions")
    return batch.items


def render(result: VerificationResult, request: VerificationRequest) -> bytes:
    """Return a result as JSON; the key and the reason only for a secret whose hash matched."""
    known = result.known
    if result.verdict is _VALID:
        start = b'{"valid":true,"code":"valid"'
    else:
        detail = _encoder.encode(result.failure(request).detail)
        start = b'{"valid":false,"code":"%b","detail":%b' % (result.verdict.encode(), detail)
    stale = b',"stale_s":%.1f' % (result.stale_ms / 1000) if result.stale_ms else b""
    as_of = iso(result.as_of).encode()
    if known is None:
        return b'%b%b,"as_of":"%b"}' % (start, stale, as_of)
    limits = b"null" if result.admission is None else _encoder.encode(_limits(result))
    return b'%b,%b,"limits":%b%b,"as_of":"%b"}' % (
        start,
        known.rendered_fields,
        limits,
        stale,
        as_of,
    )


def render_batch(items: list[bytes]) -> bytes:
    """Return rendered results as one JSON object."""
    return b'{"items":[%b]}' % b",".join(items)


def grace_fields(known: KnownSecret | None) -> dict[str, str]:
    """Return the headers with a secret's grace; none unless the key has a newer secret.

    `Deprecation` (RFC 9745) is the start of the grace, `Sunset` (RFC 8594) its end; a grace until
    the secret is revoked has no `Sunset`.
    """
    if known is None or known.superseded_at is None or known.secret_revoked_at is not None:
        return {}
    fields = {"Deprecation": f"@{known.superseded_at // 1000}"}
    if known.expires_at is not None:
        fields["Sunset"] = formatdate(known.expires_at // 1000, usegmt=True)
    return fields


def schemas() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the JSON Schemas of the two requests, and the components that they refer to."""
    bodies, parts = msgspec.json.schema_components(
        [VerifyRequest, VerifyBatch], ref_template="#/components/schemas/{name}"
    )
    fields = parts["VerifyRequest"]["properties"]
    fields["cost"] |= {"minimum": 0, "maximum": MAX_COST}
    fields["permissions"]["maxItems"] = MAX_ITEMS
    fields["permissions"]["items"]["format"] = "permission"
    for name in fields:
        if name != "key":
            fields[name] = or_null(fields[name])
        # A description next to a reference is allowed (JSON Schema 2020-12).
        fields[name] |= {"description": _DESCRIPTIONS[name]}
    parts["VerifyBatch"]["properties"]["items"]["maxItems"] = MAX_ITEMS
    parts["VerifyRequest"]["example"] = {"key": "sk_live_…", "permissions": ["invoices:read"]}
    # Environment and KeyType are already in the document, from the routes that return them.
    shared = {name: part for name, part in parts.items() if name.startswith("Verify")}
    return bodies[0], bodies[1], shared


def _limits(result: VerificationResult) -> dict[str, Any] | None:
    if result.admission is None or result.known is None or result.known.rate is None:
        return None
    rate, admission = result.known.rate, result.admission
    wait = admission.retry_after_ms
    return {
        "limit": rate.limit,
        "period_s": rate.period_ms // 1000,
        "burst": rate.burst,
        "remaining": admission.remaining,
        "reset_s": round(admission.reset_ms / 1000, 3),
        "retry_after_s": None if wait is None else round(wait / 1000, 3),
    }


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decode_body(decoder, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise body_failure(body, decoder.type, error) from None


def _check(request: VerifyRequest, field: str = "permissions") -> None:
    if not 0 <= request.cost <= MAX_COST:
        raise InvalidCost(field="cost")
    if len(request.permissions) > MAX_ITEMS:
        raise TooManyItems(
            f"One request can have at most {MAX_ITEMS} permissions; leave some out.",
            field="permissions",
        )
    check_permission_names(request.permissions, field)
