from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wardkey.domain.errors import (
    ExpiryInPast,
    InvalidAddress,
    InvalidGrace,
    InvalidMetadata,
    InvalidName,
    InvalidOrigin,
    InvalidRateLimit,
    InvalidText,
    OriginsNotForType,
    TooManyItems,
    WardkeyError,
)
from wardkey.domain.keys import (
    KeyRecord,
    KeySpec,
    Rate,
    Reason,
    SecretRecord,
    clean_addresses,
    clean_spec,
    grace_end,
)
from wardkey.domain.permissions import KeyType
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso

NOW = 1_900_000_000_000
DAY = 86_400_000
SECRET = SecretRecord(
    kid="7QdRk2mVx9Ta",
    prefix="sk_live_7QdR…",
    created_at=NOW,
    created_by="user_1",
    expires_at=None,
    revoked_at=None,
    revoke_reason=None,
    revoke_comment=None,
    imported=False,
)
KEY = KeyRecord(
    id="key_1",
    org_id="org_1",
    environment=Environment.LIVE,
    type=KeyType.SECRET,
    name="live-billing-export",
    description="",
    permissions=(),
    allowed_addresses=(),
    allowed_origins=(),
    allow_native=False,
    rate_limit=None,
    metadata={},
    created_at=NOW,
    created_by="user_1",
    updated_at=NOW,
    rotated_at=NOW,
    expires_at=None,
    disabled_at=None,
    revoked_at=None,
    revoke_reason=None,
    revoke_comment=None,
    secrets=(SECRET,),
)
SPEC = KeySpec("live-billing-export", KeyType.SECRET, Environment.LIVE)
PAGE = replace(SPEC, type=KeyType.PUBLISHABLE)


# --- status and rotations --------------------------------------------------------------------


@pytest.mark.parametrize("revoked", [None, NOW - 1])
@pytest.mark.parametrize("expires", [None, NOW, NOW + 1])
@pytest.mark.parametrize("disabled", [None, NOW - 1])
def test_the_status_is_the_strongest_reason(
    revoked: int | None, expires: int | None, disabled: int | None
) -> None:
    key = replace(KEY, revoked_at=revoked, expires_at=expires, disabled_at=disabled)
    expected = "active"
    if disabled is not None:
        expected = "disabled"
    if expires == NOW:
        expected = "expired"
    if revoked is not None:
        expected = "revoked"
    assert key.status(NOW) == expected


def test_an_expiry_is_exact_to_the_millisecond() -> None:
    key = replace(KEY, expires_at=NOW)
    assert [key.status(NOW + ms) for ms in (-1, 0, 1)] == ["active", "expired", "expired"]


@pytest.mark.parametrize(
    ("changes", "live"),
    [
        ({}, True),
        ({"expires_at": NOW + 1}, True),
        ({"expires_at": NOW}, False),
        ({"revoked_at": NOW + 1}, False),
        ({"revoked_at": NOW - 1, "expires_at": NOW + 1}, False),
    ],
)
def test_a_secret_lives_until_its_grace_ends_or_it_is_revoked(
    *, changes: dict[str, Any], live: bool
) -> None:
    assert replace(SECRET, **changes).live(NOW) is live


def test_a_rotation_is_due_on_the_ninetieth_day() -> None:
    assert not KEY.rotation_due(NOW + 90 * DAY - 1)
    assert KEY.rotation_due(NOW + 90 * DAY)


def test_a_rotation_is_due_when_the_policy_says() -> None:
    soon = replace(KEY, rotation_days=7)
    assert not soon.rotation_due(NOW + 7 * DAY - 1)
    assert soon.rotation_due(NOW + 7 * DAY)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": KeyType.PUBLISHABLE},
        {"revoked_at": NOW},
        {"expires_at": NOW + 90 * DAY},
        {"rotated_at": NOW + DAY},
    ],
)
def test_no_rotation_is_due_for_keys_that_need_none(changes: dict[str, Any]) -> None:
    assert not replace(KEY, **changes).rotation_due(NOW + 90 * DAY)


def test_the_reasons_are_spelled_as_in_rfc_5280() -> None:
    assert list(Reason) == [
        "unspecified",
        "keyCompromise",
        "affiliationChanged",
        "superseded",
        "cessationOfOperation",
        "privilegeWithdrawn",
    ]


# --- grace -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "end"),
    [
        ("now", NOW),
        ("1h", NOW + 3_600_000),
        ("24h", NOW + DAY),
        ("7d", NOW + 7 * DAY),
        ("until_revoked", None),
        (iso(NOW + 1), NOW + 1),
        ("2030-03-17T19:46:40.001+02:00", NOW + 1),
    ],
)
def test_a_grace_ends_at_the_stated_time(grace: str, end: int | None) -> None:
    assert grace_end(grace, NOW) == end


@pytest.mark.parametrize(
    "grace", ["", "2h", "1H", "30d", " 1h", "Now", "0", "until-revoked", "2030-03-17", iso(NOW),
              iso(NOW - 1)]
)  # fmt: skip
def test_an_unknown_grace_is_refused(grace: str) -> None:
    with pytest.raises(InvalidGrace) as caught:
        grace_end(grace, NOW)
    assert caught.value.field == "grace"


# --- validation of key specs -----------------------------------------------------------------


def test_a_spec_is_returned_in_canonical_form_and_otherwise_unchanged() -> None:
    spec = KeySpec(
        "  live-billing-export ",
        KeyType.PUBLISHABLE,
        Environment.TEST,
        permissions=("publish",),
        expires_at=NOW + 1,
        description=" a\r\nb ",
        allowed_addresses=("192.0.2.1", "::ffff:192.0.2.1", "2001:DB8::/32"),
        allowed_origins=("https://App.example.com:443", "https://app.example.com"),
        allow_native=True,
        rate_limit=Rate(1, 1, 1),
        metadata={"team": "billing"},
    )
    assert clean_spec(spec, NOW) == replace(
        spec,
        name="live-billing-export",
        description="a\nb",
        allowed_addresses=("192.0.2.1/32", "2001:db8::/32"),
        allowed_origins=("https://app.example.com",),
    )


@pytest.mark.parametrize(
    ("changes", "failure", "field"),
    [
        ({"expires_at": NOW}, ExpiryInPast, "expires_at"),
        ({"expires_at": NOW - 1}, ExpiryInPast, "expires_at"),
        ({"name": " "}, InvalidName, "name"),
        ({"name": "n" * 101}, InvalidName, "name"),
        ({"name": "a\u202eb"}, InvalidName, "name"),
        ({"description": "d" * 501}, InvalidText, "description"),
        ({"description": "a\0"}, InvalidText, "description"),
        ({"metadata": {"a b": 1}}, InvalidMetadata, "metadata"),
        ({"metadata": {f"n{n}": n for n in range(51)}}, InvalidMetadata, "metadata"),
        ({"allowed_addresses": ("::1", "x")}, InvalidAddress, "allowed_addresses.1"),
        ({"allowed_addresses": ("192.0.2.1/24",)}, InvalidAddress, "allowed_addresses.0"),
        ({"allowed_addresses": ("::1",) * 101}, TooManyItems, "allowed_addresses"),
        ({"allowed_origins": ("https://a.example.com",)}, OriginsNotForType, "allowed_origins"),
        ({"allow_native": True}, OriginsNotForType, "allowed_origins"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_field(
    changes: dict[str, Any], failure: type[WardkeyError], field: str
) -> None:
    with pytest.raises(failure) as caught:
        clean_spec(replace(SPEC, **changes), NOW)
    assert caught.value.field == field


def test_an_invalid_origin_is_refused_with_its_index() -> None:
    origins = ("https://a.example.com", "http://a.example.com")
    with pytest.raises(InvalidOrigin) as caught:
        clean_spec(replace(PAGE, allowed_origins=origins), NOW)
    assert caught.value.field == "allowed_origins.1"
    with pytest.raises(TooManyItems) as many:
        clean_spec(replace(PAGE, allowed_origins=("https://a.example.com",) * 101), NOW)
    assert many.value.field == "allowed_origins"


def test_a_hundred_addresses_and_origins_are_accepted() -> None:
    addresses = tuple(f"192.0.2.{n}/32" for n in range(100))
    origins = tuple(f"https://a{n}.example.com" for n in range(100))
    spec = replace(PAGE, allowed_addresses=addresses, allowed_origins=origins)
    assert clean_spec(spec, NOW) == spec
    assert clean_addresses(addresses) == addresses


MOST = {"limit": 1_000_000_000, "period_s": 31 * 86_400, "burst": 1_000_000_000}


@pytest.mark.parametrize("name", MOST)
def test_rate_limit_numbers_have_a_minimum_and_a_maximum(name: str) -> None:
    rate = Rate(10, 60, 5)
    for right in (1, MOST[name]):
        limited = replace(SPEC, rate_limit=replace(rate, **{name: right}))
        assert clean_spec(limited, NOW).rate_limit == limited.rate_limit
    for wrong in (0, -1, MOST[name] + 1):
        with pytest.raises(InvalidRateLimit) as caught:
            clean_spec(replace(SPEC, rate_limit=replace(rate, **{name: wrong})), NOW)
        assert caught.value.field == f"rate_limit.{name}"
        assert f"{MOST[name]:,}" in caught.value.detail
