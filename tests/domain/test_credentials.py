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
def test_what_cannot_be_seen_around_a_key_is_trimmed(before: str, after: str) -> None:
    assert trim(f"{before}{KEY}{after}") == KEY
    # A header field arrives as its bytes read as Latin-1.
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
def test_an_authorization_field_presents(value: str, presents: list[str]) -> None:
    assert authorization_texts(value, is_ours) == presents


@given(st.lists(st.sampled_from([KEY, OTHER, "acme_1", "e.y.J", "anon", ""]), max_size=4))
def test_the_only_text_of_our_shape_counts_and_two_are_ambiguous(texts: list[str]) -> None:
    different = {text for text in texts if text}
    ours = {text for text in different if is_ours(text)}
    if len(different) > 1 and len(ours) != 1:
        with pytest.raises(AmbiguousCredentials):
            choose_credential(texts, is_ours)
    else:
        (wanted,) = ours or different or {""}
        assert choose_credential(texts, is_ours) == wanted


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=12),
    st.sampled_from(["", "Token "]),
)
def test_a_sentence_about_what_came_never_shows_a_value(value: str, scheme: str) -> None:
    said = explain_missing([scheme + value])
    assert said is not None
    assert value not in said


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
def test_what_makes_a_text_malformed_is_named(text: str, names: str) -> None:
    said = explain_malformed(text)
    assert said is not None
    assert names in said
    assert KEY not in said


def test_a_mistyped_text_has_the_usual_sentence() -> None:
    assert explain_malformed(KEY[:-1]) is None
