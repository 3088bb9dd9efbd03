"""Device cookies: a browser in which an account signed in before has its own throttle.

See OWASP, "Slow Down Online Guessing Attacks with Device Cookies". A cookie contains an id and a
keyed digest that binds it to the account and its current password. It doesn't grant access.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import blake2b

from wardkey.db.vault import Vault

_ID_LENGTH, _DIGEST_LENGTH = 22, 64


def new_device(vault: Vault, user_id: str, password_hash: str) -> str:
    """Return a cookie for a browser in which the account has just signed in."""
    device_id = secrets.token_urlsafe(16)
    return f"{device_id}.{_digest(vault, device_id, user_id, password_hash)}"


def device_id_of(vault: Vault, text: str, user_id: str, password_hash: str) -> str:
    """Return the device id in a cookie of this account and its current password, otherwise ""."""
    if len(text) != _ID_LENGTH + 1 + _DIGEST_LENGTH or not text.isascii():
        return ""
    device_id, _, digest = text.partition(".")
    is_valid = hmac.compare_digest(digest, _digest(vault, device_id, user_id, password_hash))
    return device_id if is_valid else ""


def _digest(vault: Vault, device_id: str, user_id: str, password_hash: str) -> str:
    message = f"{device_id} {user_id} {password_hash}".encode()
    return blake2b(
        message, key=vault.key_for("device"), digest_size=_DIGEST_LENGTH // 2
    ).hexdigest()
