"""What callers say of ACL rules, checked; and the presets, sets of rules to begin with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from wardkey.domain.acl import (
    AclRule,
    Action,
    Effect,
    SubjectKind,
    clean_rule_filter,
    clean_username_pattern,
)
from wardkey.domain.errors import InvalidAclSubject, InvalidText, InvalidTopicFilter
from wardkey.domain.names import clean_text

MOST_PRIORITY = 100_000
MOST_DESCRIPTION = 500
_CLIENT = re.compile(r"cli_[0-9A-Za-z]{1,60}")
_PROVIDER = re.compile(r"[a-z]{2,8}_[0-9A-Za-z]{1,55}")


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """What a caller says of a rule; `subject` is empty for everyone and publishable keys."""

    priority: int
    subject_kind: SubjectKind
    subject: str
    filter: str
    action: Action
    effect: Effect
    description: str = ""

    def rule(self, rule_id: str) -> AclRule:
        """Return the rule that this makes."""
        return AclRule(
            rule_id,
            self.priority,
            self.subject_kind,
            self.subject,
            self.filter,
            self.action,
            self.effect,
        )


def clean_rule(spec: RuleSpec, where: str = "") -> RuleSpec:
    """Check a rule's parts; `where` stands before the fields that faults name.

    Raises `InvalidTopicFilter`, `InvalidAclSubject`, `InvalidText`.
    """
    try:
        clean_rule_filter(spec.filter)
    except ValueError as error:
        raise InvalidTopicFilter(str(error), field=f"{where}filter") from None
    _check_subject(spec.subject_kind, spec.subject, f"{where}subject.value")
    try:
        return replace(spec, description=clean_text(spec.description, MOST_DESCRIPTION))
    except ValueError as error:
        raise InvalidText(str(error), field=f"{where}description") from None


def _check_subject(kind: SubjectKind, subject: str, field: str) -> None:
    if kind is SubjectKind.USERNAME:
        try:
            clean_username_pattern(subject)
        except ValueError as error:
            raise InvalidAclSubject(str(error), field=field) from None
    elif kind is SubjectKind.CLIENT and not _CLIENT.fullmatch(subject):
        raise InvalidAclSubject("A client is named by its id, such as cli_0fA3xQ2L.", field=field)
    elif kind is SubjectKind.PROVIDER and not _PROVIDER.fullmatch(subject):
        raise InvalidAclSubject("A provider is named by its id, such as idp_0fA3xQ2L.", field=field)
    elif kind in (SubjectKind.EVERYONE, SubjectKind.PUBLISHABLE) and subject:
        raise InvalidAclSubject(f"A rule for {kind} has no value beside it.", field=field)


class PresetName(StrEnum):
    """The sets of rules to begin with."""

    ALLOW_ALL = "allow-all"
    NOTIFICATIONS = "notifications"
    AGENT_PIPELINES = "agent-pipelines"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of rules with a sentence on what it allows."""

    says: str
    rules: tuple[RuleSpec, ...]


def _allow(
    priority: int, topic_filter: str, action: Action, description: str, *, page: bool = False
) -> RuleSpec:
    kind = SubjectKind.PUBLISHABLE if page else SubjectKind.EVERYONE
    return RuleSpec(priority, kind, "", topic_filter, action, Effect.ALLOW, description)


PRESETS: Mapping[PresetName, Preset] = {
    PresetName.ALLOW_ALL: Preset(
        "Every client and grant publishes and subscribes to every topic; publishable keys to none.",
        (_allow(1_000, "#", Action.BOTH, "Everybody does everything"),),
    ),
    PresetName.NOTIFICATIONS: Preset(
        "Everybody reads what is below notifications/all and below notifications/{username} with "
        "his own user name; those whose user name begins with notifier publish it.",
        (
            _allow(1_000, "notifications/all/#", Action.SUBSCRIBE, "What is for all"),
            _allow(1_010, "notifications/{username}/#", Action.SUBSCRIBE, "What is one's own"),
            RuleSpec(
                1_020,
                SubjectKind.USERNAME,
                "notifier*",
                "notifications/#",
                Action.PUBLISH,
                Effect.ALLOW,
                "Those who notify",
            ),
        ),
    ),
    PresetName.AGENT_PIPELINES: Preset(
        "An agent publishes and reads below agents/{username} with its own user name; everybody "
        "reads agents/…/state, and publishes and reads below pipelines; publishable keys publish "
        "to agents/…/state.",
        (
            _allow(1_000, "agents/{username}/#", Action.BOTH, "An agent's own topics"),
            _allow(1_010, "agents/+/state", Action.SUBSCRIBE, "The state of every agent"),
            _allow(1_020, "pipelines/#", Action.BOTH, "What agents pass on to each other"),
            _allow(1_030, "agents/+/state", Action.PUBLISH, "States told by a page", page=True),
        ),
    ),
    PresetName.CHAT: Preset(
        "Everybody reads what is below rooms and publishes to rooms/…/messages/{username} with his "
        "own user name; only he reads below inbox/{username}, and others publish there to "
        "inbox/…/{username} with theirs.",
        (
            _allow(1_000, "rooms/+/messages/{username}", Action.PUBLISH, "Under one's own name"),
            _allow(1_010, "rooms/#", Action.SUBSCRIBE, "What is said in rooms"),
            _allow(1_020, "inbox/{username}/#", Action.SUBSCRIBE, "One's own inbox"),
            _allow(1_030, "inbox/+/{username}", Action.PUBLISH, "To anybody's inbox"),
        ),
    ),
}
