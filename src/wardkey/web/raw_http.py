"""A request and its answer as bytes, the same for the framework's routes and for the fast lane."""

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
# From a random start, so that processes and restarts do not repeat each other's.
_numbers = count(secrets.randbits(64))


# The request that this task or thread answers, for log records.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


def next_request_id() -> str:
    """Return a name for a request: `req_` and 16 hexadecimal digits."""
    return f"req_{next(_numbers) & _LAST_64_BITS:016x}"


@dataclass(slots=True)
class CallerCache:
    """The caller that a connection showed last, with the header fields that told of him.

    `known` is the record of the key that his verdict was on.
    """

    named: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    query: bytes = field(default=b"", repr=False)
    known: KnownSecret | None = None
    caller: Any = None


class RawRequest:
    """What came: names of `fields` in lower case, `peer` the address of the other end.

    `route` is the method and the route's path, as usage tells it; `seen` remembers the caller
    that the same connection showed before.
    """

    __slots__ = ("body", "headers", "named", "peer", "query", "request_id", "route", "seen")

    def __init__(  # noqa: PLR0917 - the parts of a request
        self,
        query: bytes,
        fields: list[tuple[bytes, bytes]],
        peer: str,
        body: bytes,
        request_id: str,
        seen: CallerCache,
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
        self.seen = seen

    @classmethod
    def of(cls, request: Request, body: bytes = b"") -> RawRequest:
        """Return what an ASGI server received."""
        scope = request.scope
        peer = scope["client"][0] if scope.get("client") else ""
        request_id = scope.get("state", {}).get("request_id", "")
        route = f"{request.method} {scope['route'].path_format}"
        return cls(
            scope["query_string"], scope["headers"], peer, body, request_id, CallerCache(), route
        )

    def header(self, name: bytes) -> str:
        """Return the first field of that name, or an empty text."""
        value = self.named.get(name)
        return "" if value is None else value.decode("latin-1")

    def headers_named(self, name: bytes) -> list[str]:
        """Return every field of that name."""
        if len(self.named) == len(self.headers):
            value = self.named.get(name)
            return [] if value is None else [value.decode("latin-1")]
        return [value.decode("latin-1") for known, value in self.headers if known == name]


def header_lines(fields: Mapping[str, str]) -> str:
    """Return header fields as they go over the wire, each with its line end.

    Raises `ValueError` for a value that would end its line or is not Latin-1.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if lines.count("\r") != len(fields) or lines.count("\n") != len(fields) or "\0" in lines:
        raise ValueError("a header field has a control character in it")
    lines.encode("latin-1")
    return lines


@dataclass(slots=True)
class RawResponse:
    """An answer; `content_type` is empty where there is no body.

    `lines` are further header fields, made by `header_lines`.
    """

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    lines: str = ""

    def response(self) -> Response:
        """Return it for the framework."""
        said = dict(self.headers)
        for line in self.lines.splitlines():
            name, _, value = line.partition(": ")
            said[name] = value
        return Response(self.body, self.status, said, media_type=self.content_type or None)
