"""Stable record ids: a prefix, the time in base62 and random characters, so they sort by age."""

from __future__ import annotations

from functools import lru_cache

from wardkey.domain.secret import ALPHABET, random_text


def new_id(prefix: str, now: int) -> str:
    """Return `prefix_` + 8 characters of `now` (epoch ms) + 14 random ones (83 bits)."""
    return f"{prefix}_{_stamp(now)}{random_text(14)}"


# Under load, many ids are created in the same millisecond.
@lru_cache(maxsize=16)
def _stamp(now: int) -> str:
    stamp = ""
    for _ in range(8):
        now, digit = divmod(now, 62)
        stamp = ALPHABET[digit] + stamp
    return stamp
