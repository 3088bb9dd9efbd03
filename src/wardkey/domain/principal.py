"""The authenticated identity behind a request, and its permissions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardkey.domain.errors import (
    ExceedsOwnPermissions,
    LiveKeyRequired,
    NotPermitted,
    OperatorOnly,
    SecretKeyRequired,
)
from wardkey.domain.permissions import (
    LIVE_ONLY,
    ROLE_TABLE,
    TYPE_TABLE,
    KeyType,
    Permission,
    Role,
    is_scope,
)
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope


class PrincipalKind(StrEnum):
    """Members act for themselves, keys for their organization, the operator for the deployment.

    A provider is the principal of an exchange without a key, a grant that of its own refresh.
    """

    MEMBER = "member"
    KEY = "key"
    USER = "user"
    SERVICE_KEY = "service_key"
    OPERATOR = "operator"
    PROVIDER = "provider"
    GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity with its organization, environment and permissions.

    `org_id` is empty for the operator, for service keys and for a user outside an organization.
    `address` and `user_agent` are the request's, for the audit log, and `origin` is the page's.
    `expires_at` is the end of a key's presented secret, by expiry or grace, in epoch ms. `kid` is
    that of the presented secret or user token, `session_id` that of the browser session.
    """

    kind: PrincipalKind
    id: str
    label: str
    org_id: str = ""
    environment: Environment = Environment.LIVE
    permissions: frozenset[str] = frozenset()
    role: Role | None = None
    key_type: KeyType | None = None
    address: str = ""
    user_agent: str = ""
    expires_at: int | None = None
    kid: str = ""
    session_id: str = ""
    origin: str = ""

    def holds(self, permission: str) -> bool:
        """Return whether this principal has `permission`; the operator has all."""
        return permission in self.permissions or self.kind is PrincipalKind.OPERATOR

    def may_grant(self, permission: str) -> bool:
        """Return whether this principal may grant `permission` to a key.

        It can grant what it holds, and with `scopes:grant` every scope of its own services.
        """
        return self.holds(permission) or (
            is_scope(permission) and self.holds(Permission.SCOPES_GRANT)
        )

    def require(self, permission: Permission) -> None:
        """Raise `SecretKeyRequired` or `NotPermitted`, naming `permission`, unless it is held.

        Raises `LiveKeyRequired` for a test key if live and test share the data in question.
        """
        if self.holds(permission):
            if permission in LIVE_ONLY:
                self.require_live()
            return
        if self.key_type is KeyType.PUBLISHABLE and permission not in TYPE_TABLE[self.key_type]:
            detail = (
                f"This requires {permission}, which publishable keys can't have; call from a "
                "server with a secret key (sk_)."
            )
            raise SecretKeyRequired(detail, needs=permission)
        holder = "This key" if self.kind is PrincipalKind.KEY else f"A {self.role or self.kind}"
        raise NotPermitted(
            f"{holder} lacks {permission}; an admin of the organization can grant it.",
            needs=permission,
        )

    @property
    def sees_test_alone(self) -> bool:
        """Return whether this is a test key; members can act in both environments."""
        return self.kind is PrincipalKind.KEY and self.environment is Environment.TEST

    def require_live(self) -> None:
        """Raise `LiveKeyRequired` if this is a test key."""
        if self.sees_test_alone:
            raise LiveKeyRequired

    def require_operator(self) -> None:
        """Raise `OperatorOnly` unless this is the operator of the deployment."""
        if self.kind is not PrincipalKind.OPERATOR:
            raise OperatorOnly

    def require_verifying(self) -> None:
        """Raise unless this may verify keys; service keys may, and can do nothing else."""
        if self.kind is not PrincipalKind.SERVICE_KEY:
            self.require(Permission.KEYS_VERIFY)

    def require_grantable(self, permissions: frozenset[str]) -> None:
        """Raise `ExceedsOwnPermissions` if this principal can't grant one of `permissions`."""
        missing = sorted(p for p in permissions if not self.may_grant(p))
        if not missing:
            return
        scopes = [p for p in missing if is_scope(p)]
        own = [p for p in missing if p not in scopes]
        sentences = []
        if own:
            sentences.append(
                f"You can only grant permissions that you hold, and you lack {', '.join(own)}. "
                "Leave them out, or ask a member whose role has them."
            )
        if scopes:
            sentences.append(
                "Owners and admins, and keys with scopes:grant, can grant scopes: "
                f"{', '.join(scopes)}. Sign in as one, or call with such a key."
            )
        raise ExceedsOwnPermissions(
            " ".join(sentences),
            field="permissions",
            needs=Permission.SCOPES_GRANT if scopes and not own else own[0],
        )

    @property
    def scope(self) -> TenantScope:
        """The tenant scope that limits every query on tenant data."""
        return TenantScope(self.org_id, self.environment)


def operator(address: str = "") -> Principal:
    """Return the operator, who has the master key and uses the deployment's command line."""
    return Principal(PrincipalKind.OPERATOR, "operator", "operator", address=address)


def member(
    *,
    user_id: str,
    email: str,
    org_id: str,
    role: Role,
    environment: Environment,
    address: str = "",
    user_agent: str = "",
    kid: str = "",
    session_id: str = "",
) -> Principal:
    """Return a member of an organization, with the permissions of the role."""
    return Principal(
        PrincipalKind.MEMBER,
        user_id,
        email,
        org_id=org_id,
        environment=environment,
        permissions=ROLE_TABLE[role],
        role=role,
        address=address,
        user_agent=user_agent,
        kid=kid,
        session_id=session_id,
    )
