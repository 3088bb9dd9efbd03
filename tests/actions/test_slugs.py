"""A slug never refers to another organization's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from tests.support.upgrades import downgrade
from wardkey.actions.accounts import identities, organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys
from wardkey.actions.operations.restore import restore
from wardkey.db.backup import open_backup, write_backup
from wardkey.db.migrate import migrate
from wardkey.db.schema import organization_slugs
from wardkey.domain.errors import DuplicateSlug, SignInNotAllowed
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, PrincipalKind, member, operator
from wardkey.domain.secret import Environment
from wardkey.domain.single_sign_on import Identity, SignInPolicy
from wardkey.domain.verdict import VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

Ask = Callable[[str, str], str]


def organization(runner: Runner, name: str) -> Principal:
    email = f"owner@{name}.example"
    made, user = runner.write(organizations.create, operator(), name, email)
    return member(
        user_id=user, email=email, org_id=made.id, role=Role.OWNER, environment=Environment.LIVE
    )


def rename(runner: Runner, by: Principal, slug: str) -> None:
    runner.write(organizations.change, by, slug=slug)


def key_of(runner: Runner, by: Principal) -> str:
    spec = KeySpec("live-proxy", KeyType.SECRET, Environment.LIVE)
    return runner.write(keys.issue, by, spec).secret.text


def reserved(runner: Runner) -> dict[str, str]:
    columns = organization_slugs.c.slug, organization_slugs.c.org_id
    with runner.database.read() as tx:
        return {row.slug: row.org_id for row in tx.connection.execute(select(*columns))}


@pytest.fixture
def ask(runner: Runner) -> Iterator[Ask]:
    """Return a function that gets verdicts from one caching verifier."""
    verifier = Verifier(runner.database, Usage(runner.database))

    def verdict(key: str, named: str) -> str:
        return str(verifier.verify(VerificationRequest(key, organization=named)).verdict)

    yield verdict
    verifier.directory.close()


@pytest.fixture
def other(runner: Runner, owner: Principal) -> Principal:
    """Return the owner of a second organization, created after Acme."""
    assert owner.org_id
    return organization(runner, "globex")


def test_a_former_slug_still_refers_only_to_its_own_organization(
    runner: Runner, owner: Principal, other: Principal, ask: Ask
) -> None:
    own_key, other_key = key_of(runner, owner), key_of(runner, other)
    assert ask(own_key, "acme") == "valid"
    rename(runner, owner, "apex")
    with pytest.raises(DuplicateSlug):
        rename(runner, other, "acme")
    assert {named: ask(own_key, named) for named in ("acme", "apex", owner.org_id, "globex")} == {
        "acme": "valid",
        "apex": "valid",
        owner.org_id: "valid",
        "globex": "unknown",
    }
    assert [ask(other_key, named) for named in ("acme", "apex")] == ["unknown"] * 2
    rename(runner, owner, "acme")
    assert [ask(own_key, named) for named in ("acme", "apex")] == ["valid"] * 2


def test_a_former_slug_cannot_redirect_users_who_join_by_sign_in(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    rename(runner, owner, "apex")
    with pytest.raises(DuplicateSlug):
        rename(runner, other, "acme")
    stranger = Principal(PrincipalKind.USER, "", "")
    identity = Identity("https://login.acme.example", "new", "new@acme.example")
    welcome = SignInPolicy(frozenset({"acme.example"}), "acme", Role.VIEWER)
    with pytest.raises(SignInNotAllowed):
        runner.write(identities.sign_in, stranger, identity, welcome, "")


def test_a_slug_stays_reserved_after_its_organization_is_deleted(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    rename(runner, owner, "apex")
    runner.write(organizations.close, owner)
    for slug in ("acme", "apex"):
        with pytest.raises(DuplicateSlug):
            rename(runner, other, slug)
        with pytest.raises(DuplicateSlug):
            runner.write(organizations.create, operator(), "New", "new@acme.example", slug)
    made, _ = runner.write(organizations.create, operator(), "Acme", "new@acme.example")
    assert made.slug == "acme-2"


def test_no_slug_keeps_another_organization_from_being_deleted(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    rename(runner, other, owner.org_id.lower().replace("_", "-"))
    assert runner.write(organizations.close, owner).deleted_at is not None


def test_a_restore_keeps_slugs_reserved_since_the_backup(
    runner: Runner, owner: Principal, other: Principal, tmp_path: Path
) -> None:
    write_backup(runner.database, tmp_path / "copy.wardkey")
    rename(runner, owner, "apex")
    lost = organization(runner, "umbrella")
    with (
        open_backup(tmp_path / "copy.wardkey", runner.database.master, tmp_path) as backup,
        (tmp_path / "lost").open("w") as out,
    ):
        runner.write(restore, operator(), backup, out)
    assert reserved(runner) == {
        "acme": owner.org_id,
        "apex": owner.org_id,
        "globex": other.org_id,
        "umbrella": lost.org_id,
    }
    for slug in ("acme", "apex", "umbrella"):
        with pytest.raises(DuplicateSlug):
            rename(runner, other, slug)


def test_an_upgrade_reserves_the_slugs_in_use_and_those_in_the_audit(
    runner: Runner, owner: Principal, other: Principal
) -> None:
    rename(runner, owner, "apex")
    closed = organization(runner, "gone")
    runner.write(organizations.close, closed)
    # As an earlier version allowed: another organization took a slug that was given up.
    with runner.database.writer.begin() as connection:
        connection.execute(delete(organization_slugs).where(organization_slugs.c.slug == "acme"))
    rename(runner, other, "acme")
    before = reserved(runner)
    with runner.database.writer.begin() as connection:
        downgrade(connection, "0010")
    migrate(runner.database)
    assert reserved(runner) == before
    assert before == {
        "acme": other.org_id,
        "apex": owner.org_id,
        "globex": other.org_id,
        "gone": closed.org_id,
    }
