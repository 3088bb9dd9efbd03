"""Sign-in with the deployment's OIDC issuer: on the way to it, and back."""

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
from wardkey.adapters.single_sign_on import CALLBACK, SignInIssuer, shown
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
# What a browser takes along to the issuer and back; only it can finish what it began.
_COOKIE = "__Host-wardkey-oidc"
_LONGEST_S = 600
_LONGEST_CODE, _LINK = 2_048, 43
_FRESH_S = FRESH_MS // 1000


@dataclass(frozen=True, slots=True)
class Journey:
    """A way to the issuer and back: where it leads, and what for.

    `purpose` is `enter`, `confirm`, or the text of an invitation's link.
    """

    seed: str
    purpose: str
    onward: str

    @property
    def text(self) -> str:
        """Return it as the cookie holds it."""
        onward = base64.urlsafe_b64encode(self.onward.encode()).decode().rstrip("=")
        return f"{self.seed}.{self.purpose}.{onward}"

    @classmethod
    def of(cls, request: Request) -> Journey:
        """Read the browser's; raises `SignInFailed` where it has none."""
        parts = request.cookies.get(_COOKIE, "").split(".")
        try:
            seed, purpose, onward = parts
            path = base64.urlsafe_b64decode(onward + "=" * (-len(onward) % 4)).decode()
        except (ValueError, binascii.Error):
            raise SignInFailed(
                "This sign-in was not begun in this browser, or more than ten minutes ago; sign "
                "in again."
            ) from None
        return cls(seed, purpose, own_path(path))

    def secret(self, ctx: AppContext, name: str) -> str:
        """Return one of the journey's secrets; nobody without the deployment's key can tell it."""
        key = ctx.runner.database.vault.key_for("oidc")
        return blake2b(f"{name} {self.text}".encode(), key=key, digest_size=32).hexdigest()


@router.get(_START)
def begin(request: Request, ctx: CurrentContext, next: str = "/", invitation: str = "") -> Response:  # noqa: A002 - the parameter's name
    """Go to the issuer, to sign in or to accept an invitation."""
    if not (invitation.isalnum() and invitation.isascii() and len(invitation) == _LINK):
        invitation = ""
    journey = Journey(secrets.token_urlsafe(24), invitation or "enter", own_path(next))
    try:
        return _depart(ctx, journey, _FRESH_S)
    except Unavailable as failure:
        return sign_in_page(request, ctx, journey.onward, "", failure)


@router.get(f"{_START}/confirm")
def confirm(_person: SignedIn, ctx: CurrentContext) -> Response:
    """Go to the issuer, to sign in there anew."""
    journey = Journey(secrets.token_urlsafe(24), "confirm", "/account")
    return _depart(ctx, journey, 0)


@router.get(CALLBACK)
def arrive(request: Request, ctx: CurrentContext) -> Response:
    """Come back from the issuer; the journey ends, however it went."""
    try:
        journey = Journey.of(request)
    except SignInFailed as failure:
        return sign_in_page(request, ctx, "/", "", failure)
    try:
        response = _arrived(request, ctx, journey)
    except (InvalidLink, AlreadyMember):
        raise
    except (Unauthenticated, Forbidden, RateLimited, Unavailable) as failure:
        if journey.purpose == "confirm":
            raise
        response = sign_in_page(request, ctx, journey.onward, "", failure)
    response.delete_cookie(_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    return response


@router.post("/account/identities/unlink")
def unlink(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Forget who the person is at an issuer."""
    ctx.runner.write(identities.unlink, person.by, fields.text("issuer"))
    return see_other("/account", done="identity-unlinked")


def _depart(ctx: AppContext, journey: Journey, max_age_s: int) -> Response:
    state, nonce, verifier = (journey.secret(ctx, name) for name in ("state", "nonce", "verifier"))
    response = see_other(_issuer(ctx).address(state, nonce, verifier, max_age_s))
    response.set_cookie(
        _COOKIE, journey.text, _LONGEST_S, path="/", secure=True, httponly=True, samesite="lax"
    )
    return response


def _arrived(request: Request, ctx: AppContext, journey: Journey) -> Response:
    by, now = anonymous_principal(request, ctx), ctx.runner.database.clock()
    # Each makes the issuer work, so that they are counted as guesses are.
    counters = by_address("address", by.address)
    with ctx.throttle.attempt(*counters, failed=(SignInFailed, Forbidden)):
        identity, claims = _proven(request, ctx, journey)
    if journey.purpose == "confirm":
        check_confirmed(claims, now / 1000)
        who = person(request, ctx)
        ctx.runner.write(identities.confirm, who.by, who.session.id, identity)
        return see_other(journey.onward, done="confirmed")
    check_fresh(claims, now / 1000, _FRESH_S)
    before, welcome = request.cookies.get(COOKIE, ""), ctx.welcome
    if journey.purpose == "enter":
        begun = ctx.runner.write(identities.sign_in, by, identity, welcome, before)
    else:
        begun = ctx.runner.write(identities.join, by, journey.purpose, identity, welcome, before)
    response = see_other(journey.onward)
    hand_cookies(ctx, request, response, begun)
    return response


def _proven(
    request: Request, ctx: AppContext, journey: Journey
) -> tuple[Identity, dict[str, object]]:
    issuer, told = _issuer(ctx), request.query_params
    state = journey.secret(ctx, "state")
    if not hmac.compare_digest(told.get("state", "").encode(), state.encode()):
        raise SignInFailed("The answer belongs to another sign-in; sign in again.")
    issuer.check_named(told.get("iss", ""))
    if "error" in told:
        raise SignInFailed(
            f"You did not sign in at {issuer.name} ({shown(told['error'])}); try again."
        )
    code = told.get("code", "")
    if not code or len(code) > _LONGEST_CODE:
        raise SignInFailed(f"{issuer.name} sent no code; sign in again.")
    now_s = ctx.runner.database.clock() / 1000
    claims = issuer.claims(code, journey.secret(ctx, "verifier"), now_s)
    return identity_of(claims, issuer.client_id, journey.secret(ctx, "nonce")), claims


def _issuer(ctx: AppContext) -> SignInIssuer:
    """Return the deployment's issuer; raises `RouteNotFound` where it has none."""
    if ctx.sign_in_issuer is None:
        raise RouteNotFound
    return ctx.sign_in_issuer
