"""Whoever is new at an allowed domain joins the organization that the operator meant."""

from __future__ import annotations

import pytest

from wardkey.actions.accounts import identities, members, organizations
from wardkey.actions.core.runner import Runner
from wardkey.domain.errors import SignInNotAllowed
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.single_sign_on import Identity, SignInPolicy

NOBODY = Principal(PrincipalKind.USER, "", "")
ISSUER = "https://login.acme.example"


def signs_in(runner: Runner, name: str, reference: str) -> None:
    identity = Identity(ISSUER, f"subject-{name}", f"{name}@acme.example")
    welcome = SignInPolicy(frozenset({"acme.example"}), reference, Role.VIEWER)
    runner.write(identities.sign_in, NOBODY, identity, welcome, "")


def test_an_id_goes_on_naming_what_newcomers_join_when_the_slug_is_changed(
    runner: Runner, owner: Principal
) -> None:
    signs_in(runner, "first", "acme")
    runner.write(organizations.change, owner, slug="apex")
    with pytest.raises(SignInNotAllowed):
        signs_in(runner, "second", "acme")
    signs_in(runner, "third", owner.org_id)
    emails = {one.email for one in runner.read(members.list_members, owner)}
    assert emails == {f"{name}@acme.example" for name in ("owner", "first", "third")}
