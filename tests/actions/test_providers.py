"""Changes to providers survive a restore and every rotation of the master key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from tests.actions.test_master_keys import rotate_and_reopen
from tests.actions.test_restore import back_up  # noqa: F401 - a fixture
from wardkey.actions.accounts import organizations
from wardkey.actions.core.audit_walks import verify_chain
from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import grants, providers, refreshes
from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.grants.logins import find_grant
from wardkey.actions.grants.providers import TrustedProviders
from wardkey.actions.operations.restore import Restored
from wardkey.db.schema import grant_cutoffs
from wardkey.db.schema import grants as grants_table
from wardkey.domain.errors import ProviderNotFound
from wardkey.domain.grants import CutoffKind, NewGrant
from wardkey.domain.principal import Principal, operator
from wardkey.domain.providers import ProviderKind, ProviderSpec

SHARED = "a-shared-secret-of-a-project-as-its-console-shows-it"
OTHER = "another-secret-of-that-project-which-was-set-later"
OIDC = ProviderSpec(
    ProviderKind.OIDC,
    "shop",
    issuer="https://login.acme.example",
    audiences=("shop",),
    algorithms=("ES256",),
)
LEGACY = ProviderSpec(
    ProviderKind.SUPABASE, "old", project_url="https://abc.supabase.co", legacy_secret=True
)
BackUp = Callable[[], Callable[[], Restored]]


def create(runner: Runner, owner: Principal, spec: ProviderSpec, secret: str = "") -> str:
    return runner.write(providers.create, owner, spec, secret).id


def grant_of(runner: Runner, owner: Principal, provider_id: str = "") -> MintedGrant:
    email = "admin@acme.example"
    spec = NewGrant(provider_id, email, email, "usr_1", "admin_1", {}, 600)
    return runner.write(grants.create, owner, spec)


def trusted(runner: Runner, owner: Principal) -> dict[str, tuple[bool, bytes]]:
    """Return the providers that an exchange finds: whether enabled, and the shared secret."""
    rows = TrustedProviders().get(runner.database, owner.scope, 0)
    return {row.id: (row.enabled, row.secret) for row in rows}


def test_a_provider_deleted_since_the_backup_stays_deleted(
    runner: Runner,
    owner: Principal,
    back_up: BackUp,  # noqa: F811
) -> None:
    deleted, kept = create(runner, owner, OIDC), create(runner, owner, replace(OIDC, name="app"))
    put_back = back_up()
    runner.write(providers.remove, owner, deleted)

    done = put_back()

    with pytest.raises(ProviderNotFound):
        runner.read(providers.get, owner, deleted)
    assert trusted(runner, owner) == {kept: (True, b"")}
    assert [(event.action, event.target.id) for event in done.carried] == [
        ("provider.deleted", deleted)
    ]
    assert verify_chain(runner.database, operator(), owner.org_id)[1] == []


def test_a_restore_keeps_later_changes_to_providers(
    runner: Runner,
    owner: Principal,
    back_up: BackUp,  # noqa: F811
) -> None:
    disabled, enabled = (create(runner, owner, replace(OIDC, name=name)) for name in ("a", "b"))
    changed, legacy = create(runner, owner, OIDC), create(runner, owner, LEGACY, SHARED)
    runner.write(providers.enable, owner, enabled, enabled=False)
    put_back = back_up()
    runner.write(providers.enable, owner, disabled, enabled=False)
    runner.write(providers.enable, owner, enabled, enabled=True)
    narrower = {"audiences": ("shop-2",), "algorithms": ("EdDSA",)}
    runner.write(providers.change, owner, changed, narrower)
    runner.write(providers.change, owner, legacy, {}, OTHER)
    added = create(runner, owner, replace(OIDC, name="since"))

    done = put_back()

    assert trusted(runner, owner) == {
        disabled: (False, b""),
        enabled: (True, b""),
        changed: (True, b""),
        legacy: (True, OTHER.encode()),
    }
    assert runner.read(providers.get, owner, changed).spec.audiences == ("shop-2",)
    assert {row.action for row in done.carried} == {"provider.updated"}
    assert [(row.kind, row.id) for row in done.lost] == [("provider", added)]


def test_providers_unchanged_since_the_backup_are_not_reported(
    runner: Runner,
    owner: Principal,
    back_up: BackUp,  # noqa: F811
) -> None:
    create(runner, owner, OIDC)
    create(runner, owner, LEGACY, SHARED)
    put_back = back_up()
    other, user = runner.write(organizations.create, operator(), "Other", "owner@acme.example")
    create(runner, replace(owner, org_id=other.id, id=user), OIDC)

    done = put_back()

    assert done.carried == ()
    assert [loss.id for loss in done.lost] == [other.id]


def test_a_restore_deletes_all_grants(
    runner: Runner,
    owner: Principal,
    back_up: BackUp,  # noqa: F811
) -> None:
    before = grant_of(runner, owner, create(runner, owner, OIDC))
    put_back = back_up()
    since = grant_of(runner, owner)
    runner.write(grants.revoke_all, owner, CutoffKind.EMAIL, "grace@acme.example")
    database = runner.database
    assert find_grant(database, before.password.text)

    put_back()

    for minted in (before, since):
        assert find_grant(database, minted.password.text) is None
    with database.read() as tx:
        for table in (grants_table, grant_cutoffs):
            count = tx.connection.execute(select(func.count()).select_from(table)).scalar_one()
            assert count == 0
    after = grant_of(runner, owner)
    assert find_grant(database, after.password.text)


def test_a_sealed_secret_and_live_grants_survive_a_master_key_rotation(
    runner: Runner, owner: Principal
) -> None:
    legacy = create(runner, owner, LEGACY, SHARED)
    grant = grant_of(runner, owner, legacy)
    for _ in range(2):
        rotate_and_reopen(runner)
        assert trusted(runner, owner) == {legacy: (True, SHARED.encode())}
        assert find_grant(runner.database, grant.password.text, grant.grant.mqtt_username)
    password = grant.password.text
    refreshed = runner.write(refreshes.refresh, owner, grant.grant.token_id, password)
    assert refreshed is not None
    assert find_grant(runner.database, refreshed.password.text)
