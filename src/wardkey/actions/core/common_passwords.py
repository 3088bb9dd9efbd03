"""The list of common passwords, the first that an attacker tries."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

_LIST = Path(__file__).with_name("common_passwords.txt.gz")
_MIN_LENGTH = 4


@lru_cache(maxsize=1)
def _load_list() -> frozenset[str]:
    return frozenset(gzip.decompress(_LIST.read_bytes()).decode().split())


def is_common(password: str) -> bool:
    """Return whether a password is common, also when repeated or wrapped in digits and symbols.

    The list has 10,000 passwords, in lower case.
    """
    folded = password.casefold()
    core = folded.strip("0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")
    return any(
        len(text) >= _MIN_LENGTH and text in _load_list()
        for whole in (folded, core)
        for text in (whole, _shortest_period(whole))
    )


def _shortest_period(text: str) -> str:
    """Return the shortest string that gives `text` when repeated."""
    return text[: (text + text).find(text, 1)] if text else text
