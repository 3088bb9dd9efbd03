from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.issuers import REDIRECT, OidcProvider, oidc_provider
from wardkey.adapters.fetch import Fetch
from wardkey.adapters.single_sign_on import SignInIssuer
from wardkey.domain.errors import KeySetUnavailable, SignInFailed
from wardkey.domain.single_sign_on import identity_of

ADMIN, PASSWORD = "admin@acme.example", "a password at the issuer"
USERS = {ADMIN: {"password": PASSWORD}}
VERIFIER = "of-a-test-" * 5


def issuer_at(provider: OidcProvider, secret: str = "") -> SignInIssuer:
    fetch = Fetch(private_allowed=True)
    return SignInIssuer(provider.url, provider.client_id, secret, REDIRECT, "Acme", fetch)


def signed_in(issuer: SignInIssuer, provider: OidcProvider) -> dict[str, object]:
    parameters = provider.visit(
        issuer.authorization_url("of-a-test", "once", VERIFIER, 43_200), ADMIN, PASSWORD
    )
    assert parameters["state"] == "of-a-test"
    issuer.check_issuer(parameters.get("iss", ""))
    return issuer.claims(parameters["code"], VERIFIER, time.time())


@pytest.fixture(scope="module")
def public() -> Iterator[OidcProvider]:
    with oidc_provider(USERS) as provider:
        yield provider


@pytest.mark.parametrize(
    ("secret", "more"),
    [
        ("", {}),
        ("", {"conform": True}),
        ("", {"alg": "ES256"}),
        ("a secret: of + some % length, 32 letters", {}),
        ("a secret: of + some % length, 32 letters", {"auth_method": "client_secret_post"}),
    ],
    ids=["public", "address-from-userinfo", "es256", "secret-in-header", "secret-in-form"],
)
def test_a_sign_in_returns_the_user_with_a_verified_address(
    secret: str, more: dict[str, Any]
) -> None:
    with oidc_provider(USERS, client_secret=secret, **more) as provider:
        issuer = issuer_at(provider, secret)
        identity = identity_of(signed_in(issuer, provider), provider.client_id, "once")
        assert (identity.issuer, identity.email) == (provider.url, ADMIN)
        assert identity.subject


def test_a_code_works_once_and_only_with_its_verifier(public: OidcProvider) -> None:
    issuer = issuer_at(public)
    address = issuer.authorization_url("of-a-test", "once", VERIFIER, 43_200)
    parameters = public.visit(address, ADMIN, PASSWORD)
    with pytest.raises(SignInFailed, match="invalid_grant"):
        issuer.claims(parameters["code"], "another-" * 8, time.time())
    assert issuer.claims(parameters["code"], VERIFIER, time.time())["email"] == ADMIN
    with pytest.raises(SignInFailed, match="invalid_grant"):
        issuer.claims(parameters["code"], VERIFIER, time.time())


def test_a_wrong_secret_is_reported_in_the_issuers_words() -> None:
    with (
        oidc_provider(USERS, client_secret="the right secret of 32 characters") as provider,
        pytest.raises(SignInFailed, match="invalid_client"),
    ):
        signed_in(issuer_at(provider, "another secret"), provider)


def test_a_response_from_another_issuer_is_refused(public: OidcProvider) -> None:
    issuer = issuer_at(public)
    for issuer_parameter in ("", "https://other.example", public.url + "/"):
        with pytest.raises(SignInFailed):
            issuer.check_issuer(issuer_parameter)
    issuer.check_issuer(public.url)


def test_confirming_requires_a_new_sign_in_at_the_issuer(public: OidcProvider) -> None:
    issuer = issuer_at(public)
    parameters = public.visit(issuer.authorization_url("x", "once", VERIFIER, 0), ADMIN, PASSWORD)
    claims = issuer.claims(parameters["code"], VERIFIER, time.time())
    assert time.time() - int(str(claims["auth_time"])) < 60


def test_discovery_survives_a_short_outage_and_failures_are_cached_briefly() -> None:
    now = [0.0]
    with oidc_provider(USERS) as provider:
        issuer, late = issuer_at(provider), issuer_at(provider)
        issuer.clock = late.clock = lambda: now[0]
        before = issuer.authorization_url("x", "once", VERIFIER, 43_200)
    now[0] = 10_000.0
    assert issuer.authorization_url("x", "once", VERIFIER, 43_200) == before
    for _ in range(2):
        with pytest.raises(KeySetUnavailable, match="Acme can't be reached"):
            late.authorization_url("x", "once", VERIFIER, 43_200)


def test_a_discovery_document_of_another_issuer_is_rejected(public: OidcProvider) -> None:
    issuer = issuer_at(public)
    issuer.issuer = public.url + "/"
    with pytest.raises(KeySetUnavailable, match="character by character"):
        issuer.authorization_url("x", "once", VERIFIER, 43_200)
