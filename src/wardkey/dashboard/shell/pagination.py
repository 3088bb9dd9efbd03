"""Pagination of lists: the page number in a URL, and links that change query parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlencode

PAGE = 25

_DIGITS = 6
_MOST_PAGES = 10_000


def page_number(query: Mapping[str, str]) -> int:
    """Return the page number in a query; invalid values mean the first page."""
    number = query.get("page", "1")
    if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS):
        return 1
    return min(_MOST_PAGES, max(1, int(number)))


def links(path: str, current: Mapping[str, object]) -> Callable[..., str]:
    """Return a function that builds links to `path` with the query parameters `current`.

    The function takes an optional suffix of the path, and parameters to change by name. It omits
    empty parameters and the number of the first page.
    """

    def build_link(suffix: str = "", **changes: object) -> str:
        query = {name: str(value) for name, value in {**current, **changes}.items() if value}
        if query.get("page") == "1":
            del query["page"]
        return f"{path}{suffix}?{urlencode(query)}" if query else f"{path}{suffix}"

    return build_link
