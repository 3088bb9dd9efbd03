"""CSV cells that no spreadsheet runs as a formula, whichever separator its locale uses."""

from __future__ import annotations

import re

# Where a locale separates by `;`, quotes that follow a comma protect nothing: an inner separator or
# line break then starts a cell. Spaces, quotes and invisible characters may precede the formula.
_STARTS = re.compile(
    r"(^|[,;|\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029])"
    r"(?=[\s\"\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]*"
    r"[=+\-@\uff1d\uff0b\uff0d\uff20]|[\x00-\x1f\x7f-\x9f])"
)


def text_cell(text: str) -> str:
    """Return `text` with an apostrophe wherever a spreadsheet could see a formula begin.

    Source: OWASP, CSV Injection.
    """
    return _STARTS.sub(r"\1'", text)
