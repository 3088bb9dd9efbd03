"""Whoever a request acts as, and what that allows."""

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

    A provider acts where somebody exchanges its token without a key, a grant where it is refreshed.
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
    """Who acts, in which organization and environment, and with which permissions.

    `org_id` is empty for the operator, for service keys and for a user outside an organization;
    `address` and `user_agent` say where the request came from, for the audit. `expires_at` is when
    the presented secret of a key ends, by expiry or grace, in epoch milliseconds. `kid` is that of
    the presented secret or user token, `session_id` the browser session's; `origin` is the page's.
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
        """Return whether this principal may use `permission`."""
        return permission in self.permissions or self.kind is PrincipalKind.OPERATOR

    def may_grant(self, permission: str) -> bool:
        """Return whether this principal may grant `permission` to a key.

        It grants what it holds, and with `scopes:grant` every scope of the user's own services.
        """
        return self.holds(permission) or (
            is_scope(permission) and self.holds(Permission.SCOPES_GRANT)
        )

    def require(self, permission: Permission) -> None:
        """Raise `SecretKeyRequired` or `NotPermitted`, naming what is missing, unless held.

        Raises `LiveKeyRequired` for a key of test where the environments share what is asked for.
        """
        if self.holds(permission):
            if permission in LIVE_ONLY:
                self.require_live()
            return
        if self.key_type is KeyType.PUBLISHABLE and permission not in TYPE_TABLE[self.key_type]:
            detail = (
                f"This needs {permission}, which a publishable key never holds; call from a "
                "server with a secret key (sk_)."
            )
            raise SecretKeyRequired(detail, needs=permission)
        who = "This key" if self.kind is PrincipalKind.KEY else f"A {self.role or self.kind}"
        raise NotPermitted(
            f"{who} lacks {permission}; an admin of the organization can grant it.",
            needs=permission,
        )

    @property
    def sees_test_alone(self) -> bool:
        """Return whether this is a key of the test environment; members may act in both."""
        return self.kind is PrincipalKind.KEY and self.environment is Environment.TEST

    def require_live(self) -> None:
        """Raise `LiveKeyRequired` if this is a key of the test environment."""
        if self.sees_test_alone:
            raise LiveKeyRequired

    def require_operator(self) -> None:
        """Raise `OperatorOnly` unless this is the operator of the deployment."""
        if self.kind is not PrincipalKind.OPERATOR:
            raise OperatorOnly

    def require_verifying(self) -> None:
        """Raise unless this may verify keys: a service key may, and can do nothing else."""
        if self.kind is not PrincipalKind.SERVICE_KEY:
            self.require(Permission.KEYS_VERIFY)

    def require_grantable(self, permissions: frozenset[str]) -> None:
        """Raise `ExceedsOwnPermissions` if this principal can't grant one of `permissions`."""
        beyond = sorted(p for p in permissions if not self.may_grant(p))
        if not beyond:
            return
        scopes = [p for p in beyond if is_scope(p)]
        own = [p for p in beyond if p not in scopes]
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
    """Return whoever holds the master key: the person at the deployment's own command line."""
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
    """Return a human in an organization, with the permissions of the role."""
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
