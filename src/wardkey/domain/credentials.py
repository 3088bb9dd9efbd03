"""The forms in which clients present a credential, read without any look-up."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from wardkey.domain.errors import AmbiguousCredentials
from wardkey.domain.secret import KID_LENGTH, has_shape_of_any_brand, head_of_any_brand, is_whole

# Invisible characters that editors, chats and spreadsheets leave around a copied text.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
_BLANK = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
_AROUND = _BLANK + _INVISIBLE
_QUOTES = "\"'`\u201c\u201d\u2018\u2019\xab\xbb"
# What browsers, RFC 3986 and HTML forms leave unescaped, with at least one escape.
_FORM_ENCODED = re.compile(r"(?=[^%]*%)(?:[A-Za-z0-9*\-._~!'()+]|%[0-9A-Fa-f]{2})+")
_BEARER = re.compile(r"bearer[\s:]", re.IGNORECASE)
_LONGEST_NAME = 64
# Schemes that an error may name: the IANA registry of HTTP authentication schemes, and usual ones
# beside it. Any other first word may be a part of a secret.
_SCHEMES = {
    name.lower(): name
    for name in (
        "ApiKey", "Api-Key", "AWS4-HMAC-SHA256", "Basic", "Bearer", "Concealed", "Digest", "DPoP",
        "GNAP", "HOBA", "JWT", "Key", "Mutual", "Negotiate", "NTLM", "OAuth", "PrivateToken",
        "SCRAM-SHA-1", "SCRAM-SHA-256", "Token", "vapid",
    )
}  # fmt: skip


# Header fields in which other APIs take a key; one that this deployment reads is no longer here.
_KEY_FIELDS = frozenset(
    f"{start}{name}"
    for start in ("", "x-")
    for name in ("api-key", "apikey", "api-token", "auth-key", "auth-token", "access-token")
)
# Whose credential a text may be, by how it begins; only beginnings that nothing else has.
_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), "a GitHub token"),
    (("glpat-", "gldt-", "glrt-"), "a GitLab token"),
    (("rk_live_", "rk_test_", "whsec_"), "a Stripe key"),
    (("xoxb-", "xoxp-", "xapp-"), "a Slack token"),
    (("AKIA", "ASIA"), "an AWS access key id"),
    (("AIza",), "a Google API key"),
    (("sk-", "pk-"), "a key of an API whose keys begin with sk- or pk-"),
    (("eyJ",), "a JWT, which POST /v2/tokens/exchange takes"),
)


def trim(text: str) -> str:
    """Return a presented text without white space and invisible characters around it."""
    if text.isascii():
        return text.strip()
    return text.strip(_AROUND)


def trim_field(value: str) -> str:
    """Return a header field's value, decoded as Latin-1, without what surrounds a text in it."""
    if value.isascii():
        return value.strip()
    try:
        return trim(value.encode("latin-1").decode())
    except UnicodeError:
        return trim(value)


def authorization_texts(value: str, is_ours: Callable[[str], bool]) -> list[str]:
    """Return what an Authorization field presents.

    `Bearer TEXT` (RFC 6750) presents any text. `Basic` (RFC 7617) presents its user name or its
    password, and a value without a scheme presents itself, only where `is_ours` holds for it.
    """
    scheme, _, rest = trim_field(value).replace("\t", " ").partition(" ")
    match scheme.lower():
        case "bearer":
            return [trim(rest)]
        case "basic":
            return [text for text in basic_pair(rest) if text and is_ours(text)]
    return [scheme] if not rest and is_ours(scheme) else []


def basic_pair(encoded: str) -> tuple[str, str]:
    """Return user name and password of Basic credentials (RFC 7617), both empty if unreadable."""
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return "", ""
    user, _, password = text.partition(":")
    return trim(user), trim(password)


def form_decoded(text: str) -> str:
    """Return a part of an OAuth client's Basic credentials, form-encoded (RFC 6749 §2.3.1) or raw.

    Form-encoding leaves `%` in escapes alone and few other signs. `+` stays, since the blank that
    it would stand for is in no key.
    """
    if not _FORM_ENCODED.fullmatch(text):
        return text
    try:
        return trim(unquote(text, errors="strict"))
    except UnicodeDecodeError:
        return text


def choose_credential(texts: Iterable[str], is_ours: Callable[[str], bool]) -> str:
    """Return the one credential among presented texts, or an empty text.

    Beside a text of our shape one of another shape is for someone else. Raises
    `AmbiguousCredentials` for two different texts where that leaves a choice.
    """
    different = list(dict.fromkeys(text for text in texts if text))
    if len(different) > 1:
        ours = [text for text in different if is_ours(text)]
        if len(ours) != 1:
            raise AmbiguousCredentials
        return ours[0]
    return different[0] if different else ""


def explain_missing(
    fields: Iterable[str], others: Iterable[tuple[str, str]], is_ours: Callable[[str], bool]
) -> str | None:
    """Return a sentence on what came without presenting a credential; None if nothing did.

    `fields` are those of Authorization, `others` all header fields by name. It names a well-known
    scheme or a header field, and never another part of a value.
    """
    for value in fields:
        words = value.split(None, 1)
        if not words:
            continue
        scheme = _SCHEMES.get(words[0].lower())
        sent = "Authorization came without a scheme known here"
        if scheme is not None:
            sent = f"Authorization came with {scheme}"
            if scheme == "Basic":
                sent += " and neither its user name nor its password is a key"
            elif scheme == "Bearer":
                sent += " and nothing after it"
        return f"{sent}; send Authorization: Bearer and a key."
    for name, value in others:
        if name.lower() in _KEY_FIELDS or is_ours(trim_field(value)):
            return (
                f"A key may have come in the header {name[:_LONGEST_NAME]}, which is not read "
                "here; send Authorization: Bearer and a key, or have the operator name that "
                "header in --key-headers."
            )
    return None


def explain_malformed(text: str) -> str | None:
    """Return why a presented text is not a key where its form shows that, else None."""
    if not text:
        return "The key is empty; send it whole."
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return "The key is in quotes; send it without them."
    if _BEARER.match(text):
        return "The key begins with “Bearer ”; send the key alone, without it."
    if any(char in _AROUND for char in text):
        return "The key has white space or invisible characters inside; copy it again, whole."
    return _explain_foreign(text)


def _explain_foreign(text: str) -> str | None:
    """Return that a text is another system's credential, where its form shows it."""
    if is_whole(text):
        return (
            "The key is whole but of another deployment, whose keys begin otherwise; send one of "
            "this deployment."
        )
    if has_shape_of_any_brand(text):
        return None
    for starts, whose in _FOREIGN:
        if text.startswith(starts):
            return f"This is not a Wardkey key but looks like {whose}; send the key itself."
    head = head_of_any_brand(text)
    if not head:
        return (
            "This is not a Wardkey key, which begins as sk_live_ or pk_test_ do; send the key "
            "itself, whole."
        )
    # Ours have an underscore behind the kid, which Stripe's never have.
    rest = text[len(head) :]
    if len(rest) > KID_LENGTH and "_" not in rest:
        return (
            "This is not a Wardkey key, though it begins as one; it looks like a key of Stripe. "
            "Send the key itself, whole."
        )
    return None
