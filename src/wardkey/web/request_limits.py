"""What every request passes first: an id, a bound on its body, HEAD as GET, no-store."""

from __future__ import annotations

from time import perf_counter

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wardkey.domain.callers import storable_route
from wardkey.domain.errors import BodyTooLarge, InvalidRequest, RouteNotFound, WardkeyError
from wardkey.web.access_log import log_access
from wardkey.web.problems import problem_response
from wardkey.web.raw_http import current_request_id, next_request_id

MOST_BODY = 1_048_576


class Limits:
    """ASGI middleware that names each request and reads its whole body, up to 1 MiB."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it where it breaks a bound."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, began = scope["method"], perf_counter()
        if method == "HEAD":
            # RFC 9110 §9.3.2: as GET, and the server leaves the body out.
            scope = {**scope, "method": "GET"}
        request_id = next_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        context = scope["app"].state.context

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                _name_answer(message, request_id)
                if context.access_log:
                    path = storable_route(scope["path"], context.runner.database.brand)
                    client, status = scope["client"][0], message["status"]
                    log_access(method, path, status, began, client=client, request_id=request_id)
            await send(message)

        refusal = _refusal(scope)
        if refusal is not None:
            await problem_response(refusal, Request(scope))(scope, receive, send_named)
            return
        try:
            body = await _read(Headers(scope=scope), receive)
        except BodyTooLarge as failure:
            response = problem_response(failure, Request(scope))
            response.headers["Connection"] = "close"
            await response(scope, receive, send_named)
            return
        if body is None:
            return
        await self._app(scope, _replay(body, receive), send_named)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body once, and the client's disconnection after that."""
    passed = False

    async def replay() -> Message:
        nonlocal passed
        if passed:
            return await receive()
        passed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _name_answer(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["Wardkey-Request-Id"] = request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Cache-Control", "no-store")


def _refusal(scope: Scope) -> WardkeyError | None:
    """Return why a URL is refused; no database takes a NUL character in a text."""
    if "\0" in scope["path"]:
        return RouteNotFound()
    if b"%00" in scope.get("query_string", b""):
        return InvalidRequest("A parameter has a NUL character; leave it out.")
    return None


async def _read(headers: Headers, receive: Receive) -> bytes | None:
    """Return the body, or None if the client went away; raises `BodyTooLarge`."""
    said = headers.get("content-length", "0")
    if said.isdecimal() and int(said) > MOST_BODY:
        raise BodyTooLarge
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MOST_BODY:
            raise BodyTooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)
