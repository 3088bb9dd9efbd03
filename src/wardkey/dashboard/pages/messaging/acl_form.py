"""Reads the forms of ACL rules and of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wardkey.actions.messaging.simulator import SimulationQuery
from wardkey.dashboard.shell.auth import Fields
from wardkey.domain.acl import Action, ActorKind, Effect, SubjectKind
from wardkey.domain.errors import InvalidRequest
from wardkey.domain.rule_specs import MOST_PRIORITY, RuleSpec

_NAMED = frozenset({SubjectKind.CLIENT, SubjectKind.USERNAME, SubjectKind.PROVIDER})
_LONGEST_NUMBER = 9
_LONGEST = 256
_MOST_CLAIMS = 50


def read_rule(fields: Fields) -> RuleSpec:
    """Return a rule's spec from the form, validated by the action; raises `InvalidRequest`."""
    kind, action = fields.text("subject_kind"), fields.text("action")
    effect, priority = fields.text("effect"), fields.text("priority").strip()
    for name, value, allowed in (
        ("subject_kind", kind, set(SubjectKind)),
        ("action", action, set(Action)),
        ("effect", effect, set(Effect)),
    ):
        if value not in allowed:
            raise _invalid_field(name, "Choose a value from the list.")
    is_number = priority.isascii() and priority.isdecimal() and len(priority) <= _LONGEST_NUMBER
    if not is_number or int(priority) > MOST_PRIORITY:
        raise _invalid_field("priority", f"Enter a whole number from 0 to {MOST_PRIORITY:,}.")
    subject_kind = SubjectKind(kind)
    return RuleSpec(
        int(priority),
        subject_kind,
        # The field is hidden for other kinds.
        fields.text("subject").strip() if subject_kind in _NAMED else "",
        fields.text("filter"),
        Action(action),
        Effect(effect),
        fields.text("description"),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """A question to the simulator, from the URL or a rule's form."""

    kind: str
    username: str
    client_id: str
    subject_id: str
    claims: str
    act: str
    topic: str
    is_asked: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Trial:
        """Read the question from a query or from form values."""
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

    def question(self) -> SimulationQuery:
        """Return the simulator's input; raises `InvalidRequest`."""
        if self.kind not in set(ActorKind):
            raise _invalid_field("who", "Choose a value from the list.")
        if self.act not in {Action.PUBLISH, Action.SUBSCRIBE}:
            raise _invalid_field("act", "Choose publish or subscribe.")
        claims: dict[str, str] = {}
        for line in filter(None, map(str.strip, self.claims.splitlines())):
            name, equals, value = line.partition("=")
            if not equals or len(claims) == _MOST_CLAIMS:
                raise _invalid_field(
                    "claims", f"Enter one NAME=value per line, at most {_MOST_CLAIMS}."
                )
            claims[name.strip()] = value.strip()[:_LONGEST]
        return SimulationQuery(
            ActorKind(self.kind),
            Action(self.act),
            self.topic,
            self.username.strip(),
            self.client_id,
            self.subject_id.strip(),
            claims,
        )


def _invalid_field(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, errors=((field, message),))
