"""Two processes give the verdicts of a plain model after any sequence of actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, revocations
from wardkey.config import Config
from wardkey.db.engine import Database
from wardkey.db.master_key import open_vault
from wardkey.deployment import open_storage
from wardkey.domain.errors import (
    ExpiryInPast,
    InvalidGrace,
    KeyRevoked,
    OrganizationSuspended,
    TooManySecrets,
    WardkeyError,
)
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

START = 1_900_000_000_000
HOUR, DAY = 3_600_000, 86_400_000
GRACES = {"now": 0, "1h": HOUR, "24h": DAY, "7d": 7 * DAY, "until_revoked": None}
SCOPE = "invoices:read"


class World:
    """One deployment, the verifiers of two processes on it, and the clock of all three."""

    def __init__(self, runner: Runner, others: list[Database]) -> None:
        self.runner = runner
        self.now = START
        self.names = (f"live-model-{n}" for n in count())
        for database in (runner.database, *others):
            database.clock = lambda: self.now
        self.verifiers = [Verifier(database, Usage(database)) for database in others]


@pytest.fixture
def world(runner: Runner, config: Config) -> Iterator[World]:
    with ExitStack() as stack:
        others = [stack.enter_context(open_storage(config)) for _ in range(2)]
        for database in others:
            open_vault(database)
        made = World(runner, others)
        for verifier in made.verifiers:
            stack.callback(verifier.directory.close)
        yield made


class Model(RuleBasedStateMachine):
    """Two organizations whose keys are dicts that record each action."""

    issued = Bundle("issued")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.world.now = START
        self.owners: list[Principal] = []
        self.suspended: set[str] = set()
        self.keys: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, dict[str, Any]] = {}

    @property
    def now(self) -> int:
        return self.world.now

    @initialize(target=issued)
    def begin(self) -> Any:  # noqa: ANN401 - ids of keys
        for _ in range(2):
            made, user = self.run(organizations.create, operator(), "Acme", "owner@acme.example")
            self.owners.append(
                member(
                    user_id=user,
                    email="owner@acme.example",
                    org_id=made.id,
                    role=Role.OWNER,
                    environment=Environment.LIVE,
                )
            )
        return multiple(*(self.issue(which, None, scoped=True) for which in range(2)))

    def run(self, action: Any, by: Principal, *args: Any) -> Any:  # noqa: ANN401 - any action
        return self.world.runner.write(action, by, *args)

    def refused(self, failure: type[WardkeyError], action: Any, by: Principal, *args: Any) -> None:  # noqa: ANN401
        with pytest.raises(failure):
            self.run(action, by, *args)

    def is_suspended(self, action: Any, by: Principal, *args: Any) -> bool:  # noqa: ANN401
        """Return whether the organization is suspended; if so, check that the action is refused."""
        if by.org_id in self.suspended:
            self.refused(OrganizationSuspended, action, by, *args)
        return by.org_id in self.suspended

    def remember(self, made: keys.Issued) -> None:
        self.secrets[made.secret.text] = {
            "kid": made.kid, "key": made.key.id, "ends": None, "revoked": False,
        }  # fmt: skip

    def owned(self, key_id: str) -> list[dict[str, Any]]:
        return [secret for secret in self.secrets.values() if secret["key"] == key_id]

    # --- actions -----------------------------------------------------------------------------

    @rule(
        target=issued,
        which=st.integers(0, 1),
        lasts=st.sampled_from([None, None, 1, HOUR, 2 * DAY]),
        scoped=st.booleans(),
    )
    def issue(self, which: int, lasts: int | None, *, scoped: bool) -> Any:  # noqa: ANN401 - an id, or none
        by = self.owners[which]
        spec = KeySpec(
            next(self.world.names),
            KeyType.SECRET,
            Environment.LIVE,
            permissions=(SCOPE,) if scoped else (),
            expires_at=None if lasts is None else self.now + lasts,
        )
        if by.org_id in self.suspended:
            self.refused(OrganizationSuspended, keys.issue, by, spec)
            return multiple()
        made = self.run(keys.issue, by, spec, (SCOPE,))
        self.keys[made.key.id] = {
            "by": by, "expires": spec.expires_at, "scoped": scoped, "disabled": False,
            "revoked": False,
        }  # fmt: skip
        self.remember(made)
        return made.key.id

    @rule(
        key_id=issued,
        graces=st.lists(st.sampled_from([*GRACES, "past", "1 ms"]), min_size=1, max_size=4)
        | st.sampled_from([["1h", "24h"], ["24h", "1h"], ["until_revoked"] * 10]),
    )
    def rotate_in_a_row(self, key_id: str, graces: list[str]) -> None:
        for grace in graces:
            self.rotate(key_id, grace)

    def rotate(self, key_id: str, grace: str) -> None:
        key = self.keys[key_id]
        moments = {"past": self.now, "1 ms": self.now + 1}
        said = iso(moments[grace]) if grace in moments else grace
        failure = self.refusal_of_rotating(key_id, grace)
        if failure is not None:
            self.refused(failure, keys.rotate, key["by"], key_id, said)
            return
        length = GRACES.get(grace, 1)
        made = self.run(keys.rotate, key["by"], key_id, said)
        for secret in self.owned(key_id):
            if grace == "now":
                secret["revoked"] = True
            elif length is not None:
                ends = secret["ends"]
                secret["ends"] = self.now + length if ends is None else min(ends, self.now + length)
        self.remember(made)

    def refusal_of_rotating(self, key_id: str, grace: str) -> type[WardkeyError] | None:
        key = self.keys[key_id]
        live = [
            secret
            for secret in self.owned(key_id)
            if not secret["revoked"] and (secret["ends"] is None or self.now < secret["ends"])
        ]
        if key["by"].org_id in self.suspended:
            return OrganizationSuspended
        if key["revoked"]:
            return KeyRevoked
        if key["expires"] is not None and key["expires"] <= self.now:
            return ExpiryInPast
        if grace == "past":
            return InvalidGrace
        return TooManySecrets if grace != "now" and len(live) >= 10 else None

    @rule(key_id=issued, data=st.data())
    def revoke_secret(self, key_id: str, data: st.DataObject) -> None:
        secret = data.draw(st.sampled_from(self.owned(key_id)))
        action = (revocations.revoke_secret, self.keys[key_id]["by"], key_id, secret["kid"])
        if not self.is_suspended(*action, "superseded"):
            self.run(*action, "superseded")
            secret["revoked"] = True

    @rule(key_id=issued)
    def revoke(self, key_id: str) -> None:
        action = (revocations.revoke, self.keys[key_id]["by"], key_id, "keyCompromise")
        if not self.is_suspended(*action):
            self.run(*action)
            self.keys[key_id]["revoked"] = True

    @rule(key_id=issued, on=st.booleans())
    def switch(self, key_id: str, *, on: bool) -> None:
        key, action = self.keys[key_id], keys.enable if on else keys.disable
        if self.is_suspended(action, key["by"], key_id):
            return
        if key["revoked"]:
            self.refused(KeyRevoked, action, key["by"], key_id)
            return
        self.run(action, key["by"], key_id)
        key["disabled"] = not on

    @rule(key_id=issued, scoped=st.booleans())
    def edit_permissions(self, key_id: str, *, scoped: bool) -> None:
        self.edit(key_id, {"permissions": (SCOPE,) if scoped else ()}, "scoped", scoped)

    @rule(key_id=issued, lasts=st.sampled_from([None, 1, HOUR]))
    def edit_expiry(self, key_id: str, lasts: int | None) -> None:
        end = None if lasts is None else self.now + lasts
        self.edit(key_id, {"expires_at": end}, "expires", end)

    def edit(self, key_id: str, changes: dict[str, Any], field: str, value: object) -> None:
        key = self.keys[key_id]
        if self.is_suspended(keys.change, key["by"], key_id, changes):
            return
        if key["revoked"]:
            self.refused(KeyRevoked, keys.change, key["by"], key_id, changes)
            return
        self.run(keys.change, key["by"], key_id, changes, (SCOPE,))
        key[field] = value

    @rule(which=st.integers(0, 1), stopped=st.booleans())
    def switch_organization(self, which: int, *, stopped: bool) -> None:
        org_id = self.owners[which].org_id
        action = organizations.suspend if stopped else organizations.resume
        self.run(action, operator(), org_id)
        (self.suspended.add if stopped else self.suspended.discard)(org_id)

    @rule(ms=st.sampled_from([1, HOUR, DAY, 7 * DAY]) | st.sampled_from(["end", "before the end"]))
    def time_passes(self, ms: int | str) -> None:
        if isinstance(ms, int):
            self.world.now += ms
            return
        for end in self.coming_ends()[:1]:
            self.world.now = end if ms == "end" else end - 1

    def coming_ends(self) -> list[int]:
        ends = {secret["ends"] for secret in self.secrets.values()}
        ends |= {key["expires"] for key in self.keys.values()}
        return sorted(end for end in ends if end is not None and end > self.now)

    # --- checks ------------------------------------------------------------------------------

    def expected(self, secret: dict[str, Any]) -> str:
        key = self.keys[secret["key"]]
        ends = [end for end in (key["expires"], secret["ends"]) if end is not None]
        if key["revoked"] or secret["revoked"]:
            return "revoked"
        if any(end <= self.now for end in ends):
            return "expired"
        if key["disabled"] or key["by"].org_id in self.suspended:
            return "disabled"
        return "valid" if key["scoped"] else "not_permitted"

    @invariant()
    def both_processes_judge_as_the_model_does(self) -> None:
        expected = {text: self.expected(secret) for text, secret in self.secrets.items()}
        # One process has everything cached, the other reads everything again.
        for secret in self.secrets.values():
            self.world.verifiers[1].directory.forget(secret["kid"])
        for verifier in self.world.verifiers:
            verdicts = {
                text: str(verifier.verify(VerificationRequest(text, permissions=(SCOPE,))).verdict)
                for text in expected
            }
            assert verdicts == expected

    def teardown(self) -> None:
        # Every key expires; then one organization is deleted, which does not affect the other.
        for end in self.coming_ends():
            for self.world.now in (end - 1, end):
                self.both_processes_judge_as_the_model_does()
        if self.owners:
            ended = self.owners[0].org_id
            self.run(organizations.delete, operator(), ended)
            for key in self.keys.values():
                key["revoked"] = key["revoked"] or key["by"].org_id == ended
            self.both_processes_judge_as_the_model_does()


def test_two_processes_agree_with_a_plain_model_after_every_step(
    world: World, storage_url: str
) -> None:
    bounds = settings(
        max_examples=8 if storage_url else 20,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    class OfWorld(Model):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(OfWorld, settings=bounds)


def test_a_later_rotation_does_not_extend_an_earlier_grace(world: World) -> None:
    model = Model(world)
    model.begin()
    key_id = next(iter(model.keys))
    for grace in ("1h", "24h"):
        model.rotate(key_id, grace)
    model.teardown()
