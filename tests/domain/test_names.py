import json
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wardkey.domain.names import (
    clean_email,
    clean_metadata,
    clean_name,
    clean_slug,
    clean_text,
    fold_name,
    name_warnings,
    slug_from,
)

BIDI = [chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C)]


@pytest.mark.parametrize(
    "name",
    [
        "live-billing-webhooks",
        "Abrechnung für Köln",
        "👩\u200d💻 laptop",
        "\u0645\u06cc\u200c\u062e\u0648",
    ],
)
def test_an_ordinary_name_is_unchanged(name: str) -> None:
    assert clean_name(f"  {name}\t") == name


def test_a_name_is_stored_in_nfc() -> None:
    assert clean_name("Ko\u0308ln") == "Köln"


@pytest.mark.parametrize("name", ["", "   ", "\t\n", "\u200d", "\ufe0f\u3164", "\u115f \u1160"])
def test_an_invisible_name_counts_as_empty(name: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        clean_name(name)


@pytest.mark.parametrize(
    "hidden",
    [
        *BIDI,
        "\0",
        "\n",
        "\t",
        "\x1b",
        "\x7f",
        "\x85",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\U000e0041",
    ],
)
def test_a_character_that_hides_or_reorders_is_refused_and_named(hidden: str) -> None:
    for clean in (clean_name, lambda text: clean_text(text, 100)):
        if hidden in "\n\t" and clean is not clean_name:
            continue
        with pytest.raises(ValueError, match=rf"U\+{ord(hidden):04X}, at position 4"):
            clean(f"key{hidden}x")


def test_a_name_that_is_too_long_is_refused_with_both_lengths() -> None:
    assert clean_name("é" * 100) == "é" * 100
    with pytest.raises(ValueError, match="101 characters; shorten it to 100"):
        clean_name("a" * 101)
    with pytest.raises(ValueError, match="shorten it to 5"):
        clean_name("abcdef", most=5)


@given(st.text(max_size=120))
def test_a_clean_name_is_unchanged(text: str) -> None:
    try:
        name = clean_name(text)
    except ValueError as error:
        assert str(error).endswith(".")  # noqa: PT017 - either outcome is right
        return
    assert clean_name(name) == name
    assert unicodedata.is_normalized("NFC", name)


def test_a_text_keeps_its_lines_and_may_be_empty() -> None:
    assert clean_text(" a\r\nb\n\tc ", 10) == "a\nb\n\tc"
    assert clean_text("", 10) == ""
    with pytest.raises(ValueError, match="shorten it to 3"):
        clean_text("abcd", 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Billing", "billing"),
        ("a  b", " a\u00a0b "),
        ("straße", "STRASSE"),
        ("\ufb01n", "fin"),
        ("K\u00f6ln", "KO\u0308LN"),
        ("\uff21\uff11", "a1"),
        ("ab", "a\u200db"),
        ("ab", "a\ufe0fb"),
        ("\u212a", "k"),
    ],
)
def test_names_that_look_alike_fold_to_the_same_text(one: str, other: str) -> None:
    assert fold_name(one) == fold_name(other)


@given(st.text(max_size=60))
@example("\u0345\u0345\u1e9e\u03d3\u0301")
def test_folding_twice_changes_nothing(text: str) -> None:
    folded = fold_name(text)
    assert fold_name(folded) == folded


@given(st.text(max_size=60))
def test_names_differing_only_in_case_or_composition_are_equal(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert fold_name(unicodedata.normalize(form, text)) == fold_name(text)
    assert fold_name(text.casefold()) == fold_name(text)


@pytest.mark.parametrize(
    "name",
    ["key1", "test", "my-key", "new key", "api key", "asdf", "untitled", "My_Key-2", "APIKEY",
     "test-live-2", "aaa", "x", "1234", "🙂", "prod", "s3"],
)  # fmt: skip
def test_a_meaningless_name_gets_a_warning_with_the_recommended_form(name: str) -> None:
    (warning,) = name_warnings(name, "live")
    assert name in warning
    assert "{environment}-{service}-{purpose}" in warning
    assert "live-billing-webhooks" in warning


@pytest.mark.parametrize(
    "name",
    ["live-billing-webhooks", "test-invoice-import", "k8s ingress", "決済", "Abrechnung", "crm"],
)
def test_a_meaningful_name_gets_no_warning(name: str) -> None:
    assert name_warnings(name, "test") == []


@pytest.mark.parametrize(
    "name", ["1" * 5_000 + "!z", "key" * 2_000 + "!", "a" * 9_999 + "\u00e9", "my-" * 3_000]
)
def test_a_hostile_name_is_checked_quickly(name: str) -> None:
    assert len(name_warnings(name, "live")) <= 1


def test_metadata_with_plain_values_is_kept() -> None:
    pairs = {"team": "billing", "tier.level": 3, "ratio_x": 0.5, "on-call": True, "note": "a\nb"}
    assert clean_metadata(pairs) == pairs


def test_metadata_with_lists_and_objects_is_kept() -> None:
    pairs: dict[str, object] = {
        "plan": {"seats": [1, 2], "a name": None, "limits": [{"rate": 5}]},
        "tags": [],
        "x": None,
    }
    assert clean_metadata(pairs) == pairs


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ({f"k{n}": 1 for n in range(51)}, "51 pairs; send at most 50"),
        ({"": 1}, "metadata name"),
        ({"a b": 1}, "metadata name"),
        ({"é": 1}, "metadata name"),
        ({"a\n": 1}, "metadata name"),
        ({"k" * 65: 1}, "metadata name"),
        ({"k": float("nan")}, "k is not a finite number"),
        ({"k": float("inf")}, "k is not a finite number"),
        ({"k": 2**53 + 1}, "send it as a string"),
        ({"k": "x" * 501}, "value of k has 501 characters"),
        ({"k": "a\0"}, r"value of k has a control or invisible character, U\+0000"),
        ({"k": "\ud800"}, r"U\+D800"),
        ({"k": b"a"}, "k is not a JSON value"),
        ({"k": {"a": [{"b": [{}]}]}}, "k has more than 5 levels"),
        ({"k": ["a\0"]}, r"value of k has a control or invisible character, U\+0000"),
        ({"k": {"a\0": 1}}, r"name in k has a control or invisible character, U\+0000"),
        ({"k": {"x" * 65: 1}}, "name in k has 65 characters"),
        ({"k": [2**53 + 1]}, "send it as a string"),
        ({"k": [1] * 5_000}, "8 KiB"),
        ({f"k{n}": "é" * 500 for n in range(9)}, "8 KiB"),
    ],
)
def test_invalid_metadata_is_refused_with_a_sentence(
    pairs: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        clean_metadata(pairs)


@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z"),
        st.recursive(
            st.one_of(st.text(max_size=500), st.integers(), st.floats(), st.booleans(), st.none()),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=55,
    )
)
def test_valid_metadata_survives_json(pairs: dict[str, object]) -> None:
    try:
        clean = clean_metadata(pairs)
    except ValueError:
        return
    assert json.loads(json.dumps(clean)) == pairs


@pytest.mark.parametrize("slug", ["a", "0", "acme", "acme-2", "a--b", "a" * 48])
def test_a_valid_slug_is_unchanged(slug: str) -> None:
    assert clean_slug(slug) == slug


@pytest.mark.parametrize(
    "slug", ["", "-a", "a-", "A", "a_b", "a b", "a" * 49, "é", "a\n", "\u0661"]
)
def test_an_invalid_slug_is_refused(slug: str) -> None:
    with pytest.raises(ValueError, match="1 to 48 characters"):
        clean_slug(slug)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Acme Inc.", "acme-inc"),
        ("Köln & Söhne", "koln-sohne"),
        ("Straße", "strasse"),
        ("決済", "organization"),
        ("", "organization"),
        ("a" * 47 + " b", "a" * 47),
    ],
)
def test_a_slug_resembles_its_name(name: str, slug: str) -> None:
    assert slug_from(name) == slug


@given(st.text(max_size=200))
def test_any_name_gives_a_valid_slug(name: str) -> None:
    assert clean_slug(slug_from(name))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (" Ann.Lee+keys@Example.COM ", "Ann.Lee+keys@example.com"),
        ("root@localhost", "root@localhost"),
        ("o'neil@xn--bcher-kva.example", "o'neil@xn--bcher-kva.example"),
        ("a" * 64 + "@b.c", "a" * 64 + "@b.c"),
    ],
)
def test_an_address_keeps_its_local_part_and_lowers_its_domain(text: str, address: str) -> None:
    assert clean_email(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "a", "@b.c", "a@", "a@b@c", "a b@c.d", ".a@b.c", "a.@b.c", "a..b@c.d", "a@-b.c", "a@b..c",
     "a@b.c.", "a" * 65 + "@b.c", "a@" + "b" * 64 + ".c", "a@" + "b." * 126 + "c", "\u00e9@b.c",
     "a@b.c\n\nBcc: x@y.z", "Ann <a@b.c>", '"a b"@c.d', "a@\u212a.com"],
)  # fmt: skip
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an e-mail address"):
        clean_email(text)


@given(st.emails())
def test_real_addresses_are_accepted_unchanged(address: str) -> None:
    local, _, _ = address.rpartition("@")
    assume(len(local) <= 64)
    clean = clean_email(address)
    assert clean_email(clean) == clean
    assert clean.lower() == address.lower()
