"""A key with keys:write can never obtain a key with more power than its own."""

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
    # Added to the world's start time; None means no expiry.
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
    """An organization with a stolen key: `texts` are the thief's secrets."""

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
        """Return the principal of a secret used from inside; None if it is refused."""
        known, now = self.known(text), self.runner.database.clock()
        verdict = decide(known, VerificationRequest(text, address=INSIDE), now)
        return key_principal(known, INSIDE, "") if verdict is Verdict.VALID else None

    def powers(self, text: str) -> set[tuple[str, str, int]]:
        """Return the addresses, permissions and times for which a secret is valid."""
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
    """Create an organization on each call."""
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


def create_stolen_key(world: World) -> keys.Issued:
    """Create the limited key that was stolen."""
    limits = {"allowed_addresses": ("10.0.0.0/8",), "rate_limit": RATE}
    made = world.made(HELD, **limits, expires_at=world.began + DAY)
    world.texts.append(made.secret.text)
    world.ids.append(made.key.id)
    return made


def create_other_keys(world: World) -> list[str]:
    """Create keys that the thief must not widen; return their secrets."""
    weaker = world.made(("acl:read",))
    stronger = world.made(("acl:read", "acl:write"), allowed_addresses=(INSIDE,))
    stopped = world.made(("acl:read",), expires_at=world.began + HOUR)
    world.runner.write(keys.disable, world.owner, stopped.key.id)
    # A key as limited as the stolen one, which the thief may use.
    limits = {"allowed_addresses": ("10.1.0.0/16",), "rate_limit": RATE}
    within = world.made(("acl:read",), **limits, expires_at=world.began + HOUR)
    world.ids += [issued.key.id for issued in (weaker, stronger, stopped, within)]
    return [issued.secret.text for issued in (weaker, stronger, stopped)]


steps = st.tuples(
    st.sampled_from(["issue", "change", "change", "rotate", "enable", "disable", "revoke", "wait"]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([(name, value) for name, values in FIELDS.items() for value in values]),
    st.sampled_from(["now", "1h", "until_revoked"]),
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FIELDS.items()}),
)


def perform(world: World, step: Any) -> None:  # noqa: ANN401 - what hypothesis drew
    action, caller_index, key_index, (name, value), grace, values = step
    if action == "wait":
        later = world.runner.database.clock() + 40 * 60_000
        world.runner.database.clock = lambda: later
    by = world.caller(world.texts[caller_index % len(world.texts)])
    if by is None:
        return
    key_id, change = world.ids[key_index % len(world.ids)], world.runner.write

    def at(offset: int | None) -> int | None:
        return None if offset is None else world.began + offset

    made = None
    with suppress(WardkeyError):
        if action == "issue":
            spec = world.spec(**{**values, "expires_at": at(values["expires_at"])})
            made = change(keys.issue, by, spec)
        elif action == "change":
            new = at(value) if name == "expires_at" else value
            change(keys.change, by, key_id, {name: new})
        elif action == "rotate":
            made = change(keys.rotate, by, key_id, grace)
        elif action == "revoke":
            change(revocations.revoke, by, key_id, "superseded")
        elif action in {"enable", "disable"}:
            change(getattr(keys, action), by, key_id)
    if made is not None:
        world.texts.append(made.secret.text)
        world.ids.append(made.key.id)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(steps, min_size=1, max_size=12), replaced=st.booleans())
def test_no_sequence_of_calls_yields_a_key_with_more_power_than_the_stolen_one(
    begin: Callable[[], World], *, calls: list[Any], replaced: bool
) -> None:
    world = begin()
    made = create_stolen_key(world)
    foreign = create_other_keys(world)
    if replaced:
        # An admin replaces the secret because it was stolen; it works for another hour.
        world.runner.write(keys.rotate, world.owner, made.key.id, "1h")
    own_powers = world.powers(world.texts[0])
    other_powers = [world.powers(text) for text in foreign]
    assert own_powers
    for step in calls:
        perform(world, step)
    for text in world.texts:
        assert world.powers(text) <= own_powers
        rate = world.known(text).rate
        assert rate is not None
        assert rate.limit / rate.period_ms <= RATE.limit / RATE.period_s / 1000
        assert rate.burst <= RATE.burst
    for text, before in zip(foreign, other_powers, strict=True):
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
def test_a_key_cannot_change_its_own_restrictions(
    begin: Callable[[], World], change: dict[str, Any]
) -> None:
    world = begin()
    made = create_stolen_key(world)
    by = world.caller(made.secret.text)
    assert by is not None
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(keys.change, by, made.key.id, change)
    # Fields that restrict nothing may change, and unchanged restrictions may be sent.
    same = {"allowed_addresses": ("10.0.0.0/8",), "description": "mine"}
    assert world.runner.write(keys.change, by, made.key.id, same)[0].description == "mine"


def test_a_key_can_narrow_other_keys_but_not_widen_them(begin: Callable[[], World]) -> None:
    world = begin()
    by = world.caller(world.made(HELD).secret.text)
    assert by is not None
    change, until = world.runner.write, world.began + DAY
    weaker = world.made(("acl:read",)).key.id
    stronger = world.made(("acl:write",), allowed_addresses=(INSIDE,)).key.id
    change(keys.change, by, weaker, {"allowed_addresses": ("10.0.0.0/8",), "expires_at": until})
    for wider in ({"allowed_addresses": ()}, {"allowed_addresses": ("10.0.0.0/7",)}):
        with pytest.raises(ExceedsOwnLimits):
            change(keys.change, by, weaker, wider)
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
    made = create_stolen_key(world)
    create_other_keys(world)
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


@pytest.mark.parametrize("principal", ["member", "keys:admin"])
def test_members_and_keys_with_keys_admin_lift_limits(
    begin: Callable[[], World], principal: str
) -> None:
    world = begin()
    limits = {"allowed_addresses": ("10.0.0.0/8",), "expires_at": world.began + DAY}
    own = world.made((*HELD, "keys:admin"), **limits)
    by = world.owner if principal == "member" else world.caller(own.secret.text)
    assert by is not None
    change = world.runner.write
    other = world.made(("acl:write",), **limits).key.id
    change(keys.disable, world.owner, other)
    change(keys.enable, by, other)
    free = {"allowed_addresses": (), "expires_at": None}
    for key_id in (other, own.key.id):
        assert change(keys.change, by, key_id, free)[0].expires_at is None
    assert change(keys.issue, by, world.spec(("acl:read",))).key.allowed_addresses == ()
    if principal != "member":
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
    # If a member disables it too, the key cannot enable it.
    change(keys.disable, world.owner, key_id)
    with pytest.raises(ExceedsOwnLimits):
        change(keys.enable, by, key_id)


def test_an_imported_key_is_within_the_limits_of_its_importer(begin: Callable[[], World]) -> None:
    world = begin()
    by = world.caller(create_stolen_key(world).secret.text)
    assert by is not None
    prefix = f"p{world.began}_"
    world.runner.write(imports.register_prefix, world.owner, prefix)
    hashed = hashlib.sha256(b"a text of another issuer").hexdigest()
    unlimited = imports.Import(world.spec(("acl:read",)), prefix, hashed, 160)
    with pytest.raises(ExceedsOwnLimits):
        world.runner.write(imports.import_key, by, unlimited)
    limits = {"allowed_addresses": (INSIDE,), "rate_limit": RATE, "expires_at": world.began + 1}
    within = replace(unlimited, spec=world.spec(("acl:read",), **limits))
    assert world.runner.write(imports.import_key, by, within).expires_at == world.began + 1


def test_a_secret_in_its_grace_period_creates_nothing_that_outlives_it(
    begin: Callable[[], World],
) -> None:
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
