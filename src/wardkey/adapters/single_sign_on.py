"""The client of the deployment's OIDC issuer: authorization URLs and verified ID token claims.

The authorization code flow with PKCE (OpenID Connect Core 1.0 §3.1, RFC 7636, RFC 9207).
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from wardkey.adapters.fetch import Fetch
from wardkey.adapters.key_sets import KeySets
from wardkey.adapters.tokens import parse_token, verify_token
from wardkey.domain.errors import InvalidToken, KeySetUnavailable, SignInFailed, TokenExpired
from wardkey.domain.providers import ALGORITHMS, KeySource, ProviderKind, TokenRules

# The path of the redirect URI, below the public URL.
CALLBACK = "/sign-in/oidc/callback"
SCOPE = "openid email profile"
MAX_AGE_S = 600
# After a failure, wait this long before the next attempt.
RETRY_S = 5
_MAX_QUOTE_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The discovery document's values; with `by_header` the client sends its secret in a header."""

    authorization: str
    token: str
    userinfo: str
    keys: KeySource
    by_header: bool
    sends_issuer: bool


@dataclass(slots=True)
class SignInIssuer:
    """The issuer that the operator configured; every call may block on a request to it.

    `secret` is empty for a public client. Every method raises `KeySetUnavailable` if the issuer
    can't be reached.
    """

    issuer: str
    client_id: str
    secret: str = field(repr=False)
    redirect_uri: str
    name: str
    fetch: Fetch
    clock: Callable[[], float] = time.monotonic
    keys: KeySets = field(init=False)
    _endpoints: Endpoints | None = None
    _error: str = ""
    _refresh_at: float = float("-inf")
    _fetching: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Cache its keys like those of providers."""
        self.keys = KeySets(self.fetch.get, self.clock)

    def authorization_url(self, state: str, nonce: str, verifier: str, max_age_s: int) -> str:
        """Return the URL to which the browser is redirected.

        Users who signed in there more than `max_age_s` seconds ago must sign in again; with 0,
        all users must.
        """
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "max_age": str(max_age_s),
            **({} if max_age_s else {"prompt": "login"}),
        }
        url = self.endpoints().authorization
        return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"

    def check_issuer(self, issuer: str) -> None:
        """Reject a response from another issuer (RFC 9207); raises `SignInFailed`."""
        if issuer != self.issuer and (issuer or self.endpoints().sends_issuer):
            raise SignInFailed("The response came from another issuer; sign in again.")

    def claims(self, code: str, verifier: str, now_s: float) -> dict[str, Any]:
        """Exchange a code for an ID token, and return its verified claims.

        Without an e-mail claim, the userinfo endpoint's is added. Raises `SignInFailed`.
        """
        endpoints = self.endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        authorization = ""
        if self.secret and endpoints.by_header:
            # RFC 6749 §2.3.1: both are encoded before they are joined.
            pair = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
            authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self.client_id}
            form |= {"client_secret": self.secret} if self.secret else {}
        response = self.fetch.post(endpoints.token, form, authorization)
        if "error" in response:
            raise SignInFailed(
                f"{self.name} rejected the sign-in ({printable(response['error'])}); try again, "
                "and tell the operator if it keeps failing."
            )
        text = response.get("id_token")
        if not isinstance(text, str):
            raise SignInFailed(f"{self.name} sent no ID token; tell the operator.")
        rules = TokenRules(
            ProviderKind.OIDC,
            self.issuer,
            endpoints.keys,
            frozenset(ALGORITHMS),
            (self.client_id,),
        )
        keys_of = self.keys.keys_of("", endpoints.keys)
        try:
            claims = verify_token(parse_token(text), rules, keys_of, now_s)
        except (InvalidToken, TokenExpired) as error:
            raise SignInFailed(f"{self.name}'s ID token was rejected: {error.detail}") from None
        if "email" in claims or not endpoints.userinfo:
            return claims
        access_token = response.get("access_token")
        return {**self._user_info(endpoints.userinfo, access_token, claims.get("sub")), **claims}

    def _user_info(self, url: str, token: object, subject: object) -> dict[str, Any]:
        """Return the e-mail claims of the userinfo endpoint (OpenID Connect Core 1.0 §5.3)."""
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            return {}
        claims = self.fetch.get(url, f"Bearer {token}").document
        if claims.get("sub") != subject:
            raise SignInFailed(f"{self.name} returned another user's claims; sign in again.")
        return {name: claims[name] for name in ("email", "email_verified") if name in claims}

    def endpoints(self) -> Endpoints:
        """Return the discovery document's values, fetched again after ten minutes."""
        with self._fetching:
            now = self.clock()
            if now < self._refresh_at:
                if self._endpoints is not None:
                    return self._endpoints
                raise KeySetUnavailable(self._error, retry_after_s=RETRY_S)
            try:
                self._endpoints = self._discover()
            except KeySetUnavailable as error:
                # Keep using the known endpoints, so a short outage blocks no sign-ins.
                self._refresh_at = now + RETRY_S
                self._error = f"{self.name} can't be reached. {error.detail}"
                if self._endpoints is None:
                    raise KeySetUnavailable(self._error, retry_after_s=RETRY_S) from None
            else:
                self._refresh_at = now + MAX_AGE_S
            return self._endpoints

    def _discover(self) -> Endpoints:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        document = self.fetch.get(url).document
        if document.get("issuer") != self.issuer:
            raise KeySetUnavailable(
                f"The discovery document names another issuer, not {self.issuer}; the two are "
                "compared character by character."
            )
        urls = {
            name: document[name] if isinstance(document.get(name), str) else ""
            for name in (
                "authorization_endpoint",
                "token_endpoint",
                "userinfo_endpoint",
                "jwks_uri",
            )
        }
        scheme = f"{self.issuer.partition(':')[0]}://"
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not urls[name].startswith(("https://", scheme)):
                raise KeySetUnavailable(f"The discovery document has no {name} with {scheme}.")
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return Endpoints(
            urls["authorization_endpoint"],
            urls["token_endpoint"],
            urls["userinfo_endpoint"],
            KeySource(urls["jwks_uri"]),
            not isinstance(methods, list) or "client_secret_basic" in methods,
            document.get("authorization_response_iss_parameter_supported") is True,
        )


def printable(text: object) -> str:
    """Return text from the issuer escaped and shortened, to quote it in a sentence."""
    return str(text)[:_MAX_QUOTE_LENGTH].encode("unicode_escape").decode("ascii")
