import re
import zlib

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wardkey.domain.secret import (
    ALPHABET,
    Environment,
    Malformed,
    SecretKind,
    SecretText,
    clean_brand,
    fingerprint_regex,
    generate,
    looks_like_ours,
    mask,
    mask_secrets,
    meets_our_heads,
    parse,
    random_text,
)

FORMS = [
    (SecretKind.SECRET, Environment.LIVE, "sk_live_"),
    (SecretKind.SECRET, Environment.TEST, "sk_test_"),
    (SecretKind.PUBLISHABLE, Environment.LIVE, "pk_live_"),
    (SecretKind.PUBLISHABLE, Environment.TEST, "pk_test_"),
    (SecretKind.SERVICE, None, "wsk_"),
    (SecretKind.HOOK, None, "wht_"),
    (SecretKind.USER, None, "ut_"),
]
BRANDS = ["", "acme", "a1"]

forms = st.sampled_from(FORMS)
brands = st.sampled_from(BRANDS)
entropies = st.binary(min_size=16, max_size=16).map(
    lambda seed: (
        lambda size: b"".join(
            zlib.crc32(seed + place.to_bytes(4, "big")).to_bytes(4, "big")
            for place in range(size // 4 + 1)
        )[:size]
    )
)


@st.composite
def made(draw: st.DrawFn) -> tuple[SecretText, str]:
    kind, environment, _ = draw(forms)
    brand = draw(brands)
    return generate(kind, environment, brand=brand, entropy=draw(entropies)), brand


def crc_of(body: str) -> str:
    value, digits = zlib.crc32(body.encode(errors="surrogatepass")), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits


@pytest.mark.parametrize("brand", BRANDS)
@pytest.mark.parametrize(("kind", "environment", "head"), FORMS)
def test_a_new_secret_has_the_documented_form(
    kind: SecretKind, environment: Environment | None, head: str, brand: str
) -> None:
    secret = generate(kind, environment, brand=brand)
    start = f"{brand}_{head}" if brand else head
    match = re.fullmatch(rf"{start}([0-9A-Za-z]{{12}})_([0-9A-Za-z]{{32}})(.{{6}})", secret.text)
    assert match is not None
    assert secret.kid == match[1]
    assert crc_of(secret.text[:-6]) == match[3]


def test_a_published_secret_still_parses_the_same() -> None:
    secret = parse("sk_live_7QdRk2mVx9Ta_0123456789ABCDEFGHIJKLMNOPQRSTUV" + "0k86sD")
    assert isinstance(secret, SecretText)
    assert (secret.kind, secret.environment) == (SecretKind.SECRET, Environment.LIVE)
    assert (secret.kid, secret.prefix) == ("7QdRk2mVx9Ta", "sk_live_7QdR…")


@given(made())
def test_a_generated_secret_parses_back_equal(case: tuple[SecretText, str]) -> None:
    secret, brand = case
    assert parse(secret.text, brand=brand) == secret


@given(made(), st.integers(1, 50))
def test_a_truncated_secret_is_detected_by_its_shape(
    case: tuple[SecretText, str], cut: int
) -> None:
    secret, brand = case
    assert parse(secret.text[:-cut], brand=brand) is Malformed.SHAPE


@given(made(), st.data())
def test_any_one_edited_character_is_refused(
    case: tuple[SecretText, str], data: st.DataObject
) -> None:
    secret, brand = case
    place = data.draw(st.integers(0, len(secret.text) - 1))
    other = data.draw(st.characters())
    assume(other != secret.text[place])
    edited = secret.text[:place] + other + secret.text[place + 1 :]
    assert isinstance(parse(edited, brand=brand), Malformed)


def test_an_edited_random_part_is_detected_by_the_checksum() -> None:
    text = generate(SecretKind.SECRET, Environment.LIVE).text
    edited = text[:-10] + ("a" if text[-10] != "a" else "b") + text[-9:]
    assert parse(edited) is Malformed.CHECKSUM


def test_a_swapped_environment_is_detected_by_the_checksum() -> None:
    text = generate(SecretKind.SECRET, Environment.TEST).text
    assert parse(text.replace("sk_test_", "sk_live_")) is Malformed.CHECKSUM


@pytest.mark.parametrize(
    ("made_with", "read_with"), [("acme", ""), ("", "acme"), ("acme", "other")]
)
def test_a_secret_of_another_deployment_is_detected_by_its_brand(
    made_with: str, read_with: str
) -> None:
    text = generate(SecretKind.SECRET, Environment.LIVE, brand=made_with).text
    assert parse(text, brand=read_with) is Malformed.BRAND


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Malformed.EMPTY),
        (" ", Malformed.SHAPE),
        ("x" * 96, Malformed.SHAPE),
        ("x" * 97, Malformed.TOO_LONG),
        ("sk_live_" * 100_000, Malformed.TOO_LONG),
        ("sk_live_", Malformed.SHAPE),
        ("Bearer x", Malformed.SHAPE),
    ],
)
def test_an_invalid_secret_is_refused_with_a_reason(text: str, reason: Malformed) -> None:
    assert parse(text) is reason


@pytest.mark.parametrize(
    "stranger", ["\u0663", "\u00e9", "\u212a", "\uff10", "\ud800", "\n", "_", "-", "\0"]
)
@pytest.mark.parametrize("place", [0, 3, 8, 19, 21, 40, 52])
def test_only_ascii_letters_and_digits_pass_even_with_a_valid_checksum(
    stranger: str, place: int
) -> None:
    body = "sk_live_7QdRk2mVx9Ta_" + "a" * 32
    body = body[:place] + stranger + body[place + 1 :]
    assert parse(body + crc_of(body)) is Malformed.SHAPE


@given(st.text(max_size=120), brands)
@example("sk_live_7QdRk2mVx9Ta_" + "a" * 32 + "_" * 6, "")
def test_parsing_never_crashes(text: str, brand: str) -> None:
    assert isinstance(parse(text, brand=brand), SecretText | Malformed)
    assert mask(text) == "…" or mask(text) in text


def test_a_valid_checksum_does_not_excuse_a_wrong_shape() -> None:
    body = "sk_live_7QdRk2mVx-Ta_" + "a" * 32
    assert parse(body + crc_of(body)) is Malformed.SHAPE
    body = "sk_live_7QdRk2mVx9Ta-" + "a" * 32
    assert parse(body + crc_of(body)) is Malformed.SHAPE


@given(made())
def test_printing_a_secret_shows_no_more_than_its_prefix(case: tuple[SecretText, str]) -> None:
    secret, _ = case
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", "%s" % secret, repr([secret])]  # noqa: UP031
    for text in shown:
        assert secret.text[-38:] not in text
        assert secret.kid not in text
        assert secret.prefix in text


@given(made())
def test_the_prefix_has_the_brand_and_four_characters_of_the_kid(
    case: tuple[SecretText, str],
) -> None:
    secret, brand = case
    head, shown = secret.prefix[:-5], secret.prefix[-5:-1]
    assert secret.text.startswith(head + shown)
    assert head.startswith(brand)
    assert head.endswith("_")
    assert shown == secret.kid[:4]


@pytest.mark.parametrize(
    ("kind", "environment"),
    [
        (SecretKind.SECRET, None),
        (SecretKind.PUBLISHABLE, None),
        (SecretKind.SERVICE, Environment.LIVE),
        (SecretKind.HOOK, Environment.LIVE),
        (SecretKind.USER, Environment.TEST),
    ],
)
def test_a_kind_without_its_environment_is_not_generated(
    kind: SecretKind, environment: Environment | None
) -> None:
    with pytest.raises(ValueError, match="can't have the environment"):
        generate(kind, environment)


@pytest.mark.parametrize(
    "brand", ["A", "a", "1a", "acme_", "a" * 17, "sk", "wsk", "wht", "ut", "é1"]
)
def test_a_brand_that_makes_the_format_ambiguous_is_refused(brand: str) -> None:
    for refuse in (
        lambda: clean_brand(brand),
        lambda: generate(SecretKind.USER, None, brand=brand),
        lambda: parse("sk_live_x", brand=brand),
        lambda: fingerprint_regex(brand),
    ):
        with pytest.raises(ValueError, match="brand"):
            refuse()


def test_every_character_is_equally_likely() -> None:
    every_byte = bytes(range(256)) * 2
    text = random_text(496, lambda size: (every_byte * size)[:size])
    assert {text.count(character) for character in ALPHABET} == {8}


def test_an_exhausted_random_source_raises_instead_of_looping() -> None:
    with pytest.raises(ValueError, match="fewer bytes"):
        random_text(32, lambda _: b"")


def test_two_secrets_are_never_the_same() -> None:
    texts = {generate(SecretKind.SECRET, Environment.LIVE).text for _ in range(1000)}
    assert len(texts) == 1000


@given(made(), st.sampled_from(["", " ", "key=", '"', "https://x/?k=", "\n"]))
def test_a_scanner_finds_a_secret_inside_other_text(
    case: tuple[SecretText, str], before: str
) -> None:
    secret, brand = case
    matches = re.findall(fingerprint_regex(brand), f"{before}{secret.text}{before[::-1]} end")
    assert matches == [secret.text]


def test_a_scanner_ignores_another_brand() -> None:
    text = generate(SecretKind.SECRET, Environment.LIVE, brand="acme").text
    assert re.search(fingerprint_regex(), text) is None


@given(made())
def test_a_log_shows_the_kid_and_nothing_else(case: tuple[SecretText, str]) -> None:
    secret, _ = case
    assert mask(secret.text) == secret.kid


@pytest.mark.parametrize("cut", [1, 6, 20])
def test_a_log_shows_nothing_of_a_text_that_is_only_partly_a_secret(cut: int) -> None:
    assert mask(generate(SecretKind.SECRET, Environment.LIVE).text[:-cut]) == "…"
    assert mask("sk_live_51H" + "a" * 40) == "…"


def test_a_damaged_secret_is_still_recognized_by_its_start() -> None:
    text = generate(SecretKind.SECRET, Environment.LIVE, brand="acme").text
    assert looks_like_ours(text[:-9], brand="acme")
    assert not looks_like_ours(text[:-9])


SHOWN = st.sampled_from(
    [generate(SecretKind.SECRET, Environment.LIVE).text, generate(SecretKind.USER, None).text,
     generate(SecretKind.GRANT, None).text, "acme_0123456789abcdef0123",
     generate(SecretKind.PUBLISHABLE, Environment.TEST).text[:-9],
     generate(SecretKind.SECRET, Environment.LIVE, brand="other").text]
)  # fmt: skip


def encoded(text: str, times: int) -> str:
    for _ in range(times):
        text = "".join(f"%{byte:02x}" for byte in text.encode())
    return text


@given(SHOWN, st.sampled_from(["/rpc/{}/eth", "/x;key={}", "/a?b={}&c", "{}", "/{}", "Bearer {}",
                               "curl/8 ({})", "a_{}", "/x,{},y"]), st.integers(0, 2))  # fmt: skip
def test_a_secret_within_a_text_is_fully_redacted(text: str, around: str, times: int) -> None:
    masked = mask_secrets(around.format(encoded(text, times)), prefixes=("acme_", "zz_"))
    assert masked == around.format("…")


@pytest.mark.parametrize(
    "text",
    ["GET /out_of_stock/acme_docs", "Mozilla/5.0 (X11; Linux x86_64)", "/100%/a%20b",
     "/v1/keys/{id}", "acme_short", "macme_0123456789abcdef"],
)  # fmt: skip
def test_a_text_without_a_secret_is_unchanged(text: str) -> None:
    assert mask_secrets(text, prefixes=("acme_",)) == text


def test_a_prefix_overlaps_ours_with_and_without_the_brand() -> None:
    for prefix in ("acme", "acme_sk_live_x", "acm", "sk_live_", "ut_x"):
        assert meets_our_heads(prefix, brand="acme")
    for prefix in ("acmeprod_", "acme_key_", "other_"):
        assert not meets_our_heads(prefix, brand="acme")
    assert not meets_our_heads("acme_")
