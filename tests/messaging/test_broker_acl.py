"""Permissions compiled from access rules, checked against nats-server itself."""

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

# Empty levels and levels with a dot are encoded differently on NATS.
LEVELS = ("a", "b", "", "b.c", "+")
VARIABLES = ("{username}", "{client_id}", "x-{username}", "{claim.team}")
TOPICS = [
    topic
    for count in range(1, 5)
    for levels in product(("a", "b", "c", "", "b.c")[: 5 if count < 4 else 2], repeat=count)
    if (topic := "/".join(levels))
]
OF_VARIABLES = ["device-1", "a/device-2", "x-a/b", "x-ab", "b/x-b/ab", "page-1/a"]
# The broker's own topics are out of reach under any rule.
RESERVED = ["$SYS/a", "$JS/API/a", "$SYS/#", "$JS/#"]
PLAIN = [
    pattern
    for count in range(1, 4)
    for levels in product((*LEVELS, "#"), repeat=count)
    if "#" not in levels[:-1] and (pattern := "/".join(levels))
]
ALWAYS = ["#", "+", "a/#", "a/+", "+/#", "+/+", "/#", "/+"]
BATCHES, EACH = 20, 100
# Cases that plain NATS permissions get wrong come first.
KNOWN = [
    [rule("+")],
    [rule("a"), rule("a/+", priority=11)],
    [rule("a", Effect.DENY), rule("a/#", priority=11)],
    [rule("a/+", Effect.DENY), rule("#", priority=11)],
    [rule("a/b"), rule("#", Effect.DENY, 11)],
    [],
]


def random_filter(random: Random) -> str:
    while True:
        levels = random.choices(LEVELS, (3, 1, 1, 1, 4), k=random.choice((1, 2, 2, 3, 3, 4)))
        if random.random() < 0.6:
            levels[-1] = random.choice(("#", "#", *VARIABLES))
        if pattern := "/".join(levels):
            return pattern


def random_rules(random: Random) -> list[AclRule]:
    while True:
        rules = [
            rule(
                random_filter(random),
                random.choice(list(Effect)),
                priority,
                random.choice((SUBJECTS[0], random.choice(SUBJECTS[:6]))),
                random.choice(list(Action)),
            )
            for priority in range(random.randint(1, 8))
        ]
        # Most sets end in a wide filter; otherwise nearly all of them would deny everything.
        if random.random() < 0.6:
            rules.append(rule(random.choice(["#", "a/#", "+/+", "+/#", "+"]), priority=9))
        if find_exception(rules) is None and find_loose_wildcard(rules) is None:
            return rules


def cases() -> list[tuple[list[AclRule], Actor]]:
    random = Random(4)
    known = [(rules, ACTORS[0]) for rules in KNOWN]
    missing = BATCHES * EACH - len(known)
    return known + [(random_rules(random), random.choice(ACTORS[:4])) for _ in range(missing)]


CASES = cases()


def permissions_of(may: Subjects) -> dict[str, Any]:
    """Return the permissions of a session's token in the form of the broker's settings."""
    claims = _user_claims(
        may.publish_allow, may.publish_deny, may.subscribe_allow, may.subscribe_deny
    )
    return {"publish": claims["pub"], "subscribe": claims["sub"]}


class NatsConnection:
    """A connection in the NATS protocol, which names the subscription of each message."""

    def __init__(self, port: int, user: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(f"CONNECT {json.dumps({'user': user, 'pass': 'x', 'verbose': False})}")
        self.drain()

    def send(self, *lines: str) -> None:
        self.socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def drain(self) -> str:
        """Return everything received until the broker has processed all that was sent."""
        self.send("PING")
        received = bytearray()
        while not received.endswith(b"PONG\r\n"):
            part = self.socket.recv(65_536)
            assert part, received
            received += part
        return received.decode()

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("nats")
    users = [
        {
            "user": f"u{n}",
            "password": "x",
            "permissions": permissions_of(compile_subjects(rules, actor)),
        }
        for n, (rules, actor) in enumerate(CASES)
    ]
    users.append({"user": "all", "password": "x"})
    settings = folder / "nats.conf"
    settings.write_text(json.dumps({"authorization": {"users": users}}))
    ports_dir = folder / "ports"
    ports_dir.mkdir()
    options = ["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports_dir)]
    with subprocess.Popen(
        [broker_program(""), "-c", settings, *options],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            file = wait_until(lambda: next(ports_dir.glob("*.ports"), None))
            assert file
            match = wait_until(lambda: re.search(r":(\d+)\"", file.read_text()))
            assert match
            yield int(match[1])
        finally:
            process.kill()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_nats_server_enforces_the_rules(port: int, batch: int) -> None:
    with closing(NatsConnection(port, "all")) as other:
        for number in range(batch * EACH, (batch + 1) * EACH):
            with closing(NatsConnection(port, f"u{number}")) as connection:
                check_case(number, connection, other)


def check_case(number: int, connection: NatsConnection, other: NatsConnection) -> None:
    """Check one case's rules against the broker; `other` may publish and read everything."""
    rules, actor = CASES[number]
    case = f"{actor.username!r} under {[(r.effect, r.action, r.subject, r.filter) for r in rules]}"
    random, rule_set = Random(number), RuleSet(rules)
    topics = [*random.sample(TOPICS, 60), *OF_VARIABLES]
    other.send("SUB > 1")
    other.drain()
    connection.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in [*topics, *RESERVED[:2]]))
    connection.drain()
    sent = set(re.findall(r"MSG (\S+) 1 0", other.drain()))
    allowed = {t for t in topics if rule_set.decide(actor, Action.PUBLISH, t).allowed}
    assert sent == {to_subject(topic) for topic in allowed}, case
    other.send("UNSUB 1")

    patterns = dict(enumerate([*ALWAYS, *RESERVED, *random.sample(PLAIN, 12)], 1))
    # As in the broker's MQTT gateway, `a/#` is two subscriptions and needs both.
    subjects_by_sid = {sid: to_subjects(pattern) for sid, pattern in patterns.items()}
    connection.send(
        *(
            f"SUB {part} {sid}.{n}"
            for sid, subjects in subjects_by_sid.items()
            for n, part in enumerate(subjects)
        )
    )
    errors = set(re.findall(r"-ERR '[^\n]*Subscription to \"(\S+)\"", connection.drain()))
    refused = {sid for sid, subjects in subjects_by_sid.items() if errors & set(subjects)}
    connection.send(*(f"UNSUB {sid}.{n}" for sid in refused for n in range(2)))
    connection.drain()
    other.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in topics))
    other.drain()
    received: dict[int, set[str]] = {sid: set() for sid in patterns}
    for subject, sid in re.findall(r"MSG (\S+) (\d+)\.\d 0", connection.drain()):
        received[int(sid)].add(subject)
    readable = {t for t in topics if rule_set.decide(actor, Action.SUBSCRIBE, t).allowed}
    for sid, pattern in patterns.items():
        below = {to_subject(t) for t in readable if covers(pattern, t)}
        assert received[sid] <= below, (pattern, case)
        if rule_set.decide(actor, Action.SUBSCRIBE, pattern).allowed:
            assert sid not in refused, (pattern, case)
            assert received[sid] == below, (pattern, case)
    assert {sid for sid, pattern in patterns.items() if pattern in RESERVED} <= refused, case
