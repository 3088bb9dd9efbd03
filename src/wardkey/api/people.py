"""Routes by which people sign in: set-up links, invitations, passwords and user tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions import members, people
from wardkey.actions.hashing import check_password
from wardkey.api.shapes import Input
from wardkey.domain import errors
from wardkey.domain.permissions import Role
from wardkey.domain.principal import PrincipalKind
from wardkey.domain.times import iso
from wardkey.web.caller import AnyCaller, stranger
from wardkey.web.context import Here
from wardkey.web.problems import takes_json, told

router = APIRouter(tags=["people"], dependencies=[Depends(takes_json)])

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
    """The text of an invitation's link, and a password: a new one, or the account's own."""

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
    responses=told(
        errors.InvalidLink,
        errors.WeakPassword,
        errors.TooManyAttempts,
        errors.Overloaded,
        anonymous=True,
        body=True,
    ),
)
def set_up(wanted: SetUp, request: Request, here: Here) -> UserToken:
    """Set the first password, or a new one, with a one-time link; sign in."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    here.throttle.check(now, f"link {by.address}")
    try:
        with here.runner.database.read() as tx:
            # A guessed link must not cost a hash.
            people.link_email(tx, wanted.token)
        password_hash = people.hash_password(wanted.password, by.address)
        done = here.runner.change(people.use_setup_link, by, wanted.token, password_hash)
    except errors.InvalidLink:
        here.throttle.failed(now, f"link {by.address}")
        raise
    return _token(done)


@router.post(
    "/v2/invitations/accept",
    status_code=201,
    responses=told(
        errors.InvalidLink,
        errors.WeakPassword,
        errors.WrongPassword,
        errors.AlreadyMember,
        errors.AccountNotSetUp,
        errors.TooManyAttempts,
        errors.Overloaded,
        anonymous=True,
        body=True,
    ),
    tags=["invitations"],
)
def accept_invitation(wanted: Acceptance, request: Request, here: Here) -> UserToken:
    """Take the place that an invitation offers, and sign in.

    Somebody new chooses a password; somebody known gives his own.
    """
    by = stranger(request, here)
    now = here.runner.database.clock()
    here.throttle.check(now, f"link {by.address}")
    try:
        with here.runner.database.read() as tx:
            known = members.invited(tx, wanted.token).password_hash
        if known is None:
            password_hash = people.hash_password(wanted.password, by.address)
        elif check_password(known, wanted.password, by.address):
            password_hash = known
        else:
            raise errors.WrongPassword
        done = here.runner.change(members.accept, by, wanted.token, password_hash, known)
    except errors.Unauthenticated:
        here.throttle.failed(now, f"link {by.address}")
        raise
    return _token(done)


@router.post(
    "/v2/user-tokens",
    status_code=201,
    responses=told(
        errors.WrongPassword, errors.TooManyAttempts, errors.Overloaded, anonymous=True, body=True
    ),
)
def sign_in(wanted: SignIn, request: Request, here: Here) -> UserToken:
    """Sign in with e-mail address and password; the token ends after 12 hours."""
    by = stranger(request, here)
    now = here.runner.database.clock()
    names = (f"address {by.address}", f"name {wanted.email.strip().lower()}")
    here.throttle.check(now, *names)
    with here.runner.database.read() as tx:
        user_id, known = people.password_hash_of(tx, wanted.email)
    if not check_password(known, wanted.password, by.address) or known is None:
        here.throttle.failed(now, *names)
        raise errors.WrongPassword
    return _token(here.runner.change(people.sign_in, by, user_id, known))


@router.delete("/v2/user-tokens/current", status_code=204, responses=told())
def sign_out(caller: AnyCaller, here: Here) -> None:
    """End the user token that this request carries."""
    if caller.by.kind is not PrincipalKind.USER:
        raise errors.InvalidUserToken
    here.runner.change(people.sign_out, caller.by, caller.text)


@router.get("/v2/me", responses=told())
def me(caller: AnyCaller, here: Here) -> Me:
    """Tell who the credential belongs to, and in which organizations."""
    by = caller.by
    mine: list[people.Membership] = []
    if by.kind is PrincipalKind.USER:
        mine = here.runner.look(people.memberships, by)
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


def _token(done: people.SignedIn) -> UserToken:
    return UserToken(
        token=done.token.text,
        expires_at=iso(done.expires_at),
        user_id=done.user_id,
        email=done.email,
    )
