"""Device cookies: browsers in which an account signed in before have a throttle of their own.

OWASP, "Slow Down Online Guessing Attacks with Device Cookies". The text is an id and a keyed digest
that binds it to the account and its current password. It opens nothing.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import blake2b

from wardkey.db.vault import Vault

_ID, _DIGEST = 22, 64


def new_device(vault: Vault, user_id: str, password_hash: str) -> str:
    """Return the text of a cookie for a browser in which the account just signed in."""
    device_id = secrets.token_urlsafe(16)
    return f"{device_id}.{_digest(vault, device_id, user_id, password_hash)}"


def device_id_of(vault: Vault, text: str, user_id: str, password_hash: str) -> str:
    """Return the id of a device at which the account signed in with its current password.

    Empty for any other text.
    """
    if len(text) != _ID + 1 + _DIGEST or not text.isascii():
        return ""
    device_id, _, digest = text.partition(".")
    fits = hmac.compare_digest(digest, _digest(vault, device_id, user_id, password_hash))
    return device_id if fits else ""


def _digest(vault: Vault, device_id: str, user_id: str, password_hash: str) -> str:
    said = f"{device_id} {user_id} {password_hash}".encode()
    return blake2b(said, key=vault.key_for("device"), digest_size=_DIGEST // 2).hexdigest()
