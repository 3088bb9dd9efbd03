"""Validation of ACL rules from callers, and the presets: sets of rules to start with."""

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
    """The fields of a new rule; `subject` is empty for everyone and for publishable keys."""

    priority: int
    subject_kind: SubjectKind
    subject: str
    filter: str
    action: Action
    effect: Effect
    description: str = ""

    def rule(self, rule_id: str) -> AclRule:
        """Return the rule with this id."""
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
    """Return a rule in canonical form; `where` is a prefix for the field names in errors.

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
        raise InvalidAclSubject("Name the client by its id, such as cli_0fA3xQ2L.", field=field)
    elif kind is SubjectKind.PROVIDER and not _PROVIDER.fullmatch(subject):
        raise InvalidAclSubject("Name the provider by its id, such as prv_0fA3xQ2L.", field=field)
    elif kind in (SubjectKind.EVERYONE, SubjectKind.PUBLISHABLE) and subject:
        raise InvalidAclSubject(f"A rule for {kind} has no value; leave it out.", field=field)


class PresetName(StrEnum):
    """The names of the presets."""

    ALLOW_ALL = "allow-all"
    NOTIFICATIONS = "notifications"
    AGENT_PIPELINES = "agent-pipelines"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of rules, with a sentence that describes what it allows."""

    says: str
    rules: tuple[RuleSpec, ...]


def _allow(
    priority: int, topic_filter: str, action: Action, description: str, *, page: bool = False
) -> RuleSpec:
    kind = SubjectKind.PUBLISHABLE if page else SubjectKind.EVERYONE
    return RuleSpec(priority, kind, "", topic_filter, action, Effect.ALLOW, description)


PRESETS: Mapping[PresetName, Preset] = {
    PresetName.ALLOW_ALL: Preset(
        "Every client and grant can publish and subscribe to all topics; publishable keys to none.",
        (_allow(1_000, "#", Action.BOTH, "Everyone may do everything"),),
    ),
    PresetName.NOTIFICATIONS: Preset(
        "Everyone can read topics below notifications/all and below notifications/{username} with "
        "their own user name; users whose name starts with notifier can publish to them.",
        (
            _allow(1_000, "notifications/all/#", Action.SUBSCRIBE, "Notifications for everyone"),
            _allow(1_010, "notifications/{username}/#", Action.SUBSCRIBE, "A user's notifications"),
            RuleSpec(
                1_020,
                SubjectKind.USERNAME,
                "notifier*",
                "notifications/#",
                Action.PUBLISH,
                Effect.ALLOW,
                "Senders of notifications",
            ),
        ),
    ),
    PresetName.AGENT_PIPELINES: Preset(
        "An agent can publish and read below agents/{username} with its own user name. Everyone "
        "can read agents/…/state, and publish and read below pipelines. Publishable keys can "
        "publish to agents/…/state.",
        (
            _allow(1_000, "agents/{username}/#", Action.BOTH, "An agent's own topics"),
            _allow(1_010, "agents/+/state", Action.SUBSCRIBE, "The state of every agent"),
            _allow(1_020, "pipelines/#", Action.BOTH, "Messages between agents"),
            _allow(1_030, "agents/+/state", Action.PUBLISH, "States from a web page", page=True),
        ),
    ),
    PresetName.CHAT: Preset(
        "Everyone can read topics below rooms, and publish to rooms/…/messages/{username} with "
        "their own user name. Only the user can read below inbox/{username}; others can publish "
        "to inbox/…/{username} with their own user name.",
        (
            _allow(
                1_000,
                "rooms/+/messages/{username}",
                Action.PUBLISH,
                "Messages under one's name",
            ),
            _allow(1_010, "rooms/#", Action.SUBSCRIBE, "Messages in all rooms"),
            _allow(1_020, "inbox/{username}/#", Action.SUBSCRIBE, "The user's own inbox"),
            _allow(1_030, "inbox/+/{username}", Action.PUBLISH, "Messages to any inbox"),
        ),
    ),
}
