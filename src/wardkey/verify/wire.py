"""The bytes of a verification: questions read strictly, answers written, without any framework."""

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

MOST_ITEMS = 100
MOST_COST = 1_000_000
# More than servers take in one header; what is kept of it is shorter.
MOST_ASKED_AGENT = 8_192


class VerifyRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `POST /v2/keys/verify` takes; all but `key` narrows the question."""

    key: str
    permissions: list[str] = []
    environment: Environment | None = None
    type: KeyType | None = None
    organization: str = ""
    address: Annotated[str, msgspec.Meta(max_length=MOST_ADDRESS)] = ""
    origin: str = ""
    user_agent: Annotated[str, msgspec.Meta(max_length=MOST_ASKED_AGENT)] = ""
    route: Annotated[str, msgspec.Meta(max_length=MOST_ROUTE)] = ""
    cost: int = 1

    def __repr__(self) -> str:
        """Show nothing of the key."""
        return "VerifyRequest(…)"


class VerifyBatch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Up to a hundred questions, answered in their order."""

    items: list[VerifyRequest]


_DESCRIPTIONS = {
    "key": "The text that your client presented. White space around it does not count.",
    "permissions": "What the key must hold, all of them, such as your scope invoices:read; without "
    "them any live key is valid. A text that no key can ever hold is a fault: unknown_permission.",
    "environment": "Where the key must belong. A key that asks has its own as the default, and "
    "may ask about no other; a service key without it takes both.",
    "type": "Which type of key you take; without it either.",
    "organization": "Whose keys you take, by id. A key and a person ask about their own alone; a "
    "service key names one here (a slug will do), or leaves it out to take keys of all.",
    "address": "The address of your client, against the key's allowed_addresses. Without it a key "
    "with allowed addresses is refused.",
    "origin": "The Origin header of your client, if it sent one, against a publishable key's "
    "allowed_origins. A secret key with an origin came from a browser and is refused.",
    "user_agent": "The User-Agent of your client, for the list of a key's callers.",
    "route": "What the key was used for, such as GET /v1/invoices, for the list of its callers; "
    "verify if left out.",
    "cost": "How many requests this one counts as against the key's rate limit; 0 asks without "
    "counting.",
}
_request = msgspec.json.Decoder(VerifyRequest)
_batch = msgspec.json.Decoder(VerifyBatch)
_encoder = msgspec.json.Encoder()
_VALID = Verdict.VALID


def read_request(body: bytes) -> VerifyRequest:
    """Read one question.

    Raises `MalformedJson`, `InvalidRequest`, `InvalidCost`, `TooManyItems`, `UnknownPermission`.
    """
    wanted = _decode(_request, body)
    _check(wanted)
    return wanted


def read_batch(body: bytes) -> list[VerifyRequest]:
    """Read a batch; raises what `read_request` raises."""
    batch = _decode(_batch, body)
    if len(batch.items) > MOST_ITEMS:
        raise TooManyItems(f"A batch takes at most {MOST_ITEMS} items.", field="items")
    for index, item in enumerate(batch.items):
        _check(item, f"items.{index}.permissions")
    return batch.items


def render(answer: VerificationResult, asked: VerificationRequest) -> bytes:
    """Return an answer as JSON.

    Only a secret whose hash matched is told of: its key, and why it was refused.
    """
    known = answer.known
    if answer.verdict is _VALID:
        said = b'{"valid":true,"code":"valid"'
    else:
        detail = _encoder.encode(answer.failure(asked).detail)
        said = b'{"valid":false,"code":"%b","detail":%b' % (answer.verdict.encode(), detail)
    stale = b',"stale_s":%.1f' % (answer.stale_ms / 1000) if answer.stale_ms else b""
    as_of = iso(answer.as_of).encode()
    if known is None:
        return b'%b%b,"as_of":"%b"}' % (said, stale, as_of)
    limits = b"null" if answer.admission is None else _encoder.encode(_limits(answer))
    return b'%b,%b,"limits":%b%b,"as_of":"%b"}' % (
        said,
        known.rendered_fields,
        limits,
        stale,
        as_of,
    )


def render_batch(items: list[bytes]) -> bytes:
    """Return rendered answers as one JSON object."""
    return b'{"items":[%b]}' % b",".join(items)


def grace_fields(known: KnownSecret | None) -> dict[str, str]:
    """Return the header fields that tell a proxy of a secret's grace; none without a newer one.

    `Deprecation` (RFC 9745) is when the grace began, `Sunset` (RFC 8594) when it ends; a grace
    until the secret is revoked has no end yet.
    """
    if known is None or known.superseded_at is None or known.secret_revoked_at is not None:
        return {}
    fields = {"Deprecation": f"@{known.superseded_at // 1000}"}
    if known.expires_at is not None:
        fields["Sunset"] = formatdate(known.expires_at // 1000, usegmt=True)
    return fields


def schemas() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the JSON Schemas of the two questions, and the components that they refer to."""
    made, parts = msgspec.json.schema_components(
        [VerifyRequest, VerifyBatch], ref_template="#/components/schemas/{name}"
    )
    one = parts["VerifyRequest"]["properties"]
    one["cost"] |= {"minimum": 0, "maximum": MOST_COST}
    one["permissions"]["maxItems"] = MOST_ITEMS
    one["permissions"]["items"]["format"] = "permission"
    for name in one:
        if name != "key":
            one[name] = or_null(one[name])
        # Beside a reference a description counts too (JSON Schema 2020-12).
        one[name] |= {"description": _DESCRIPTIONS[name]}
    parts["VerifyBatch"]["properties"]["items"]["maxItems"] = MOST_ITEMS
    parts["VerifyRequest"]["example"] = {"key": "sk_live_…", "permissions": ["invoices:read"]}
    # These two are in the document already, with the routes that answer them.
    shared = {name: part for name, part in parts.items() if name.startswith("Verify")}
    return made[0], made[1], shared


def _limits(answer: VerificationResult) -> dict[str, Any] | None:
    if answer.admission is None or answer.known is None or answer.known.rate is None:
        return None
    rate, admission = answer.known.rate, answer.admission
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


def _check(wanted: VerifyRequest, field: str = "permissions") -> None:
    if not 0 <= wanted.cost <= MOST_COST:
        raise InvalidCost(field="cost")
    if len(wanted.permissions) > MOST_ITEMS:
        raise TooManyItems(
            f"One question names at most {MOST_ITEMS} permissions.", field="permissions"
        )
    check_permission_names(wanted.permissions, field)
