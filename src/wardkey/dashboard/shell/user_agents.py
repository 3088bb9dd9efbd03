"""Browser names from user agents."""

from __future__ import annotations

from functools import lru_cache

from wardkey.domain.callers import product_of

# The order matters: each browser's user agent also contains the marks of later ones.
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("Vivaldi/", "Vivaldi"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("CrOS", "ChromeOS"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


@lru_cache(maxsize=256)
def browser_name(user_agent: str) -> str:
    """Return a name such as `Firefox on macOS`, or the program's name if it isn't a browser."""
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), "")
    if not browser:
        return product_of(user_agent) or "Unknown browser"
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    return f"{browser} on {system}" if system else browser
