"""The permissions that rules become, held against nats-server itself."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from random import Random
from typing import Any

import pytest

from tests.domain.test_acl import ACTORS, SUBJECTS, rule
from tests.support.server import wait_until
from wardkey.adapters.broker import broker_program
from wardkey.adapters.broker_link import _user_claims
from wardkey.domain.acl import AclRule, Action, Actor, Effect
from wardkey.domain.broker_acl import (
    Subjects,
    compile_subjects,
    find_exception,
    find_loose_wildcard,
)
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.topics import covers, to_subject, to_subjects

# Levels that are empty or have a dot are written otherwise on NATS.
LEVELS = ("a", "b", "", "b.c", "+")
VARIABLES = ("{username}", "{client_id}", "x-{username}", "{claim.team}")
TOPICS = [
    topic
    for count in range(1, 5)
    for levels in product(("a", "b", "c", "", "b.c")[: 5 if count < 4 else 2], repeat=count)
    if (topic := "/".join(levels))
]
OF_VARIABLES = ["device-1", "a/device-2", "x-a/b", "x-ab", "b/x-b/ab", "page-1/a"]
# Nobody reaches the broker's own topics, whatever is allowed.
RESERVED = ["$SYS/a", "$JS/API/a", "$SYS/#", "$JS/#"]
PLAIN = [
    pattern
    for count in range(1, 4)
    for levels in product((*LEVELS, "#"), repeat=count)
    if "#" not in levels[:-1] and (pattern := "/".join(levels))
]
ALWAYS = ["#", "+", "a/#", "a/+", "+/#", "+/+", "/#", "/+"]
BATCHES, EACH = 20, 100
# The cases that a permission of NATS, taken by itself, gets wrong, come first.
KNOWN = [
    [rule("+")],
    [rule("a"), rule("a/+", priority=11)],
    [rule("a", Effect.DENY), rule("a/#", priority=11)],
    [rule("a/+", Effect.DENY), rule("#", priority=11)],
    [rule("a/b"), rule("#", Effect.DENY, 11)],
    [],
]


def made_filter(random: Random) -> str:
    while True:
        levels = random.choices(LEVELS, (3, 1, 1, 1, 4), k=random.choice((1, 2, 2, 3, 3, 4)))
        if random.random() < 0.6:
            levels[-1] = random.choice(("#", "#", *VARIABLES))
        if found := "/".join(levels):
            return found


def made(random: Random) -> list[AclRule]:
    while True:
        rules = [
            rule(
                made_filter(random),
                random.choice(list(Effect)),
                priority,
                random.choice((SUBJECTS[0], random.choice(SUBJECTS[:6]))),
                random.choice(list(Action)),
            )
            for priority in range(random.randint(1, 8))
        ]
        # Most sets end in something wide, or nearly everything would be denied by all of them.
        if random.random() < 0.6:
            rules.append(rule(random.choice(["#", "a/#", "+/+", "+/#", "+"]), priority=9))
        if find_exception(rules) is None and find_loose_wildcard(rules) is None:
            return rules


def cases() -> list[tuple[list[AclRule], Actor]]:
    random = Random(4)
    found = [(rules, ACTORS[0]) for rules in KNOWN]
    more = BATCHES * EACH - len(found)
    return found + [(made(random), random.choice(ACTORS[:4])) for _ in range(more)]


CASES = cases()


def permitted(may: Subjects) -> dict[str, Any]:
    """Return what a session's token holds, as it stands in the broker's settings."""
    claims = _user_claims(
        may.publish_allow, may.publish_deny, may.subscribe_allow, may.subscribe_deny
    )
    return {"publish": claims["pub"], "subscribe": claims["sub"]}


class Line:
    """A connection in NATS's own protocol, which tells of each subscription what it gets."""

    def __init__(self, port: int, user: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(f"CONNECT {json.dumps({'user': user, 'pass': 'x', 'verbose': False})}")
        self.answers()

    def send(self, *lines: str) -> None:
        self.socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def answers(self) -> str:
        """Return everything that was said until all that was sent is done."""
        self.send("PING")
        said = bytearray()
        while not said.endswith(b"PONG\r\n"):
            part = self.socket.recv(65_536)
            assert part, said
            said += part
        return said.decode()

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("nats")
    users = [
        {"user": f"u{n}", "password": "x", "permissions": permitted(compile_subjects(rules, actor))}
        for n, (rules, actor) in enumerate(CASES)
    ]
    users.append({"user": "all", "password": "x"})
    settings = folder / "nats.conf"
    settings.write_text(json.dumps({"authorization": {"users": users}}))
    told = folder / "ports"
    told.mkdir()
    options = ["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(told)]
    with subprocess.Popen(
        [broker_program(""), "-c", settings, *options],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            file = wait_until(lambda: next(told.glob("*.ports"), None))
            assert file
            found = wait_until(lambda: re.search(r":(\d+)\"", file.read_text()))
            assert found
            yield int(found[1])
        finally:
            process.kill()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_nats_server_holds_what_the_rules_say(port: int, batch: int) -> None:
    with closing(Line(port, "all")) as other:
        for number in range(batch * EACH, (batch + 1) * EACH):
            with closing(Line(port, f"u{number}")) as mine:
                held(number, mine, other)


def held(number: int, mine: Line, other: Line) -> None:
    """Hold one case's rules against the broker; `other` hears and says everything."""
    rules, actor = CASES[number]
    told = f"{actor.username!r} under {[(r.effect, r.action, r.subject, r.filter) for r in rules]}"
    random, known = Random(number), RuleSet(rules)
    topics = [*random.sample(TOPICS, 60), *OF_VARIABLES]
    other.send("SUB > 1")
    other.answers()
    mine.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in [*topics, *RESERVED[:2]]))
    mine.answers()
    sent = set(re.findall(r"MSG (\S+) 1 0", other.answers()))
    allowed = {t for t in topics if known.decide(actor, Action.PUBLISH, t).allowed}
    assert sent == {to_subject(topic) for topic in allowed}, told
    other.send("UNSUB 1")

    wanted = dict(enumerate([*ALWAYS, *RESERVED, *random.sample(PLAIN, 12)], 1))
    # As its gateway for MQTT does, `a/#` is two subscriptions, both of which it needs.
    both = {sid: to_subjects(pattern) for sid, pattern in wanted.items()}
    mine.send(*(f"SUB {one} {sid}.{n}" for sid, two in both.items() for n, one in enumerate(two)))
    errors = set(re.findall(r"-ERR '[^\n]*Subscription to \"(\S+)\"", mine.answers()))
    refused = {sid for sid, two in both.items() if errors & set(two)}
    mine.send(*(f"UNSUB {sid}.{n}" for sid in refused for n in range(2)))
    mine.answers()
    other.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in topics))
    other.answers()
    got: dict[int, set[str]] = {sid: set() for sid in wanted}
    for subject, sid in re.findall(r"MSG (\S+) (\d+)\.\d 0", mine.answers()):
        got[int(sid)].add(subject)
    readable = {t for t in topics if known.decide(actor, Action.SUBSCRIBE, t).allowed}
    for sid, pattern in wanted.items():
        below = {to_subject(t) for t in readable if covers(pattern, t)}
        assert got[sid] <= below, (pattern, told)
        if known.decide(actor, Action.SUBSCRIBE, pattern).allowed:
            assert sid not in refused, (pattern, told)
            assert got[sid] == below, (pattern, told)
    assert {sid for sid, pattern in wanted.items() if pattern in RESERVED} <= refused, told
