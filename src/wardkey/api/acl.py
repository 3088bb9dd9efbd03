"""Routes of ACL rules: list, change and simulate rules, and apply presets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from wardkey.actions.messaging import acl, simulator
from wardkey.api.schemas import Id, Input, Text, WithSessions, render_ended_sessions
from wardkey.domain import errors
from wardkey.domain.acl import MOST_RULES, Action, ActorKind, Effect, SubjectKind
from wardkey.domain.receipts import Confirmation
from wardkey.domain.rule_specs import MOST_PRIORITY, PRESETS, PresetName, RuleSpec
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["acl"], dependencies=[Depends(require_json)])

_RULE_ERRORS = (
    errors.InvalidTopicFilter,
    errors.InvalidAclSubject,
    errors.InvalidText,
    errors.TooManyAclRules,
    errors.AclExceptionAboveDenial,
    errors.AclLooseWildcard,
)

Priority = Annotated[
    StrictInt, Field(ge=0, le=MOST_PRIORITY, description="The lowest is evaluated first.")
]
Filter = Annotated[
    str,
    Field(
        description="+ for a level, # for the rest; variables {username}, {client_id}, {org} and "
        "{claim.NAME}.",
        json_schema_extra={"format": "rule-filter", "maxLength": 1024},
    ),
]
Topic = Annotated[
    str,
    Field(
        description="A topic to publish to, or a filter to subscribe to.",
        json_schema_extra={"format": "topic", "maxLength": 1024},
    ),
]
Value = Annotated[str, Field(max_length=256)]


class SubjectShape(Input):
    """The subject of a rule."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"kind": "username", "value": "agent-*"},
            # The values of each kind, for tools that generate requests.
            "oneOf": [
                {
                    "properties": {
                        "kind": {"enum": ["everyone", "publishable"]},
                        "value": {"const": ""},
                    }
                },
                {
                    "properties": {
                        "kind": {"const": "client"},
                        "value": {"pattern": "^cli_[0-9A-Za-z]{1,60}$"},
                    },
                    "required": ["value"],
                },
                {
                    "properties": {
                        "kind": {"const": "username"},
                        "value": {"pattern": "^[A-Za-z0-9_.*-]{1,64}$"},
                    },
                    "required": ["value"],
                },
                {
                    "properties": {
                        "kind": {"const": "provider"},
                        "value": {"pattern": "^[a-z]{2,8}_[0-9A-Za-z]{1,55}$"},
                    },
                    "required": ["value"],
                },
            ],
        },
    )

    kind: SubjectKind
    value: str = Field(
        default="",
        description="A client or provider id, or a user name pattern with *; empty for everyone "
        "and publishable keys.",
    )


class NewRule(Input):
    """A rule; of the matching rules, the one with the lowest priority decides."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "priority": 100,
                "subject": {"kind": "username", "value": "agent-*"},
                "filter": "agents/{username}/#",
                "action": "both",
                "effect": "allow",
            }
        },
    )

    priority: Priority
    subject: SubjectShape
    filter: Filter
    action: Action
    effect: Effect
    description: Text = ""

    def spec(self) -> RuleSpec:
        """Return the rule as the domain's record."""
        return RuleSpec(
            self.priority,
            self.subject.kind,
            self.subject.value,
            self.filter,
            self.action,
            self.effect,
            self.description,
        )


Rules = Annotated[list[NewRule], Field(json_schema_extra={"maxItems": MOST_RULES})]


class RuleChange(Input):
    """The fields to change; omitted fields stay."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"priority": 50, "effect": "deny"}}
    )

    priority: Priority | None = None
    subject: SubjectShape | None = None
    filter: Filter | None = None
    action: Action | None = None
    effect: Effect | None = None
    description: Text | None = None


class RuleShape(BaseModel):
    """A saved rule."""

    id: str
    priority: int
    subject: SubjectShape
    filter: str
    action: Action
    effect: Effect
    description: str
    created_at: str
    created_by: str
    updated_at: str


class RuleList(BaseModel):
    """All rules in evaluation order: by priority, then oldest first."""

    rules: list[RuleShape]


class ChangedRuleShape(RuleShape, WithSessions):
    """The saved rule, and the live sessions ended because their rights changed."""


class ChangedRuleList(RuleList, WithSessions):
    """All rules after the change, and the live sessions ended because their rights changed."""


class DeletedRuleShape(WithSessions):
    """The deleted rule, and the live sessions ended because their rights changed."""

    id: str


class NewRules(Input):
    """The rules that replace the present ones."""

    rules: Rules


class Simulation(Input):
    """The client, action and topic to simulate; `rules` is used instead of the saved rules."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "who": {"kind": "client", "username": "agent-01"},
                "action": "publish",
                "topic": "agents/agent-01/state",
            }
        },
    )

    class Who(Input):
        """The actor, which need not exist unless `id` names a client; omitted fields are empty."""

        kind: ActorKind
        username: Value = Field(
            default="",
            description="Without @ and the organization. If `id` names a client, its own user name "
            "is used.",
        )
        client_id: Value = Field(default="", description="The MQTT client id.")
        id: Value = Field(
            default="", description="The client's id, or the id of the grant's provider."
        )
        claims: dict[str, Value] = Field(default={}, max_length=50)

    who: Who
    action: Annotated[Action, Field(json_schema_extra={"enum": ["publish", "subscribe"]})]
    topic: Topic
    rules: Rules | None = None


class DecidingRule(BaseModel):
    """The deciding rule: `id` of a saved rule, or `position` (from 0) of a proposed one."""

    id: str | None
    position: int | None
    priority: int
    subject: SubjectShape
    filter: str
    action: Action
    effect: Effect


class SimulationShape(BaseModel):
    """The decision; `rule` is null if no rule matches, which denies."""

    allowed: bool
    rule: DecidingRule | None
    sentence: str


class PresetShape(BaseModel):
    """A set of rules to start with, and what it allows."""

    name: PresetName
    description: str
    rules: list[NewRule]


class PresetList(BaseModel):
    """All presets."""

    presets: list[PresetShape]


class PresetChoice(Input):
    """A preset, and whether it replaces the present rules."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"preset": "chat", "replace": True}}
    )

    preset: PresetName
    replace: StrictBool = False


@router.get("/v2/acl/rules", responses=problem_responses())
def list_acl_rules(caller: CurrentCaller, ctx: CurrentContext) -> RuleList:
    """List the rules in evaluation order."""
    return _render_rules(ctx.runner.read(acl.list_rules, caller.by))


@router.post(
    "/v2/acl/rules", status_code=201, responses=problem_responses(*_RULE_ERRORS, body=True)
)
def create_acl_rule(body: NewRule, caller: CurrentCaller, ctx: CurrentContext) -> ChangedRuleShape:
    """Add a rule.

    Live sessions whose rights it changes are ended; their clients can log in again.
    """
    return _render_changed_rule(ctx.runner.write_confirmed(acl.create, caller.by, body.spec()))


@router.put("/v2/acl/rules", responses=problem_responses(*_RULE_ERRORS, body=True))
def put_acl_rules(body: NewRules, caller: CurrentCaller, ctx: CurrentContext) -> ChangedRuleList:
    """Replace all rules at once; if one is rejected, nothing changes."""
    specs = [rule.spec() for rule in body.rules]
    return _render_changed_rules(ctx.runner.write_confirmed(acl.put_rules, caller.by, specs))


@router.get("/v2/acl/rules/{rule_id:id}", responses=problem_responses(errors.AclRuleNotFound))
def get_acl_rule(rule_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> RuleShape:
    """Get a rule."""
    return _render_rule(ctx.runner.read(acl.get, caller.by, rule_id))


@router.patch(
    "/v2/acl/rules/{rule_id:id}",
    responses=problem_responses(errors.AclRuleNotFound, *_RULE_ERRORS, body=True),
)
def change_acl_rule(
    rule_id: Id, body: RuleChange, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedRuleShape:
    """Change a rule."""
    subject = (body.subject.kind, body.subject.value) if body.subject else None
    changes = acl.RuleChanges(
        body.priority, subject, body.filter, body.action, body.effect, body.description
    )
    return _render_changed_rule(ctx.runner.write_confirmed(acl.change, caller.by, rule_id, changes))


@router.delete(
    "/v2/acl/rules/{rule_id:id}",
    responses=problem_responses(errors.AclRuleNotFound, errors.AclLooseWildcard),
)
def delete_acl_rule(rule_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> DeletedRuleShape:
    """Delete a rule."""
    _, confirmed = ctx.runner.write_confirmed(acl.remove, caller.by, rule_id)
    return DeletedRuleShape(id=rule_id, sessions=render_ended_sessions(confirmed.sessions))


@router.post(
    "/v2/acl/simulate",
    responses=problem_responses(
        errors.InvalidTopic, errors.ClientNotFound, *_RULE_ERRORS, body=True
    ),
)
def simulate_acl(body: Simulation, caller: CurrentCaller, ctx: CurrentContext) -> SimulationShape:
    """Simulate a publish or subscribe, and return the rule that decides it."""
    if body.action is Action.BOTH:
        raise errors.InvalidRequest(
            "Simulate publish or subscribe, not both.",
            errors=(("action", "Send publish or subscribe."),),
        )
    actor = body.who
    query = simulator.SimulationQuery(
        actor.kind,
        body.action,
        body.topic,
        actor.username,
        actor.client_id,
        actor.id,
        actor.claims,
        None if body.rules is None else tuple(rule.spec() for rule in body.rules),
    )
    result = ctx.runner.read(simulator.simulate, caller.by, query)
    rule = result.decision.rule
    deciding_rule = None
    if rule is not None:
        deciding_rule = DecidingRule(
            id=rule.id if result.position is None else None,
            position=result.position,
            priority=rule.priority,
            subject=SubjectShape(kind=rule.subject_kind, value=rule.subject),
            filter=rule.filter,
            action=rule.action,
            effect=rule.effect,
        )
    return SimulationShape(
        allowed=result.decision.allowed, rule=deciding_rule, sentence=result.sentence
    )


@router.get("/v2/acl/presets", responses=problem_responses())
def list_acl_presets(caller: CurrentCaller) -> PresetList:  # noqa: ARG001 - requires a credential
    """List the presets, with their rules and what they allow."""
    return PresetList(
        presets=[
            PresetShape(
                name=name,
                description=preset.says,
                rules=[_render_spec(spec) for spec in preset.rules],
            )
            for name, preset in PRESETS.items()
        ]
    )


@router.post("/v2/acl/presets", responses=problem_responses(errors.AclRulesExist, body=True))
def apply_acl_preset(
    body: PresetChoice, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedRuleList:
    """Apply a preset; if there are rules already, `replace` is required."""
    result = ctx.runner.write_confirmed(
        acl.apply_preset, caller.by, body.preset, replace_existing=body.replace
    )
    return _render_changed_rules(result)


def _render_changed_rule(result: tuple[acl.SavedRule, Confirmation]) -> ChangedRuleShape:
    saved, confirmed = result
    return ChangedRuleShape(
        **dict(_render_rule(saved)), sessions=render_ended_sessions(confirmed.sessions)
    )


def _render_changed_rules(result: tuple[list[acl.SavedRule], Confirmation]) -> ChangedRuleList:
    saved, confirmed = result
    return ChangedRuleList(
        **dict(_render_rules(saved)), sessions=render_ended_sessions(confirmed.sessions)
    )


def _render_spec(spec: RuleSpec) -> NewRule:
    return NewRule(
        priority=spec.priority,
        subject=SubjectShape(kind=spec.subject_kind, value=spec.subject),
        filter=spec.filter,
        action=spec.action,
        effect=spec.effect,
        description=spec.description,
    )


def _render_rule(saved: acl.SavedRule) -> RuleShape:
    return RuleShape(
        id=saved.id,
        **dict(_render_spec(saved.spec)),
        created_at=iso(saved.created_at),
        created_by=saved.created_by,
        updated_at=iso(saved.updated_at),
    )


def _render_rules(saved: list[acl.SavedRule]) -> RuleList:
    return RuleList(rules=[_render_rule(rule) for rule in saved])
