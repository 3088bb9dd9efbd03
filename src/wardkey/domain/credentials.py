"""Parses the forms in which clients send a credential, without any lookup."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from wardkey.domain.errors import AmbiguousCredentials
from wardkey.domain.secret import KID_LENGTH, has_shape_of_any_brand, head_of_any_brand, is_whole

# Invisible characters that editors, chats and spreadsheets add to copied text.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
_BLANK = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
_STRIPPED = _BLANK + _INVISIBLE
_QUOTES = "\"'`\u201c\u201d\u2018\u2019\xab\xbb"
# Text with at least one escape, otherwise of characters that browsers, RFC 3986 and HTML forms
# leave unescaped.
_FORM_ENCODED = re.compile(r"(?=[^%]*%)(?:[A-Za-z0-9*\-._~!'()+]|%[0-9A-Fa-f]{2})+")
_BEARER = re.compile(r"bearer[\s:]", re.IGNORECASE)
_MAX_NAME_LENGTH = 64
# Schemes that an error can name: IANA's registry of HTTP authentication schemes and other common
# ones. Any other first word may be part of a secret.
_SCHEMES = {
    name.lower(): name
    for name in (
        "ApiKey", "Api-Key", "AWS4-HMAC-SHA256", "Basic", "Bearer", "Concealed", "Digest", "DPoP",
        "GNAP", "HOBA", "JWT", "Key", "Mutual", "Negotiate", "NTLM", "OAuth", "PrivateToken",
        "SCRAM-SHA-1", "SCRAM-SHA-256", "Token", "vapid",
    )
}  # fmt: skip


# Headers in which other APIs accept a key; a key in one that is configured here was already found.
_KEY_FIELDS = frozenset(
    f"{start}{name}"
    for start in ("", "x-")
    for name in ("api-key", "apikey", "api-token", "auth-key", "auth-token", "access-token")
)
# Other systems' credentials by prefix; only prefixes that are unique to them.
_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), "a GitHub token"),
    (("glpat-", "gldt-", "glrt-"), "a GitLab token"),
    (("rk_live_", "rk_test_", "whsec_"), "a Stripe key"),
    (("xoxb-", "xoxp-", "xapp-"), "a Slack token"),
    (("AKIA", "ASIA"), "an AWS access key id"),
    (("AIza",), "a Google API key"),
    (("sk-", "pk-"), "a key of an API whose keys begin with sk- or pk-"),
    (("eyJ",), "a JWT, which POST /v2/tokens/exchange accepts"),
)


def trim(text: str) -> str:
    """Return a presented text without leading and trailing white space and invisible characters."""
    if text.isascii():
        return text.strip()
    return text.strip(_STRIPPED)


def trim_field(value: str) -> str:
    """Return a header's value, which was decoded as Latin-1, trimmed like a presented text."""
    if value.isascii():
        return value.strip()
    try:
        return trim(value.encode("latin-1").decode())
    except UnicodeError:
        return trim(value)


def authorization_texts(value: str, is_ours: Callable[[str], bool]) -> list[str]:
    """Return the credentials in an Authorization header.

    `Bearer TEXT` (RFC 6750) may contain any text. The user name and password of `Basic` (RFC 7617)
    and a value without a scheme are returned only if `is_ours` accepts them.
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

    Form-encoded text contains `%` only in escapes, and few other characters unescaped. `+` isn't
    decoded, because no key contains a space.
    """
    if not _FORM_ENCODED.fullmatch(text):
        return text
    try:
        return trim(unquote(text, errors="strict"))
    except UnicodeDecodeError:
        return text


def choose_credential(texts: Iterable[str], is_ours: Callable[[str], bool]) -> str:
    """Return the one credential among the presented texts, or "" if there is none.

    A text of our shape wins over texts of other shapes, which are for another system. Raises
    `AmbiguousCredentials` if more than one different text remains.
    """
    distinct = list(dict.fromkeys(text for text in texts if text))
    if len(distinct) > 1:
        ours = [text for text in distinct if is_ours(text)]
        if len(ours) != 1:
            raise AmbiguousCredentials
        return ours[0]
    return distinct[0] if distinct else ""


def explain_missing(
    fields: Iterable[str], others: Iterable[tuple[str, str]], is_ours: Callable[[str], bool]
) -> str | None:
    """Return why the headers contain no credential, or None if nothing in them looks like one.

    `fields` are the values of Authorization, `others` all headers by name. The text names a
    well-known scheme or a header, never another part of a value.
    """
    for value in fields:
        words = value.split(None, 1)
        if not words:
            continue
        scheme = _SCHEMES.get(words[0].lower())
        problem = "Authorization has no known scheme"
        if scheme is not None:
            problem = f"Authorization has the scheme {scheme}"
            if scheme == "Basic":
                problem += ", but neither its user name nor its password is a key"
            elif scheme == "Bearer":
                problem += " and nothing after it"
        return f"{problem}; send Authorization: Bearer and a key."
    for name, value in others:
        if name.lower() in _KEY_FIELDS or is_ours(trim_field(value)):
            return (
                f"The header {name[:_MAX_NAME_LENGTH]} may contain a key, but it isn't read; send "
                "Authorization: Bearer and a key, or ask the operator to add that header to "
                "--key-headers."
            )
    return None


def explain_malformed(text: str) -> str | None:
    """Return why a presented text is not a key, or None if its form doesn't show it."""
    if not text:
        return "The key is empty; send the complete key."
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return "The key is in quotes; send it without them."
    if _BEARER.match(text):
        return "The key begins with “Bearer ”; send the key alone, without it."
    if any(char in _STRIPPED for char in text):
        return "The key has white space or invisible characters inside; copy all of it again."
    return _explain_foreign(text)


def _explain_foreign(text: str) -> str | None:
    """Return a sentence that names the other system whose credential this seems to be, or None."""
    if is_whole(text):
        return (
            "The key is complete but belongs to another deployment, whose keys begin differently; "
            "send a key of this deployment."
        )
    if has_shape_of_any_brand(text):
        return None
    for prefixes, kind in _FOREIGN:
        if text.startswith(prefixes):
            return f"This is not a Wardkey key but looks like {kind}; send the key itself."
    head = head_of_any_brand(text)
    if not head:
        return (
            "This is not a Wardkey key, which begins with a prefix such as sk_live_ or pk_test_; "
            "send the complete key."
        )
    # Our keys have an underscore after the kid, Stripe's never do.
    rest = text[len(head) :]
    if len(rest) > KID_LENGTH and "_" not in rest:
        return (
            "This is not a Wardkey key, although it begins like one; it looks like a Stripe key. "
            "Send the complete Wardkey key."
        )
    return None
