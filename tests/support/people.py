"""People who sign in at an issuer on loopback and exchange their tokens for grants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
from joserfc import jwt

from demo.issuer import CLIENT, Issuer
from tests.support.mqtt import MqttClient, connected
from tests.support.server import Server

Json = dict[str, Any]


class People:
    """Tokens of one issuer and their exchange at a deployment by one provider."""

    def __init__(self, server: Server, issuer: Issuer, name: str, **settings: Any) -> None:  # noqa: ANN401
        self.server, self.issuer, self.name = server, issuer, name
        self.settings = {
            "kind": "oidc",
            "name": name,
            "issuer": issuer.url,
            "audiences": [CLIENT],
            "algorithms": ["ES256"],
            "mapping": {"variables": {"team": "team"}},
            "limits": {"publishable_may_exchange": True},
            **settings,
        }
        with server.owner() as owner:
            made = owner.post("/v2/auth-providers", json=self.settings)
        assert made.status_code == 201, made.text
        self.provider_id: str = made.json()["id"]

    def token(self, sub: str, **claims: object) -> str:
        """Return an ID token of a signed-in user (OpenID Connect Core 1.0, §2)."""
        now = int(time.time())
        standard = {"iss": self.issuer.url, "aud": CLIENT, "sub": sub, "iat": now, "exp": now + 300}
        return jwt.encode({"alg": "ES256", "kid": "demo-1"}, standard | claims, self.issuer.key)

    def ask(self, sub: str, key: str = "", ttl: int = 3600, **claims: object) -> httpx.Response:
        """Exchange a token; the key is the deployment's first unless another is given."""
        body = {"provider": self.name, "token": self.token(sub, **claims), "ttl": ttl}
        with self.server.client(key or self.server.first_key) as client:
            return client.post("/v2/tokens/exchange", json=body)

    def grant(self, sub: str, key: str = "", ttl: int = 3600, **claims: object) -> Json:
        """Return the response of an exchange, which must be a grant."""
        answer = self.ask(sub, key, ttl, **claims)
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body

    def refresh(self, grant: Json) -> httpx.Response:
        """Exchange a grant's password for a new one."""
        body = {
            "token_id": grant["token_id"],
            "current_token_password": grant["mqtt_password"],
        }
        with self.server.client() as anyone:
            return anyone.post("/v2/tokens/refresh", json=body)


@contextmanager
def online(
    server: Server, grant: Json, mqtt_id: str, *, clean: bool = True
) -> Iterator[MqttClient]:
    """Log in with the credentials of an exchange until the block ends."""
    with connected(
        server, grant["mqtt_username"], grant["mqtt_password"], mqtt_id, clean=clean
    ) as client:
        yield client


def is_let_in(server: Server, grant: Json, mqtt_id: str, **other: str) -> bool:
    """Return whether a grant, or credentials given in its place, can log in."""
    with online(server, {**grant, **other}, mqtt_id) as client:
        return client.code == 0
