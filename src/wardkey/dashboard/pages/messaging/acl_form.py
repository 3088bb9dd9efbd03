"""The forms of ACL rules and of the simulator, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wardkey.actions.messaging.simulator import Question
from wardkey.dashboard.shell.auth import Fields
from wardkey.domain.acl import Action, ActorKind, Effect, SubjectKind
from wardkey.domain.errors import InvalidRequest
from wardkey.domain.rule_specs import MOST_PRIORITY, RuleSpec

_NAMED = frozenset({SubjectKind.CLIENT, SubjectKind.USERNAME, SubjectKind.PROVIDER})
_LONGEST_NUMBER = 9
_LONGEST = 256
_MOST_CLAIMS = 50


def read_rule(fields: Fields) -> RuleSpec:
    """Return what the form says of a rule; raises `InvalidRequest`, the rest is the action's."""
    kind, action = fields.text("subject_kind"), fields.text("action")
    effect, priority = fields.text("effect"), fields.text("priority").strip()
    for name, value, known in (
        ("subject_kind", kind, set(SubjectKind)),
        ("action", action, set(Action)),
        ("effect", effect, set(Effect)),
    ):
        if value not in known:
            raise _wrong(name, "Choose one of those in the list.")
    number = priority.isascii() and priority.isdecimal() and len(priority) <= _LONGEST_NUMBER
    if not number or int(priority) > MOST_PRIORITY:
        raise _wrong("priority", f"Give a whole number from 0 to {MOST_PRIORITY:,}.")
    subject_kind = SubjectKind(kind)
    return RuleSpec(
        int(priority),
        subject_kind,
        # The field is out of sight for the others.
        fields.text("subject").strip() if subject_kind in _NAMED else "",
        fields.text("filter"),
        Action(action),
        Effect(effect),
        fields.text("description"),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """What the address, or the form of a rule, asks the simulator."""

    kind: str
    username: str
    client_id: str
    subject_id: str
    claims: str
    act: str
    topic: str
    asked: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Trial:
        """Read it from an address's query or from a form's texts."""
        return cls(
            query.get("who", ActorKind.CLIENT),
            query.get("username", "")[:_LONGEST],
            query.get("client_id", "")[:_LONGEST],
            query.get("id", "")[:_LONGEST],
            query.get("claims", "")[:10_000],
            query.get("act", Action.PUBLISH),
            query.get("topic", "")[:2_000],
            "topic" in query,
        )

    def question(self) -> Question:
        """Return it as the action takes it; raises `InvalidRequest`."""
        if self.kind not in set(ActorKind):
            raise _wrong("who", "Choose one of those in the list.")
        if self.act not in {Action.PUBLISH, Action.SUBSCRIBE}:
            raise _wrong("act", "Ask about publish or about subscribe.")
        claims: dict[str, str] = {}
        for line in filter(None, map(str.strip, self.claims.splitlines())):
            name, equals, value = line.partition("=")
            if not equals or len(claims) == _MOST_CLAIMS:
                raise _wrong("claims", "Write one NAME=value a line, at most 50 of them.")
            claims[name.strip()] = value.strip()[:_LONGEST]
        return Question(
            ActorKind(self.kind),
            Action(self.act),
            self.topic,
            self.username.strip(),
            self.client_id,
            self.subject_id.strip(),
            claims,
        )


def _wrong(field: str, told: str) -> InvalidRequest:
    return InvalidRequest(told, errors=((field, told),))
