"""Routes by which people sign in: set-up links, invitations, passwords and user tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions.accounts import members, people
from wardkey.api.schemas import Input
from wardkey.domain import errors
from wardkey.domain.permissions import Role
from wardkey.domain.principal import PrincipalKind
from wardkey.domain.times import iso
from wardkey.services.throttle import by_address
from wardkey.web.caller import AnyCaller, anonymous_principal, find_credential, identify_caller
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.passwords import check_account_password
from wardkey.web.problems import problem_responses, require_json
from wardkey.web.raw_http import RawRequest

router = APIRouter(tags=["people"], dependencies=[Depends(require_json)])

Password = Annotated[str, Field(max_length=1024)]
NewPassword = Annotated[
    str,
    Field(
        max_length=1024,
        description="12 to 256 characters, five of them different.",
        json_schema_extra={"format": "password", "minLength": 12, "maxLength": 256},
    ),
]
LinkText = Annotated[str, Field(max_length=64, description="The last part of the link.")]


class SetUp(Input):
    """The text of a set-up link and the password to set."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "token": "0A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0U1",
                "password": "correct horse battery",
            }
        },
    )

    token: LinkText
    password: NewPassword


class Acceptance(Input):
    """The text of an invitation's link, and for a new account the password to set."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "token": "0A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0U1",
                "password": "correct horse battery",
            }
        },
    )

    token: LinkText
    password: NewPassword = ""


class SignIn(Input):
    """An e-mail address and its password."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"email": "admin@acme.example", "password": "correct horse battery"}
        },
    )

    email: Annotated[str, Field(max_length=254)]
    password: Password


class UserToken(BaseModel):
    """A user token, sent as Authorization: Bearer; it ends after 12 hours."""

    token: str
    token_type: str = "Bearer"
    expires_at: str
    user_id: str
    email: str


class MembershipShape(BaseModel):
    """What somebody is in one organization."""

    organization_id: str
    slug: str
    name: str
    role: Role


class Me(BaseModel):
    """Who the credential belongs to."""

    kind: PrincipalKind
    id: str
    label: str
    organization_id: str | None
    permissions: list[str]
    organizations: list[MembershipShape]


@router.post(
    "/v2/setup",
    status_code=201,
    responses=problem_responses(
        errors.InvalidLink,
        errors.WeakPassword,
        errors.TooManyAttempts,
        errors.Overloaded,
        anonymous=True,
        body=True,
    ),
)
def set_up(wanted: SetUp, request: Request, ctx: CurrentContext) -> UserToken:
    """Set the first password, or a new one, with a one-time link; sign in.

    A link recovers an account that was used before: all its sessions, user tokens, live topics and
    the grants that it made end, and its passkeys and linked issuers are removed. Keys that it made
    stay.
    """
    by = anonymous_principal(request, ctx)
    with ctx.throttle.attempt(*by_address("link", by.address)):
        with ctx.runner.database.read() as tx:
            # A guessed link must not cost a hash.
            people.link_email(tx, wanted.token)
        password_hash = people.hash_password(wanted.password, by.address)
        done = ctx.runner.write(people.use_setup_link, by, wanted.token, password_hash)
    return _token(done)


@router.post(
    "/v2/invitations/accept",
    status_code=201,
    responses=problem_responses(
        errors.InvalidLink,
        errors.WeakPassword,
        errors.InvalidUserToken,
        errors.SignInNotAllowed,
        errors.AlreadyMember,
        errors.AccountExists,
        errors.AccountNotSetUp,
        errors.TooManyAttempts,
        errors.Overloaded,
        body=True,
    ),
    openapi_extra={"security": [{}, {"userToken": []}]},
    tags=["invitations"],
)
def accept_invitation(wanted: Acceptance, request: Request, ctx: CurrentContext) -> UserToken:
    """Take the place that an invitation offers, and sign in.

    A new user chooses a password. A user with an account sends a user token instead, and goes on
    with the same one: the account must have the invited address.
    """
    by = anonymous_principal(request, ctx)
    with ctx.throttle.attempt(*by_address("link", by.address), failed=errors.InvalidLink):
        incoming = RawRequest.of(request)
        if find_credential(incoming, ctx):
            return _accept_as_user(wanted.token, incoming, ctx)
        with ctx.runner.database.read() as tx:
            members.require_new_account(members.find_invitation(tx, wanted.token))
        password_hash = people.hash_password(wanted.password, by.address)
        done = ctx.runner.write(members.accept, by, wanted.token, password_hash)
    return _token(done)


def _accept_as_user(text: str, incoming: RawRequest, ctx: AppContext) -> UserToken:
    caller = identify_caller(incoming, ctx)
    if caller.by.kind is not PrincipalKind.USER:
        raise errors.InvalidUserToken
    with ctx.runner.database.read() as tx:
        expires_at = people.find_token_expiry(tx, caller.text)
    ctx.runner.write(members.accept_as_user, caller.by, text)
    by = caller.by
    return UserToken(token=caller.text, expires_at=iso(expires_at), user_id=by.id, email=by.label)


@router.post(
    "/v2/user-tokens",
    status_code=201,
    responses=problem_responses(
        errors.WrongPassword, errors.TooManyAttempts, errors.Overloaded, anonymous=True, body=True
    ),
)
def sign_in(wanted: SignIn, request: Request, ctx: CurrentContext) -> UserToken:
    """Sign in with e-mail address and password; the token ends after 12 hours."""
    by = anonymous_principal(request, ctx)
    user_id, known = check_account_password(ctx, by, wanted.email, wanted.password)
    return _token(ctx.runner.write(people.sign_in, by, user_id, known))


@router.delete("/v2/user-tokens/current", status_code=204, responses=problem_responses())
def sign_out(caller: AnyCaller, ctx: CurrentContext) -> None:
    """End the user token that this request carries."""
    if caller.by.kind is not PrincipalKind.USER:
        raise errors.InvalidUserToken
    ctx.runner.write(people.sign_out, caller.by, caller.text)


@router.get("/v2/me", responses=problem_responses())
def me(caller: AnyCaller, ctx: CurrentContext) -> Me:
    """Tell who the credential belongs to, and in which organizations."""
    by = caller.by
    mine: list[people.Membership] = []
    if by.kind is PrincipalKind.USER:
        mine = ctx.runner.read(people.memberships, by)
    return Me(
        kind=by.kind,
        id=by.id,
        label=by.label,
        organization_id=by.org_id or None,
        permissions=sorted(by.permissions),
        organizations=[
            MembershipShape(organization_id=m.org_id, slug=m.slug, name=m.name, role=m.role)
            for m in mine
        ],
    )


def _token(done: people.NewUserToken) -> UserToken:
    return UserToken(
        token=done.token.text,
        expires_at=iso(done.expires_at),
        user_id=done.user_id,
        email=done.email,
    )
