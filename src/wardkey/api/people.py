"""Routes of accounts: set-up links, invitations, sign-in and user tokens."""

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
    """The token of a set-up link, and the password to set."""

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
    """The token of an invitation's link, and the password of a new account."""

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
    """A user token, to send as Authorization: Bearer; it is valid for 12 hours."""

    token: str
    token_type: str = "Bearer"
    expires_at: str
    user_id: str
    email: str


class MembershipShape(BaseModel):
    """A user's role in an organization."""

    organization_id: str
    slug: str
    name: str
    role: Role


class Me(BaseModel):
    """The owner of the credential."""

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
def set_up(body: SetUp, request: Request, ctx: CurrentContext) -> UserToken:
    """Set a password with a one-time link, and sign in.

    If the account was in use, this recovers it: its sessions, user tokens, live topics and the
    grants that it made end, and its passkeys and linked issuers are removed. Its keys stay.
    """
    by = anonymous_principal(request, ctx)
    with ctx.throttle.attempt(*by_address("link", by.address)):
        with ctx.runner.database.read() as tx:
            # A guessed link must not cost a hash.
            people.link_email(tx, body.token)
        password_hash = people.hash_password(body.password, by.address)
        signed_in = ctx.runner.write(people.use_setup_link, by, body.token, password_hash)
    return _render_token(signed_in)


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
def accept_invitation(body: Acceptance, request: Request, ctx: CurrentContext) -> UserToken:
    """Accept an invitation, and sign in.

    A new user sets a password. A user with an account sends a user token instead, which is
    returned; the account must have the invited address.
    """
    by = anonymous_principal(request, ctx)
    with ctx.throttle.attempt(*by_address("link", by.address), failed=errors.InvalidLink):
        incoming = RawRequest.of(request)
        if find_credential(incoming, ctx):
            return _accept_as_user(body.token, incoming, ctx)
        with ctx.runner.database.read() as tx:
            members.require_new_account(members.find_invitation(tx, body.token))
        password_hash = people.hash_password(body.password, by.address)
        signed_in = ctx.runner.write(members.accept, by, body.token, password_hash)
    return _render_token(signed_in)


def _accept_as_user(token: str, incoming: RawRequest, ctx: AppContext) -> UserToken:
    caller = identify_caller(incoming, ctx)
    if caller.by.kind is not PrincipalKind.USER:
        raise errors.InvalidUserToken
    with ctx.runner.database.read() as tx:
        expires_at = people.find_token_expiry(tx, caller.text)
    ctx.runner.write(members.accept_as_user, caller.by, token)
    by = caller.by
    return UserToken(token=caller.text, expires_at=iso(expires_at), user_id=by.id, email=by.label)


@router.post(
    "/v2/user-tokens",
    status_code=201,
    responses=problem_responses(
        errors.WrongPassword, errors.TooManyAttempts, errors.Overloaded, anonymous=True, body=True
    ),
)
def sign_in(body: SignIn, request: Request, ctx: CurrentContext) -> UserToken:
    """Sign in with e-mail address and password; the token is valid for 12 hours."""
    by = anonymous_principal(request, ctx)
    user_id, password_hash = check_account_password(ctx, by, body.email, body.password)
    return _render_token(ctx.runner.write(people.sign_in, by, user_id, password_hash))


@router.delete("/v2/user-tokens/current", status_code=204, responses=problem_responses())
def sign_out(caller: AnyCaller, ctx: CurrentContext) -> None:
    """End the user token of this request."""
    if caller.by.kind is not PrincipalKind.USER:
        raise errors.InvalidUserToken
    ctx.runner.write(people.sign_out, caller.by, caller.text)


@router.get("/v2/me", responses=problem_responses())
def me(caller: AnyCaller, ctx: CurrentContext) -> Me:
    """Get the owner of the credential, with their permissions and organizations."""
    by = caller.by
    memberships: list[people.Membership] = []
    if by.kind is PrincipalKind.USER:
        memberships = ctx.runner.read(people.memberships, by)
    return Me(
        kind=by.kind,
        id=by.id,
        label=by.label,
        organization_id=by.org_id or None,
        permissions=sorted(by.permissions),
        organizations=[
            MembershipShape(
                organization_id=membership.org_id,
                slug=membership.slug,
                name=membership.name,
                role=membership.role,
            )
            for membership in memberships
        ],
    )


def _render_token(signed_in: people.NewUserToken) -> UserToken:
    return UserToken(
        token=signed_in.token.text,
        expires_at=iso(signed_in.expires_at),
        user_id=signed_in.user_id,
        email=signed_in.email,
    )
