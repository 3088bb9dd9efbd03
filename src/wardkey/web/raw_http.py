"""Requests and responses as bytes, shared by the framework's routes and the fast path."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fastapi import Request, Response

from wardkey.domain.verdict import KnownSecret

_LAST_64_BITS = 2**64 - 1
# Starts at a random number, so processes and restarts don't repeat ids.
_numbers = count(secrets.randbits(64))


# The id of the request that this task or thread is answering, for log records.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


def next_request_id() -> str:
    """Return a new request id: `req_` and 16 hexadecimal digits."""
    return f"req_{next(_numbers) & _LAST_64_BITS:016x}"


@dataclass(slots=True)
class CallerCache:
    """The last caller of a connection, with the headers that identified it.

    `known` is the record of the key that was verified.
    """

    named: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    query: bytes = field(default=b"", repr=False)
    known: KnownSecret | None = None
    caller: Any = None


class RawRequest:
    """A received request: `fields` has lower-case names, `peer` is the connection's address.

    `route` is the method and the route's path, as usage records it; `cache` holds the last caller
    of the same connection.
    """

    __slots__ = ("body", "cache", "headers", "named", "peer", "query", "request_id", "route")

    def __init__(  # noqa: PLR0917 - the parts of a request
        self,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        peer: str,
        body: bytes,
        request_id: str,
        cache: CallerCache,
        route: str = "",
        named: dict[bytes, bytes] | None = None,
    ) -> None:
        self.route = route
        self.query = query
        self.headers = fields
        self.named = dict(fields) if named is None else named
        if len(self.named) != len(fields):
            self.named = dict(reversed(fields))
        self.peer = peer
        self.body = body
        self.request_id = request_id
        self.cache = cache

    @classmethod
    def of(cls, request: Request, body: bytes = b"") -> RawRequest:
        """Convert a request of the framework."""
        scope = request.scope
        peer = scope["client"][0] if scope.get("client") else ""
        request_id = scope.get("state", {}).get("request_id", "")
        route = f"{request.method} {scope['route'].path_format}"
        return cls(
            scope["query_string"], scope["headers"], peer, body, request_id, CallerCache(), route
        )

    def header(self, name: bytes) -> str:
        """Return the first header with this name, or ""."""
        value = self.named.get(name)
        return "" if value is None else value.decode("latin-1")

    def headers_named(self, name: bytes) -> list[str]:
        """Return all headers with this name."""
        if len(self.named) == len(self.headers):
            value = self.named.get(name)
            return [] if value is None else [value.decode("latin-1")]
        return [value.decode("latin-1") for field_name, value in self.headers if field_name == name]


def header_lines(fields: Mapping[str, str]) -> str:
    """Return headers in wire format, each with its line ending.

    Raises `ValueError` for a value that contains a line ending or NUL, or isn't Latin-1.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if lines.count("\r") != len(fields) or lines.count("\n") != len(fields) or "\0" in lines:
        raise ValueError("a header contains a control character")
    lines.encode("latin-1")
    return lines


@dataclass(slots=True)
class RawResponse:
    """A response; `content_type` is empty if there is no body.

    `lines` contains further headers, rendered by `header_lines`.
    """

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    lines: str = ""

    def response(self) -> Response:
        """Convert to a response of the framework."""
        headers = dict(self.headers)
        for line in self.lines.splitlines():
            name, _, value = line.partition(": ")
            headers[name] = value
        return Response(self.body, self.status, headers, media_type=self.content_type or None)
