"""The catalogue of scopes through upgrades and restores, and its isolation."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from tests.support.upgrades import downgrade
from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, revocations, scopes
from wardkey.actions.operations.restore import restore
from wardkey.db.backup import open_backup, write_backup
from wardkey.db.migrate import migrate
from wardkey.db.schema import keys as key_table
from wardkey.domain.errors import UnknownScope
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment


def issue(runner: Runner, by: Principal, name: str, *permissions: str) -> str:
    spec = KeySpec(name, KeyType.SECRET, by.environment, permissions)
    return runner.write(keys.issue, by, spec, permissions).key.id


def catalogue(runner: Runner, by: Principal) -> dict[str, int]:
    query = scopes.ScopeQuery(limit=scopes.MOST_SCOPES)
    return {scope.name: scope.keys for scope in runner.read(scopes.list_scopes, by, query)}


@pytest.fixture
def other(runner: Runner) -> Principal:
    made, user = runner.write(organizations.create, operator(), "Globex", "o@globex.example")
    return member(
        user_id=user,
        email="o@globex.example",
        org_id=made.id,
        role=Role.OWNER,
        environment=Environment.TEST,
    )


def test_an_upgrade_fills_the_catalogue_from_keys_and_drops_our_own_names(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    issue(runner, owner, "live-a", "invoices:read", "invoices:write", "keys:read")
    issue(runner, owner, "live-b", "invoices:read")
    issue(runner, other, "test-a", "invoices:read")
    revoked = issue(runner, owner, "live-gone", "orders:read")
    runner.write(revocations.revoke, owner, revoked, "unspecified", "")
    clash = issue(runner, owner, "live-clash", "usage:read")
    with runner.database.writer.begin() as connection:
        # As an earlier version allowed, in which scopes was not one of our resources.
        held = ["scopes:grant", "scopes:read", "usage:read"]
        connection.execute(
            update(key_table).where(key_table.c.id == clash).values(permissions=held)
        )
        downgrade(connection, "0011")
    migrate(runner.database)
    assert catalogue(runner, owner) == {"invoices:read": 2, "invoices:write": 1}
    assert catalogue(runner, other) == {"invoices:read": 1}
    assert runner.read(keys.get, owner, clash).permissions == ("usage:read",)


def test_a_restore_brings_back_the_catalogue_and_reports_differences(
    runner: Runner, owner: Principal, tmp_path: Path
) -> None:
    issue(runner, owner, "live-a", "invoices:read")
    runner.write(scopes.create, owner, "orders:read", "")
    runner.write(scopes.create, owner, "parcels:read", "")
    write_backup(runner.database, tmp_path / "copy")
    runner.write(scopes.remove, owner, "orders:read")
    runner.write(scopes.change, owner, "parcels:read", "Read parcels")
    runner.write(scopes.create, owner, "refunds:read", "")
    with (
        open_backup(tmp_path / "copy", runner.database.master, tmp_path) as backup,
        (tmp_path / "lost").open("w") as lost,
    ):
        done = runner.write(restore, operator(), backup, lost)
    assert catalogue(runner, owner) == {"invoices:read": 1, "orders:read": 0, "parcels:read": 0}
    assert [row.label for row in done.lost if row.kind == "scope"] == ["refunds:read"]
    widened = {(row.label, row.fields) for row in done.widened if row.kind == "scope"}
    assert widened == {("parcels:read", ("description",)), ("orders:read", ("deleted",))}


def test_each_organization_has_its_own_catalogue(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    runner.write(scopes.create, owner, "invoices:read", "Ours")
    assert catalogue(runner, other) == {}
    spec = KeySpec("test-b", KeyType.SECRET, Environment.TEST, ("invoices:raed",))
    with pytest.raises(UnknownScope) as caught:
        runner.write(keys.issue, other, spec)
    assert caught.value.similar == ()
    runner.write(scopes.create, other, "invoices:read", "Theirs")
    assert runner.read(scopes.get, owner, "invoices:read").description == "Ours"
