from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardkey.domain.addresses import parse_networks
from wardkey.domain.errors import WardkeyError
from wardkey.domain.permissions import KeyType
from wardkey.domain.rate import RateLimit
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest, decide, failure_of

NOW = 1_900_000_000_000
PLAIN = KnownSecret(
    kid="7QdRk2mVx9Ta",
    key_id="key_1",
    org_id="org_1",
    org_name="Acme",
    org_slug="acme",
    environment=Environment.LIVE,
    type=KeyType.SECRET,
    name="live-billing-export",
    prefix="sk_live_7QdR…",
    digest=bytes(32),
    pepper_version=1,
    imported=False,
    permissions=frozenset({"keys:read", "invoices:read"}),
    metadata={},
    networks=(),
    origins=(),
    allow_native=False,
    rate=None,
    secret_expires_at=None,
    secret_revoked_at=None,
    key_expires_at=None,
    key_disabled_at=None,
    key_revoked_at=None,
    org_stopped=False,
)
PAGE = replace(
    PLAIN, type=KeyType.PUBLISHABLE, prefix="pk_live_7QdR…", permissions=frozenset({"publish"})
)


def verdict_of(known: KnownSecret = PLAIN, now: int = NOW, **asked: Any) -> str:  # noqa: ANN401
    return str(decide(known, VerificationRequest("sk_live_…", **asked), now))


def test_a_key_without_restrictions_is_valid_for_a_plain_request() -> None:
    assert verdict_of() == "valid"
    assert verdict_of(PAGE) == "valid"


# --- the order of the reasons ----------------------------------------------------------------

# A cause for each reason in order of precedence; a later reason never hides an earlier one.
CAUSES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("unknown", {}, {"organization": "another"}),
    ("revoked", {"key_revoked_at": NOW}, {}),
    ("expired", {"key_expires_at": NOW}, {}),
    ("disabled", {"key_disabled_at": NOW}, {}),
    ("wrong_environment", {}, {"environment": Environment.TEST}),
    ("not_permitted", {}, {"permissions": ("acl:read",)}),
    ("address_not_allowed", {"networks": parse_networks(["192.0.2.0/24"])}, {"address": "::1"}),
    ("origin_not_allowed", {}, {"browser": True}),
]
NAMES = [name for name, _, _ in CAUSES]


@pytest.mark.parametrize("first", NAMES)
def test_the_first_reason_in_order_takes_precedence(first: str) -> None:
    known = PLAIN
    asked: dict[str, Any] = {}
    for _, state, question in CAUSES[NAMES.index(first) :]:
        known = replace(known, **state)
        asked |= question
    assert verdict_of(known, **asked) == first


@pytest.mark.parametrize(("name", "state", "question"), CAUSES, ids=NAMES)
def test_each_reason_alone_gives_its_verdict(
    name: str, state: dict[str, Any], question: dict[str, Any]
) -> None:
    assert verdict_of(replace(PLAIN, **state), **question) == name


# --- revoked, expired, disabled --------------------------------------------------------------


@pytest.mark.parametrize("at", [0, NOW - 1, NOW, NOW + 1])
@pytest.mark.parametrize("what", ["key_revoked_at", "secret_revoked_at"])
def test_a_revocation_counts_even_if_its_time_is_ahead_of_the_clock(what: str, at: int) -> None:
    changes: dict[str, Any] = {what: at}
    assert verdict_of(replace(PLAIN, **changes)) == "revoked"


@pytest.mark.parametrize("at", [0, NOW + 1])
def test_a_disabled_key_is_refused_whenever_it_was_disabled(at: int) -> None:
    assert verdict_of(replace(PLAIN, key_disabled_at=at)) == "disabled"


def test_the_keys_of_a_suspended_organization_are_disabled() -> None:
    assert verdict_of(replace(PLAIN, org_stopped=True)) == "disabled"


@pytest.mark.parametrize("what", ["key_expires_at", "secret_expires_at"])
def test_an_expiry_is_exact_to_the_millisecond(what: str) -> None:
    changes: dict[str, Any] = {what: NOW}
    known = replace(PLAIN, **changes)
    assert verdict_of(known, NOW - 1) == "valid"
    assert verdict_of(known, NOW) == "expired"
    assert verdict_of(known, NOW + 1) == "expired"


@pytest.mark.parametrize(
    ("grace", "expiry", "first"),
    [(None, None, None), (5, None, 5), (None, 5, 5), (5, 9, 5), (9, 5, 5), (5, 5, 5), (0, 5, 0)],
)
def test_the_earlier_of_grace_and_expiry_ends_a_secret(
    grace: int | None, expiry: int | None, first: int | None
) -> None:
    known = replace(PLAIN, secret_expires_at=grace, key_expires_at=expiry)
    assert known.expires_at == first


# --- requirements of the request -------------------------------------------------------------


@pytest.mark.parametrize("name", ["org_1", "acme", ""])
def test_an_organization_is_identified_by_id_or_slug(name: str) -> None:
    assert verdict_of(organization=name) == "valid"


@pytest.mark.parametrize("name", ["org_2", "Acme", "acm", "acme ", "org_1,acme"])
def test_a_key_is_unknown_in_another_organization(name: str) -> None:
    assert verdict_of(organization=name) == "unknown"


@pytest.mark.parametrize("asked", Environment)
@pytest.mark.parametrize("held", Environment)
def test_a_key_is_valid_only_in_its_own_environment(held: Environment, asked: Environment) -> None:
    known = replace(PLAIN, environment=held)
    assert (verdict_of(known, environment=asked) == "valid") == (held is asked)
    assert verdict_of(known, environment=None) == "valid"


@pytest.mark.parametrize("asked", KeyType)
@pytest.mark.parametrize("held", KeyType)
def test_a_key_of_another_type_than_required_is_not_permitted(
    held: KeyType, asked: KeyType
) -> None:
    known = replace(PLAIN, type=held)
    assert verdict_of(known, type=asked) == ("valid" if held is asked else "not_permitted")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), "valid"),
        (("keys:read",), "valid"),
        (("invoices:read", "keys:read", "keys:read"), "valid"),
        (("keys:read", "keys:write"), "not_permitted"),
        (("keys",), "not_permitted"),
        (("KEYS:READ",), "not_permitted"),
        (("",), "not_permitted"),
    ],
)
def test_every_required_permission_must_be_held(asked: tuple[str, ...], expected: str) -> None:
    assert verdict_of(permissions=asked) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.0", "valid"),
        ("192.0.2.255", "valid"),
        ("192.0.3.0", "address_not_allowed"),
        ("::ffff:192.0.2.7", "valid"),
        ("2001:db8::1", "valid"),
        ("2001:db9::1", "address_not_allowed"),
        ("", "address_not_allowed"),
        ("192.0.2.7 ", "address_not_allowed"),
        ("no address", "address_not_allowed"),
    ],
)
def test_a_key_bound_to_networks_is_valid_only_from_them(address: str, expected: str) -> None:
    bound = replace(PLAIN, networks=parse_networks(["192.0.2.0/24", "2001:db8::/32"]))
    assert verdict_of(bound, address=address) == expected
    assert verdict_of(address=address) == "valid"


# --- browsers --------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"browser": True}, {"origin": "https://app.example.com"}])
def test_a_secret_key_is_never_valid_from_a_browser(asked: dict[str, Any]) -> None:
    assert verdict_of(**asked) == "origin_not_allowed"
    assert verdict_of(replace(PLAIN, allow_native=True), **asked) == "origin_not_allowed"


BOUND = ("https://app.example.com", "https://*.example.org", "http://localhost:3000")


@pytest.mark.parametrize(
    ("origins", "native", "origin", "expected"),
    [
        ((), False, "", "valid"),
        ((), False, "https://anywhere.example.net", "valid"),
        (BOUND, False, "https://app.example.com", "valid"),
        (BOUND, False, "https://app.example.com:443", "valid"),
        (BOUND, False, "https://app.example.com:8443", "origin_not_allowed"),
        (BOUND, False, "http://app.example.com", "origin_not_allowed"),
        (BOUND, False, "https://a.b.example.org", "valid"),
        (BOUND, False, "https://example.org", "origin_not_allowed"),
        (BOUND, False, "https://evilexample.org", "origin_not_allowed"),
        (BOUND, False, "http://localhost:3000", "valid"),
        (BOUND, True, "https://evil.example.net", "origin_not_allowed"),
        (BOUND, True, "null", "origin_not_allowed"),
        (BOUND, True, "", "valid"),
        (BOUND, False, "", "origin_not_allowed"),
    ],
)
@pytest.mark.parametrize("browser", [True, False])
def test_a_publishable_key_is_valid_from_its_origins_and_natively_if_allowed(
    *, origins: tuple[str, ...], native: bool, origin: str, expected: str, browser: bool
) -> None:
    known = replace(PAGE, origins=origins, allow_native=native)
    assert verdict_of(known, origin=origin, browser=browser) == expected


# --- comparison with an exhaustive model -----------------------------------------------------

ORDER = ["unknown", "revoked", "expired", "disabled", "wrong_environment", "not_permitted",
         "address_not_allowed", "origin_not_allowed"]  # fmt: skip


def is_from(allowed: str, origin: str) -> bool:
    ours, theirs = urlsplit(allowed), urlsplit(origin)
    ports = {"https": 443, "http": 80, "": 0}
    host, seen = ours.hostname or "", theirs.hostname or ""
    same_host = seen.split(".")[1:] and seen.endswith(host[1:]) if "*" in host else seen == host
    return (
        ours.scheme == theirs.scheme
        and (ours.port or ports[ours.scheme]) == (theirs.port or ports[theirs.scheme])
        and bool(same_host)
    )


def is_inside(known: KnownSecret, text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(str(block)) for block in known.networks)


def comes_from_elsewhere(known: KnownSecret, asked: VerificationRequest) -> bool:
    if known.type == "secret":
        return asked.browser or asked.origin != ""
    natively = known.allow_native and not asked.origin
    listed = any(is_from(item, asked.origin) for item in known.origins)
    return bool(known.origins) and not natively and not listed


def reasons(known: KnownSecret, asked: VerificationRequest, now: int) -> dict[str, bool]:
    """Return which reasons apply, without using the code under test."""
    ends = [end for end in (known.key_expires_at, known.secret_expires_at) if end is not None]
    return {
        "unknown": asked.organization not in {"", known.org_id, known.org_slug},
        "revoked": {known.key_revoked_at, known.secret_revoked_at} != {None},
        "expired": any(now >= end for end in ends),
        "disabled": known.org_stopped or known.key_disabled_at is not None,
        "wrong_environment": asked.environment not in {None, known.environment},
        "not_permitted": asked.type not in {None, known.type}
        or bool(set(asked.permissions) - known.permissions),
        "address_not_allowed": bool(known.networks) and not is_inside(known, asked.address),
        "origin_not_allowed": comes_from_elsewhere(known, asked),
    }


# Mostly unrestricted, so late reasons are reached as often as early ones.
moments = st.one_of(st.none(), st.none(), st.none(), st.integers(NOW - 2, NOW + 2))
marks = st.one_of(st.none(), st.none(), st.none(), st.none(), st.integers(0, 2 * NOW))
networks = st.sampled_from([[], [], ["192.0.2.0/25"], ["198.51.100.7/32", "2001:db8::/48"]])
permissions = st.sets(st.sampled_from(["keys:read", "acl:read", "invoices:read"]))
knowns = st.builds(
    replace,
    st.just(PLAIN),
    environment=st.sampled_from(Environment),
    type=st.sampled_from(KeyType),
    permissions=permissions.map(frozenset),
    networks=networks.map(parse_networks),
    origins=st.sampled_from([(), BOUND[:1], BOUND[1:], BOUND]),
    allow_native=st.booleans(),
    secret_expires_at=moments,
    secret_revoked_at=marks,
    key_expires_at=moments,
    key_disabled_at=marks,
    key_revoked_at=marks,
    org_stopped=st.sampled_from([False, False, False, True]),
)
questions = st.builds(
    VerificationRequest,
    text=st.just(""),
    organization=st.sampled_from(["", "", "", "", "acme", "org_1", "org_2"]),
    environment=st.sampled_from([None, None, *Environment]),
    type=st.sampled_from([None, None, None, *KeyType]),
    permissions=st.one_of(st.just(()), permissions.map(tuple)),
    address=st.sampled_from(
        ["192.0.2.127", "192.0.2.128", "198.51.100.7", "2001:db8::9", "2001:db8:1::", "", "x"]
    ),
    origin=st.sampled_from(
        ["", "", "https://app.example.com", "https://app.example.com:443", "https://a.example.org",
         "https://example.org", "http://localhost:3000", "http://localhost", "null"]
    ),
    browser=st.sampled_from([False, False, True]),
)  # fmt: skip


@settings(max_examples=1_000)
@given(knowns, questions, st.integers(NOW - 3, NOW + 3))
def test_the_verdict_is_the_first_applicable_reason(
    known: KnownSecret, asked: VerificationRequest, now: int
) -> None:
    against = reasons(known, asked, now)
    expected = next((reason for reason in ORDER if against[reason]), "valid")
    assert decide(known, asked, now) == expected


# --- errors ----------------------------------------------------------------------------------


def error_for(verdict: Verdict, known: KnownSecret | None = PLAIN, **asked: Any) -> WardkeyError:  # noqa: ANN401
    return failure_of(verdict, known, VerificationRequest("sk_live_…", **asked), 1.5)


def test_every_verdict_but_valid_has_an_error_with_its_own_code() -> None:
    codes = {
        verdict: error_for(verdict).code for verdict in Verdict if verdict is not Verdict.VALID
    }
    changed = {"rate_limited": "rate_limit_exceeded", "origin_not_allowed": "secret_key_in_browser"}
    assert codes == {v: changed.get(v, str(v)) for v in Verdict if v is not Verdict.VALID}


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.VALID])
def test_an_unauthenticated_caller_learns_only_that_the_key_is_not_valid(verdict: Verdict) -> None:
    revealed = {Verdict.MALFORMED: "malformed", Verdict.RATE_LIMITED: "too_many_attempts"}
    assert error_for(verdict, None).code == revealed.get(verdict, "unknown")


def test_a_wrong_environment_names_both_and_the_prefix() -> None:
    failure = error_for(Verdict.WRONG_ENVIRONMENT, environment=Environment.TEST)
    assert failure.detail == (
        "This is a live key (sk_live_7QdR…), but test is required; use the test key."
    )


def test_a_publishable_key_used_as_a_secret_key_gets_an_explanation() -> None:
    failure = error_for(Verdict.NOT_PERMITTED, PAGE, type=KeyType.SECRET)
    assert failure.code == "secret_key_required"
    assert "(pk_)" in failure.detail
    failure = error_for(Verdict.NOT_PERMITTED, PLAIN, type=KeyType.PUBLISHABLE)
    assert failure.code == "not_permitted"
    assert "(sk_)" in failure.detail


def test_missing_permissions_are_named_with_who_can_grant_them() -> None:
    failure = error_for(Verdict.NOT_PERMITTED, permissions=("keys:read", "acl:write", "acl:read"))
    assert failure.needs == "acl:write"
    assert failure.detail == "The key lacks acl:write; an admin of Acme can grant it."


def test_a_publishable_key_from_an_unlisted_origin_is_not_called_leaked() -> None:
    assert error_for(Verdict.ORIGIN_NOT_ALLOWED, PAGE).code == "origin_not_allowed"


def test_a_rate_limited_caller_gets_the_wait() -> None:
    limited = replace(PLAIN, rate=RateLimit(1, 60_000, 1))
    assert error_for(Verdict.RATE_LIMITED, limited).retry_after_s == 1.5


def test_the_repr_of_a_request_omits_the_key() -> None:
    assert "sk_live" not in repr(VerificationRequest("sk_live_7QdRk2mVx9Ta"))
