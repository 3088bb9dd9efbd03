"""The list of passwords that many people have, which a guess tries first."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

_LIST = Path(__file__).with_name("common_passwords.txt.gz")
_SHORTEST = 4


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(gzip.decompress(_LIST.read_bytes()).decode().split())


def is_common(password: str) -> bool:
    """Tell whether a password is on the list, by itself, repeated, or with digits and signs around.

    The list has 10,000, in lower case.
    """
    folded = password.casefold()
    bare = folded.strip("0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")
    return any(
        len(text) >= _SHORTEST and text in _common()
        for whole in (folded, bare)
        for text in (whole, _repeated(whole))
    )


def _repeated(text: str) -> str:
    """Return the shortest part that `text` is made of by repetition."""
    return text[: (text + text).find(text, 1)] if text else text
