"""The outermost middleware: request ids, the body limit, HEAD as GET, and no-store."""

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

MAX_BODY = 1_048_576


class Limits:
    """ASGI middleware that gives each request an id and reads its whole body, up to 1 MiB."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it if it exceeds a limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, began = scope["method"], perf_counter()
        if method == "HEAD":
            # RFC 9110 §9.3.2: the same as GET; the server omits the body.
            scope = {**scope, "method": "GET"}
        request_id = next_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)
        ctx = scope["app"].state.context

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, request_id)
                if ctx.access_log:
                    path = storable_route(scope["path"], ctx.runner.database.brand)
                    client, status = scope["client"][0], message["status"]
                    log_access(method, path, status, began, client=client, request_id=request_id)
            await send(message)

        refusal = _refusal(scope)
        if refusal is not None:
            await problem_response(refusal, Request(scope))(scope, receive, send_with_headers)
            return
        try:
            body = await _read_body(Headers(scope=scope), receive)
        except BodyTooLarge as error:
            response = problem_response(error, Request(scope))
            response.headers["Connection"] = "close"
            await response(scope, receive, send_with_headers)
            return
        if body is None:
            return
        await self._app(scope, _replay(body, receive), send_with_headers)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that yields the body once, then the client's disconnection."""
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _add_headers(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["Wardkey-Request-Id"] = request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Cache-Control", "no-store")


def _refusal(scope: Scope) -> WardkeyError | None:
    """Return why a URL is rejected, if it is: databases can't store NUL characters in text."""
    if "\0" in scope["path"]:
        return RouteNotFound()
    if b"%00" in scope.get("query_string", b""):
        return InvalidRequest("A parameter contains a NUL character; remove it.")
    return None


async def _read_body(headers: Headers, receive: Receive) -> bytes | None:
    """Return the body, or None if the client disconnected; raises `BodyTooLarge`."""
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise BodyTooLarge
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise BodyTooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)
