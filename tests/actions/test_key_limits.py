"""A key with keys:write never comes by a key that does more than itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import imports, keys, revocations, scopes
from wardkey.config import load_config
from wardkey.deployment import open_deployment
from wardkey.domain.errors import ExceedsOwnLimits, ExceedsOwnPermissions, WardkeyError
from wardkey.domain.keys import KeySpec, Rate
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment
from wardkey.domain.verdict import KnownSecret, Verdict, VerificationRequest, decide
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier
from wardkey.web.caller import key_principal

HOUR = 3_600_000
DAY = 24 * HOUR
INSIDE, OUTSIDE = "10.1.2.3", "192.0.2.1"
RATE = Rate(100, 60, 10)
HELD = ("acl:read", "keys:read", "keys:write")
SCOPE = "invoices:read"
PROBES = (
    "acl:read",
    "acl:write",
    "keys:write",
    "keys:admin",
    "members:write",
    "scopes:grant",
    SCOPE,
)
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "allowed_addresses": ((), ("10.0.0.0/8",), ("10.1.0.0/16", "192.0.2.1"), ("0.0.0.0/0",)),
    "rate_limit": (None, RATE, Rate(100, 1, 10), Rate(1, 60, 11), Rate(1, 60, 1)),
    # Added to the time at which the deployment was made; None is no expiry.
    "expires_at": (None, 20 * 60_000, DAY, 30 * DAY),
    "permissions": (
        ("acl:read",),
        HELD,
        ("acl:read", "acl:write"),
        ("keys:admin",),
        (),
        (SCOPE, "scopes:grant"),
    ),
    "metadata": ({}, {"plan": "all"}),
}


@dataclass
class World:
    """An organization whose key was stolen: `texts` are the secrets that the thief has."""

    runner: Runner
    owner: Principal
    verifier: Verifier
    began: int
    count: int = 0
    texts: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def made(self, permissions: tuple[str, ...], **more: Any) -> keys.Issued:  # noqa: ANN401
        return self.runner.write(keys.issue, self.owner, self.spec(permissions, **more))

    def spec(self, permissions: tuple[str, ...], **more: Any) -> KeySpec:  # noqa: ANN401
        self.count += 1
        name = f"live-{self.count}"
        return KeySpec(name, KeyType.SECRET, Environment.LIVE, permissions, **more)

    def known(self, text: str) -> KnownSecret:
        known = self.verifier.directory.find(text[-51:-39])
        assert known is not None
        return known

    def caller(self, text: str) -> Principal | None:
        """Return who shows a secret from inside; None if it is refused."""
        known, now = self.known(text), self.runner.database.clock()
        verdict = decide(known, VerificationRequest(text, address=INSIDE), now)
        return key_principal(known, INSIDE, "") if verdict is Verdict.VALID else None

    def powers(self, text: str) -> set[tuple[str, str, int]]:
        """Return from where, for what and at what time a secret is valid."""
        known, now = self.known(text), self.runner.database.clock()
        return {
            (address, permission, at)
            for address in (INSIDE, OUTSIDE)
            for permission in PROBES
            for at in (0, HOUR // 2, 2 * HOUR, 2 * DAY, 60 * DAY)
            if self.began + at >= now
            if decide(
                known,
                VerificationRequest(text, address=address, permissions=(permission,)),
                self.began + at,
            )
            is Verdict.VALID
        }


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Open a deployment for the module; each world is an organization of its own."""
    folder: Path = tmp_path_factory.mktemp("limits") / "data"
    with open_deployment(load_config({}, {"data_dir": folder})) as runner:
        yield runner


@pytest.fixture(scope="module")
def begin(opened: Runner) -> Iterator[Callable[[], World]]:
    """Make an organization on each call."""
    verifier = Verifier(opened.database, Usage(opened.database))
    clock, count = opened.database.clock, 0

    def world() -> World:
        nonlocal count
        count += 1
        opened.database.clock = clock
        email = f"owner@acme-{count}.example"
        made, user = opened.write(organizations.create, operator(), "Acme", email)
        owner = member(
            user_id=user,
            email=email,
            org_id=made.id,
            role=Role.OWNER,
            environment=Environment.LIVE,
        )
        opened.write(scopes.create, owner, SCOPE)
        began = clock()
        opened.database.clock = lambda: began
        return World(opened, owner, verifier, began)

    yield world
    opened.database.clock = clock
    verifier.directory.close()


def stolen(world: World) -> keys.Issued:
    """Make the limited key that the thief has."""
    limits = {"allowed_addresses": ("10.0.0.0/8",), "rate_limit": RATE}
    made = world.made(HELD, **limits, expires_at=world.began + DAY)
    world.texts.append(made.secret.text)
    world.ids.append(made.key.id)
    return made


def others(world: World) -> list[str]:
    """Make keys that the thief must not widen; return their secrets."""
    weaker = world.made(("acl:read",))
    stronger = world.made(("acl:read", "acl:write"), allowed_addresses=(INSIDE,))
    stopped = world.made(("acl:read",), expires_at=world.began + HOUR)
    world.runner.write(keys.disable, world.owner, stopped.key.id)
    # One that is as limited, which the thief may use for what it can do itself.
    like = {"allowed_addresses": ("10.1.0.0/16",), "rate_limit": RATE}
    within = world.made(("acl:read",), **like, expires_at=world.began + HOUR)
    world.ids += [one.key.id for one in (weaker, stronger, stopped, within)]
    return [one.secret.text for one in (weaker, stronger, stopped)]


steps = st.tuples(
    st.sampled_from(["issue", "change", "change", "rotate", "enable", "disable", "revoke", "wait"]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([(name, value) for name, values in FIELDS.items() for value in values]),
    st.sampled_from(["now", "1h", "until_revoked"]),
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FIELDS.items()}),
)


def take(world: World, step: Any) -> None:  # noqa: ANN401 - what hypothesis drew
    act, who, which, (name, value), grace, values = step
    if act == "wait":
        later = world.runner.database.clock() + 40 * 60_000
        world.runner.database.clock = lambda: later
    by = world.caller(world.texts[who % len(world.texts)])
    if by is None:
        return
    key_id, change = world.ids[which % len(world.ids)], world.runner.write

    def at(wanted: int | None) -> int | None:
        return None if wanted is None else world.began + wanted

    made = None
    with suppress(WardkeyError):
        if act == "issue":
            spec = world.spec(**{**values, "expires_at": at(values["expires_at"])})
            made = change(keys.issue, by, spec)
        elif act == "change":
            new = at(value) if name == "expires_at" else value
            change(keys.change, by, key_id, {name: new})
        elif act == "rotate":
            made = change(keys.rotate, by, key_id, grace)
        elif act == "revoke":
            change(revocations.revoke, by, key_id, "superseded")
        elif act in {"enable", "disable"}:
            change(getattr(keys, act), by, key_id)
    if made is not None:
        world.texts.append(made.secret.text)
        world.ids.append(made.key.id)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(steps, min_size=1, max_size=12), replaced=st.booleans())
def test_no_sequence_of_calls_yields_a_key_that_may_do_what_the_stolen_one_could_not(
    begin: Callable[[], World], *, calls: list[Any], replaced: bool
) -> None:
    world = begin()
    made = stolen(world)
    foreign = others(world)
    if replaced:
        # An admin replaces the secret because it was stolen; it works for another hour.
        world.runner.write(keys.rotate, world.owner, made.key.id, "1h")
    mine, theirs = world.powers(world.texts[0]), [world.powers(text) for text in foreign]
    assert mine
    for step in calls:
        take(world, step)
    for text in world.texts:
        assert world.powers(text) <= mine
        rate = world.known(text).rate
        assert rate is not None
        assert rate.limit / rate.period_ms <= RATE.limit / RATE.period_s / 1000
        assert rate.burst <= RATE.burst
    for text, before in zip(foreign, theirs, strict=True):
        assert world.powers(text) <= before


@pytest.mark.parametrize(
    "change",
    [
        {"allowed_addresses": ("10.1.0.0/16",)},
        {"allowed_addresses": ()},
        {"rate_limit": None},
        {"expires_at": None},
        {"permissions": ("acl:read",)},
        {"metadata": {"plan": "all"}},
    ],
)
def test_a_key_changes_no_restriction_of_its_own(
    begin: Callable[[], World], change: dict[str, Any]
) -> None:
    world = begin()
    made = stolen(world)
    by = world.caller(made.secret.text)
    assert by is not None
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(keys.change, by, made.key.id, change)
    # What restricts nothing may be changed, and what stays the same named.
    same = {"allowed_addresses": ("10.0.0.0/8",), "description": "mine"}
    assert world.runner.write(keys.change, by, made.key.id, same)[0].description == "mine"


def test_a_key_narrows_others_and_widens_none(begin: Callable[[], World]) -> None:
    world = begin()
    by = world.caller(world.made(HELD).secret.text)
    assert by is not None
    change, until = world.runner.write, world.began + DAY
    weaker = world.made(("acl:read",)).key.id
    stronger = world.made(("acl:write",), allowed_addresses=(INSIDE,)).key.id
    change(keys.change, by, weaker, {"allowed_addresses": ("10.0.0.0/8",), "expires_at": until})
    for wanted in ({"allowed_addresses": ()}, {"allowed_addresses": ("10.0.0.0/7",)}):
        with pytest.raises(ExceedsOwnLimits):
            change(keys.change, by, weaker, wanted)
    with pytest.raises(ExceedsOwnLimits):
        change(keys.change, by, weaker, {"expires_at": until + 1})
    for restriction in ({"allowed_addresses": ("0.0.0.0/0",)}, {"permissions": ()}):
        with pytest.raises(ExceedsOwnLimits):
            change(keys.change, by, stronger, restriction)
    assert change(keys.change, by, weaker, {"permissions": HELD})[0].permissions == HELD


def test_a_key_adds_permissions_only_to_keys_within_its_own_limits(
    begin: Callable[[], World],
) -> None:
    world = begin()
    made = stolen(world)
    others(world)
    by = world.caller(made.secret.text)
    assert by is not None
    weaker, within = world.ids[1], world.ids[-1]
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(keys.change, by, weaker, {"permissions": HELD})
    assert world.runner.write(keys.change, by, within, {"permissions": HELD})[0].permissions
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(keys.rotate, by, weaker, "now")


def test_a_key_with_scopes_grant_grants_every_scope_within_its_own_limits(
    begin: Callable[[], World],
) -> None:
    world = begin()
    limits = {"allowed_addresses": ("10.0.0.0/8",)}
    own = world.made((*HELD, "scopes:grant"), **limits)
    by = world.caller(own.secret.text)
    assert by is not None
    change, other = world.runner.write, world.made((SCOPE,)).key.id
    assert change(keys.issue, by, world.spec((SCOPE,), **limits)).key.permissions == (SCOPE,)
    with pytest.raises(ExceedsOwnLimits):
        change(keys.issue, by, world.spec((SCOPE,)))
    with pytest.raises(ExceedsOwnLimits):
        change(keys.rotate, by, other, "now")
    with pytest.raises(ExceedsOwnLimits):
        change(keys.change, by, own.key.id, {"permissions": (*HELD, SCOPE)})
    assert change(keys.change, by, other, limits)[0].allowed_addresses == ("10.0.0.0/8",)
    assert change(keys.rotate, by, other, "now").key.permissions == (SCOPE,)


@pytest.mark.parametrize("who", ["member", "keys:admin"])
def test_members_and_keys_with_keys_admin_lift_limits(begin: Callable[[], World], who: str) -> None:
    world = begin()
    limits = {"allowed_addresses": ("10.0.0.0/8",), "expires_at": world.began + DAY}
    own = world.made((*HELD, "keys:admin"), **limits)
    by = world.owner if who == "member" else world.caller(own.secret.text)
    assert by is not None
    change = world.runner.write
    other = world.made(("acl:write",), **limits).key.id
    change(keys.disable, world.owner, other)
    change(keys.enable, by, other)
    free = {"allowed_addresses": (), "expires_at": None}
    for key_id in (other, own.key.id):
        assert change(keys.change, by, key_id, free)[0].expires_at is None
    assert change(keys.issue, by, world.spec(("acl:read",))).key.allowed_addresses == ()
    if who != "member":
        with pytest.raises(ExceedsOwnPermissions):
            change(keys.rotate, by, other, "now")


def test_a_key_enables_only_what_it_disabled_itself(begin: Callable[[], World]) -> None:
    world = begin()
    by = world.caller(world.made(HELD).secret.text)
    another = world.caller(world.made(HELD).secret.text)
    assert by is not None
    assert another is not None
    change, key_id = world.runner.write, world.made(("acl:read",)).key.id
    change(keys.disable, by, key_id)
    with pytest.raises(ExceedsOwnLimits):
        change(keys.enable, another, key_id)
    assert change(keys.enable, by, key_id).disabled_at is None
    change(keys.disable, by, key_id)
    # A person who disables it too has the last word.
    change(keys.disable, world.owner, key_id)
    with pytest.raises(ExceedsOwnLimits):
        change(keys.enable, by, key_id)


def test_an_imported_key_is_within_the_limits_of_its_importer(begin: Callable[[], World]) -> None:
    world = begin()
    by = world.caller(stolen(world).secret.text)
    assert by is not None
    prefix = f"p{world.began}_"
    world.runner.write(imports.register_prefix, world.owner, prefix)
    hashed = hashlib.sha256(b"a text of another issuer").hexdigest()
    wanted = imports.Import(world.spec(("acl:read",)), prefix, hashed, 160)
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(imports.import_key, by, wanted)
    limits = {"allowed_addresses": (INSIDE,), "rate_limit": RATE, "expires_at": world.began + 1}
    within = replace(wanted, spec=world.spec(("acl:read",), **limits))
    assert world.runner.write(imports.import_key, by, within).expires_at == world.began + 1


def test_a_secret_in_its_grace_makes_nothing_that_outlives_it(begin: Callable[[], World]) -> None:
    world = begin()
    made = world.made(HELD)
    change = world.runner.write
    change(keys.rotate, world.owner, made.key.id, "1h")
    by = world.caller(made.secret.text)
    assert by is not None
    with pytest.raises(ExceedsOwnLimits):
        change(keys.rotate, by, made.key.id, "1h")
    with pytest.raises(ExceedsOwnLimits):
        change(keys.issue, by, world.spec(("acl:read",)))
    spec = world.spec(("acl:read",), expires_at=world.began + HOUR)
    assert change(keys.issue, by, spec).key.expires_at == world.began + HOUR
