from __future__ import annotations

from typing import Any

import pytest

from wardkey.domain.errors import SignInFailed, SignInNotAllowed, WardkeyError
from wardkey.domain.permissions import Role
from wardkey.domain.single_sign_on import (
    CONFIRMED_S,
    Identity,
    SignInPolicy,
    check_confirmed,
    check_fresh,
    identity_of,
)

GOOD: dict[str, Any] = {
    "iss": "https://login.acme.example",
    "aud": "wardkey",
    "sub": "1234",
    "nonce": "once",
    "email": "Admin@ACME.example",
    "email_verified": True,
}


@pytest.mark.parametrize(
    "more",
    [{}, {"aud": ["wardkey"]}, {"aud": ["wardkey", "other"], "azp": "wardkey"}],
    ids=["one", "list", "several"],
)
def test_an_id_token_yields_an_identity_with_its_address(more: dict[str, Any]) -> None:
    identity = identity_of({**GOOD, **more}, "wardkey", "once")
    assert identity == Identity("https://login.acme.example", "1234", "Admin@acme.example")


@pytest.mark.parametrize(
    ("more", "failure"),
    [
        ({"nonce": "another"}, SignInFailed),
        ({"nonce": None}, SignInFailed),
        ({"aud": ["wardkey", "other"]}, SignInFailed),
        ({"azp": "other"}, SignInFailed),
        ({"sub": ""}, SignInFailed),
        ({"sub": 7}, SignInFailed),
        ({"sub": "a" * 256}, SignInFailed),
        ({"email": None}, SignInNotAllowed),
        ({"email": "nobody"}, SignInNotAllowed),
        ({"email_verified": None}, SignInNotAllowed),
        ({"email_verified": False}, SignInNotAllowed),
        ({"email_verified": "true"}, SignInNotAllowed),
        ({"email_verified": 1}, SignInNotAllowed),
    ],
)
def test_an_incomplete_id_token_is_refused(
    more: dict[str, Any], failure: type[WardkeyError]
) -> None:
    with pytest.raises(failure):
        identity_of({**GOOD, **more}, "wardkey", "once")


def test_only_addresses_of_the_listed_domains_are_accepted() -> None:
    welcome = SignInPolicy(frozenset({"acme.example"}), "acme", Role.VIEWER)
    welcome.check("admin@acme.example")
    welcome.check("admin@ACME.example")
    for email in ("a@evil.example", "a@sub.acme.example", "a@evil-acme.example"):
        with pytest.raises(SignInNotAllowed, match=r"acme\.example"):
            welcome.check(email)
    SignInPolicy().check("a@evil.example")


def test_an_old_sign_in_is_refused_if_the_issuer_reports_its_time() -> None:
    check_fresh({}, 100_000, 43_200)
    check_fresh({"auth_time": 100_000 - 43_200}, 100_000, 43_200)
    for auth_time in (100_000 - 43_261, None, "now"):
        with pytest.raises(SignInFailed, match="sign out there"):
            check_fresh({"auth_time": auth_time}, 100_000, 43_200)


@pytest.mark.parametrize("auth_time", [None, "now", 1_000 - CONFIRMED_S - 61])
def test_an_old_sign_in_confirms_nothing(auth_time: object) -> None:
    with pytest.raises(SignInFailed, match="nothing is confirmed"):
        check_confirmed({"auth_time": auth_time}, 1_000)
    check_confirmed({"auth_time": 1_000 - CONFIRMED_S}, 1_000)
