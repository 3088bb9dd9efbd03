"""An OIDC issuer on loopback for the demo: people sign in with a password and get an ID token."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey

PEOPLE = {"ada@acme.example": "a password for ada"}
CLIENT = "demo-app"


class Issuer:
    """Serves discovery, keys and a token endpoint until `close`."""

    def __init__(self) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "demo-1", "alg": "ES256"})
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path:
                    case "/.well-known/openid-configuration":
                        self._send({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"})
                    case "/keys":
                        self._send({"keys": [issuer.key.as_dict(private=False)]})
                    case _:
                        self.send_error(404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if PEOPLE.get(body["email"]) != body["password"]:
                    self.send_error(401)
                    return
                self._send({"id_token": issuer.token(body["email"])})

            def _send(self, body: dict[str, Any]) -> None:
                raw = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Log nothing, because the demo prints the steps."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, email: str) -> str:
        """Return an ID token for a signed-in user (OpenID Connect Core 1.0, §2)."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "sub": "ada",
            "email": email,
            "team": "hall-b",
            "iat": now,
            "exp": now + 300,
        }
        return jwt.encode({"alg": "ES256", "kid": "demo-1"}, claims, self.key)

    def close(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()
