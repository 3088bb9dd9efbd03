"""Checks of a request's head, so that all parsers read it the same way (RFC 9112 §11.2)."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from wardkey.domain.errors import InvalidHttp

MAX_HEAD = 65_536
_VERSIONS = ("1.1", "1.0")
_PORTS = {"http": "80", "https": "443"}
_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding"})
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]*)?")


def check_head(version: str, fields: list[tuple[bytes, bytes]], named: dict[bytes, bytes]) -> bool:
    """Check a head; return whether a body follows.

    Field names are in lower case; `named` has the same fields as a dictionary. Raises
    `InvalidHttp`.
    """
    if version not in _VERSIONS:
        raise InvalidHttp("Only HTTP/1.1 and HTTP/1.0 are supported.")
    if len(named) != len(fields) and sum(name in _SINGLE for name, _ in fields) > len(
        _SINGLE & named.keys()
    ):
        raise InvalidHttp("Send one Host header and one length (RFC 9112 §3.2, §6.3).")
    host = named.get(b"host")
    if host is None:
        if version == "1.1":
            raise InvalidHttp("A request needs a Host header (RFC 9112 §3.2).")
    elif not _is_host(host):
        raise InvalidHttp("Host must be a name or an address, with or without a port.")
    coding = named.get(b"transfer-encoding")
    if coding is None:
        return named.get(b"content-length", b"").strip(b" \t0") != b""
    if coding.lower() != b"chunked" or version == "1.0":
        raise InvalidHttp("The only supported transfer coding is chunked, and only in HTTP/1.1.")
    return True


def head_size(target: bytes, fields: list[tuple[bytes, bytes]]) -> int:
    """Return the size of a head in bytes, without its method and version."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def origin_form(target: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return the path and query of a target in absolute form; raises `InvalidHttp`.

    Its host must match the Host header, if there is one.
    """
    host = next((value for name, value in fields if name == b"host"), b"")
    try:
        parts = urlsplit(target.decode("ascii"))
        authority = _authority(parts.netloc, parts.scheme)
        is_same = not host or authority == _authority(host.decode("ascii"), parts.scheme)
    except (KeyError, ValueError):
        raise InvalidHttp("The request target must be a path or an http(s) URL.") from None
    if not _is_host(parts.netloc.encode()) or not is_same:
        raise InvalidHttp("The URL in the request line and the Host header name different hosts.")
    path = parts.path or "/"
    return (f"{path}?{parts.query}" if parts.query else path).encode()


def _authority(text: str, scheme: str) -> str:
    """Return the host and port in lower case, without the scheme's default port."""
    return text.lower().removesuffix(":" + _PORTS[scheme.lower()]).removesuffix(":")


# A server has few host names.
@lru_cache(maxsize=1024)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None
