"""Measures token exchange: grants a second on one core, and the token's validation alone."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from bench.load import Case, Server, running, take_turns, write_requests
from bench.page import Page, spread
from bench.sides import post
from wardkey.actions.grants import grants, providers
from wardkey.actions.operations.first_start import first_start
from wardkey.adapters.tokens import import_keys, parse_token, verify_token
from wardkey.config import load_config
from wardkey.deployment import open_deployment
from wardkey.domain.grants import NewGrant
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal, PrincipalKind, operator
from wardkey.domain.providers import ProviderKind, ProviderSpec, token_rules
from wardkey.domain.secret import Environment

_ALGORITHMS = ("RS256", "ES256")
_USERS, _QUICK_USERS = 2_000, 200
_GRANTS, _QUICK_GRANTS = 100_000, 5_000
_CONNECTIONS = 64
_BATCH = 100


class Issuer:
    """An OIDC issuer on loopback with an RSA and an EC key."""

    def __init__(self) -> None:
        self.keys: dict[str, RSAKey | ECKey] = {
            "RS256": RSAKey.generate_key(2048, {"kid": "rs", "alg": "RS256"}),
            "ES256": ECKey.generate_key("P-256", {"kid": "es", "alg": "ES256"}),
        }
        self.key_set = {"keys": [key.as_dict(private=False) for key in self.keys.values()]}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body: object = issuer.key_set
                if self.path.endswith("/openid-configuration"):
                    body = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                raw = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(raw)))
                self.send_header("cache-control", "max-age=600")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, algorithm: str, number: int) -> str:
        """Return a token for user `number`; all tokens of an algorithm have the same length."""
        now = int(time.time())
        key = self.keys[algorithm]
        claims = {
            "iss": self.url, "aud": "bench", "sub": f"person-{number:06}", "iat": now,
            "exp": now + 3_600, "email": f"person-{number:06}@acme.example",
        }  # fmt: skip
        return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key)


def exchange(page: Page, *, quick: bool) -> None:
    """Measure exchanges over HTTP, and the disk space of many live grants."""
    users = _QUICK_USERS if quick else _USERS
    rounds, seconds = (2, 2.0) if quick else (5, 5.0)
    page.section("Token exchange")
    page.say(
        f"One worker on one core, {_CONNECTIONS} connections; "
        "each grant is on disk when it is returned.\n"
    )
    issuer = Issuer()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        key = _fill(folder / "data", issuer, page, _QUICK_GRANTS if quick else _GRANTS)
        server = Server(
            "wardkey",
            [sys.executable, "-m", "wardkey", "up", "--data-dir", str(folder / "data"),
             "--listen", "127.0.0.1:PORT", "--no-messaging", "--private-issuers"],
            folder / "server",
        )  # fmt: skip
        cases = []
        for algorithm in _ALGORITHMS:
            tokens = [issuer.token(algorithm, n) for n in range(users)]
            requests = [
                post(
                    "/v2/tokens/exchange",
                    json.dumps({"provider": "oidc", "token": token}),
                    f"Authorization: Bearer {key}\r\n",
                )
                for token in tokens
            ]
            size = write_requests(folder / algorithm, requests)
            cases.append(
                Case(algorithm, server, folder / algorithm, size, '"mqtt_password"',
                     connections=_CONNECTIONS)
            )  # fmt: skip
        with running([server]):
            take_turns(cases, rounds, seconds)
            memory = server.memory()
    for case in cases:
        alone = _measure_validation_us(issuer, case.name, 200 if quick else 2_000)
        page.say(
            f"- {case.name}: {spread(case.rates)} a second (goal: 2,000), "
            f"{spread(case.cpu_us, ',.0f')} µs of CPU each, of which {alone:.0f} validate "
            f"the token; one at a time p50 {spread(case.alone_us)} µs"
        )
    page.say(
        f"- memory of the server's processes afterwards: {memory:,.0f} MiB (goal: at most 200)"
    )


def _fill(data_dir: Path, issuer: Issuer, page: Page, count: int) -> str:
    """Create a deployment with a provider and live grants; return its key."""
    config = load_config({}, {"data_dir": data_dir})
    with open_deployment(config) as runner:
        first = runner.write(first_start, operator(), "Acme", "owner@acme.example")
        assert first is not None
        by = Principal(
            PrincipalKind.KEY,
            first.issued.key.id,
            "bench",
            org_id=first.organization.id,
            environment=Environment.LIVE,
            permissions=frozenset(Permission),
        )
        spec = ProviderSpec(
            ProviderKind.OIDC, issuer=issuer.url, audiences=("bench",), algorithms=_ALGORITHMS
        )
        provider = runner.write(providers.create, by, spec, http_allowed=True)
        before = sum(file.stat().st_size for file in data_dir.iterdir() if file.is_file())
        began = time.perf_counter()
        for number in range(0, count, _BATCH):
            new_grants = [
                (
                    NewGrant(
                        provider.id,
                        f"person-{n}",
                        f"person-{n}@acme.example",
                        f"usr_{n:028}",
                        f"person_{n}",
                        {"user_id": f"person-{n}"},
                        3_600,
                    ),
                    "127.0.0.1",
                )
                for n in range(number, number + _BATCH)
            ]
            runner.write(grants.mint, by, new_grants, first.issued.kid)
        seconds = time.perf_counter() - began
    after = sum(file.stat().st_size for file in data_dir.iterdir() if file.is_file())
    page.say(
        f"- {count:,} live grants: {(after - before) / 2**20:,.0f} MiB on disk with their audit "
        f"events, created {count / seconds:,.0f} a second in batches of {_BATCH}"
    )
    return first.issued.secret.text


def _measure_validation_us(issuer: Issuer, algorithm: str, count: int) -> float:
    """Return the µs of validating a token in process, with its key cached."""
    keys = import_keys(issuer.key_set).keys
    spec = ProviderSpec(
        ProviderKind.OIDC, issuer=issuer.url, audiences=("bench",), algorithms=_ALGORITHMS
    )
    rules, text = token_rules(spec), issuer.token(algorithm, 1)
    began = time.perf_counter()
    for _ in range(count):
        verify_token(
            parse_token(text),
            rules,
            lambda kid: [key for key in keys if key.kid == kid],
            time.time(),
        )
    return (time.perf_counter() - began) / count * 1e6
