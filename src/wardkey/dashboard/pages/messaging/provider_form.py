"""The form of a new or edited auth provider: reading it, and its initial values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from wardkey.dashboard.pages.keys.key_form import read_rate
from wardkey.dashboard.shell.auth import Fields
from wardkey.dashboard.shell.rendering import fault_of
from wardkey.domain.errors import InvalidRequest, WardkeyError
from wardkey.domain.providers import (
    FIELDS,
    LONGEST_REFRESH_S,
    LONGEST_TTL_S,
    AudienceClaim,
    ClaimMapping,
    ExchangeLimits,
    ProviderKind,
    ProviderSpec,
    UsernameFrom,
)

_LONGEST_NUMBER = 9
_LISTS = ("audiences", "allowed_origins", "algorithms")
_TEXTS = ("project_url", "project_id", "domain", "issuer", "jwks_uri")
# The form shows faults of these fields at the field.
FORM_FIELDS = (
    "name", "secret", *_TEXTS, *_LISTS, "audience_claim", "user_id", "email",
    "verified_email_only", "email_verified", "roles", "variables", "required",
    "max_ttl_s", "max_refresh_s", "limit", "token",
)  # fmt: skip


def read_kind(fields: Fields) -> ProviderKind:
    """Return the kind chosen in the form; raises `InvalidRequest`."""
    if fields.text("kind") not in set(ProviderKind):
        raise _invalid_field("kind", "Choose a value from the list.")
    return ProviderKind(fields.text("kind"))


def read_provider(fields: Fields, kind: ProviderKind) -> ProviderSpec:
    """Return a provider's spec from the form's fields for its kind; the action validates the rest.

    Raises `InvalidRequest`, `InvalidRateLimit`.
    """
    settings: dict[str, Any] = {}
    for name in FIELDS[kind]:
        if name in _LISTS:
            settings[name] = fields.lines(name)
        elif name in _TEXTS:
            settings[name] = fields.text(name).strip()
        elif name == "audience_claim":
            settings[name] = _audience_claim(fields)
        else:
            settings[name] = fields.text(name) == "1"
    return ProviderSpec(
        kind,
        fields.text("name").strip(),
        **settings,
        mapping=_mapping(fields),
        limits=ExchangeLimits(
            _seconds(fields, "max_ttl_s", LONGEST_TTL_S),
            _seconds(fields, "max_refresh_s", LONGEST_REFRESH_S),
            read_rate(fields),
            fields.text("publishable_may_exchange") == "1",
            fields.text("keyless_may_exchange") == "1",
        ),
    )


def values_of(spec: ProviderSpec) -> Mapping[str, str]:
    """Return the form's initial values."""
    mapping, limits, rate = spec.mapping, spec.limits, spec.limits.rate
    values = {
        "kind": str(spec.kind),
        "name": spec.name,
        **{name: getattr(spec, name) for name in _TEXTS},
        **{name: "\n".join(getattr(spec, name)) for name in _LISTS},
        "audience_claim": str(spec.audience_claim),
        "legacy_secret": "1" * spec.legacy_secret,
        "user_id": mapping.user_id,
        "email": mapping.email,
        "roles": mapping.roles,
        "variables": "\n".join(f"{name}={path}" for name, path in mapping.variables.items()),
        "required": "\n".join(mapping.required),
        "username_from": str(mapping.username_from),
        "verified_email_only": "1" * mapping.verified_email_only,
        "email_verified": mapping.email_verified,
        "max_ttl_s": str(limits.max_ttl_s),
        "max_refresh_s": str(limits.max_refresh_s),
        "limit": str(rate.limit) if rate else "",
        "period": str(rate.period_s) if rate else "60",
        "burst": str(rate.burst) if rate else "",
        "publishable_may_exchange": "1" * limits.publishable_may_exchange,
        "keyless_may_exchange": "1" * limits.keyless_may_exchange,
    }
    return defaultdict(str, values)


def fault_at(failure: WardkeyError) -> Mapping[str, str]:
    """Return a failure as the form shows it; fields in `mapping` and `limits` have no prefix."""
    fault = fault_of(failure)
    parent, _, child = (failure.field or "").partition(".")
    if parent in {"mapping", "limits"} and child:
        return {**fault, "field": child.partition(".")[0]}
    return fault


def _mapping(fields: Fields) -> ClaimMapping:
    variables = {}
    for line in fields.lines("variables"):
        name, equals, path = line.partition("=")
        if not equals:
            raise _invalid_field(
                "variables", "Enter one NAME=claim per line, such as team=app.team."
            )
        variables[name.strip()] = path.strip()
    by_email = fields.text("username_from") == UsernameFrom.EMAIL
    return ClaimMapping(
        fields.text("user_id").strip(),
        fields.text("email").strip(),
        fields.text("roles").strip(),
        variables,
        fields.lines("required"),
        UsernameFrom.EMAIL if by_email else UsernameFrom.USER_ID,
        fields.text("verified_email_only") == "1",
        fields.text("email_verified").strip(),
    )


def _audience_claim(fields: Fields) -> AudienceClaim:
    chosen = fields.text("audience_claim") or AudienceClaim.AUD
    if chosen not in set(AudienceClaim):
        raise _invalid_field("audience_claim", "Choose a value from the list.")
    return AudienceClaim(chosen)


def _seconds(fields: Fields, name: str, default: int) -> int:
    text = fields.text(name).strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER):
        raise _invalid_field(name, "Enter a whole number of seconds.")
    return int(text)


def _invalid_field(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, errors=((field, message),))
