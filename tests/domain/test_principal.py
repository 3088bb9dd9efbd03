from __future__ import annotations

import pytest

from wardkey.domain.errors import (
    ExceedsOwnPermissions,
    NotPermitted,
    OperatorOnly,
    SecretKeyRequired,
)
from wardkey.domain.permissions import KeyType, Permission, Role
from wardkey.domain.principal import Principal, PrincipalKind, member, operator
from wardkey.domain.secret import Environment


def person(role: Role) -> Principal:
    return member(
        user_id="user_1",
        email="admin@acme.example",
        org_id="org_1",
        role=role,
        environment=Environment.TEST,
        address="192.0.2.7",
        user_agent="probe/1",
    )


def key(key_type: KeyType, *permissions: str) -> Principal:
    return Principal(
        PrincipalKind.KEY,
        "key_1",
        "live-billing-export",
        org_id="org_1",
        permissions=frozenset(permissions),
        key_type=key_type,
    )


SERVICE = Principal(PrincipalKind.SERVICE_KEY, "7QdRk2mVx9Ta", "proxy")
USER = Principal(PrincipalKind.USER, "user_1", "admin@acme.example")


def test_a_member_acts_only_in_their_organization_and_environment() -> None:
    assert person(Role.VIEWER).scope == ("org_1", "test")
    assert key(KeyType.SECRET).scope == ("org_1", "live")
    assert operator().scope == ("", "live")


def test_a_member_has_the_permissions_of_their_role() -> None:
    person(Role.ADMIN).require(Permission.KEYS_WRITE)
    with pytest.raises(NotPermitted) as caught:
        person(Role.VIEWER).require(Permission.KEYS_WRITE)
    assert caught.value.needs == "keys:write"
    assert caught.value.detail.startswith("A viewer lacks keys:write;")


def test_a_key_has_its_own_permissions() -> None:
    key(KeyType.SECRET, "keys:read").require(Permission.KEYS_READ)
    with pytest.raises(NotPermitted) as caught:
        key(KeyType.SECRET, "keys:read").require(Permission.KEYS_WRITE)
    assert caught.value.detail.startswith("This key lacks keys:write;")


def test_a_publishable_key_is_advised_to_use_a_secret_key_if_no_grant_helps() -> None:
    with pytest.raises(SecretKeyRequired) as caught:
        key(KeyType.PUBLISHABLE).require(Permission.KEYS_READ)
    assert caught.value.needs == "keys:read"
    with pytest.raises(NotPermitted):
        key(KeyType.PUBLISHABLE).require(Permission.PUBLISH)
    key(KeyType.PUBLISHABLE, "publish").require(Permission.PUBLISH)


@pytest.mark.parametrize("by", [USER, SERVICE])
@pytest.mark.parametrize("permission", Permission)
def test_a_user_without_an_organization_has_no_permissions(
    by: Principal, permission: Permission
) -> None:
    with pytest.raises(NotPermitted):
        by.require(permission)


@pytest.mark.parametrize("permission", [*Permission, "invoices:read"])
def test_the_operator_has_every_permission(permission: str) -> None:
    assert operator().holds(permission)
    operator().require_operator()


@pytest.mark.parametrize(
    "by", [person(Role.OWNER), key(KeyType.SECRET, *Permission), SERVICE, USER]
)
def test_no_other_principal_is_the_operator(by: Principal) -> None:
    with pytest.raises(OperatorOnly):
        by.require_operator()


def test_service_keys_can_verify_and_others_need_the_permission() -> None:
    SERVICE.require_verifying()
    key(KeyType.SECRET, "keys:verify").require_verifying()
    person(Role.ADMIN).require_verifying()
    for by in (key(KeyType.SECRET, "keys:read"), person(Role.MEMBER), USER):
        with pytest.raises(NotPermitted) as caught:
            by.require_verifying()
        assert caught.value.needs == "keys:verify"


@pytest.mark.parametrize(
    ("by", "grants"),
    [
        (person(Role.OWNER), True),
        (person(Role.ADMIN), True),
        (person(Role.MEMBER), False),
        (person(Role.VIEWER), False),
        (key(KeyType.SECRET, *(set(Permission) - {"scopes:grant"})), False),
        (key(KeyType.SECRET, "scopes:grant"), True),
        (key(KeyType.SECRET, "invoices:read"), True),
        (USER, False),
        (SERVICE, False),
    ],
)
def test_scopes_are_granted_by_owners_admins_and_keys_with_scopes_grant_or_the_scope(
    *, by: Principal, grants: bool
) -> None:
    assert by.may_grant("invoices:read") is grants
    assert by.may_grant("keys:nothing") is False


def test_a_scope_that_cannot_be_granted_says_who_can() -> None:
    with pytest.raises(ExceedsOwnPermissions) as caught:
        key(KeyType.SECRET, "keys:write").require_grantable(frozenset({"invoices:read"}))
    assert caught.value.needs == "scopes:grant"
    assert "Owners and admins, and keys with scopes:grant, can grant scopes: invoices:read" in (
        caught.value.detail
    )
    with pytest.raises(ExceedsOwnPermissions) as both:
        key(KeyType.SECRET).require_grantable(frozenset({"invoices:read", "acl:read"}))
    assert both.value.needs == "acl:read"
    assert "you lack acl:read." in both.value.detail
    assert "can grant scopes: invoices:read" in both.value.detail


def test_a_permission_can_be_granted_only_by_its_holders() -> None:
    admin = person(Role.ADMIN)
    admin.require_grantable(frozenset({"keys:write", "invoices:read"}))
    admin.require_grantable(frozenset())
    with pytest.raises(ExceedsOwnPermissions) as caught:
        admin.require_grantable(frozenset({"keys:write", "billing:write", "billing:read"}))
    assert caught.value.needs == "billing:read"
    assert caught.value.field == "permissions"
    assert "billing:read, billing:write" in caught.value.detail
    with pytest.raises(ExceedsOwnPermissions):
        key(KeyType.SECRET, "keys:write").require_grantable(frozenset({"keys:read"}))
