"""Stable ids of records: a prefix, the time in base62 and randomness, so that they sort by age."""

from __future__ import annotations

from wardkey.domain.secret import ALPHABET, random_text


def new_id(prefix: str, now: int) -> str:
    """Return `prefix_` + 8 characters of `now` (epoch ms) + 14 random ones (83 bits)."""
    stamp = ""
    for _ in range(8):
        now, digit = divmod(now, 62)
        stamp = ALPHABET[digit] + stamp
    return f"{prefix}_{stamp}{random_text(14)}"
