from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.errors import (
    InvalidOrigin,
    InvalidProvider,
    InvalidRateLimit,
    TooManyItems,
    WardkeyError,
)
from wardkey.domain.keys import Rate
from wardkey.domain.providers import (
    AudienceClaim,
    ClaimMapping,
    ExchangeLimits,
    KeySource,
    ProviderKind,
    ProviderSpec,
    TokenRules,
    UsernameFrom,
    clean_provider,
    clean_shared_secret,
    levels_of,
    token_rules,
)

SUPABASE = ProviderSpec(ProviderKind.SUPABASE, project_url="https://abc.supabase.co")
FIREBASE = ProviderSpec(ProviderKind.FIREBASE, project_id="acme-prod")
AUTH0 = ProviderSpec(
    ProviderKind.AUTH0, domain="acme.eu.auth0.com", audiences=("https://api.acme.example",)
)
CLERK = ProviderSpec(
    ProviderKind.CLERK, domain="clerk.acme.example", allowed_origins=("https://app.acme.example",)
)
OIDC = ProviderSpec(
    ProviderKind.OIDC, issuer="https://id.acme.example/realms/a", audiences=("app",)
)
ALL = (SUPABASE, FIREBASE, AUTH0, CLERK, OIDC)


def test_each_kind_has_the_documented_issuer_and_key_set() -> None:
    assert token_rules(clean_provider(SUPABASE)) == TokenRules(
        ProviderKind.SUPABASE,
        "https://abc.supabase.co/auth/v1",
        KeySource("https://abc.supabase.co/auth/v1/.well-known/jwks.json"),
        frozenset({"ES256", "RS256"}),
        ("authenticated",),
    )
    assert token_rules(clean_provider(FIREBASE)) == TokenRules(
        ProviderKind.FIREBASE,
        "https://securetoken.google.com/acme-prod",
        KeySource(
            "https://www.googleapis.com/service_accounts/v1/jwk/"
            "securetoken@system.gserviceaccount.com"
        ),
        frozenset({"RS256"}),
        ("acme-prod",),
        kid_required=True,
    )
    assert token_rules(clean_provider(AUTH0)) == TokenRules(
        ProviderKind.AUTH0,
        "https://acme.eu.auth0.com/",
        KeySource("https://acme.eu.auth0.com/.well-known/jwks.json"),
        frozenset({"RS256"}),
        ("https://api.acme.example",),
    )
    assert token_rules(clean_provider(CLERK)) == TokenRules(
        ProviderKind.CLERK,
        "https://clerk.acme.example",
        KeySource("https://clerk.acme.example/.well-known/jwks.json"),
        frozenset({"RS256"}),
        (),
        ("https://app.acme.example",),
    )
    rules = token_rules(clean_provider(OIDC))
    assert rules == TokenRules(
        ProviderKind.OIDC,
        "https://id.acme.example/realms/a",
        KeySource(
            "https://id.acme.example/realms/a/.well-known/openid-configuration",
            "https://id.acme.example/realms/a",
        ),
        frozenset({"RS256"}),
        ("app",),
    )
    assert rules.keys.is_discovery
    assert not token_rules(clean_provider(CLERK)).keys.is_discovery


def test_the_shared_secret_is_accepted_only_with_the_supabase_opt_in() -> None:
    for spec in ALL:
        assert "HS256" not in token_rules(clean_provider(spec)).algorithms
    legacy = token_rules(clean_provider(replace(SUPABASE, legacy_secret=True)))
    assert legacy.algorithms == {"ES256", "RS256", "HS256"}


@pytest.mark.parametrize(
    ("pasted", "kept"),
    [
        (replace(SUPABASE, project_url=" https://abc.supabase.co/ "), SUPABASE),
        (replace(SUPABASE, project_url="https://abc.supabase.co/auth/v1/"), SUPABASE),
        (replace(AUTH0, domain="https://Acme.eu.auth0.com/"), AUTH0),
        (replace(CLERK, domain="https://clerk.acme.example"), CLERK),
        (replace(CLERK, allowed_origins=("https://app.acme.example:443",)), CLERK),
    ],
)
def test_values_pasted_from_vendor_consoles_are_understood(
    pasted: ProviderSpec, kept: ProviderSpec
) -> None:
    assert clean_provider(pasted) == clean_provider(kept)


def test_an_oidc_issuer_is_unchanged_down_to_the_slash() -> None:
    rules = token_rules(clean_provider(replace(OIDC, issuer="https://id.acme.example/")))
    assert rules.issuer == "https://id.acme.example/"
    assert rules.keys.url == "https://id.acme.example/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("issuer", "jwks_uri"),
    [
        ("accounts.google.com", "https://www.googleapis.com/oauth2/v3/certs"),
        ("https://Acme.b2clogin.com/1f2e/v2.0/", "https://acme.b2clogin.com/d/keys?p=B2C_1_in"),
        ("http://localhost:3000", "https://[2001:470::1]:8443/api/auth/jwks"),
    ],
)
def test_an_issuer_with_a_separate_key_set_is_never_fetched(issuer: str, jwks_uri: str) -> None:
    spec = clean_provider(replace(OIDC, issuer=f" {issuer} ", jwks_uri=f" {jwks_uri}\n"))
    rules = token_rules(spec)
    assert rules.issuer == issuer
    assert rules.keys == KeySource(jwks_uri)
    assert not rules.keys.is_discovery
    assert clean_provider(spec) == spec


@pytest.mark.parametrize("kind", [FIREBASE, AUTH0, CLERK, OIDC])
def test_verified_addresses_can_be_required_only_of_kinds_that_prove_them(
    kind: ProviderSpec,
) -> None:
    asked = replace(ClaimMapping(), verified_email_only=True)
    assert clean_provider(replace(kind, mapping=asked)).mapping == asked
    named = replace(asked, email="https://a.example/email", email_verified="app_metadata.proven")
    assert clean_provider(replace(kind, mapping=named)).mapping == named
    for claim in ("user_metadata.proven", "unsafe_metadata.a.b", 'a."user_metadata".b'):
        by_name = {
            "email": replace(asked, email=claim),
            "email_verified": replace(asked, email_verified=claim),
        }
        for name, mapping in by_name.items():
            with pytest.raises(InvalidProvider) as refused:
                clean_provider(replace(kind, mapping=mapping))
            assert refused.value.field == f"mapping.{name}"


def test_no_claim_lets_a_supabase_token_prove_an_address() -> None:
    for claim in ("email_verified", "user_metadata.email_verified", "app_metadata.proven"):
        mapping = ClaimMapping(verified_email_only=True, email_verified=claim)
        with pytest.raises(InvalidProvider) as refused:
            clean_provider(replace(SUPABASE, mapping=mapping))
        assert refused.value.field == "mapping.verified_email_only"
        assert "Confirm email" in refused.value.detail


def test_a_shared_secret_must_be_long_and_not_a_public_key() -> None:
    assert clean_shared_secret(" " + "s" * 40 + "\n") == b"s" * 40
    pem = "-----BEGIN-PUBLIC-KEY-----" + "A" * 200
    for text in ("", "s" * 31, "s" * 513, "s" * 20 + " " + "s" * 20, "é" * 40, pem, '{"kty":' * 9):
        with pytest.raises(InvalidProvider) as refused:
            clean_shared_secret(text)
        assert refused.value.field == "secret"


def test_the_name_defaults_to_the_kind() -> None:
    assert clean_provider(FIREBASE).name == "firebase"
    assert clean_provider(replace(FIREBASE, name="mobile-app")).name == "mobile-app"


def mapped(**more: object) -> ProviderSpec:
    return replace(FIREBASE, mapping=replace(ClaimMapping(), **more))  # type: ignore[arg-type]


def limited(**more: object) -> ProviderSpec:
    return replace(FIREBASE, limits=replace(ExchangeLimits(), **more))  # type: ignore[arg-type]


def test_a_url_without_tls_is_refused_and_the_option_named() -> None:
    with pytest.raises(InvalidProvider, match="--private-issuers"):
        clean_provider(replace(OIDC, issuer="http://keycloak:8080/realms/acme"))


@pytest.mark.parametrize(
    ("spec", "leaf", "field"),
    [
        (ProviderSpec(ProviderKind.SUPABASE), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="abc.supabase.co"), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="http://abc.supabase.co"), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="https://a@b.example"), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="https://b.example?x"), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="https://b.example:0"), InvalidProvider, "project_url"),
        (replace(SUPABASE, project_url="https://b\n.example"), InvalidProvider, "project_url"),
        (replace(SUPABASE, issuer="abc"), InvalidProvider, "issuer"),
        (replace(SUPABASE, project_id="acme-prod"), InvalidProvider, "project_id"),
        (replace(SUPABASE, name="My project"), InvalidProvider, "name"),
        (replace(FIREBASE, project_id="acme/prod"), InvalidProvider, "project_id"),
        (replace(FIREBASE, project_id=""), InvalidProvider, "project_id"),
        (replace(FIREBASE, legacy_secret=True), InvalidProvider, "legacy_secret"),
        (replace(FIREBASE, algorithms=("RS512",)), InvalidProvider, "algorithms"),
        (replace(AUTH0, domain="acme"), InvalidProvider, "domain"),
        (replace(AUTH0, domain="acme.auth0.com/x"), InvalidProvider, "domain"),
        (replace(AUTH0, audiences=()), InvalidProvider, "audiences"),
        (replace(AUTH0, audiences=("a", " b")), InvalidProvider, "audiences.1"),
        (replace(AUTH0, audiences=("a",) * 21), TooManyItems, "audiences"),
        (replace(CLERK, allowed_origins=("app.acme.example",)), InvalidOrigin, "allowed_origins.0"),
        (replace(CLERK, allowed_origins=("https://a.b",) * 21), TooManyItems, "allowed_origins"),
        (replace(OIDC, audiences=()), InvalidProvider, "audiences"),
        (replace(OIDC, algorithms=("none",)), InvalidProvider, "algorithms.0"),
        (replace(OIDC, algorithms=("RS256", "HS256")), InvalidProvider, "algorithms.1"),
        (replace(OIDC, issuer="https://Id.acme.example"), InvalidProvider, "issuer"),
        (replace(OIDC, jwks_uri="http://id.acme.example/keys"), InvalidProvider, "jwks_uri"),
        (replace(OIDC, jwks_uri="https://a@id.acme.example/keys"), InvalidProvider, "jwks_uri"),
        (replace(OIDC, jwks_uri="https://id.acme.example/keys#x"), InvalidProvider, "jwks_uri"),
        (replace(OIDC, jwks_uri="https://id.acme.example/k?a b"), InvalidProvider, "jwks_uri"),
        (replace(OIDC, jwks_uri="https://a.b/k?" + "a" * 500), InvalidProvider, "jwks_uri"),
        (replace(OIDC, jwks_uri="file:///etc/passwd"), InvalidProvider, "jwks_uri"),
        (replace(OIDC, issuer=" ", jwks_uri="https://a.b/k"), InvalidProvider, "issuer"),
        (replace(OIDC, issuer="a\nb", jwks_uri="https://a.b/k"), InvalidProvider, "issuer"),
        (replace(AUTH0, jwks_uri="https://a.b/k"), InvalidProvider, "jwks_uri"),
        (replace(CLERK, audience_claim=AudienceClaim.AZP), InvalidProvider, "audience_claim"),
        (mapped(user_id=""), InvalidProvider, "mapping.user_id"),
        (mapped(roles="a..b"), InvalidProvider, "mapping.roles"),
        (mapped(variables={"a b": "team"}), InvalidProvider, "mapping.variables"),
        (mapped(variables={"user_id": "team"}), InvalidProvider, "mapping.variables"),
        (mapped(variables={"team": ""}), InvalidProvider, "mapping.variables.team"),
        (mapped(required=("a", "b\n")), InvalidProvider, "mapping.required.1"),
        (mapped(required=("a",) * 21), TooManyItems, "mapping"),
        (mapped(email="", username_from=UsernameFrom.EMAIL), InvalidProvider, "mapping.email"),
        (mapped(email="", verified_email_only=True), InvalidProvider, "mapping.email"),
        (limited(max_ttl_s=86_401), InvalidProvider, "limits.max_ttl_s"),
        (limited(max_ttl_s=59), InvalidProvider, "limits.max_ttl_s"),
        (limited(max_refresh_s=31 * 86_400), InvalidProvider, "limits.max_refresh_s"),
        (limited(rate=Rate(0, 1, 1)), InvalidRateLimit, "rate_limit.limit"),
    ],
)
def test_an_invalid_setting_is_refused_with_its_field(
    spec: ProviderSpec, leaf: type[WardkeyError], field: str
) -> None:
    with pytest.raises(leaf) as refused:
        clean_provider(spec)
    assert refused.value.field == field
    assert refused.value.detail.endswith(".")


def test_plain_http_requires_private_addresses_to_be_allowed() -> None:
    inside = replace(OIDC, issuer="http://keycloak:8080/realms/acme")
    with pytest.raises(InvalidProvider):
        clean_provider(inside)
    assert clean_provider(inside, http_allowed=True).issuer == inside.issuer


@pytest.mark.parametrize("spec", ALL)
def test_cleaning_twice_changes_nothing(spec: ProviderSpec) -> None:
    assert clean_provider(clean_provider(spec)) == clean_provider(spec)


@pytest.mark.parametrize(
    ("path", "levels"),
    [
        ("sub", ("sub",)),
        ("app_metadata.team", ("app_metadata", "team")),
        ("https://acme.example/roles", ("https://acme.example/roles",)),
        ("cognito:groups", ("cognito:groups",)),
        ('"https://acme.example/claims".x-team', ("https://acme.example/claims", "x-team")),
        ('a."b.c".d', ("a", "b.c", "d")),
    ],
)
def test_a_claim_path_is_split_into_names(path: str, levels: tuple[str, ...]) -> None:
    assert levels_of(path) == levels


@given(st.lists(st.text("ab./:-é", min_size=1, max_size=12), min_size=1, max_size=8))
def test_any_name_can_be_quoted_in_a_path(names: list[str]) -> None:
    assert levels_of(".".join(f'"{name}"' for name in names)) == tuple(names)
