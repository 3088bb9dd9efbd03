"""Single sign-on with the deployment's OIDC issuer: the redirect to it and the callback."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass
from hashlib import blake2b

from fastapi import Request, Response

from wardkey.actions.accounts import identities
from wardkey.actions.accounts.browser_sessions import FRESH_MS
from wardkey.adapters.single_sign_on import CALLBACK, SignInIssuer, printable
from wardkey.dashboard.pages.account.sign_in import sign_in_page
from wardkey.dashboard.shell.auth import COOKIE, SignedIn, VerifiedForm, hand_cookies, person
from wardkey.dashboard.shell.rendering import own_path, page_router, see_other
from wardkey.domain.errors import (
    AlreadyMember,
    Forbidden,
    InvalidLink,
    RateLimited,
    RouteNotFound,
    SignInFailed,
    Unauthenticated,
    Unavailable,
)
from wardkey.domain.single_sign_on import Identity, check_confirmed, check_fresh, identity_of
from wardkey.services.throttle import by_address
from wardkey.web.caller import anonymous_principal
from wardkey.web.context import AppContext, CurrentContext

router = page_router()

_START = "/sign-in/oidc"
# Binds the flow to the browser that started it.
_COOKIE = "__Host-wardkey-oidc"
_LONGEST_S = 600
_LONGEST_CODE, _LINK = 2_048, 43
_FRESH_S = FRESH_MS // 1000


@dataclass(frozen=True, slots=True)
class AuthFlow:
    """A redirect flow to the issuer and back.

    `purpose` is `enter`, `confirm`, or the token of an invitation's link; `next_path` is where it
    ends.
    """

    seed: str
    purpose: str
    next_path: str

    @property
    def text(self) -> str:
        """Return the cookie's text."""
        next_path = base64.urlsafe_b64encode(self.next_path.encode()).decode().rstrip("=")
        return f"{self.seed}.{self.purpose}.{next_path}"

    @classmethod
    def of(cls, request: Request) -> AuthFlow:
        """Read the flow from the browser's cookie; raises `SignInFailed` without one."""
        parts = request.cookies.get(_COOKIE, "").split(".")
        try:
            seed, purpose, next_path = parts
            path = base64.urlsafe_b64decode(next_path + "=" * (-len(next_path) % 4)).decode()
        except (ValueError, binascii.Error):
            raise SignInFailed(
                "This sign-in was started in another browser or more than ten minutes ago; sign in "
                "again."
            ) from None
        return cls(seed, purpose, own_path(path))

    def secret(self, ctx: AppContext, name: str) -> str:
        """Return one of the flow's secrets, derived with the deployment's key."""
        key = ctx.runner.database.vault.key_for("oidc")
        return blake2b(f"{name} {self.text}".encode(), key=key, digest_size=32).hexdigest()


@router.get(_START)
def begin(request: Request, ctx: CurrentContext, next: str = "/", invitation: str = "") -> Response:  # noqa: A002 - the parameter's name
    """Redirect to the issuer, to sign in or to accept an invitation."""
    if not (invitation.isalnum() and invitation.isascii() and len(invitation) == _LINK):
        invitation = ""
    flow = AuthFlow(secrets.token_urlsafe(24), invitation or "enter", own_path(next))
    try:
        return _redirect_to_issuer(ctx, flow, _FRESH_S)
    except Unavailable as failure:
        return sign_in_page(request, ctx, flow.next_path, "", failure)


@router.get(f"{_START}/confirm")
def confirm(_person: SignedIn, ctx: CurrentContext) -> Response:
    """Redirect to the issuer, which has to ask the user to sign in again."""
    flow = AuthFlow(secrets.token_urlsafe(24), "confirm", "/account")
    return _redirect_to_issuer(ctx, flow, 0)


@router.get(CALLBACK)
def arrive(request: Request, ctx: CurrentContext) -> Response:
    """Handle the issuer's callback; the flow ends in any case."""
    try:
        flow = AuthFlow.of(request)
    except SignInFailed as failure:
        return sign_in_page(request, ctx, "/", "", failure)
    try:
        response = _finish(request, ctx, flow)
    except (InvalidLink, AlreadyMember):
        raise
    except (Unauthenticated, Forbidden, RateLimited, Unavailable) as failure:
        if flow.purpose == "confirm":
            raise
        response = sign_in_page(request, ctx, flow.next_path, "", failure)
    response.delete_cookie(_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    return response


@router.post("/account/identities/unlink")
def unlink(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Unlink the user's account at an issuer."""
    ctx.runner.write(identities.unlink, person.by, fields.text("issuer"))
    return see_other("/account", done="identity-unlinked")


def _redirect_to_issuer(ctx: AppContext, flow: AuthFlow, max_age_s: int) -> Response:
    state, nonce, verifier = (flow.secret(ctx, name) for name in ("state", "nonce", "verifier"))
    response = see_other(_issuer(ctx).authorization_url(state, nonce, verifier, max_age_s))
    response.set_cookie(
        _COOKIE, flow.text, _LONGEST_S, path="/", secure=True, httponly=True, samesite="lax"
    )
    return response


def _finish(request: Request, ctx: AppContext, flow: AuthFlow) -> Response:
    by, now = anonymous_principal(request, ctx), ctx.runner.database.clock()
    # Each callback costs a request to the issuer, so failures are throttled like guesses.
    counters = by_address("address", by.address)
    with ctx.throttle.attempt(*counters, failed=(SignInFailed, Forbidden)):
        identity, claims = _verify_callback(request, ctx, flow)
    if flow.purpose == "confirm":
        check_confirmed(claims, now / 1000)
        user = person(request, ctx)
        ctx.runner.write(identities.confirm, user.by, user.session.id, identity)
        return see_other(flow.next_path, done="confirmed")
    check_fresh(claims, now / 1000, _FRESH_S)
    previous, policy = request.cookies.get(COOKIE, ""), ctx.sign_in_policy
    if flow.purpose == "enter":
        session = ctx.runner.write(identities.sign_in, by, identity, policy, previous)
    else:
        session = ctx.runner.write(identities.join, by, flow.purpose, identity, policy, previous)
    response = see_other(flow.next_path)
    hand_cookies(ctx, request, response, session)
    return response


def _verify_callback(
    request: Request, ctx: AppContext, flow: AuthFlow
) -> tuple[Identity, dict[str, object]]:
    issuer, query = _issuer(ctx), request.query_params
    state = flow.secret(ctx, "state")
    if not hmac.compare_digest(query.get("state", "").encode(), state.encode()):
        raise SignInFailed("The response belongs to another sign-in; sign in again.")
    issuer.check_issuer(query.get("iss", ""))
    if "error" in query:
        raise SignInFailed(
            f"You didn't sign in at {issuer.name} ({printable(query['error'])}); try again."
        )
    code = query.get("code", "")
    if not code or len(code) > _LONGEST_CODE:
        raise SignInFailed(f"{issuer.name} sent no code; sign in again.")
    now_s = ctx.runner.database.clock() / 1000
    claims = issuer.claims(code, flow.secret(ctx, "verifier"), now_s)
    return identity_of(claims, issuer.client_id, flow.secret(ctx, "nonce")), claims


def _issuer(ctx: AppContext) -> SignInIssuer:
    """Return the deployment's issuer; raises `RouteNotFound` without one."""
    if ctx.sign_in_issuer is None:
        raise RouteNotFound
    return ctx.sign_in_issuer
