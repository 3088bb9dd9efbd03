from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.domain.test_providers import AUTH0, CLERK, FIREBASE, OIDC, SUPABASE
from wardkey.domain.acl import AclRule, Action, Actor, ActorKind, Effect, SubjectKind, fill_filter
from wardkey.domain.errors import ClaimMissing, InvalidToken, TokenExpired
from wardkey.domain.identity import (
    LEEWAY_S,
    Identity,
    Step,
    check_claims,
    claim_steps,
    grant_username,
    identity_of,
    subject_of,
)
from wardkey.domain.providers import (
    AudienceClaim,
    ClaimMapping,
    ProviderSpec,
    UsernameFrom,
    token_rules,
)
from wardkey.domain.secret import Environment
from wardkey.domain.usernames import clean_client_name, on_the_wire, parse_username

NOW = 1_900_000_000
GONE = "-"
TIMES = {"exp": NOW + 60, "iat": NOW - 60}
# Tokens as their vendors document them; GONE removes a claim.
GOOD: dict[str, tuple[ProviderSpec, dict[str, Any]]] = {
    "supabase": (
        SUPABASE,
        {
            "iss": "https://abc.supabase.co/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "sub": "8f14e45f-ceea-467f-a8d3-9c6f2b1e7a05",
            "email": "admin@acme.example",
            **TIMES,
        },
    ),
    "firebase": (
        FIREBASE,
        {
            "iss": "https://securetoken.google.com/acme-prod",
            "aud": "acme-prod",
            "sub": "uid-1",
            "auth_time": NOW - 100,
            **TIMES,
        },
    ),
    "auth0": (
        AUTH0,
        {
            "iss": "https://acme.eu.auth0.com/",
            "aud": ["https://api.acme.example", "https://acme.eu.auth0.com/userinfo"],
            "sub": "auth0|abc",
            **TIMES,
        },
    ),
    "clerk": (
        CLERK,
        {
            "iss": "https://clerk.acme.example",
            "azp": "https://app.acme.example",
            "sub": "user_1",
            **TIMES,
        },
    ),
    "oidc": (
        OIDC,
        {"iss": "https://id.acme.example/realms/a", "aud": "app", "sub": "u", **TIMES},
    ),
}


def claims_of(kind: str, **more: object) -> dict[str, Any]:
    made = GOOD[kind][1] | more
    return {name: value for name, value in made.items() if value != GONE}


@pytest.mark.parametrize("kind", GOOD)
def test_a_documented_token_passes_every_step(kind: str) -> None:
    rules = token_rules(GOOD[kind][0])
    check_claims(rules, claims_of(kind), NOW)
    steps = list(claim_steps(rules, claims_of(kind), NOW))
    assert [step.name for step in steps][:5] == ["iss", "aud", "exp", "nbf", "iat"]
    assert not any(step.fault for step in steps)


@pytest.mark.parametrize(
    ("kind", "step", "changed"),
    [
        ("auth0", "iss", {"iss": "https://acme.eu.auth0.com"}),
        ("oidc", "iss", {"iss": "https://id.acme.example/realms/a/"}),
        ("oidc", "iss", {"iss": "https://ID.acme.example/realms/a"}),
        ("oidc", "iss", {"iss": ["https://id.acme.example/realms/a"]}),
        ("oidc", "iss", {"iss": GONE}),
        ("supabase", "iss", {"iss": "supabase"}),
        ("oidc", "aud", {"aud": GONE}),
        ("oidc", "aud", {"aud": []}),
        ("oidc", "aud", {"aud": ["other"]}),
        ("oidc", "aud", {"aud": "app2"}),
        ("oidc", "aud", {"aud": "ap"}),
        ("oidc", "aud", {"aud": ["app", 1]}),
        ("oidc", "aud", {"aud": {"app": 1}}),
        ("supabase", "aud", {"aud": "anon"}),
        ("firebase", "aud", {"aud": "other-project"}),
        ("oidc", "exp", {"exp": GONE}),
        ("oidc", "exp", {"exp": str(NOW + 60)}),
        ("oidc", "exp", {"exp": True}),
        ("oidc", "exp", {"exp": float("inf")}),
        ("oidc", "exp", {"exp": 10**400}),
        ("oidc", "nbf", {"nbf": NOW + LEEWAY_S + 1}),
        ("oidc", "nbf", {"nbf": None}),
        ("oidc", "iat", {"iat": NOW + LEEWAY_S + 1}),
        ("firebase", "iat", {"iat": GONE}),
        ("firebase", "auth_time", {"auth_time": NOW + LEEWAY_S + 1}),
        ("firebase", "auth_time", {"auth_time": GONE}),
        ("firebase", "sub", {"sub": ""}),
        ("firebase", "sub", {"sub": "u" * 129}),
        ("supabase", "role", {"role": "anon"}),
        ("supabase", "role", {"role": "service_role"}),
        ("supabase", "role", {"role": GONE}),
        ("clerk", "azp", {"azp": "https://evil.example"}),
        ("clerk", "azp", {"azp": GONE}),
        ("clerk", "sts", {"sts": "pending"}),
    ],
)
def test_a_token_fails_at_its_wrong_claim(kind: str, step: str, changed: dict[str, object]) -> None:
    rules = token_rules(GOOD[kind][0])
    with pytest.raises(InvalidToken) as refused:
        check_claims(rules, claims_of(kind, **changed), NOW)
    assert refused.value.step == step
    faults = [done for done in claim_steps(rules, claims_of(kind, **changed), NOW) if done.fault]
    assert faults == [Step(step, refused.value.detail)]
    assert refused.value.detail.endswith(".")


def test_clocks_may_differ_by_thirty_seconds_at_most() -> None:
    rules = token_rules(OIDC)
    check_claims(rules, claims_of("oidc", exp=NOW - LEEWAY_S + 1, nbf=NOW + LEEWAY_S), NOW)
    with pytest.raises(TokenExpired):
        check_claims(rules, claims_of("oidc", exp=NOW - LEEWAY_S), NOW)


@pytest.mark.parametrize("claim", [AudienceClaim.CLIENT_ID, AudienceClaim.AZP])
def test_the_audience_is_read_only_from_the_configured_claim(
    claim: AudienceClaim,
) -> None:
    rules = replace(token_rules(OIDC), audience_claim=claim)
    check_claims(rules, claims_of("oidc", aud=GONE, **{claim: "app"}), NOW)
    check_claims(rules, claims_of("oidc", aud="other", **{claim: "app"}), NOW)
    others = dict.fromkeys(set(AudienceClaim) - {claim}, "app")
    for bad in (GONE, None, "", "ap", "app ", ["app"], {"app": 1}, True, 0):
        with pytest.raises(InvalidToken) as refused:
            check_claims(rules, claims_of("oidc", **others, **{claim: bad}), NOW)
        assert refused.value.step == claim
        assert f"The token's {claim} is" in refused.value.detail


@pytest.mark.parametrize("bad", [None, [None], [["app"]], [{"app": 1}], "app ", 7, True, {}])
def test_an_audience_of_another_type_is_ignored(bad: object) -> None:
    for more in ({}, {"client_id": "app", "azp": "app"}):
        with pytest.raises(InvalidToken):
            check_claims(token_rules(OIDC), claims_of("oidc", aud=bad, **more), NOW)


@pytest.mark.parametrize("value", [True, "true"])
def test_the_configured_claim_decides_whether_an_address_is_verified(value: object) -> None:
    mapping = ClaimMapping(verified_email_only=True, email_verified="https://a.example/proven")
    claims = claims_of("oidc", email="ada@acme.example", email_verified=True)
    for proof in ({}, *({"https://a.example/proven": no} for no in (None, 1, "True", [True]))):
        with pytest.raises(ClaimMissing) as refused:
            identity_of(mapping, {**claims, **proof})
        assert refused.value.field == "https://a.example/proven"
    assert identity_of(mapping, {**claims, "https://a.example/proven": value}).email_verified


def test_an_audience_may_be_a_string_or_in_a_list() -> None:
    for audience in ("app", ["app"], ["x", "app"]):
        check_claims(token_rules(OIDC), claims_of("oidc", aud=audience), NOW)


def test_an_identity_is_read_from_the_mapped_claims() -> None:
    mapping = ClaimMapping(
        user_id="ids.main",
        email="contact.email",
        roles="https://acme.example/roles",
        variables={"team": "app_metadata.team", "level": "level", "none": "nothing.here"},
        required=("app_metadata.team",),
    )
    claims = {
        "ids": {"main": 42},
        "contact": {"email": "admin@Acme.example"},
        "email_verified": True,
        "https://acme.example/roles": ["editor", "editor", 7, "", None],
        "app_metadata": {"team": "red"},
        "level": 3,
    }
    assert identity_of(mapping, claims) == Identity(
        "42",
        "admin@acme.example",
        True,
        ("editor", "7"),
        {"user_id": "42", "team": "red", "level": "3"},
    )


@pytest.mark.parametrize(
    ("mapping", "claims", "field"),
    [
        (ClaimMapping(), {}, "sub"),
        (ClaimMapping(), {"sub": ""}, "sub"),
        (ClaimMapping(), {"sub": "a\0b"}, "sub"),
        (ClaimMapping(), {"sub": "u" * 256}, "sub"),
        (ClaimMapping(), {"sub": ["u"]}, "sub"),
        (ClaimMapping(), {"sub": True}, "sub"),
        (ClaimMapping(user_id="a.b"), {"a": "b"}, "a.b"),
        (ClaimMapping(required=("a.team",)), {"sub": "u", "a": {}}, "a.team"),
        (ClaimMapping(username_from=UsernameFrom.EMAIL), {"sub": "u"}, "email"),
        (ClaimMapping(username_from=UsernameFrom.EMAIL), {"sub": "u", "email": "x"}, "email"),
        (
            ClaimMapping(verified_email_only=True),
            {"sub": "u", "email": "a@b.example", "email_verified": False},
            "email_verified",
        ),
    ],
)
def test_422_a_missing_claim_is_named(
    mapping: ClaimMapping, claims: dict[str, object], field: str
) -> None:
    with pytest.raises(ClaimMissing) as refused:
        identity_of(mapping, claims)
    assert refused.value.field == field
    assert field in refused.value.detail


@pytest.mark.parametrize(
    "value",
    ["a/b", "+", "#", "a+", "*", "a*b", ">", "a b", "a\tb", "$SYS", "{username}", "a\u2028b"],
)
def test_a_claim_never_widens_what_a_rule_allows(value: str) -> None:
    claims = {"sub": "u", "team": value}
    identity = identity_of(ClaimMapping(variables={"team": "team"}), claims)
    actor = Actor(ActorKind.GRANT, "org_1", "u", "c", "idp_1", identity.variables)
    for effect, made in ((Effect.ALLOW, None), (Effect.DENY, "teams/+/#")):
        rule = AclRule(
            "acl_1",
            1,
            SubjectKind.PROVIDER,
            "idp_1",
            "teams/{claim.team}/#",
            Action.BOTH,
            effect,
        )
        assert fill_filter(rule, actor) == made


def digest(provider_id: str, user_id: str) -> bytes:
    return blake2b(subject_of(provider_id, user_id), digest_size=16, key=b"k").digest()


def identity(user_id: str, email: str = "") -> Identity:
    return Identity(user_id, email, False, (), {})


users = st.tuples(st.sampled_from(("idp_1", "idp_2")), st.text("ab|_.@é", min_size=1, max_size=80))


@given(users, users, st.sampled_from(UsernameFrom))
def test_different_users_never_share_a_name_and_a_user_keeps_theirs(
    one: tuple[str, str], other: tuple[str, str], made_from: UsernameFrom
) -> None:
    names = [
        grant_username(made_from, identity(user[1], "a.b@acme.example"), digest(*user))
        for user in (one, one, other)
    ]
    assert names[0] == names[1]
    assume(digest(*one)[:5] != digest(*other)[:5])
    assert names[0] != names[2]


@given(st.text(min_size=1, max_size=300), st.binary(min_size=5, max_size=32))
def test_a_grants_user_name_can_be_read_from_the_wire(user_id: str, taken: bytes) -> None:
    name = grant_username(UsernameFrom.USER_ID, identity(user_id), taken)
    assert clean_client_name(name) == name
    for environment in Environment:
        read = parse_username(on_the_wire(name, "org_1", environment))
        assert read == (name, "org_1", environment)


def test_a_user_name_shows_its_user() -> None:
    name = grant_username(UsernameFrom.USER_ID, identity("auth0|abc"), bytes(5))
    assert name == "auth0_abc_aaaaaaaa"
    mail = identity("x", "a.b+c@acme.example")
    assert grant_username(UsernameFrom.EMAIL, mail, bytes(5)) == "a_b_c_acme_example_aaaaaaaa"
    with pytest.raises(ValueError, match="5 bytes"):
        grant_username(UsernameFrom.USER_ID, identity("x"), b"1234")


def test_the_digest_input_separates_provider_and_user() -> None:
    assert subject_of("idp_1", "2u") != subject_of("idp_12", "u")
