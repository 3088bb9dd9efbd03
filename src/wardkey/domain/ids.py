"""Stable ids of records: a prefix, the time in base62 and randomness, so that they sort by age."""

from __future__ import annotations

import secrets

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_id(prefix: str, now: int) -> str:
    """Return `prefix_` + 8 characters of `now` (epoch ms) + 14 random ones (83 bits)."""
    stamp = ""
    for _ in range(8):
        now, digit = divmod(now, 62)
        stamp = ALPHABET[digit] + stamp
    return f"{prefix}_{stamp}{''.join(secrets.choice(ALPHABET) for _ in range(14))}"
