"""Routes of the caller's organization, its members and its invitations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions.accounts import members, organizations
from wardkey.api.schemas import Email, Id, Input, Name, Slug, when
from wardkey.domain import errors
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.cors import CORS_HEADERS, preflight_headers
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["organization"], dependencies=[Depends(require_json)])


class OrganizationShape(BaseModel):
    """The organization; publishable keys see id, slug and name alone."""

    id: str
    slug: str
    name: str
    rotation_days: int | None = Field(
        default=None, description="After so many days a secret key is due for rotation."
    )
    created_at: str | None = None


class OrganizationChanges(Input):
    """The fields to change; those left out stay."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "Acme"}})

    name: Name | None = None
    slug: Slug | None = None
    rotation_days: Annotated[
        int | None, Field(json_schema_extra={"minimum": 1, "maximum": 3650})
    ] = None


class MemberShape(BaseModel):
    """A human in the organization."""

    user_id: str
    email: str
    name: str
    role: Role
    joined_at: str


class MemberList(BaseModel):
    """Everybody in the organization, longest first."""

    members: list[MemberShape]


class RoleChange(Input):
    """Another role for a member; ownership is transferred instead."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"role": "admin"}})

    role: Role


class Transfer(Input):
    """Who becomes the owner."""

    user_id: str


class NewInvitation(Input):
    """Whom to invite, and as what."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"email": "admin@acme.example", "role": "admin"}},
    )

    email: Email
    role: Role


class InvitationShape(BaseModel):
    """A place offered to an e-mail address."""

    id: str
    email: str
    role: Role
    status: str = Field(description="pending, accepted, revoked or expired")
    created_at: str
    created_by: str
    expires_at: str
    accepted_at: str | None


class CreatedInvitation(InvitationShape):
    """A new invitation with its link, which is shown this once."""

    link: str


class InvitationList(BaseModel):
    """The newest 1,000 invitations."""

    invitations: list[InvitationShape]


@router.options("/v2/organization", include_in_schema=False)
def preflight() -> Response:
    """Let pages of other sites ask for it, with a publishable key; changing it is for servers."""
    return Response(status_code=204, headers=preflight_headers("GET"))


@router.get("/v2/organization", responses=problem_responses())
def get_organization(
    caller: CurrentCaller, ctx: CurrentContext, response: Response
) -> OrganizationShape:
    """Show the caller's organization; any key may see its public part."""
    response.headers.update(CORS_HEADERS)
    found = ctx.runner.read(organizations.public, caller.by)
    private = caller.by.holds(Permission.ORGANIZATION_READ)
    return OrganizationShape(
        id=found.id,
        slug=found.slug,
        name=found.name,
        rotation_days=found.rotation_days if private else None,
        created_at=iso(found.created_at) if private else None,
    )


@router.patch(
    "/v2/organization",
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.InvalidName,
        errors.InvalidSlug,
        errors.DuplicateSlug,
        errors.InvalidRotationPolicy,
        body=True,
    ),
)
def change_organization(
    wanted: OrganizationChanges, caller: CurrentCaller, ctx: CurrentContext
) -> OrganizationShape:
    """Rename the organization, or set its rotation policy."""
    changed = ctx.runner.write(
        organizations.change,
        caller.by,
        name=wanted.name,
        slug=wanted.slug,
        rotation_days=wanted.rotation_days,
    )
    return OrganizationShape(
        id=changed.id,
        slug=changed.slug,
        name=changed.name,
        rotation_days=changed.rotation_days,
        created_at=iso(changed.created_at),
    )


@router.get("/v2/members", responses=problem_responses(errors.LiveKeyRequired), tags=["members"])
def list_members(caller: CurrentCaller, ctx: CurrentContext) -> MemberList:
    """List the members of the organization."""
    found = ctx.runner.read(members.list_members, caller.by)
    return MemberList(members=[_member_shape(item) for item in found])


@router.patch(
    "/v2/members/{user_id:id}",
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.MemberNotFound,
        errors.OwnerOnly,
        errors.LastOwner,
        errors.ExceedsOwnPermissions,
        body=True,
    ),
    tags=["members"],
)
def change_role(
    user_id: Id, wanted: RoleChange, caller: CurrentCaller, ctx: CurrentContext
) -> MemberShape:
    """Give a member another role."""
    return _member_shape(ctx.runner.write(members.change_role, caller.by, user_id, wanted.role))


@router.delete(
    "/v2/members/{user_id:id}",
    status_code=204,
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.MemberNotFound,
        errors.OwnerOnly,
        errors.LastOwner,
        errors.ExceedsOwnPermissions,
    ),
    tags=["members"],
)
def remove_member(user_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """Take a member out, or leave; keys that he made stay with the organization."""
    ctx.runner.write(members.remove, caller.by, user_id)


@router.post(
    "/v2/organization/transfer",
    responses=problem_responses(errors.MemberNotFound, errors.OwnerOnly, body=True),
    tags=["members"],
)
def transfer_ownership(wanted: Transfer, caller: CurrentCaller, ctx: CurrentContext) -> MemberShape:
    """Make another member the owner; the old owner becomes an admin."""
    return _member_shape(ctx.runner.write(members.transfer, caller.by, wanted.user_id))


@router.get(
    "/v2/invitations", responses=problem_responses(errors.LiveKeyRequired), tags=["invitations"]
)
def list_invitations(caller: CurrentCaller, ctx: CurrentContext) -> InvitationList:
    """List the organization's invitations, newest first."""
    found = ctx.runner.read(members.list_invitations, caller.by)
    return InvitationList(invitations=[_invitation_shape(item, ctx) for item in found])


@router.post(
    "/v2/invitations",
    status_code=201,
    responses=problem_responses(
        errors.LiveKeyRequired,
        errors.InvalidEmail,
        errors.AlreadyMember,
        errors.OwnerOnly,
        errors.ExceedsOwnPermissions,
        body=True,
    ),
    tags=["invitations"],
)
def invite(wanted: NewInvitation, caller: CurrentCaller, ctx: CurrentContext) -> CreatedInvitation:
    """Invite somebody; the link works once, within 7 days, and is shown in this answer alone."""
    made, text = ctx.runner.write(members.invite, caller.by, wanted.email, wanted.role)
    shape = _invitation_shape(made, ctx)
    return CreatedInvitation(**shape.model_dump(), link=f"{ctx.public_url}/invitations/{text}")


@router.delete(
    "/v2/invitations/{invitation_id:id}",
    responses=problem_responses(
        errors.LiveKeyRequired, errors.InvitationNotFound, errors.InvitationUsed
    ),
    tags=["invitations"],
)
def revoke_invitation(
    invitation_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> InvitationShape:
    """Take an invitation back."""
    taken = ctx.runner.write(members.revoke_invitation, caller.by, invitation_id)
    return _invitation_shape(taken, ctx)


def _member_shape(item: members.Member) -> MemberShape:
    return MemberShape(
        user_id=item.user_id,
        email=item.email,
        name=item.name,
        role=item.role,
        joined_at=iso(item.created_at),
    )


def _invitation_shape(item: members.Invitation, ctx: AppContext) -> InvitationShape:
    return InvitationShape(
        id=item.id,
        email=item.email,
        role=item.role,
        status=item.status(ctx.runner.database.clock()),
        created_at=iso(item.created_at),
        created_by=item.created_by,
        expires_at=iso(item.expires_at),
        accepted_at=when(item.accepted_at),
    )
