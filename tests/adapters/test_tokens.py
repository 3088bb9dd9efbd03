from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from tests.domain.test_identity import GOOD, NOW, claims_of
from wardkey.adapters import tokens
from wardkey.adapters.tokens import STEPS, VerifyingKey, import_keys
from wardkey.domain.errors import InvalidToken, KeySetUnavailable, TokenExpired
from wardkey.domain.identity import LEEWAY_S, Step
from wardkey.domain.providers import ALGORITHMS, TokenRules, clean_provider, token_rules

RSA: RSAKey = RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER: RSAKey = RSAKey.generate_key(2048, {"kid": "other"})
EC: ECKey = ECKey.generate_key("P-256", {"kid": "ec"})
EC384: ECKey = ECKey.generate_key("P-384", {"kid": "ec384"})
EC521: ECKey = ECKey.generate_key("P-521", {"kid": "ec521"})
ED: OKPKey = OKPKey.generate_key("Ed25519", {"kid": "ed"})
SECRET = b"a-shared-secret-of-a-legacy-project-0123456789"
KEY_FOR: dict[str, Key] = {
    "R": RSA,
    "P": RSA,
    "ES256": EC,
    "ES384": EC384,
    "ES512": EC521,
    "EdDSA": ED,
}
RULES = token_rules(clean_provider(GOOD["oidc"][0]))


def rules(*algorithms: str, kind: str = "oidc", **more: object) -> TokenRules:
    return replace(
        token_rules(GOOD[kind][0]),
        **({"algorithms": frozenset(algorithms)} if algorithms else {}) | more,  # type: ignore[arg-type]
    )


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def head(alg: str, kid: str = "") -> str:
    return b64(json.dumps({"alg": alg, "kid": kid, "typ": "JWT"}).encode())


def signed(
    header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, key: Key, alg: str = ""
) -> str:
    """Sign anything, as a hostile issuer or an attacker would."""
    alg = alg or (header["alg"] if isinstance(header, dict) else "RS256")
    parts = [
        b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    text = ".".join(parts)
    return f"{text}.{b64(jws.JWSRegistry.algorithms[alg].sign(text.encode(), key))}"


def good(alg: str = "RS256", key: Key = RSA, **more: object) -> str:
    return signed({"alg": alg, "kid": key.kid, "typ": "JWT"}, claims_of("oidc", **more), key)


def keys(*made: Key | dict[str, Any]) -> Callable[[str], Sequence[VerifyingKey]]:
    items = [key if isinstance(key, dict) else key.as_dict(private=False) for key in made]
    read = import_keys({"keys": items}).keys
    return lambda kid: [key for key in read if not kid or key.kid == kid]


KEYS = keys(RSA, EC, EC384, EC521, ED)


def verified(
    text: str,
    wanted: TokenRules = RULES,
    keys_of: Callable[[str], Sequence[VerifyingKey]] = KEYS,
    now: float = NOW,
    secret: bytes = b"",
) -> dict[str, Any]:
    return tokens.verify_token(tokens.parse_token(text), wanted, keys_of, now, secret)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_each_algorithm_verifies_its_own_signature_and_no_other(alg: str) -> None:
    key = KEY_FOR.get(alg) or KEY_FOR[alg[0]]
    text = good(alg, key)
    assert verified(text, rules(alg)) == claims_of("oidc")
    altered = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]
    with pytest.raises(InvalidToken) as refused:
        verified(altered, rules(alg))
    assert refused.value.step == "signature"
    others = [other for other in ALGORITHMS if other != alg]
    with pytest.raises(InvalidToken) as refused:
        verified(text, rules(*others))
    assert refused.value.step == "algorithm"


def test_the_shared_secret_verifies_a_legacy_token() -> None:
    supabase = rules("HS256", "RS256", kind="supabase")
    text = signed({"alg": "HS256", "kid": "x"}, claims_of("supabase"), OctKey.import_key(SECRET))
    assert verified(text, supabase, keys(), NOW, SECRET) == claims_of("supabase")
    for secret in (b"", SECRET[:-1]):
        with pytest.raises(InvalidToken):
            verified(text, supabase, keys(), NOW, secret)
    # Without the opt-in the secret is not used.
    with pytest.raises(InvalidToken) as refused:
        verified(text, rules(kind="supabase"), keys(), NOW, SECRET)
    assert refused.value.step == "algorithm"


def with_public_key_as_secret(form: str) -> str:
    """Make the token of CVE-2015-9235: HMAC with the public key."""
    public = RSA.as_pem(private=False) if form == "pem" else json.dumps(RSA.as_dict()).encode()
    text = f"{head('HS256', 'rsa')}.{b64(json.dumps(claims_of('oidc')).encode())}"
    return f"{text}.{b64(hmac.digest(public, text.encode(), 'sha256'))}"


HEAD, BODY, TAIL = good().split(".")
HOSTILE: dict[str, tuple[str, str]] = {
    "empty": ("", "form"),
    "one part": ("abc", "form"),
    "two parts": (f"{HEAD}.{BODY}", "form"),
    "no signature": (f"{HEAD}.{BODY}.", "form"),
    "no payload": (f"{HEAD}..{TAIL}", "form"),
    "four parts": (f"{HEAD}.{BODY}.{TAIL}.x", "form"),
    "five parts, as JWE": (f"{HEAD}.a.b.c.d", "form"),
    "1 MiB": (f"{HEAD}.{'A' * 1_048_576}.{TAIL}", "form"),
    "white space before": (f" {HEAD}.{BODY}.{TAIL}", "header"),
    "line break behind": (f"{HEAD}.{BODY}.{TAIL}\n", "form"),
    "padding": (f"{HEAD}.{BODY}.{TAIL}==", "form"),
    "bits behind the signature's end": (
        f"{HEAD}.{BODY}.{TAIL[:-1]}{chr(ord(TAIL[-1]) + 1)}",
        "form",
    ),
    "other base64": (f"{HEAD}.{BODY}.{TAIL[:-4]}+/AA", "form"),
    "beyond ASCII": (f"{HEAD}.{BODY}.{TAIL[:-4]}éAAA", "form"),
    "half a surrogate": (f"{HEAD}\ud800.{BODY}.{TAIL}", "header"),
    "header not JSON": (f"{b64(b'{')}.{BODY}.{TAIL}", "header"),
    "header a list": (f"{b64(b'[]')}.{BODY}.{TAIL}", "header"),
    "header deep": (f"{b64(b'[' * 3000)}.{BODY}.{TAIL}", "header"),
    "header long": (f"{'A' * 8_200}.{BODY}.{TAIL}", "header"),
    "alg twice": (signed(b'{"alg":"RS256","alg":"none","kid":"rsa"}', {}, RSA), "header"),
    "no alg": (signed(b'{"kid":"rsa"}', {}, RSA), "header"),
    "alg a list": (signed(b'{"alg":["RS256"]}', {}, RSA), "header"),
    "kid a number": (signed(b'{"alg":"RS256","kid":1}', {}, RSA), "header"),
    "kid endless": (signed({"alg": "RS256", "kid": "k" * 256}, {}, RSA), "header"),
    "crit": (signed({"alg": "RS256", "kid": "rsa", "crit": ["exp"]}, {}, RSA), "header"),
    "crit empty": (signed({"alg": "RS256", "kid": "rsa", "crit": []}, {}, RSA), "header"),
    "b64 false": (signed({"alg": "RS256", "kid": "rsa", "b64": False}, {}, RSA), "header"),
    "typ of a logout": (
        signed({"alg": "RS256", "kid": "rsa", "typ": "logout+jwt"}, claims_of("oidc"), RSA),
        "header",
    ),
    "alg none": (f"{head('none')}.{BODY}.AA", "algorithm"),
    "alg None": (f"{head('None', 'rsa')}.{BODY}.{TAIL}", "algorithm"),
    "HS256 with the public key": (with_public_key_as_secret("pem"), "algorithm"),
    "HS256 with the JWK": (with_public_key_as_secret("jwk"), "algorithm"),
    "alg not listed": (good("PS256"), "algorithm"),
    "ES256 for an RSA kid": (
        signed({"alg": "ES256", "kid": "rsa"}, claims_of("oidc"), EC),
        "key",
    ),
    "RS256 for an EC kid": (signed({"alg": "RS256", "kid": "ec"}, claims_of("oidc"), RSA), "key"),
    "ES256 for another curve": (
        signed({"alg": "ES256", "kid": "ec384"}, claims_of("oidc"), EC),
        "key",
    ),
    "kid unknown": (good(key=OTHER), "key"),
    "kid a path": (signed({"alg": "RS256", "kid": "../../dev/null"}, {}, RSA), "key"),
    "kid SQL": (signed({"alg": "RS256", "kid": "' OR 1=1 --"}, {}, RSA), "key"),
    "embedded jwk": (
        signed(
            {"alg": "RS256", "kid": "other", "jwk": OTHER.as_dict(private=False)},
            claims_of("oidc"),
            OTHER,
        ),
        "key",
    ),
    "jku and x5u": (
        signed(
            {
                "alg": "RS256",
                "kid": "rsa",
                "jku": "https://evil.example",
                "x5u": "https://evil.example",
            },
            claims_of("oidc"),
            OTHER,
        ),
        "signature",
    ),
    "signed by another key": (
        signed({"alg": "RS256", "kid": "rsa"}, claims_of("oidc"), OTHER),
        "signature",
    ),
    "no kid, another key": (signed({"alg": "RS256"}, claims_of("oidc"), OTHER), "signature"),
    "ES256 as DER": (
        f"{head('ES256', 'ec')}.{BODY}.{b64(bytes.fromhex('3006020101020101'))}",
        "signature",
    ),
    "ES256 of zeros (CVE-2022-21449)": (
        f"{head('ES256', 'ec')}.{BODY}.{b64(bytes(64))}",
        "signature",
    ),
    "another payload": (f"{HEAD}.{good(sub='eve').split('.')[1]}.{TAIL}", "signature"),
    "payload not JSON": (signed({"alg": "RS256", "kid": "rsa"}, b"{", RSA), "payload"),
    "payload a list": (signed({"alg": "RS256", "kid": "rsa"}, b"[]", RSA), "payload"),
    "payload not UTF-8": (signed({"alg": "RS256", "kid": "rsa"}, b'{"a":"\xff"}', RSA), "payload"),
    "payload deep": (
        signed({"alg": "RS256", "kid": "rsa"}, b'{"a":' + b"[" * 5_000, RSA),
        "payload",
    ),
    "claims twice": (
        signed({"alg": "RS256", "kid": "rsa"}, b'{"sub":"a","sub":"b"}', RSA),
        "payload",
    ),
    "issuer by a slash": (good(iss="https://id.acme.example/realms/a/"), "iss"),
    "audience missing": (good(aud="-"), "aud"),
    "audience of others": (good(aud=["x", "y"]), "aud"),
    "never ends": (good(exp="-"), "exp"),
    "not yet": (good(nbf=NOW + 3_600), "nbf"),
    "from the future": (good(iat=NOW + 3_600), "iat"),
}
LISTED = rules("RS256", "ES256")


@pytest.mark.parametrize(("text", "step"), HOSTILE.values(), ids=list(HOSTILE))
def test_401_a_hostile_token_fails_at_the_expected_step(text: str, step: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        verified(text, LISTED, secret=SECRET)
    assert refused.value.step == step
    assert refused.value.detail.endswith(".")
    assert len(refused.value.detail) < 400
    assert refused.value.detail.isprintable()
    # The test tool reports the same fault and the steps that passed before.
    steps = tokens.explain_token(text, LISTED, KEYS, NOW, SECRET)
    assert Step(step, refused.value.detail) in steps
    if step in STEPS:
        assert steps[:-1] == tuple(Step(name) for name in STEPS[: STEPS.index(step)])


def test_401_a_token_expires_at_its_second() -> None:
    text = good(exp=NOW + 60)
    assert verified(text, now=NOW + 60 + LEEWAY_S - 0.01)
    with pytest.raises(TokenExpired) as refused:
        verified(text, now=NOW + 60 + LEEWAY_S)
    assert refused.value.step == "exp"


def test_the_test_tool_lists_every_failing_claim() -> None:
    steps = tokens.explain_token(good(aud="x", exp=NOW - 100), RULES, KEYS, NOW)
    assert [step.name for step in steps if step.fault] == ["aud", "exp"]
    assert [step.name for step in steps][: len(STEPS)] == list(STEPS)


def test_the_test_tool_reports_that_keys_cannot_be_fetched() -> None:
    def away(_kid: str) -> Sequence[VerifyingKey]:
        raise KeySetUnavailable("The provider's keys cannot be fetched.")

    steps = tokens.explain_token(good(), RULES, away, NOW)
    assert steps[-1] == Step("key", "The provider's keys cannot be fetched.")


def test_a_token_without_kid_is_tried_with_the_matching_keys() -> None:
    plain = [dict(key.as_dict(private=False)) for key in (EC, OTHER, RSA)]
    for key in plain:
        del key["kid"]
    text = signed({"alg": "RS256"}, claims_of("oidc"), RSA)
    assert verified(text, keys_of=keys(*plain))
    assert verified(text, keys_of=keys(EC, OTHER, RSA))


def test_a_token_without_kid_is_tried_with_a_bounded_number_of_keys() -> None:
    plain = [{**OTHER.as_dict(private=False), "kid": f"k{n}"} for n in range(5)]
    text = signed({"alg": "RS256"}, claims_of("oidc"), RSA)
    with pytest.raises(InvalidToken):
        verified(text, keys_of=keys(*plain, RSA))


def test_firebase_requires_a_kid_and_emulator_tokens_are_refused() -> None:
    firebase = token_rules(GOOD["firebase"][0])
    assert verified(
        signed({"alg": "RS256", "kid": "rsa"}, claims_of("firebase"), RSA), firebase
    ) == claims_of("firebase")
    for text, step in (
        (signed({"alg": "RS256"}, claims_of("firebase"), RSA), "key"),
        # Tokens of the emulator have an empty signature.
        (f"{head('none')}.{BODY}.", "form"),
    ):
        with pytest.raises(InvalidToken) as refused:
            verified(text, firebase)
        assert refused.value.step == step


def public(key: Key, **more: object) -> dict[str, Any]:
    return {**key.as_dict(private=False), **more}


WEAK = rsa.generate_private_key(65_537, 1024).public_key().public_numbers()  # noqa: S505 - refused


@pytest.mark.parametrize(
    "item",
    [
        public(RSA, use="enc"),
        public(RSA, key_ops=["encrypt"]),
        public(RSA, key_ops="verify"),
        public(RSA, alg=["RS256"]),
        public(RSA, kid=7),
        public(RSA, n="AQAB"),
        public(RSA, n=["x"]),
        public(RSA, e="A" * 400),
        public(RSA, n=b64(WEAK.n.to_bytes(128, "big"))),
        public(RSA, n="_" * 1_400),
        public(RSA, e="AA"),
        public(RSA, kty="oct", k="AAAA"),
        public(RSA, kty="rsa"),
        public(EC, crv="secp256k1"),
        public(EC, crv="P-384"),
        public(EC, crv=["P-256"]),
        public(EC, x=b64(bytes(32))),
        public(EC, y="!"),
        public(ED, crv="X25519"),
        public(ED, x="AAAA"),
        RSA.as_dict(private=True),
        EC.as_dict(private=True),
        {"kty": "oct", "k": b64(SECRET)},
        {"kty": "RSA"},
        {},
    ],
)
def test_a_key_that_is_not_for_signatures_is_skipped(item: dict[str, Any]) -> None:
    keys, left_out = import_keys({"keys": [item, 7, None]})
    assert keys == ()
    assert len(left_out) == 3


@pytest.mark.parametrize("key", [RSA, EC, ED])
@pytest.mark.parametrize("name", ["alg", "use", "key_ops", "kid", "d"])
def test_null_in_a_key_counts_as_absent(key: Key, name: str) -> None:
    (read,), left_out = import_keys({"keys": [public(key, **{name: None})]})
    assert left_out == ()
    assert (read.kid, read.alg) == ("" if name == "kid" else key.kid, "")


def test_null_in_a_header_counts_as_absent() -> None:
    text = signed({"alg": "RS256", "kid": None, "typ": None}, claims_of("oidc"), RSA)
    assert verified(text) == claims_of("oidc")


def test_an_ed25519_key_may_name_its_algorithm_as_rfc_9864_does() -> None:
    text = good("EdDSA", ED)
    assert verified(text, rules("EdDSA"), keys(public(ED, alg="Ed25519")))


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (public(RSA, use="enc"), "its use is “enc”, not sig"),
        (public(RSA, key_ops=["sign"]), "its key_ops do not contain verify"),
        (public(RSA, alg="RSA-OAEP"), "its alg is “RSA-OAEP”"),
        (public(EC, alg="RS256"), "its alg is “RS256”"),
        (public(RSA, n=b64(WEAK.n.to_bytes(128, "big"))), "it has 1024 bits"),
        (public(EC, crv="secp256k1"), "its curve is “secp256k1”"),
        (public(EC, x=b64(bytes(32))), "it is malformed"),
        (RSA.as_dict(private=True), "its private half is published"),
        ({"kty": "oct", "kid": "ec"}, "its kty is “oct”"),
        ({"kty": "RSA", "e": "AQAB"}, "it has no n"),
        ("x", "it is not an object"),
    ],
)
def test_a_skipped_key_is_named_with_the_reason(item: Any, reason: str) -> None:  # noqa: ANN401 - JSON
    read, (fault,) = import_keys({"keys": [public(ED), item]})
    assert [key.kid for key in read] == ["ed"]
    kid = item.get("kid") if isinstance(item, dict) else None
    assert fault.startswith(f"Key 2 with the kid “{kid}” is left" if kid else "Key 2 is left")
    assert reason in fault


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
MEMBERS = st.sampled_from(["kty", "crv", "n", "e", "x", "y", "d", "alg", "use", "key_ops", "kid"])
BAD_KEYS = JSON | st.builds(
    lambda key, name, value: public(key, **{name: value}),
    st.sampled_from([RSA, EC, EC521, ED]),
    MEMBERS,
    JSON | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "AA", "-_"]),
)


@given(st.lists(BAD_KEYS, max_size=4), st.lists(BAD_KEYS, max_size=4))
def test_an_invalid_key_does_not_affect_the_valid_ones_of_a_set(
    before: list[Any], after: list[Any]
) -> None:
    read, left_out = import_keys({"keys": [*before, public(EC, kid="good"), *after]})
    assert any(key.kid == "good" and key.kind == ("EC", "P-256") for key in read)
    assert len(read) + len(left_out) == len(before) + len(after) + 1


def test_a_key_is_used_only_with_its_algorithm() -> None:
    text = good("RS256")
    assert verified(text, keys_of=keys(public(RSA, alg="RS256")))
    with pytest.raises(InvalidToken) as refused:
        verified(text, keys_of=keys(public(RSA, alg="PS256")))
    assert refused.value.step == "key"


def test_unknown_members_of_a_key_are_ignored() -> None:
    more = {"x5c": [1], "x5u": "https://evil.example", "ext": True, "use": "sig", "d2": {}}
    assert verified(good(), keys_of=keys(public(RSA, **more)))


def test_the_issuer_hint_is_parsed_strictly_and_unverified() -> None:
    presented = tokens.parse_token(good(key=OTHER))
    assert tokens.issuer_hint(presented) == "https://id.acme.example/realms/a"
    assert tokens.issuer_hint(tokens.parse_token(good(iss=["x"]))) == ""
    with pytest.raises(InvalidToken):
        tokens.issuer_hint(tokens.parse_token(HOSTILE["claims twice"][0]))


@given(st.text(max_size=60) | st.text("AZaz09-_=+/. ", max_size=60))
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        verified(text)
    with pytest.raises(InvalidToken):
        verified(f"{HEAD}.{BODY}.{text}")


@given(st.binary(max_size=200))
def test_base64url_has_one_spelling(raw: bytes) -> None:
    text = b64(raw)
    assert tokens._decode(text) == raw
    for other in (text + "=", text + "A", text[:-1] + "*"):
        with suppress(ValueError):
            assert tokens._decode(other) != raw
