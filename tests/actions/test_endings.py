"""Each cell of the table in docs/endings.md matches the behaviour."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from tests.support.server import wait_until
from wardkey.actions.accounts import browser_sessions, members, organizations, people
from wardkey.actions.accounts import passkeys as passkey_actions
from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import grants, providers, refreshes
from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.grants.logins import find_grant
from wardkey.actions.keys import keys, revocations
from wardkey.db.engine import Transaction
from wardkey.db.schema import invitations, passkeys
from wardkey.domain.errors import InvalidToken, WardkeyError
from wardkey.domain.grants import NewGrant
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Permission, Role
from wardkey.domain.principal import Principal, PrincipalKind, member, operator
from wardkey.domain.providers import ProviderKind, ProviderSpec
from wardkey.domain.receipts import EndedSessions, SessionImpact
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import Verdict, VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

PAGE = Path(__file__).parents[2] / "docs" / "endings.md"
NUMBERS = count()
HASH = "not a hash that any password fits"


def table() -> tuple[list[str], dict[str, list[str]]]:
    """Return the column names and the rows of the page's table."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return head[1:], {row[0]: row[1:] for row in rows}


COLUMNS, ROWS = table()


@dataclass
class World:
    """An organization whose member has one of each thing that a change may end."""

    runner: Runner
    verifier: Verifier
    owner: Principal = field(init=False)
    ended_scopes: set[tuple[str, str]] = field(default_factory=set)
    # The broker closes a suspended organization's account as a whole.
    is_stopped: bool = False

    def __post_init__(self) -> None:
        number = next(NUMBERS)
        made, owner_id = self.run(
            organizations.create, operator(), f"Acme {number}", f"owner{number}@acme.example"
        )
        self.org = made
        self.owner = self.as_member(owner_id, f"owner{number}@acme.example", Role.OWNER)
        self.email = f"ada{number}@acme.example"
        _, link = self.run(members.invite, self.owner, self.email, Role.ADMIN)
        stranger = Principal(PrincipalKind.USER, "", "")
        signed_in = self.run(members.accept, stranger, link, HASH)
        self.user_id, self.token = signed_in.user_id, signed_in.token
        self.person = Principal(PrincipalKind.USER, self.user_id, self.email)
        self.admin = self.as_member(self.user_id, self.email, Role.ADMIN)
        self.session = self.run(
            browser_sessions.begin_with_password, self.person, self.user_id, HASH, ""
        )
        # A transaction without an event would be rolled back.
        with self.runner.database.writer.begin() as connection:
            connection.execute(
                insert(passkeys).values(
                    id=f"pky_{number}",
                    user_id=self.user_id,
                    credential_id=f"credential {number}".encode(),
                    public_key=b"key",
                    sign_count=0,
                    name="phone",
                    created_at=self.runner.database.clock(),
                )
            )
        spec = KeySpec(f"live-one-{number}", KeyType.SECRET, Environment.LIVE)
        self.key = self.run(keys.issue, self.owner, spec)
        self.other_key = self.run(
            keys.issue, self.admin, replace(spec, name=f"live-other-{number}")
        )
        provider = ProviderSpec(
            ProviderKind.OIDC,
            f"p{number}",
            issuer=f"https://p{number}.acme.example",
            audiences=("app",),
            algorithms=("ES256",),
        )
        self.provider = self.run(providers.create, self.owner, provider).id
        self.invitation, _ = self.run(
            members.invite, self.admin, f"new{number}@acme.example", Role.VIEWER
        )
        own = self.new_grant("", self.email)
        self.own = self.run(grants.create_own, self.admin, own)
        self.for_another = self.run(grants.create, self.admin, self.new_grant("", "another"))
        self.by_key = self.run(grants.create, self.key_principal(), self.new_grant("", "end-user"))
        exchanged = [(self.new_grant(self.provider, "end-user"), "")]
        exchanging = replace(
            self.owner,
            permissions=self.owner.permissions | {Permission.TOKENS_EXCHANGE},
        )
        (self.by_provider,) = self.run(grants.mint, exchanging, exchanged)
        self.runner.end_sessions = self.note_scope

    def note_scope(self, concern: SessionImpact) -> EndedSessions:
        self.ended_scopes.add((concern.scope[0], str(concern.scope[1])))
        return EndedSessions()

    def run(self, action: Callable[..., Any], by: Principal, *args: object) -> Any:  # noqa: ANN401 - as `action`
        return self.runner.write(action, by, *args)

    def as_member(self, user_id: str, email: str, role: Role) -> Principal:
        return member(
            user_id=user_id, email=email, org_id=self.org.id, role=role,
            environment=Environment.LIVE,
        )  # fmt: skip

    def key_principal(self) -> Principal:
        return Principal(
            PrincipalKind.KEY,
            self.key.key.id,
            "key",
            org_id=self.org.id,
            environment=Environment.LIVE,
            permissions=frozenset(self.key.key.permissions),
        )

    @staticmethod
    def new_grant(provider: str, email: str) -> NewGrant:
        name = f"u{next(NUMBERS)}"
        return NewGrant(provider, email, email, f"usr_{name}", name, {}, 600, 600)

    # --- the changes, named after the table's rows -----------------------------------------

    def key_revoked(self) -> None:
        self.run(revocations.revoke, self.owner, self.key.key.id, "superseded")

    def key_disabled(self) -> None:
        self.run(keys.disable, self.owner, self.key.key.id)

    def key_expired(self) -> None:
        soon = self.runner.database.clock() + 50
        self.run(keys.change, self.owner, self.key.key.id, {"expires_at": soon})
        wait_until(lambda: self.runner.database.clock() > soon)

    def key_loses_tokens_create(self) -> None:
        self.run(keys.change, self.owner, self.key.key.id, {"permissions": ["keys:read"]})

    def key_bound_to_another_address(self) -> None:
        changes = {"allowed_addresses": ("198.51.100.1",)}
        self.run(keys.change, self.owner, self.key.key.id, changes)

    def member_removed(self) -> None:
        self.run(members.remove, self.owner, self.user_id)

    def member_made_viewer(self) -> None:
        self.run(members.change_role, self.owner, self.user_id, Role.VIEWER)

    def set_up_link_used(self) -> None:
        link = self.run(people.create_setup_link, operator(), self.email)
        self.run(people.use_setup_link, self.person, link, "another hash")

    def password_changed(self) -> None:
        self.run(people.change_password, self.person, HASH, "another hash", "another session")

    def signed_out_everywhere(self) -> None:
        self.run(browser_sessions.end_all, self.person)

    def organization_suspended(self) -> None:
        self.run(organizations.suspend, operator(), self.org.id)
        self.is_stopped = True

    def provider_deleted(self) -> None:
        self.run(providers.remove, self.owner, self.provider)

    def provider_disabled(self) -> None:
        disable = partial(providers.enable, enabled=False)
        disable.__name__ = "disable"  # type: ignore[attr-defined]
        self.run(disable, self.owner, self.provider)

    # --- what remains, named after the table's columns ------------------------------------------

    def verdicts_of_the_key(self) -> str:
        return self.verdict(self.key.secret.text)

    def their_other_keys(self) -> str:
        return self.verdict(self.other_key.secret.text)

    def verdict(self, text: str) -> str:
        answer = self.verifier.verify(VerificationRequest(text, address="203.0.113.7"))
        return "stays" if answer.verdict is Verdict.VALID else "ends"

    def access_to_the_organization(self) -> str:
        return self.read(
            lambda tx: people.as_member(tx, self.person, self.org.id, Environment.LIVE)
        )

    def browser_sessions(self) -> str:
        return self.read(lambda tx: browser_sessions.find(tx, self.session.text))

    def user_tokens(self) -> str:
        return self.read(lambda tx: people.identify(tx, self.token))

    def read(self, action: Callable[[Transaction], object]) -> str:
        try:
            with self.runner.database.read() as tx:
                action(tx)
        except WardkeyError:
            return "ends"
        return "stays"

    def passkeys(self) -> str:
        with self.runner.database.read() as tx:
            return "stays" if passkey_actions.list_passkeys(tx, self.person) else "ends"

    def live_topics(self) -> str:
        return self.grant(self.own)

    def grants_to_others(self) -> str:
        return self.grant(self.for_another)

    def grants_by_the_key(self) -> str:
        return self.grant(self.by_key)

    def grants_by_a_provider(self) -> str:
        return self.grant(self.by_provider)

    def grant(self, minted: MintedGrant) -> str:
        text = minted.password.text
        logs_in = find_grant(self.runner.database, text) is not None
        try:
            self.run(refreshes.refresh, self.person, minted.grant.token_id, text)
        except InvalidToken:
            if logs_in:
                return "no refresh"
            # Ending a grant checks its live sessions before the call returns.
            scope = (self.org.id, str(Environment.LIVE))
            assert scope in self.ended_scopes or self.is_stopped
            return "ends"
        return "stays"

    def their_invitations(self) -> str:
        with self.runner.database.read() as tx:
            revoked = tx.connection.execute(
                select(invitations.c.revoked_at).where(invitations.c.id == self.invitation.id)
            ).scalar_one()
        return "stays" if revoked is None else "ends"


def method_of(name: str) -> str:
    """Return the name of a row's or a column's method."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


@pytest.fixture
def world(runner: Runner) -> Iterator[World]:
    verifier = Verifier(runner.database, Usage(runner.database))
    yield World(runner, verifier)
    verifier.directory.close()


@pytest.mark.parametrize("row", ROWS)
def test_a_change_ends_exactly_what_the_page_lists(world: World, row: str) -> None:
    assert len(ROWS[row]) == len(COLUMNS) == 11
    getattr(world, method_of(row))()
    results = [getattr(world, method_of(column))() for column in COLUMNS]
    assert dict(zip(COLUMNS, results, strict=True)) == dict(zip(COLUMNS, ROWS[row], strict=True))
