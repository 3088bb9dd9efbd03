"""Escapes CSV cells so no spreadsheet runs them as formulas, whatever separator it uses."""

from __future__ import annotations

import re

# In a locale that separates by `;`, quotes after a comma have no effect, so a separator or line
# break inside starts a cell. Spaces, quotes and invisible characters may precede the formula.
_STARTS = re.compile(
    r"(^|[,;|\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029])"
    r"(?=[\s\"\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]*"
    r"[=+\-@\uff1d\uff0b\uff0d\uff20]|[\x00-\x1f\x7f-\x9f])"
)


def escape_cell(text: str) -> str:
    """Return `text` with an apostrophe wherever a spreadsheet could find the start of a formula.

    Source: OWASP, CSV Injection.
    """
    return _STARTS.sub(r"\1'", text)
