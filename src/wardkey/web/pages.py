"""What pages of other sites may send, and read of the answers."""

from __future__ import annotations

# Beside what every page may read; a page that may not read Retry-After asks again at once.
_READABLE = "Retry-After, RateLimit, RateLimit-Policy, Wardkey-Request-Id, WWW-Authenticate"
# A page must be able to read refusals too; no cookie ever counts here.
OPEN_TO_PAGES = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": _READABLE,
}


def preflight_fields(methods: str, *more: str) -> dict[str, str]:
    """Return the answer to a browser's question; `more` names header fields beside the usual."""
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": f"{methods}, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join(
            ("Authorization", "Content-Type", "Wardkey-Api-Key", *more)
        ),
        "Access-Control-Max-Age": "7200",
    }
