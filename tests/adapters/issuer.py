"""A real HTTP server on loopback that serves the documents set by a test."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wardkey.adapters.fetch import Fetch

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Issuer:
    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def puts(self, path: str, document: Any, *, status: int = 200, **headers: str) -> str:  # noqa: ANN401 - JSON
        self.answers[path] = sending(json.dumps(document).encode(), status, headers)
        return self.url + path


def sending(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


@contextmanager
def issuing(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Issuer]:
    """Run an issuer until the block ends."""
    issuer = Issuer()

    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            issuer.headers.append(dict(self.headers))
            # Some tests close the connection early on purpose.
            with suppress(OSError):
                issuer.answers.get(self.path, sending(b"", 404))(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer((host, 0), Requests)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    issuer.url = f"{scheme}://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()


INSIDE = Fetch(private_allowed=True)
