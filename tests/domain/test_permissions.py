import pytest

from wardkey.domain.errors import PermissionNotForType, UnknownPermission
from wardkey.domain.permissions import (
    ROLE_TABLE,
    TYPE_TABLE,
    KeyType,
    Permission,
    Role,
    check_permission_names,
    clean_permissions,
    default_permissions,
    near_misses,
    suggest,
)

# Written by hand; a change of the rules must change this table.
# Columns: publishable and secret keys; owners, admins, members and viewers.
TABLE = """
    publish               pk sk   owner admin member -
    organization:public   pk sk   owner admin member viewer
    tokens:exchange       pk sk   owner admin -      -
    tokens:create         -  sk   owner admin -      -
    tokens:read           -  sk   owner admin member viewer
    tokens:revoke         -  sk   owner admin -      -
    keys:read             -  sk   owner admin member viewer
    keys:write            -  sk   owner admin -      -
    keys:admin            -  sk   owner admin -      -
    keys:verify           -  sk   owner admin -      -
    clients:read          -  sk   owner admin member viewer
    clients:write         -  sk   owner admin member -
    acl:read              -  sk   owner admin member viewer
    acl:write             -  sk   owner admin member -
    retained:read         -  sk   owner admin member viewer
    retained:write        -  sk   owner admin member -
    providers:read        -  sk   owner admin member viewer
    providers:write       -  sk   owner admin -      -
    previews:read         -  sk   owner admin member viewer
    previews:write        -  sk   owner admin member -
    organization:read     -  sk   owner admin member viewer
    organization:write    -  sk   owner admin -      -
    members:read          -  sk   owner admin member viewer
    members:write         -  sk   owner admin -      -
    audit:read            -  sk   owner admin member viewer
    usage:read            -  sk   owner admin member viewer
    billing:read          -  sk   owner -     -      -
    billing:write         -  sk   owner -     -      -
    scopes:grant          -  sk   owner admin -      -
"""
ROWS = {row[0]: row[1:] for row in (line.split() for line in TABLE.strip().splitlines())}
TYPES = [(KeyType.PUBLISHABLE, 0, "pk"), (KeyType.SECRET, 1, "sk")]
ROLES = [
    (Role.OWNER, 2, "owner"),
    (Role.ADMIN, 3, "admin"),
    (Role.MEMBER, 4, "member"),
    (Role.VIEWER, 5, "viewer"),
]
SECRET_ONLY = [name for name, row in ROWS.items() if row[0] == "-"]
EVERYTHING = frozenset(ROWS)


def test_the_table_contains_every_permission_type_and_role() -> None:
    assert [str(p) for p in Permission] == list(ROWS)
    assert list(KeyType) == [key_type for key_type, _, _ in TYPES]
    assert list(Role) == [role for role, _, _ in ROLES]


@pytest.mark.parametrize("permission", Permission)
@pytest.mark.parametrize(("key_type", "column", "sign"), TYPES)
def test_key_types_can_hold_the_permissions_of_the_table(
    key_type: KeyType, column: int, sign: str, permission: Permission
) -> None:
    cell = ROWS[permission][column]
    assert cell in {sign, "-"}
    assert (permission in TYPE_TABLE[key_type]) == (cell == sign)


@pytest.mark.parametrize("permission", Permission)
@pytest.mark.parametrize(("role", "column", "sign"), ROLES)
def test_roles_hold_the_permissions_of_the_table(
    role: Role, column: int, sign: str, permission: Permission
) -> None:
    cell = ROWS[permission][column]
    assert cell in {sign, "-"}
    assert (permission in ROLE_TABLE[role]) == (cell == sign)


def test_a_new_secret_key_manages_no_keys_members_or_scopes_by_default() -> None:
    ticked = {"keys:write", "keys:admin", "members:write", "scopes:grant"}
    assert default_permissions(KeyType.SECRET, EVERYTHING) == EVERYTHING - ticked
    assert clean_permissions(KeyType.SECRET, ticked) == ticked


def test_a_new_publishable_key_holds_the_three_public_permissions() -> None:
    public = {"publish", "organization:public", "tokens:exchange"}
    assert default_permissions(KeyType.PUBLISHABLE, EVERYTHING) == public


def test_a_new_key_holds_no_permission_that_its_creator_lacks() -> None:
    held = frozenset({"publish", "acl:read", "keys:write", "invoices:read"})
    assert default_permissions(KeyType.SECRET, held) == {"publish", "acl:read"}
    assert default_permissions(KeyType.PUBLISHABLE, held) == {"publish"}
    assert default_permissions(KeyType.SECRET, frozenset()) == frozenset()


@pytest.mark.parametrize("permission", SECRET_ONLY)
def test_a_publishable_key_cannot_hold_permissions_for_secret_keys(permission: str) -> None:
    with pytest.raises(PermissionNotForType) as caught:
        clean_permissions(KeyType.PUBLISHABLE, ["publish", permission])
    assert caught.value.field == "permissions.1"
    assert permission in caught.value.detail


@pytest.mark.parametrize(
    "scope",
    ["invoices:read", "a:b", "a.b-c_d:1", "x9:a:b", "r" * 32 + ":" + "a" * 32, "publishing:read"],
)
def test_only_secret_keys_can_hold_custom_scopes(scope: str) -> None:
    assert clean_permissions(KeyType.SECRET, [scope, scope]) == {scope}
    with pytest.raises(PermissionNotForType):
        clean_permissions(KeyType.PUBLISHABLE, [scope])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "invoices",
        "Invoices:read",
        "invoices:",
        ":read",
        "9a:read",
        "a:b:c:d",
        "a:b ",
        "a:b\n",
        "a:*",
        "r" * 33 + ":a",
        "a:" + "a" * 33,
        "keys:delete",
        "keys:read:all",
        "publish:all",
        "billing:refund",
        "KEYS:READ",
        "\u0430:b",
    ],
)
@pytest.mark.parametrize("key_type", KeyType)
def test_an_unknown_permission_is_refused_and_named(key_type: KeyType, text: str) -> None:
    with pytest.raises(UnknownPermission) as caught:
        clean_permissions(key_type, ["publish", text])
    assert caught.value.field == "permissions.1"
    assert caught.value.detail.isprintable()
    with pytest.raises(UnknownPermission) as asked:
        check_permission_names(["publish", text])
    assert asked.value.detail == caught.value.detail


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("usage:raed", "usage:read"),
        ("usages:read", "usage:read"),
        ("key:read", "keys:read"),
        ("KEYS:READ", "keys:read"),
        (" keys:read ", "keys:read"),
        ("keys.read", "keys:read"),
        ("invoices-read", "invoices:read"),
        ("Invoices:Read", "invoices:read"),
        ("invocies:read", "invoices:read"),
    ],
)
def test_a_mistyped_permission_gets_a_suggestion(text: str, meant: str) -> None:
    assert near_misses(text, ["invoices:read", "orders:write"])[0] == meant
    assert f"Did you mean {meant}" in suggest(text, ["invoices:read", "orders:write"])


def test_nothing_is_suggested_without_a_similar_permission() -> None:
    assert suggest("zzz") == ""
    assert suggest("reports:build", ["invoices:read"]) == ""
    assert suggest("x" * 1_000_000) == ""
