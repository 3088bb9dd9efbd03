"""What a request's head must be like; parsers disagree about the rest (RFC 9112 §11.2)."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from wardkey.domain.errors import HeadersTooLarge, InvalidHttp

MOST_HEAD = 65_536
_VERSIONS = ("1.1", "1.0")
_PORTS = {"http": "80", "https": "443"}
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]*)?")


def check_head(version: str, target: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
    """Check a head whose field names are in lower case; return whether a body follows.

    Raises `InvalidHttp`, `HeadersTooLarge`.
    """
    if version not in _VERSIONS:
        raise InvalidHttp("Only HTTP/1.1 and HTTP/1.0 are served.")
    hosts = 0
    has_body = False
    size = len(target)
    for name, value in fields:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise InvalidHttp("Host is a name or an address, with or without a port.")
        elif name == b"content-length":
            has_body = has_body or value.strip(b" \t0") != b""
        elif name == b"transfer-encoding":
            has_body = True
            if value.lower() != b"chunked" or version == "1.0":
                raise InvalidHttp("The only transfer coding is chunked, and only in HTTP/1.1.")
    if size > MOST_HEAD:
        raise HeadersTooLarge
    if hosts > 1 or (not hosts and version == "1.1"):
        raise InvalidHttp("A request has exactly one Host field (RFC 9112 §3.2).")
    return has_body


def origin_form(target: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return path and query of a target in absolute form; raises `InvalidHttp`.

    The host in it must be the one in the Host field, if there is one.
    """
    host = next((value for name, value in fields if name == b"host"), b"")
    try:
        parts = urlsplit(target.decode("ascii"))
        named = _authority(parts.netloc, parts.scheme)
        agrees = not host or named == _authority(host.decode("ascii"), parts.scheme)
    except (KeyError, ValueError):
        raise InvalidHttp("The request's target is neither a path nor an http(s) URL.") from None
    if not _HOST.fullmatch(parts.netloc.encode()) or not agrees:
        raise InvalidHttp("The URL in the request line and the Host field name different hosts.")
    path = parts.path or "/"
    return (f"{path}?{parts.query}" if parts.query else path).encode()


def _authority(text: str, scheme: str) -> str:
    """Return host and port in lower case, without the port that the scheme implies."""
    return text.lower().removesuffix(":" + _PORTS[scheme.lower()]).removesuffix(":")
