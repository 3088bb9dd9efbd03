"""A restore keeps clients' rights as they were just before it, not as in the backup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wardkey.actions.accounts import organizations, passkeys
from wardkey.actions.core.audit_walks import verify_chain
from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging import acl, clients
from wardkey.actions.messaging.client_logins import VerifiedPasswords, find_login
from wardkey.actions.messaging.rule_cache import RuleCache
from wardkey.actions.operations import master_keys
from wardkey.actions.operations.restore import Restored, restore
from wardkey.adapters.passkeys import Answer
from wardkey.db.backup import open_backup, write_backup
from wardkey.db.maintenance import rehash_passwords
from wardkey.db.vault import MasterKey
from wardkey.domain.acl import Action, Actor, ActorKind, Effect, SubjectKind
from wardkey.domain.clients import ClientSpec
from wardkey.domain.errors import InvalidPasskey
from wardkey.domain.principal import Principal, operator
from wardkey.domain.rule_specs import RuleSpec
from wardkey.domain.secret import Environment

TOPICS = ("a", "a/b", "a/secret", "b")


@pytest.fixture
def back_up(runner: Runner, tmp_path: Path) -> Callable[[], Callable[[], Restored]]:
    """Return a function that makes a backup and returns a function that restores it."""

    def begin() -> Callable[[], Restored]:
        file = tmp_path / "copy.wardkey"
        write_backup(runner.database, file)

        def put_back() -> Restored:
            with (
                open_backup(file, runner.database.master, tmp_path) as backup,
                (tmp_path / "lost").open("w") as lost,
            ):
                return runner.write(restore, operator(), backup, lost)

        return put_back

    return begin


def rule(
    pattern: str,
    effect: Effect = Effect.ALLOW,
    priority: int = 10,
    subject: tuple[SubjectKind, str] = (SubjectKind.EVERYONE, ""),
) -> RuleSpec:
    return RuleSpec(priority, *subject, pattern, Action.BOTH, effect, "")


def add(runner: Runner, by: Principal, spec: RuleSpec) -> str:
    return runner.write(acl.create, by, spec).id


def allowed(runner: Runner, by: Principal) -> set[str]:
    """Return the topics that a client of the tenant scope may publish to."""
    actor = Actor(ActorKind.CLIENT, by.org_id, "agent", "agent-1", "cli_1")
    with runner.database.read() as tx:
        rules = RuleCache().rules(tx, by.scope)
    return {topic for topic in TOPICS if rules.decide(actor, Action.PUBLISH, topic).allowed}


def narrow_rules(runner: Runner, owner: Principal, how: str, first: str) -> None:
    if how == "denied":
        add(runner, owner, rule("a/secret", Effect.DENY, 1))
    elif how == "changed":
        runner.write(acl.change, owner, first, acl.RuleChanges(filter="a/b"))
    elif how == "deleted":
        runner.write(acl.remove, owner, first)
    else:
        runner.write(acl.put_rules, owner, [rule("b"), rule("a/secret", priority=11)])


@pytest.mark.parametrize("how", ["denied", "changed", "deleted", "replaced"])
def test_rules_narrowed_since_the_backup_stay_narrowed(
    runner: Runner, owner: Principal, back_up: Callable[[], Callable[[], Restored]], how: str
) -> None:
    test = replace(owner, environment=Environment.TEST)
    first = add(runner, owner, rule("a/#"))
    add(runner, test, rule("b"))
    put_back = back_up()
    narrow_rules(runner, owner, how, first)
    before, rules = allowed(runner, owner), runner.read(acl.list_rules, owner)
    assert before != {"a", "a/b", "a/secret"}

    done = put_back()

    assert allowed(runner, owner) == before
    assert runner.read(acl.list_rules, owner) == rules
    assert allowed(runner, test) == {"b"}
    (kept,) = done.kept_rules
    assert (kept.org_id, kept.environment) == (owner.org_id, "live")
    assert (len(kept.rules), kept.replaced) == (len(rules), 1)
    assert verify_chain(runner.database, operator(), owner.org_id)[1] == []


def test_rules_unchanged_since_the_backup_are_not_reported(
    runner: Runner, owner: Principal, back_up: Callable[[], Callable[[], Restored]]
) -> None:
    add(runner, owner, rule("a/#"))
    put_back = back_up()
    other, user = runner.write(organizations.create, operator(), "Other", "owner@acme.example")
    made_since = replace(owner, org_id=other.id, id=user)
    add(runner, made_since, rule("b"))

    done = put_back()

    assert done.kept_rules == ()
    assert [loss.id for loss in done.lost] == [other.id]
    assert allowed(runner, owner) == {"a", "a/b", "a/secret"}


def test_a_rule_for_a_lost_client_stays_and_applies_to_no_client(
    runner: Runner, owner: Principal, back_up: Callable[[], Callable[[], Restored]]
) -> None:
    put_back = back_up()
    made = runner.write(clients.create, owner, ClientSpec("agent", owner.environment)).client
    add(runner, owner, rule("a", subject=(SubjectKind.CLIENT, made.id)))

    done = put_back()

    assert [loss.id for loss in done.lost] == [made.id]
    assert [len(kept.rules) for kept in done.kept_rules] == [1]
    assert allowed(runner, owner) == set()


def test_a_rehashed_password_does_not_count_as_changed(
    runner: Runner, owner: Principal, back_up: Callable[[], Callable[[], Restored]]
) -> None:
    made = runner.write(clients.create, owner, ClientSpec("agent", owner.environment))
    with runner.database.write() as tx:
        master_keys.rotate(tx, operator(), MasterKey.generate())
        runner.database.vault = tx.vault
    put_back = back_up()
    verified = VerifiedPasswords()
    wire, password = made.client.mqtt_username, made.password or ""
    assert find_login(runner.database, verified, wire, password)
    rehash_passwords(runner.database, verified.take_rehashes())

    assert put_back().carried == ()
    assert find_login(runner.database, verified, wire, password)


def test_a_passkey_removed_since_the_backup_cannot_sign_in(
    runner: Runner, owner: Principal, back_up: Callable[[], Callable[[], Restored]]
) -> None:
    def add_passkey(name: bytes) -> str:
        database = runner.database
        challenge = passkeys.new_challenge(database.vault, owner.id, database.clock())
        answer = Answer(challenge, name, 0, b"a public key")
        return runner.write(passkeys.register, owner, answer, name.decode())

    removed, kept = add_passkey(b"removed"), add_passkey(b"kept")
    put_back = back_up()
    runner.write(passkeys.remove, owner, removed)
    lost = add_passkey(b"lost")

    done = put_back()

    assert [passkey.id for passkey in runner.read(passkeys.list_passkeys, owner)] == [kept]
    assert [(loss.kind, loss.id) for loss in done.lost] == [("passkey", lost)]
    with runner.database.read() as tx, pytest.raises(InvalidPasskey):
        passkeys.find(tx, b"removed", owner.id)
