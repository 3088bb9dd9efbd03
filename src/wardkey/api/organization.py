"""Routes of the caller's organization, its members and its invitations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from wardkey.actions.accounts import members, organizations
from wardkey.api.schemas import Email, Id, Input, Name, Slug, iso_or_none
from wardkey.domain import errors
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.cors import CORS_HEADERS, preflight_headers
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["organization"], dependencies=[Depends(require_json)])


class OrganizationShape(BaseModel):
    """The organization; publishable keys see only id, slug and name."""

    id: str
    slug: str
    name: str
    rotation_days: int | None = Field(
        default=None, description="Days after which a secret key is due for rotation."
    )
    created_at: str | None = None


class OrganizationChanges(Input):
    """The fields to change; omitted fields stay."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "Acme"}})

    name: Name | None = None
    slug: Slug | None = None
    rotation_days: Annotated[
        int | None, Field(json_schema_extra={"minimum": 1, "maximum": 3650})
    ] = None


class MemberShape(BaseModel):
    """A member of the organization."""

    user_id: str
    email: str
    name: str
    role: Role
    joined_at: str


class MemberList(BaseModel):
    """The members, longest-standing first."""

    members: list[MemberShape]


class RoleChange(Input):
    """A member's new role; to make an owner, transfer the ownership."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"role": "admin"}})

    role: Role


class Transfer(Input):
    """The member who becomes the owner."""

    user_id: str


class NewInvitation(Input):
    """The address to invite, and the role."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"email": "admin@acme.example", "role": "admin"}},
    )

    email: Email
    role: Role


class InvitationShape(BaseModel):
    """An invitation for an e-mail address."""

    id: str
    email: str
    role: Role
    status: str = Field(description="pending, accepted, revoked or expired")
    created_at: str
    created_by: str
    expires_at: str
    accepted_at: str | None


class CreatedInvitation(InvitationShape):
    """A new invitation with its link, which is shown only once."""

    link: str


class InvitationList(BaseModel):
    """The newest 1,000 invitations."""

    invitations: list[InvitationShape]


@router.options("/v2/organization", include_in_schema=False)
def preflight() -> Response:
    """Let pages of other sites read the organization with a publishable key, but not change it."""
    return Response(status_code=204, headers=preflight_headers("GET"))


@router.get("/v2/organization", responses=problem_responses())
def get_organization(
    caller: CurrentCaller, ctx: CurrentContext, response: Response
) -> OrganizationShape:
    """Get the caller's organization; any key can read its public part."""
    response.headers.update(CORS_HEADERS)
    record = ctx.runner.read(organizations.public, caller.by)
    can_read_all = caller.by.holds(Permission.ORGANIZATION_READ)
    return OrganizationShape(
        id=record.id,
        slug=record.slug,
        name=record.name,
        rotation_days=record.rotation_days if can_read_all else None,
        created_at=iso(record.created_at) if can_read_all else None,
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
    body: OrganizationChanges, caller: CurrentCaller, ctx: CurrentContext
) -> OrganizationShape:
    """Change the organization's name, slug or rotation policy."""
    changed = ctx.runner.write(
        organizations.change,
        caller.by,
        name=body.name,
        slug=body.slug,
        rotation_days=body.rotation_days,
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
    records = ctx.runner.read(members.list_members, caller.by)
    return MemberList(members=[_render_member(member) for member in records])


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
    user_id: Id, body: RoleChange, caller: CurrentCaller, ctx: CurrentContext
) -> MemberShape:
    """Change a member's role."""
    return _render_member(ctx.runner.write(members.change_role, caller.by, user_id, body.role))


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
    """Remove a member, or leave.

    Keys that the member created stay with the organization.
    """
    ctx.runner.write(members.remove, caller.by, user_id)


@router.post(
    "/v2/organization/transfer",
    responses=problem_responses(errors.MemberNotFound, errors.OwnerOnly, body=True),
    tags=["members"],
)
def transfer_ownership(body: Transfer, caller: CurrentCaller, ctx: CurrentContext) -> MemberShape:
    """Make another member the owner; the previous owner becomes an admin."""
    return _render_member(ctx.runner.write(members.transfer, caller.by, body.user_id))


@router.get(
    "/v2/invitations", responses=problem_responses(errors.LiveKeyRequired), tags=["invitations"]
)
def list_invitations(caller: CurrentCaller, ctx: CurrentContext) -> InvitationList:
    """List the organization's invitations, newest first."""
    records = ctx.runner.read(members.list_invitations, caller.by)
    return InvitationList(invitations=[_render_invitation(record, ctx) for record in records])


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
def invite(body: NewInvitation, caller: CurrentCaller, ctx: CurrentContext) -> CreatedInvitation:
    """Create an invitation.

    Its link works once, within 7 days, and is shown only in this response.
    """
    invitation, token = ctx.runner.write(members.invite, caller.by, body.email, body.role)
    shape = _render_invitation(invitation, ctx)
    return CreatedInvitation(**shape.model_dump(), link=f"{ctx.public_url}/invitations/{token}")


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
    """Revoke an invitation."""
    invitation = ctx.runner.write(members.revoke_invitation, caller.by, invitation_id)
    return _render_invitation(invitation, ctx)


def _render_member(member: members.Member) -> MemberShape:
    return MemberShape(
        user_id=member.user_id,
        email=member.email,
        name=member.name,
        role=member.role,
        joined_at=iso(member.created_at),
    )


def _render_invitation(invitation: members.Invitation, ctx: AppContext) -> InvitationShape:
    return InvitationShape(
        id=invitation.id,
        email=invitation.email,
        role=invitation.role,
        status=invitation.status(ctx.runner.database.clock()),
        created_at=iso(invitation.created_at),
        created_by=invitation.created_by,
        expires_at=iso(invitation.expires_at),
        accepted_at=iso_or_none(invitation.accepted_at),
    )
