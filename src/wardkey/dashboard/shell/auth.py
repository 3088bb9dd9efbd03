"""Authentication of pages: sessions, membership, forms and cookies."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request, Response
from starlette.datastructures import FormData

from wardkey.actions.accounts import browser_sessions, identities, passkeys, people
from wardkey.actions.accounts.browser_sessions import LONGEST_MS, BrowserSession, NewSession
from wardkey.actions.accounts.people import Membership
from wardkey.adapters.passkeys import Site
from wardkey.db.maintenance import touch_session
from wardkey.domain.addresses import contains
from wardkey.domain.errors import (
    ForgedForm,
    InvalidRequest,
    OrganizationNotFound,
    PasswordRequired,
    RouteNotFound,
    Unavailable,
    UnsupportedMediaType,
    WrongPassword,
)
from wardkey.domain.permissions import ROLE_TABLE, Permission, Role
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment
from wardkey.web.caller import anonymous_principal
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.devices import device_id_of, new_device
from wardkey.web.passwords import check_account_password

# Browsers bind __Host- cookies to this host, path / and TLS; loopback counts as secure.
COOKIE = "__Host-wardkey"
DEVICE_COOKIE = "__Host-wardkey-device"
# The longest lifetime browsers allow (RFC 6265bis §5.5); each sign-in renews it.
_DEVICE_S = 400 * 86_400
_SEEN_EVERY_MS = 300_000
_NONCE = 32
_FORM_TYPE = "application/x-www-form-urlencoded"
_MOST_FIELDS = 500
_LONGEST_ORIGIN = 100


@dataclass(frozen=True, slots=True)
class SignedInUser:
    """The signed-in user; forms must send `csrf` back."""

    by: Principal
    session: BrowserSession
    memberships: tuple[Membership, ...]
    csrf: str = field(repr=False)
    # The unverified text of the browser's device cookie.
    device: str = field(default="", repr=False)

    @property
    def initials(self) -> str:
        """The first two letters of the e-mail address."""
        return self.by.label[:2].upper()


@dataclass(frozen=True, slots=True)
class MemberContext:
    """A member in the organization and environment of the URL."""

    person: SignedInUser
    by: Principal
    membership: Membership

    @property
    def root(self) -> str:
        """The path prefix of this organization and environment."""
        return f"/o/{self.membership.slug}/{self.by.environment}"

    def url(self, path: str) -> str:
        """Return the URL path of a page in this environment."""
        return f"{self.root}/{path}"

    def in_environment(self, environment: str, path: str) -> str:
        """Return the URL path of a page of the same organization in `live` or `test`."""
        return f"/o/{self.membership.slug}/{environment}/{path}"

    def why_not(self, permission: Permission, *, seeing: bool = False) -> str:
        """Return why the member can't use `permission`, or "" if they can."""
        if self.by.holds(permission):
            return ""
        *others, last = (f"{role}s" for role in reversed(Role) if permission in ROLE_TABLE[role])
        who = f"{', '.join(others)}{' and ' if others else ''}{last}"
        return f"Only {who} can {'see this page' if seeing else 'do this'}."


class Texts(dict[str, str]):
    """Form values by name; missing names read as "" and are not inserted."""

    def __missing__(self, name: str) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a form whose CSRF token is valid."""

    form: FormData

    def text(self, name: str) -> str:
        """Return the value of a field; raises `InvalidRequest` if it was sent twice."""
        values = self.texts(name)
        if len(values) > 1:
            raise InvalidRequest(f"The form has {name} twice; reload the page.")
        return values[0] if values else ""

    def texts(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for value in self.form.getlist(name) if isinstance(value, str)]

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the non-empty lines of a text area."""
        return tuple(line.strip() for line in self.text(name).splitlines() if line.strip())

    def require_typed(self, name: str, noun: str) -> None:
        """Raise `InvalidRequest` unless the name was typed to confirm."""
        if self.text("confirmation").strip() != name:
            detail = f"That isn't the {noun}. Type it exactly as shown."
            raise InvalidRequest(detail, errors=(("confirmation", detail),))

    def nonce(self) -> str:
        """Return the form's nonce; raises `InvalidRequest` without one."""
        nonce = self.text("once")
        if len(nonce) != _NONCE or not nonce.isalnum() or not nonce.isascii():
            raise InvalidRequest("The form is incomplete; reload the page.")
        return nonce

    def texts_by_name(self) -> Mapping[str, str]:
        """Return the values to fill the form in again; missing ones are empty."""
        return Texts((n, value) for n, value in self.form.items() if isinstance(value, str))


NOTHING_SENT: Mapping[str, str] = Texts()


def person(request: Request, ctx: CurrentContext) -> SignedInUser:
    """Return the signed-in user; raises `SignedOut`."""
    text = request.cookies.get(COOKIE, "")
    origin = anonymous_principal(request, ctx)
    with ctx.runner.database.read() as tx:
        session = browser_sessions.find(tx, text)
        by = replace(
            origin,
            kind=PrincipalKind.USER,
            id=session.user_id,
            label=session.email,
            session_id=session.id,
        )
        memberships = tuple(people.memberships(tx, by))
    now = ctx.runner.database.clock()
    if now - session.seen_at > _SEEN_EVERY_MS:
        # The page works even if this can't be recorded.
        with suppress(Unavailable):
            touch_session(ctx.runner.database, session.id, now)
    key = ctx.runner.database.vault.key_for("csrf")
    csrf = blake2b(text.encode(), key=key, digest_size=24).hexdigest()
    device = request.cookies.get(DEVICE_COOKIE, "")
    return SignedInUser(by, session, memberships, csrf, device)


SignedIn = Annotated[SignedInUser, Depends(person)]


def load_member_context(
    slug: str, environment: str, request: Request, person: SignedIn, ctx: CurrentContext
) -> MemberContext:
    """Return the user as a member of the organization in the URL.

    Also stores it in the request's state, so that refusals render in the organization's layout.
    Raises `OrganizationNotFound`, `OrganizationSuspended`, and `RouteNotFound` for an unknown
    environment.
    """
    try:
        where = Environment(environment)
    except ValueError:
        raise RouteNotFound from None
    found = next((m for m in person.memberships if m.slug == slug), None)
    if found is None:
        raise OrganizationNotFound
    with ctx.runner.database.read() as tx:
        by = people.as_member(tx, person.by, found.org_id, where)
    visiting = MemberContext(person, by, found)
    request.state.current = visiting
    return visiting


Visiting = Annotated[MemberContext, Depends(load_member_context)]


async def read_form(request: Request) -> FormData:
    """Return the fields of a form; raises `UnsupportedMediaType`, `InvalidRequest`.

    Only URL-encoded forms are read: no page sends files, and multipart parsers are risky.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != _FORM_TYPE:
        raise UnsupportedMediaType(f"Send the form as {_FORM_TYPE}.")
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        raise InvalidRequest(
            f"The form can't be read: it is UTF-8 with at most {_MOST_FIELDS} fields."
        ) from None
    return FormData([*pairs])


def checked(
    request: Request,
    form: Annotated[FormData, Depends(read_form)],
    person: SignedIn,
    ctx: CurrentContext,
) -> Fields:
    """Return the fields of a form with this session's CSRF token; raises `ForgedForm`."""
    check_origin(request, ctx)
    token = form.get("csrf")
    if not isinstance(token, str) or not hmac.compare_digest(
        token.encode("utf-8", "replace"), person.csrf.encode()
    ):
        raise ForgedForm
    return Fields(form)


VerifiedForm = Annotated[Fields, Depends(checked)]


def unsigned(
    request: Request, form: Annotated[FormData, Depends(read_form)], ctx: CurrentContext
) -> Fields:
    """Return the fields of a form that needs no session; raises `ForgedForm` for other sites."""
    check_origin(request, ctx)
    return Fields(form)


AnonymousForm = Annotated[Fields, Depends(unsigned)]


def check_origin(request: Request, ctx: AppContext) -> None:
    """Reject requests from other sites; raises `ForgedForm`.

    `Sec-Fetch-Site` decides if it was sent (W3C Fetch Metadata): pages can't set it, and proxies
    don't change its meaning. Browsers omit it over plain HTTP; then `Origin` must be ours.
    """
    site = request.headers.get("sec-fetch-site", "")
    if site == "same-origin":
        return
    if site not in {"", "none"}:
        raise ForgedForm
    origin = request.headers.get("origin", "")
    if not origin:
        return
    shown = urlsplit(origin)
    hosts, tls = _own_hosts(request, ctx)
    if shown.netloc not in {*hosts, urlsplit(ctx.public_url).netloc}:
        raise ForgedForm(
            f"The page is from {origin[:_LONGEST_ORIGIN]}, but the request reached Wardkey as "
            f"{' and '.join(hosts)[:_LONGEST_ORIGIN]}. If there is a proxy in between, have it "
            "pass the browser's host (in nginx: proxy_set_header Host $http_host;), or start "
            "Wardkey with --public-url set to the URL that people open."
        )
    if tls and shown.scheme == "http":
        raise ForgedForm


def _own_hosts(request: Request, ctx: AppContext) -> tuple[list[str], bool]:
    """Return the requested hosts, and whether a trusted proxy says the browser used TLS."""
    hosts = [request.headers.get("host", "")]
    peer = request.client.host if request.client else ""
    if not contains(ctx.proxies, peer):
        return hosts, False
    forwarded = request.headers.get("x-forwarded-host", "").partition(",")[0].strip()
    if forwarded:
        hosts.append(forwarded)
    proto = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    return hosts, proto == "https"


def require_recent_sign_in(ctx: AppContext, person: SignedInUser, fields: Fields) -> None:
    """Require re-authentication if the sign-in is older than 12 hours.

    Raises `PasswordRequired`, which renders the form again with the ways to confirm, and
    `TooManyAttempts`.
    """
    if person.session.is_recent(ctx.runner.database.clock()):
        return
    password = fields.text("current_password")
    if not password:
        raise PasswordRequired
    try:
        _, known = check_account_password(ctx, person.by, person.by.label, password, person.device)
    except WrongPassword:
        raise PasswordRequired("That isn't your password; try again.") from None
    ctx.runner.write(browser_sessions.renew, person.by, person.session.id, known)


@dataclass(frozen=True, slots=True)
class ReauthMethods:
    """The ways a user can re-authenticate; `issuer` is the name of the linked issuer, if any."""

    password: bool
    passkey: bool
    issuer: str

    @property
    def others(self) -> bool:
        """Return whether there is a way besides the password."""
        return self.passkey or bool(self.issuer)


def ways_to_confirm(ctx: AppContext, person: SignedInUser) -> ReauthMethods:
    """Return the ways the user can re-authenticate."""
    issuer = ctx.sign_in_issuer
    with ctx.runner.database.read() as tx:
        linked = {identity.issuer for identity in identities.list_identities(tx, person.by)}
        return ReauthMethods(
            people.has_password(tx, person.by),
            Site.of(ctx.public_url) is not None and bool(passkeys.list_passkeys(tx, person.by)),
            issuer.name if issuer and issuer.issuer in linked else "",
        )


def hand_cookies(ctx: AppContext, request: Request, response: Response, begun: NewSession) -> None:
    """Set the session cookie, and the device cookie that gives this browser its own throttle."""
    response.set_cookie(
        COOKIE, begun.text, LONGEST_MS // 1000, path="/", secure=True, httponly=True, samesite="lax"
    )
    hand_device_cookie(ctx, request, response, begun.user_id)


def hand_device_cookie(ctx: AppContext, request: Request, response: Response, user_id: str) -> None:
    """Set or keep the device cookie of a browser in which the user just signed in."""
    with ctx.runner.database.read() as tx:
        known = people.password_hash_by_id(tx, user_id)
    if known is None:
        return
    keys, text = ctx.runner.database.vault, request.cookies.get(DEVICE_COOKIE, "")
    if not device_id_of(keys, text, user_id, known):
        text = new_device(keys, user_id, known)
    response.set_cookie(
        DEVICE_COOKIE, text, _DEVICE_S, path="/", secure=True, httponly=True, samesite="lax"
    )


def clear_session_cookie(response: Response) -> None:
    """Delete the session cookie."""
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")


def take_device_cookie(response: Response) -> None:
    """Delete the device cookie."""
    response.delete_cookie(DEVICE_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
