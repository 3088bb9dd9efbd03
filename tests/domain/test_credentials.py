from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.credentials import (
    authorization_texts,
    choose_credential,
    explain_malformed,
    explain_missing,
    form_decoded,
    trim,
    trim_field,
)
from wardkey.domain.errors import AmbiguousCredentials
from wardkey.domain.secret import Environment, SecretKind, generate, looks_like_ours

KEY = generate(SecretKind.SECRET, Environment.LIVE).text
OTHER = generate(SecretKind.SECRET, Environment.LIVE).text
AROUND = st.text(" \t\r\n\xa0\u2003\ufeff\u200b\u2060", max_size=4)


def is_ours(text: str) -> bool:
    return looks_like_ours(text) or text.startswith("acme_")


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


@given(AROUND, AROUND)
def test_invisible_characters_around_a_key_are_trimmed(before: str, after: str) -> None:
    assert trim(f"{before}{KEY}{after}") == KEY
    # Header fields arrive decoded as Latin-1.
    assert trim_field(f"{before}{KEY}{after}".encode().decode("latin-1")) == KEY


@pytest.mark.parametrize(
    ("value", "presents"),
    [
        (f"Bearer {KEY}", [KEY]),
        (f"bEARER\t{KEY}", [KEY]),
        ("Bearer e.y.J", ["e.y.J"]),
        (basic(f"{KEY}:"), [KEY]),
        (basic(f":{KEY}"), [KEY]),
        (basic(f"me:{KEY}"), [KEY]),
        (basic(f"{KEY}:x"), [KEY]),
        (basic("acme_0123456789:"), ["acme_0123456789"]),
        (basic(f"{KEY}:{OTHER}"), [KEY, OTHER]),
        (basic("me:password"), []),
        ("Basic !", []),
        (KEY, [KEY]),
        ("acme_0123456789", ["acme_0123456789"]),
        ("something", []),
        (f"Token {KEY}", []),
        ("", []),
    ],
    # The keys differ in each process.
    ids=[f"form{number}" for number in range(16)],
)
def test_an_authorization_field_presents_its_credentials(value: str, presents: list[str]) -> None:
    assert authorization_texts(value, is_ours) == presents


@given(st.lists(st.sampled_from([KEY, OTHER, "acme_1", "e.y.J", "anon", ""]), max_size=4))
def test_the_only_wardkey_credential_counts_and_two_are_ambiguous(texts: list[str]) -> None:
    different = {text for text in texts if text}
    ours = {text for text in different if is_ours(text)}
    if len(different) > 1 and len(ours) != 1:
        with pytest.raises(AmbiguousCredentials):
            choose_credential(texts, is_ours)
    else:
        (expected,) = ours or different or {""}
        assert choose_credential(texts, is_ours) == expected


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=12),
    st.sampled_from(["", "Token "]),
)
def test_explanations_of_credentials_never_show_a_value(value: str, scheme: str) -> None:
    for explanation in (
        explain_missing([scheme + value], [], is_ours),
        explain_missing([], [("x-api-key", value)], is_ours),
        explain_malformed(value),
    ):
        assert explanation is None or value not in explanation


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f'"{KEY}"', "quotes"),
        (f"\u201c{KEY}\u201d", "quotes"),
        (f"Bearer {KEY}", "Bearer"),
        (f"bearer: {KEY}", "Bearer"),
        (f"{KEY[:20]}\n{KEY[20:]}", "white space"),
        (f"{KEY[:20]}\u200b{KEY[20:]}", "invisible"),
        ("", "empty"),
    ],
    ids=[f"form{number}" for number in range(7)],
)
def test_the_reason_a_key_is_malformed_is_named(text: str, names: str) -> None:
    explanation = explain_malformed(text)
    assert explanation is not None
    assert names in explanation
    assert KEY not in explanation


@pytest.mark.parametrize("cut", [1, 10, 40, 50])
def test_a_mistyped_key_has_the_default_sentence(cut: int) -> None:
    assert explain_malformed(KEY[:-cut]) is None
    assert explain_malformed(f"acme_{KEY[:-cut]}") is None


def test_a_key_of_another_deployment_is_not_called_mistyped() -> None:
    explanation = explain_malformed(
        generate(SecretKind.SECRET, Environment.LIVE, brand="acme").text
    )
    assert explanation is not None
    assert "another deployment" in explanation


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "Stripe"),
        ("rk_live_4eC39HqLyjWDarjtT1zdp7dc", "Stripe"),
        ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "GitHub"),
        ("glpat-0123456789abcdefghij", "GitLab"),
        ("xoxb-1234-5678-abc", "Slack"),
        ("AKIAIOSFODNN7EXAMPLE", "AWS"),
        ("AIzaSyD-0123456789", "Google"),
        ("sk-proj-0123456789", "sk-"),
        ("eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "/v2/tokens/exchange"),
        ("hunter2", "sk_live_"),
    ],
)
def test_the_credential_of_another_system_is_not_called_mistyped(text: str, names: str) -> None:
    explanation = explain_malformed(text)
    assert explanation is not None
    assert explanation.startswith("This is not a Wardkey key")
    assert names in explanation
    assert text not in explanation


@pytest.mark.parametrize(
    ("fields", "others", "names"),
    [
        (["Token abc"], [], "Token"),
        (["Basic abc"], [], "Basic"),
        (["Bearer "], [], "Bearer"),
        (["abc"], [], "no known scheme"),
        ([], [("X-API-Key", "abc")], "X-API-Key"),
        ([], [("x-auth-token", "abc")], "x-auth-token"),
        ([], [("x-mine", KEY)], "x-mine"),
        ([], [("accept", "*/*"), ("cookie", "a=b")], ""),
    ],
    ids=[f"form{number}" for number in range(8)],
)
def test_a_credential_in_another_form_is_named(
    fields: list[str], others: list[tuple[str, str]], names: str
) -> None:
    explanation = explain_missing(fields, others, is_ours)
    assert (explanation is None) == (names == "")
    assert names in (explanation or "")
    assert KEY not in (explanation or "")


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("sk%5Flive%5Fab", "sk_live_ab"),
        ("sk_live_ab", "sk_live_ab"),
        ("acme_ab%2Bcd%2F%3D", "acme_ab+cd/="),
        # A raw imported key: form encoding never leaves a slash or a lone percent sign.
        ("acme_ab+cd/%41=", "acme_ab+cd/%41="),
        ("acme_50%", "acme_50%"),
        ("acme_ab+cd", "acme_ab+cd"),
        ("%FF", "%FF"),
        ("%20sk%5Flive%5Fab", "sk_live_ab"),
    ],
)
def test_a_client_secret_is_read_form_encoded_and_raw(sent: str, meant: str) -> None:
    assert form_decoded(sent) == meant
