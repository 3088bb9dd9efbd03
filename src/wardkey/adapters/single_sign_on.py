"""The deployment's OIDC issuer: where it sends people, and what it says of whoever comes back.

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

# Where the issuer sends people back to, below the public URL.
CALLBACK = "/sign-in/oidc/callback"
SCOPE = "openid email profile"
KEPT_S = 600
# How long a failure stands before the next attempt.
RETRY_S = 5
_LONGEST_TOLD = 200


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the discovery document says; `by_header` is how the client shows its secret."""

    authorization: str
    token: str
    userinfo: str
    keys: KeySource
    by_header: bool
    names_itself: bool


@dataclass(slots=True)
class SignInIssuer:
    """The issuer that the operator chose, asked by this process; every call may wait for it.

    `secret` is empty for a public client. All raise `KeySetUnavailable` where it does not answer.
    """

    issuer: str
    client_id: str
    secret: str = field(repr=False)
    redirect_uri: str
    name: str
    fetch: Fetch
    clock: Callable[[], float] = time.monotonic
    keys: KeySets = field(init=False)
    _known: Endpoints | None = None
    _fault: str = ""
    _again_at: float = float("-inf")
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Keep its keys as those of providers are."""
        self.keys = KeySets(self.fetch.get, self.clock)

    def address(self, state: str, nonce: str, verifier: str, max_age_s: int) -> str:
        """Return where the browser goes.

        Whoever signed in there more than `max_age_s` ago is asked anew; with 0 everybody.
        """
        digest = hashlib.sha256(verifier.encode()).digest()
        asked = {
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
        there = self.endpoints().authorization
        return f"{there}{'&' if '?' in there else '?'}{urlencode(asked)}"

    def check_named(self, told: str) -> None:
        """Refuse an answer that another issuer sent (RFC 9207); raises `SignInFailed`."""
        if told != self.issuer and (told or self.endpoints().names_itself):
            raise SignInFailed("The answer is another issuer's; sign in again.")

    def claims(self, code: str, verifier: str, now_s: float) -> dict[str, Any]:
        """Return the claims of the ID token that a code is good for, its signature proven.

        What only the userinfo endpoint tells of the address is among them. Raises `SignInFailed`.
        """
        at = self.endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        authorization = ""
        if self.secret and at.by_header:
            # RFC 6749 §2.3.1 encodes both before they are joined.
            pair = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
            authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self.client_id}
            form |= {"client_secret": self.secret} if self.secret else {}
        answer = self.fetch.post(at.token, form, authorization)
        if "error" in answer:
            raise SignInFailed(
                f"{self.name} did not accept the sign-in ({shown(answer['error'])}); try again, "
                "and if it stays so tell the operator."
            )
        text = answer.get("id_token")
        if not isinstance(text, str):
            raise SignInFailed(f"{self.name} sent no ID token; tell the operator.")
        rules = TokenRules(
            ProviderKind.OIDC,
            self.issuer,
            at.keys,
            frozenset(ALGORITHMS),
            (self.client_id,),
        )
        try:
            told = verify_token(parse_token(text), rules, self.keys.keys_of("", at.keys), now_s)
        except (InvalidToken, TokenExpired) as failure:
            raise SignInFailed(
                f"{self.name}'s ID token is not accepted: {failure.detail}"
            ) from None
        if "email" in told or not at.userinfo:
            return told
        return {**self._more(at.userinfo, answer.get("access_token"), told.get("sub")), **told}

    def _more(self, url: str, token: object, subject: object) -> dict[str, Any]:
        """Return what the userinfo endpoint tells of the address (OpenID Connect Core 1.0 §5.3)."""
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            return {}
        told = self.fetch.get(url, f"Bearer {token}").document
        if told.get("sub") != subject:
            raise SignInFailed(f"{self.name} tells of somebody else; sign in again.")
        return {name: told[name] for name in ("email", "email_verified") if name in told}

    def endpoints(self) -> Endpoints:
        """Return what the issuer's discovery document says, asked anew every ten minutes."""
        with self._asking:
            now = self.clock()
            if now < self._again_at:
                if self._known is not None:
                    return self._known
                raise KeySetUnavailable(self._fault, retry_after_s=RETRY_S)
            try:
                self._known = self._discovered()
            except KeySetUnavailable as failure:
                # What was known is used on, so that a short failure keeps nobody out.
                self._again_at = now + RETRY_S
                self._fault = f"{self.name} cannot be asked. {failure.detail}"
                if self._known is None:
                    raise KeySetUnavailable(self._fault, retry_after_s=RETRY_S) from None
            else:
                self._again_at = now + KEPT_S
            return self._known

    def _discovered(self) -> Endpoints:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        told = self.fetch.get(url).document
        if told.get("issuer") != self.issuer:
            raise KeySetUnavailable(
                f"The discovery document names another issuer than {self.issuer}; the two are "
                "compared character by character."
            )
        named = {
            name: told[name] if isinstance(told.get(name), str) else ""
            for name in (
                "authorization_endpoint",
                "token_endpoint",
                "userinfo_endpoint",
                "jwks_uri",
            )
        }
        scheme = f"{self.issuer.partition(':')[0]}://"
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not named[name].startswith(("https://", scheme)):
                raise KeySetUnavailable(f"The discovery document has no {name} with {scheme}.")
        methods = told.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return Endpoints(
            named["authorization_endpoint"],
            named["token_endpoint"],
            named["userinfo_endpoint"],
            KeySource(named["jwks_uri"]),
            not isinstance(methods, list) or "client_secret_basic" in methods,
            told.get("authorization_response_iss_parameter_supported") is True,
        )


def shown(text: object) -> str:
    """Return a word of the issuer's as it can stand in a sentence."""
    return str(text)[:_LONGEST_TOLD].encode("unicode_escape").decode("ascii")
