"""A revoked grant never logs in, and no other grant ends, in any order of events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import grants, providers, refreshes
from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.grants.logins import find_grant, live_grants, newest_grant
from wardkey.actions.keys import keys, revocations
from wardkey.domain.errors import InvalidToken, Revoked
from wardkey.domain.grants import CutoffKind, NewGrant
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Permission, Role
from wardkey.domain.principal import Principal, PrincipalKind, member, operator
from wardkey.domain.providers import ProviderKind, ProviderSpec
from wardkey.domain.secret import Environment

NAMES = count()
# Two of three users share an address.
EMAILS = ("ada@acme.example", "ada@acme.example", "grace@acme.example")
which = st.integers(0, 5)
# Most events create grants.
EVENTS = [
    *["mint"] * 6, *["create", "refresh"] * 2, "one", "user", "email", "provider", "key",
    "delete provider", "revoke key",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), which, which), max_size=20)


@dataclass
class Noted:
    """A grant with its expected state."""

    made: MintedGrant
    user: str
    email: str
    provider: str
    key: str
    family: int
    live: bool = True
    replaced: bool = False


class Notebook:
    """A model of an organization's grants, compared with those in the database."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        name = f"Acme {next(NAMES)}"
        made, user = runner.write(organizations.create, operator(), name, "owner@acme.example")
        self.owner = member(
            user_id=user,
            email="owner@acme.example",
            org_id=made.id,
            role=Role.OWNER,
            environment=Environment.LIVE,
        )
        self.providers = [self.provider(f"p{n}") for n in range(2)]
        self.keys = [self.key(f"live-{n}") for n in range(2)]
        self.removed: set[str] = set()
        self.notes: list[Noted] = []
        test = replace(self.owner, environment=Environment.TEST)
        spec = self.new_grant("", EMAILS[0], EMAILS[0])
        self.bystander = runner.write(grants.create, test, spec)

    def provider(self, name: str) -> str:
        spec = ProviderSpec(
            ProviderKind.OIDC,
            name,
            issuer=f"https://{name}.acme.example",
            audiences=("app",),
            algorithms=("ES256",),
        )
        return self.runner.write(providers.create, self.owner, spec).id

    def key(self, name: str) -> str:
        spec = KeySpec(name, KeyType.SECRET, Environment.LIVE)
        return self.runner.write(keys.issue, self.owner, spec).key.id

    def new_grant(self, provider: str, user: str, email: str) -> NewGrant:
        name = f"{user.partition('@')[0]}_{provider}"
        return NewGrant(provider, user, email, f"usr_{name}"[:32], name, {"user_id": user}, 600)

    # --- the events ------------------------------------------------------------------------

    def mint(self, user: int, where: int) -> None:
        provider, key = self.providers[where % 2], self.keys[where // 2 % 2]
        # A deleted provider's tokens are rejected.
        if provider in self.removed:
            return
        by = Principal(
            PrincipalKind.KEY,
            key,
            "key",
            org_id=self.owner.org_id,
            environment=Environment.LIVE,
            permissions=frozenset({Permission.TOKENS_EXCHANGE}),
        )
        user_id, email = f"user{user % 3}", EMAILS[user % 3]
        specs = [(self.new_grant(provider, user_id, email), "")]
        if key in self.removed:
            with pytest.raises(Revoked):
                self.runner.write(grants.mint, by, specs)
            return
        (made,) = self.runner.write(grants.mint, by, specs)
        self.notes.append(Noted(made, user_id, email, provider, key, len(self.notes)))

    def create(self, user: int, how: int) -> None:
        email = EMAILS[user % 3]
        spec = self.new_grant("", email, email)
        made = self.runner.write(grants.create, self.owner, spec, replace=bool(how % 2))
        if how % 2:
            self.end(email=email)
        self.notes.append(Noted(made, email, email, "", "", len(self.notes)))

    def refresh(self, number: int, _: int) -> None:
        if not self.notes:
            return
        note = self.notes[number % len(self.notes)]
        grant, password = note.made.grant, note.made.password.text
        try:
            again = self.runner.write(refreshes.refresh, self.owner, grant.token_id, password)
        except InvalidToken:
            assert not note.live
            return
        if again is None:
            assert note.replaced
            self.end(family=note.family)
            return
        assert note.live
        assert not note.replaced
        note.replaced = True
        self.notes.append(replace(note, made=again, replaced=False))

    def one(self, number: int, _: int) -> None:
        if self.notes:
            note = self.notes[number % len(self.notes)]
            self.runner.write(grants.revoke, self.owner, note.made.grant.token_id)
            note.live = False

    def user(self, number: int, _: int) -> None:
        self.revoke_all(CutoffKind.USER, user=[*EMAILS, "user0", "user1", "user2"][number])

    def email(self, number: int, _: int) -> None:
        self.revoke_all(CutoffKind.EMAIL, email=EMAILS[number % 3])

    def of_provider(self, number: int, _: int) -> None:
        provider = self.providers[number % 2]
        if provider not in self.removed:
            self.revoke_all(CutoffKind.PROVIDER, provider=provider)

    def of_key(self, number: int, _: int) -> None:
        self.revoke_all(CutoffKind.KEY, key=self.keys[number % 2])

    def delete_provider(self, number: int, _: int) -> None:
        provider = self.providers[number % 2]
        if provider not in self.removed:
            self.runner.write(providers.remove, self.owner, provider)
            self.removed.add(provider)
            self.end(provider=provider)

    def revoke_key(self, number: int, _: int) -> None:
        key = self.keys[number % 2]
        self.runner.write(revocations.revoke, self.owner, key, "unspecified")
        self.removed.add(key)
        self.end(key=key)

    def revoke_all(self, kind: CutoffKind, **whose: str) -> None:
        ((_, subject),) = whose.items()
        live = self.runner.write(grants.revoke_all, self.owner, kind, subject)
        assert live == self.end(**whose)

    def end(self, **whose: Any) -> int:  # noqa: ANN401
        """Mark all grants with this attribute as ended; return how many were live."""
        ((name, value),) = whose.items()
        ended = [note for note in self.notes if note.live and getattr(note, name) == value]
        for note in ended:
            note.live = False
        return len(ended)

    # --- the invariants -------------------------------------------------------------------

    def check(self) -> None:
        database = self.runner.database
        for note in self.notes:
            grant = note.made.grant
            login = find_grant(database, note.made.password.text, grant.mqtt_username)
            assert (login is not None) is note.live
        live_kids = {note.made.grant.kid for note in self.notes if note.live}
        with database.read() as tx:
            kids = [note.made.grant.kid for note in self.notes]
            # The newest grant of a family keeps the sessions of those it was refreshed from.
            newest_lives = {n.family: n.live for n in self.notes if not n.replaced}
            with_sessions = {
                note.made.grant.kid
                for note in self.notes
                if note.live and newest_lives[note.family]
            }
            assert set(live_grants(tx, self.owner.scope, kids)) == with_sessions
            for name in {note.made.grant.mqtt_username for note in self.notes}:
                lives = [n for n in self.notes if n.live and n.made.grant.mqtt_username == name]
                newest = newest_grant(tx, name)
                assert (newest is not None) is bool(lives)
                assert newest is None or newest.kid in live_kids
            query = grants.GrantQuery(active=True, limit=200)
            listed = grants.list_grants(tx, self.owner, query)
        assert {grant_row.kid for grant_row in listed} == live_kids
        assert find_grant(database, self.bystander.password.text) is not None


HANDLERS = {
    "provider": Notebook.of_provider,
    "key": Notebook.of_key,
    **{name: getattr(Notebook, name) for name in ("mint", "create", "refresh", "one", "user")},
    "email": Notebook.email,
    "delete provider": Notebook.delete_provider,
    "revoke key": Notebook.revoke_key,
}


def test_a_revoked_grant_never_logs_in_and_no_other_grant_ends(
    runner: Runner, storage_url: str
) -> None:
    @settings(
        max_examples=15 if storage_url else 40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    def check_steps(steps: list[tuple[str, int, int]]) -> None:
        book = Notebook(runner)
        for name, first, second in steps:
            HANDLERS[name](book, first, second)
            book.check()

    check_steps()
