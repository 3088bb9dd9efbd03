"""New users of an allowed domain join the organization that the operator configured."""

from __future__ import annotations

import pytest

from wardkey.actions.accounts import identities, members, organizations
from wardkey.actions.core.runner import Runner
from wardkey.domain.errors import SignInNotAllowed
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.single_sign_on import Identity, SignInPolicy

ANONYMOUS = Principal(PrincipalKind.USER, "", "")
ISSUER = "https://login.acme.example"


def sign_in(runner: Runner, name: str, reference: str) -> None:
    identity = Identity(ISSUER, f"subject-{name}", f"{name}@acme.example")
    welcome = SignInPolicy(frozenset({"acme.example"}), reference, Role.VIEWER)
    runner.write(identities.sign_in, ANONYMOUS, identity, welcome, "")


def test_an_organization_id_in_the_sign_in_policy_survives_a_slug_change(
    runner: Runner, owner: Principal
) -> None:
    sign_in(runner, "first", "acme")
    runner.write(organizations.change, owner, slug="apex")
    with pytest.raises(SignInNotAllowed):
        sign_in(runner, "second", "acme")
    sign_in(runner, "third", owner.org_id)
    emails = {row.email for row in runner.read(members.list_members, owner)}
    assert emails == {f"{name}@acme.example" for name in ("owner", "first", "third")}
