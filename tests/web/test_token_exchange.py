from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from joserfc import jwt

from demo.issuer import CLIENT, Issuer
from tests.support.server import wait_until
from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import providers
from wardkey.adapters.fetch import Fetch
from wardkey.adapters.key_sets import KeySets
from wardkey.domain.principal import Principal
from wardkey.domain.providers import ProviderKind, ProviderSpec
from wardkey.services.token_exchange import TokenExchange
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def exchanges(runner: Runner) -> Iterator[TokenExchange]:
    verifier = Verifier(runner.database, Usage(runner.database))
    yield TokenExchange(runner.database, verifier, KeySets(Fetch(private_allowed=True).get), True)
    verifier.directory.close()


def token(issuer: Issuer, kid: str = "demo-1") -> str:
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": CLIENT, "sub": "ada", "iat": now, "exp": now + 300}
    return jwt.encode({"alg": "ES256", "kid": kid}, claims, issuer.key)


def test_only_a_token_with_an_unknown_key_queries_the_issuer(
    runner: Runner, owner: Principal, exchanges: TokenExchange, issuer: Issuer
) -> None:
    spec = ProviderSpec(
        ProviderKind.OIDC, issuer=issuer.url, audiences=(CLIENT,), algorithms=("ES256",)
    )
    made = runner.write(providers.create, owner, spec, http_allowed=True)
    for name in ("oidc", made.id, ""):
        shown = exchanges.find_provider(owner, name, token(issuer))
        # Each process queries the issuer once, then uses its cache.
        assert exchanges.has_cached_keys(shown) is (name != "oidc")
        assert exchanges.verify(owner, "", shown, None).grant.user_id == "ada"
    assert not exchanges.has_cached_keys(
        exchanges.find_provider(owner, "oidc", token(issuer, "another"))
    )
    runner.write(providers.purge_keys, owner, made.id)
    # This process isn't a registered verifier, so the write doesn't wait for it.
    wait_until(
        lambda: not exchanges.has_cached_keys(exchanges.find_provider(owner, "oidc", token(issuer)))
    )
