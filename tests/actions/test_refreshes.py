"""A refresh can be retried after a lost response, and a stolen password is still detected."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import grants, refreshes
from wardkey.actions.grants.logins import find_grant
from wardkey.db.engine import wall_clock
from wardkey.domain.errors import InvalidToken
from wardkey.domain.grants import RETRY_MS, NewGrant
from wardkey.domain.principal import Principal, PrincipalKind

NUMBERS = count()
STRANGER = Principal(PrincipalKind.USER, "", "")
WHAT = st.sampled_from(
    [*["refresh"] * 3, "refresh, answer lost", *["login"] * 3, "wait", "wait long", "steal"]
)
STEPS = st.lists(st.tuples(st.sampled_from(["client", "thief"]), WHAT), max_size=12)

BOTH = [("client", "refresh"), ("thief", "refresh")]


def clock_ahead(ms: int) -> int:
    return wall_clock() + ms


@dataclass
class Family:
    """A grant and its successors, with the passwords that each party knows and those used."""

    runner: Runner
    owner: Principal
    passwords: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    children: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    used: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    is_over: bool = False

    def __post_init__(self) -> None:
        number = next(NUMBERS)
        email = f"u{number}@acme.example"
        spec = NewGrant("", email, email, f"usr_{number}", f"u{number}", {}, 3_600)
        made = self.runner.write(grants.create, self.owner, spec)
        self.bystander = self.runner.write(grants.create, self.owner, spec)
        self.known["client"] = made.grant.kid
        self.passwords[made.grant.kid] = made.password.text

    def refresh(self, kid: str) -> str:
        """Return the kid of the new grant, or "" if the refresh is refused."""
        password = self.passwords[kid]
        try:
            made = self.runner.write(refreshes.refresh, STRANGER, f"tok_{kid}", password)
        except InvalidToken:
            return ""
        if made is None:
            self.is_over = True
            return ""
        new = made.grant.kid
        self.passwords[new] = made.password.text
        self.parents[new] = kid
        self.children[kid].append(new)
        return new

    def logs_in(self, kid: str) -> bool:
        return find_grant(self.runner.database, self.passwords[kid]) is not None

    def is_alive(self) -> bool:
        return any(map(self.logs_in, self.passwords)) or any(map(self.refresh, [*self.passwords]))

    def act(self, party: str, what: str) -> None:
        """Use the password that a party knows, and check the result against earlier uses."""
        kid = self.known[party]
        others = [sibling for sibling in self.children[self.parents.get(kid, "")] if sibling != kid]
        later = self.children[kid] if what != "login" else []
        is_reuse = any(other in self.used for other in (*others, *later))
        if what == "login":
            worked = self.logs_in(kid)
        else:
            new = self.refresh(kid)
            worked = bool(new)
            if new and what == "refresh":
                self.known[party] = new
        if worked:
            self.used.add(kid)
        if is_reuse or self.is_over:
            assert not worked
            assert not self.is_alive()
            self.is_over = True


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# The thief's response supersedes the client's, and both log in; or the other way round.
@example(steps=[*BOTH, ("thief", "login"), ("client", "login")], is_stolen=True)
@example(steps=[*BOTH[::-1], ("client", "login"), ("thief", "login")], is_stolen=True)
@given(steps=STEPS, is_stolen=st.booleans())
def test_two_parties_that_use_successors_of_one_password_end_the_family(
    runner: Runner, owner: Principal, steps: list[tuple[str, str]], *, is_stolen: bool
) -> None:
    family, later_ms = Family(runner, owner), 0
    if is_stolen:
        family.known["thief"] = family.known["client"]
    try:
        for party, what in steps:
            if what.startswith("wait"):
                later_ms += RETRY_MS if what == "wait long" else 1_000
                runner.database.clock = partial(clock_ahead, later_ms)
            elif what == "steal":
                family.known["thief"] = family.known["client"]
            elif party in family.known:
                family.act(party, what)
            # Lost responses end nothing if only one party has the passwords and retries in time.
            assert "thief" in family.known or later_ms >= RETRY_MS or not family.is_over
            for siblings in family.children.values():
                assert len(family.used.intersection(siblings)) <= 1
            # The user's other grants do not belong to the family.
            assert find_grant(runner.database, family.bystander.password.text) is not None
    finally:
        runner.database.clock = wall_clock


@pytest.fixture
def family(runner: Runner, owner: Principal) -> Family:
    return Family(runner, owner)


def test_a_lost_response_can_be_requested_again_until_it_is_used(family: Family) -> None:
    first = family.known["client"]
    lost = [family.refresh(first) for _ in range(3)]
    newest = family.refresh(first)
    assert newest
    assert len({*lost, newest}) == 4
    assert family.logs_in(newest)
    assert not family.refresh(first), "its successor was used"
    assert not family.is_alive()


@pytest.mark.parametrize("use", [Family.logs_in, Family.refresh])
def test_using_a_superseded_response_ends_the_family(
    family: Family, use: Callable[[Family, str], object]
) -> None:
    first = family.known["client"]
    stolen, newest = family.refresh(first), family.refresh(first)
    assert family.logs_in(newest)
    assert not use(family, stolen)
    assert not family.is_alive()


def test_a_refresh_cannot_be_retried_after_two_minutes(family: Family) -> None:
    first = family.known["client"]
    assert family.refresh(first)
    family.runner.database.clock = partial(clock_ahead, RETRY_MS)
    assert not family.refresh(first)
    assert family.is_over


def test_only_one_of_a_simultaneous_first_login_and_retry_succeeds(
    runner: Runner, owner: Principal
) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(15):
            family, together = Family(runner, owner), threading.Barrier(2)
            first = family.known["client"]
            new = family.refresh(first)

            def at_once(
                act: Callable[[str], object], kid: str, together: threading.Barrier = together
            ) -> bool:
                together.wait()
                return bool(act(kid))

            login = pool.submit(at_once, family.logs_in, new)
            retry = pool.submit(at_once, family.refresh, first)
            assert not (login.result() and retry.result())
