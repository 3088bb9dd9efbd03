"""The address of a list: the number of its page, and links that change some of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlencode

PAGE = 25

_DIGITS = 6
_MOST_PAGES = 10_000


def page_number(query: Mapping[str, str]) -> int:
    """Return the number of the page that an address asks for; what it cannot mean is the first."""
    number = query.get("page", "1")
    if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS):
        return 1
    return min(_MOST_PAGES, max(1, int(number)))


def links(path: str, now: Mapping[str, object]) -> Callable[..., str]:
    """Return a function that writes `path` with the parameters of `now`, some of them changed.

    It takes what stands behind the path, if anything does, and the changes by name. What is empty,
    and the number of the first page, is left out.
    """

    def write(below: str = "", **changed: object) -> str:
        wanted = {name: str(value) for name, value in {**now, **changed}.items() if value}
        if wanted.get("page") == "1":
            del wanted["page"]
        return f"{path}{below}?{urlencode(wanted)}" if wanted else f"{path}{below}"

    return write
