"""A constant response from uvicorn: directly in its protocol class, or through raw ASGI."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY = b'{"valid":true,"hello":"world"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


class InPlace(HttpToolsProtocol):
    """Answers without a task, a cycle or a scope."""

    def on_headers_complete(self) -> None:
        """Skip uvicorn's request cycle."""

    def on_body(self, body: bytes) -> None:
        """Ignore the body."""

    def on_message_complete(self) -> None:
        """Write the constant."""
        self.transport.write(ANSWER)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body and send the constant."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    way, port = sys.argv[1:]
    uvicorn.run(
        app,
        port=int(port),
        loop="uvloop",
        http=InPlace if way == "in-place" else "httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
