"""CORS headers: what pages of other sites may send, and which response headers they may read."""

from __future__ import annotations

# In addition to the headers every page can read; without Retry-After a page would retry at once.
_READABLE = "Retry-After, RateLimit, RateLimit-Policy, Wardkey-Request-Id, WWW-Authenticate"
# For errors too. Any origin is safe, because these routes ignore cookies.
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": _READABLE,
}


def preflight_headers(methods: str, *more: str) -> dict[str, str]:
    """Return the headers of a preflight response; `more` names additional request headers."""
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": f"{methods}, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join(
            ("Authorization", "Content-Type", "Wardkey-Api-Key", *more)
        ),
        "Access-Control-Max-Age": "7200",
    }
