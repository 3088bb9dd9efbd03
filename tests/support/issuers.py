"""Third-party identity providers over real HTTP: oauth2-mock-server and oidc-provider (Node.js)."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2 as httpx

from tests.support.server import NO_CERTIFICATES

HERE = Path(__file__).parents[1] / "node"
CLIENT = "my-app"
REDIRECT = "http://127.0.0.1:9/callback"


@contextmanager
def _node(script: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["node", HERE / script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    assert "fault" not in answer, answer
    return answer


@dataclass
class MockIssuer:
    """oauth2-mock-server: any claims, and keys created and withdrawn while it runs.

    Every prefix below `url` is a separate issuer with the same keys, so counts and caches of one
    are independent of the others.
    """

    process: subprocess.Popen[str]
    url: str = ""

    def ask(self, command: str, **more: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **more}) + "\n")
        self.process.stdin.flush()
        return _line(self.process)

    def start(self) -> None:
        """Listen; after a stop, on the same port again."""
        self.url = self.ask("start")["url"]

    def stop(self) -> None:
        """Stop listening; keys and counts stay."""
        self.ask("stop")

    def generate(self, alg: str, kid: str) -> None:
        """Generate a key and publish its public half."""
        self.ask("generate", alg=alg, kid=kid)

    def fetches(self, ending: str) -> int:
        """Return the number of requests to paths with this ending."""
        counted: dict[str, int] = self.ask("fetches")["fetches"]
        return sum(count for path, count in counted.items() if path.endswith(ending))

    def token(
        self, kid: str, claims: Mapping[str, object], header: Mapping[str, object] | None = None
    ) -> str:
        """Sign a token; claims that are None are omitted."""
        token: str = self.ask("token", kid=kid, claims=claims, header=header or {})["token"]
        return token

    def of_oidc(self, place: str, kid: str = "rsa", **claims: object) -> str:
        """Sign an ID token of the issuer below `place`."""
        good = {"iss": f"{self.url}/{place}", "aud": CLIENT, "sub": "abc"}
        return self.token(kid, good | claims)

    def of_supabase(self, place: str, kid: str = "ec", **claims: object) -> str:
        """Sign a token in the shape that Supabase documents; the project is below `place`."""
        now = int(time.time())
        good: dict[str, object] = {
            "iss": f"{self.url}/{place}/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "sub": "4be2ff38-1a55-4d3c-9c35-0f2d35d1a6a5",
            "email": "ada@acme.example",
            "aal": "aal1",
            "session_id": "b8a7c1de-31f0-4c69-8a9d-1a2b3c4d5e6f",
            "is_anonymous": False,
            "app_metadata": {"provider": "email", "team": "hall-b"},
            "user_metadata": {},
            "iat": now,
            "exp": now + 3600,
            "nbf": None,
        }
        return self.token(kid, good | claims)


@contextmanager
def mock_issuer() -> Iterator[MockIssuer]:
    """Run oauth2-mock-server with the keys `rsa` and `ec` until the block ends."""
    with _node("issuer.mjs") as process:
        issuer = MockIssuer(process)
        issuer.start()
        issuer.generate("RS256", "rsa")
        issuer.generate("ES256", "ec")
        yield issuer


@dataclass
class OidcProvider:
    """oidc-provider with one public client, and users who sign in with their password."""

    url: str
    client_id: str
    redirect_uri: str

    def id_token(self, email: str, password: str) -> str:
        """Sign a user in by the authorization code flow with PKCE, as their app would."""
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": "openid email profile",
            "state": "of-a-test",
            "nonce": secrets.token_urlsafe(8),
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        parameters = self.visit(f"{self.url}/auth?{urlencode(query)}", email, password)
        assert parameters["state"] == "of-a-test"
        done = httpx.post(
            f"{self.url}/token",
            timeout=20,
            verify=NO_CERTIFICATES,
            data={
                "grant_type": "authorization_code",
                "code": parameters["code"],
                "client_id": self.client_id,
                "redirect_uri": self.redirect_uri,
                "code_verifier": verifier,
            },
        )
        assert done.status_code == 200, done.text
        token: str = done.json()["id_token"]
        return token

    def visit(self, address: str, email: str, password: str) -> dict[str, str]:
        """Sign a user in where an app sent their browser; return the callback's parameters."""
        with httpx.Client(base_url=self.url, timeout=20, verify=NO_CERTIFICATES) as browser:
            form = browser.get(address, follow_redirects=True)
            assert form.status_code == 200, form.text
            answer = browser.post(str(form.url), data={"email": email, "password": password})
            while not (to := answer.headers.get("location", "")).startswith(self.redirect_uri):
                assert to, answer.text
                answer = browser.get(to)
        return dict(parse_qsl(urlsplit(to).query))


@contextmanager
def oidc_provider(
    users: Mapping[str, Mapping[str, object]],
    client_id: str = CLIENT,
    redirect_uris: Sequence[str] = (REDIRECT,),
    **more: object,
) -> Iterator[OidcProvider]:
    """Run oidc-provider until the block ends; each user has a `password` and any claims."""
    settings = {"client_id": client_id, "redirect_uris": redirect_uris, "users": users, **more}
    with _node("oidc.mjs", json.dumps(settings)) as process:
        url = _line(process)["url"]
        yield OidcProvider(url, client_id, redirect_uris[0])
