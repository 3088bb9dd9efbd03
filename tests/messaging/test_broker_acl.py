"""The permissions that rules become, held against nats-server itself."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from tests.domain.test_acl import ACTORS, FILTERS, PLAIN, SUBJECTS, TOPICS, rule
from tests.server import wait_until
from wardkey.domain.acl import AclRule, Action, Actor, Effect
from wardkey.domain.broker_acl import Subjects, compiled, exception_to, loose_wildcard
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.topics import covers, to_subject
from wardkey.outside.broker import broker_program

SETS = 60
# The cases that a permission of NATS, taken by itself, gets wrong, come first.
KNOWN = [
    [rule("+")],
    [rule("a"), rule("a/+", priority=11)],
    [rule("a", Effect.DENY), rule("a/#", priority=11)],
    [rule("a/+", Effect.DENY), rule("#", priority=11)],
    [rule("a/b"), rule("#", Effect.DENY, 11)],
    [],
]


def made(random: Random) -> list[AclRule]:
    while True:
        rules = [
            rule(
                random.choice(FILTERS),
                random.choice(list(Effect)),
                priority,
                random.choice(SUBJECTS[:6]),
                random.choice(list(Action)),
            )
            for priority in range(random.randint(1, 8))
        ]
        if exception_to(rules) is None and loose_wildcard(rules) is None:
            return rules


def cases() -> list[tuple[list[AclRule], Actor]]:
    random = Random(4)
    found = [(rules, ACTORS[0]) for rules in KNOWN]
    return found + [(made(random), random.choice(ACTORS[:4])) for _ in range(SETS)]


CASES = cases()


def permitted(may: Subjects) -> dict[str, dict[str, list[str]]]:
    return {
        "publish": {"allow": list(may.publish_allow), "deny": list(may.publish_deny)},
        "subscribe": {"allow": list(may.subscribe_allow), "deny": list(may.subscribe_deny)},
    }


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
        said = b""
        while not said.endswith(b"PONG\r\n"):
            part = self.socket.recv(65_536)
            assert part, said
            said += part
        return said.decode()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("nats")
    users = [
        {"user": f"u{n}", "password": "x", "permissions": permitted(compiled(rules, actor))}
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


@pytest.mark.parametrize("number", range(len(CASES)))
def test_nats_server_holds_what_the_rules_say(port: int, number: int) -> None:
    rules, actor = CASES[number]
    known = RuleSet(rules)
    asked = [*Random(number).sample(PLAIN, 12), "#", "+", "a/#", "a/+", "+/#"]
    wanted = dict(enumerate(dict.fromkeys(asked), 1))
    mine, other = Line(port, f"u{number}"), Line(port, "all")
    with closing(mine.socket), closing(other.socket):
        other.send("SUB > 1")
        other.answers()
        mine.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in TOPICS))
        mine.answers()
        sent = set(re.findall(r"MSG (\S+) 1 0", other.answers()))
        allowed = {t for t in TOPICS if known.decide(actor, Action.PUBLISH, t).allowed}
        assert sent == {to_subject(topic) for topic in allowed}
        other.send("UNSUB 1")
        # As its gateway for MQTT does, `a/#` is two subscriptions, both of which it needs.
        refused = set()
        for sid, pattern in wanted.items():
            mine.send(f"SUB {to_subject(pattern)} {sid}")
            if pattern.endswith("/#"):
                mine.send(f"SUB {to_subject(pattern[:-2])} {sid}up")
            if "-ERR" in mine.answers():
                refused.add(sid)
                mine.send(f"UNSUB {sid}", f"UNSUB {sid}up")
        mine.answers()
        other.send(*(f"PUB {to_subject(topic)} 0\r\n" for topic in TOPICS))
        other.answers()
        got: dict[int, set[str]] = {sid: set() for sid in wanted}
        for subject, sid in re.findall(r"MSG (\S+) (\d+)(?:up)? 0", mine.answers()):
            got[int(sid)].add(subject)
    readable = {t for t in TOPICS if known.decide(actor, Action.SUBSCRIBE, t).allowed}
    for sid, pattern in wanted.items():
        below = {to_subject(t) for t in readable if covers(pattern, t)}
        assert got[sid] <= below, pattern
        if known.decide(actor, Action.SUBSCRIBE, pattern).allowed:
            assert sid not in refused, pattern
            assert got[sid] == below, pattern
