"""Routes of ACL rules: write, list and try them, and the presets to begin with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from wardkey.actions.messaging import acl, simulator
from wardkey.api.schemas import Id, Input, Text, WithSessions, ended_shape
from wardkey.domain import errors
from wardkey.domain.acl import MOST_RULES, Action, ActorKind, Effect, SubjectKind
from wardkey.domain.receipts import Confirmation
from wardkey.domain.rule_specs import MOST_PRIORITY, PRESETS, PresetName, RuleSpec
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["acl"], dependencies=[Depends(require_json)])

_RULE_FAULTS = (
    errors.InvalidTopicFilter,
    errors.InvalidAclSubject,
    errors.InvalidText,
    errors.TooManyAclRules,
    errors.AclExceptionAboveDenial,
    errors.AclLooseWildcard,
)

Priority = Annotated[
    StrictInt, Field(ge=0, le=MOST_PRIORITY, description="The lowest is asked first.")
]
Filter = Annotated[
    str,
    Field(
        description="+ for a level, # for the rest, and the variables {username}, {client_id}, "
        "{org} and {claim.NAME}.",
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
    """Whom a rule is for."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"kind": "username", "value": "agent-*"},
            # What stands beside each kind, for whoever makes up requests.
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
        description="A client's or provider's id, or a pattern of user names with *; empty for "
        "everyone and for publishable keys.",
    )


class NewRule(Input):
    """A rule; of those that fit, the one with the lowest priority decides."""

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
        """Return the domain's record of what is wanted."""
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
    """The fields to change; those left out stay."""

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
    """A rule as it is kept."""

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
    """Every rule, in the order in which they are asked: by priority, then by age."""

    rules: list[RuleShape]


class ChangedRuleShape(RuleShape, WithSessions):
    """A rule that was written, and the live sessions that had other rights and were ended."""


class ChangedRuleList(RuleList, WithSessions):
    """Every rule after a change, and the live sessions that had other rights and were ended."""


class DeletedRuleShape(WithSessions):
    """A rule that is gone, and the live sessions that had other rights and were ended."""

    id: str


class NewRules(Input):
    """The rules that are to be there instead of the present ones."""

    rules: Rules


class Simulation(Input):
    """Who does what with which topic; `rules` are asked instead of the saved ones."""

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
        """Somebody that may not exist, unless it is a client's id; what is left out is empty."""

        kind: ActorKind
        username: Value = Field(
            default="",
            description="Without the organization behind it; of a client whose id is sent it is "
            "the record's.",
        )
        client_id: Value = Field(default="", description="The client id of MQTT.")
        id: Value = Field(default="", description="The client's id, or the grant's provider's.")
        claims: dict[str, Value] = Field(default={}, max_length=50)

    who: Who
    action: Annotated[Action, Field(json_schema_extra={"enum": ["publish", "subscribe"]})]
    topic: Topic
    rules: Rules | None = None


class DecidingRule(BaseModel):
    """The rule that decided; `id` of a saved one, `position` (from 0) of one that was sent."""

    id: str | None
    position: int | None
    priority: int
    subject: SubjectShape
    filter: str
    action: Action
    effect: Effect


class SimulationShape(BaseModel):
    """What the rules say; without a rule nothing fits, which denies."""

    allowed: bool
    rule: DecidingRule | None
    sentence: str


class PresetShape(BaseModel):
    """A set of rules to begin with, and what it allows."""

    name: PresetName
    description: str
    rules: list[NewRule]


class PresetList(BaseModel):
    """Every preset."""

    presets: list[PresetShape]


class PresetChoice(Input):
    """Which preset, and whether it takes the place of the rules that are there."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"preset": "chat", "replace": True}}
    )

    preset: PresetName
    replace: StrictBool = False


@router.get("/v2/acl/rules", responses=problem_responses())
def list_acl_rules(caller: CurrentCaller, ctx: CurrentContext) -> RuleList:
    """List the rules in the order in which they are asked."""
    return _list(ctx.runner.read(acl.list_rules, caller.by))


@router.post(
    "/v2/acl/rules", status_code=201, responses=problem_responses(*_RULE_FAULTS, body=True)
)
def create_acl_rule(
    wanted: NewRule, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedRuleShape:
    """Add a rule; live sessions whose rights it changes are ended, and log in anew."""
    return _changed(ctx.runner.write_confirmed(acl.create, caller.by, wanted.spec()))


@router.put("/v2/acl/rules", responses=problem_responses(*_RULE_FAULTS, body=True))
def put_acl_rules(wanted: NewRules, caller: CurrentCaller, ctx: CurrentContext) -> ChangedRuleList:
    """Replace all rules at once, or none where one is refused."""
    specs = [rule.spec() for rule in wanted.rules]
    return _changed_list(ctx.runner.write_confirmed(acl.put_rules, caller.by, specs))


@router.get("/v2/acl/rules/{rule_id:id}", responses=problem_responses(errors.AclRuleNotFound))
def get_acl_rule(rule_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> RuleShape:
    """Show a rule."""
    return _shape(ctx.runner.read(acl.get, caller.by, rule_id))


@router.patch(
    "/v2/acl/rules/{rule_id:id}",
    responses=problem_responses(errors.AclRuleNotFound, *_RULE_FAULTS, body=True),
)
def change_acl_rule(
    rule_id: Id, wanted: RuleChange, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedRuleShape:
    """Change a rule."""
    subject = (wanted.subject.kind, wanted.subject.value) if wanted.subject else None
    changes = acl.RuleChanges(
        wanted.priority, subject, wanted.filter, wanted.action, wanted.effect, wanted.description
    )
    return _changed(ctx.runner.write_confirmed(acl.change, caller.by, rule_id, changes))


@router.delete(
    "/v2/acl/rules/{rule_id:id}",
    responses=problem_responses(errors.AclRuleNotFound, errors.AclLooseWildcard),
)
def delete_acl_rule(rule_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> DeletedRuleShape:
    """Delete a rule."""
    _, confirmed = ctx.runner.write_confirmed(acl.remove, caller.by, rule_id)
    return DeletedRuleShape(id=rule_id, sessions=ended_shape(confirmed.sessions))


@router.post(
    "/v2/acl/simulate",
    responses=problem_responses(
        errors.InvalidTopic, errors.ClientNotFound, *_RULE_FAULTS, body=True
    ),
)
def simulate_acl(wanted: Simulation, caller: CurrentCaller, ctx: CurrentContext) -> SimulationShape:
    """Tell whether somebody may publish or subscribe, and which rule decides it."""
    if wanted.action is Action.BOTH:
        raise errors.InvalidRequest(
            "Ask about publish or about subscribe.", errors=(("action", "Not both at once."),)
        )
    who = wanted.who
    question = simulator.SimulationQuery(
        who.kind,
        wanted.action,
        wanted.topic,
        who.username,
        who.client_id,
        who.id,
        who.claims,
        None if wanted.rules is None else tuple(rule.spec() for rule in wanted.rules),
    )
    done = ctx.runner.read(simulator.simulate, caller.by, question)
    rule = done.decision.rule
    deciding = None
    if rule is not None:
        deciding = DecidingRule(
            id=rule.id if done.position is None else None,
            position=done.position,
            priority=rule.priority,
            subject=SubjectShape(kind=rule.subject_kind, value=rule.subject),
            filter=rule.filter,
            action=rule.action,
            effect=rule.effect,
        )
    return SimulationShape(allowed=done.decision.allowed, rule=deciding, sentence=done.sentence)


@router.get("/v2/acl/presets", responses=problem_responses())
def list_acl_presets(caller: CurrentCaller) -> PresetList:  # noqa: ARG001 - asks who it is
    """List the presets with their rules and what they allow."""
    return PresetList(
        presets=[
            PresetShape(
                name=name,
                description=preset.says,
                rules=[_new(spec) for spec in preset.rules],
            )
            for name, preset in PRESETS.items()
        ]
    )


@router.post("/v2/acl/presets", responses=problem_responses(errors.AclRulesExist, body=True))
def apply_acl_preset(
    wanted: PresetChoice, caller: CurrentCaller, ctx: CurrentContext
) -> ChangedRuleList:
    """Make a preset's rules; where there are rules already, only with `replace`."""
    made = ctx.runner.write_confirmed(
        acl.apply_preset, caller.by, wanted.preset, replace_existing=wanted.replace
    )
    return _changed_list(made)


def _changed(done: tuple[acl.SavedRule, Confirmation]) -> ChangedRuleShape:
    saved, confirmed = done
    return ChangedRuleShape(**dict(_shape(saved)), sessions=ended_shape(confirmed.sessions))


def _changed_list(done: tuple[list[acl.SavedRule], Confirmation]) -> ChangedRuleList:
    saved, confirmed = done
    return ChangedRuleList(**dict(_list(saved)), sessions=ended_shape(confirmed.sessions))


def _new(spec: RuleSpec) -> NewRule:
    return NewRule(
        priority=spec.priority,
        subject=SubjectShape(kind=spec.subject_kind, value=spec.subject),
        filter=spec.filter,
        action=spec.action,
        effect=spec.effect,
        description=spec.description,
    )


def _shape(saved: acl.SavedRule) -> RuleShape:
    return RuleShape(
        id=saved.id,
        **dict(_new(saved.spec)),
        created_at=iso(saved.created_at),
        created_by=saved.created_by,
        updated_at=iso(saved.updated_at),
    )


def _list(saved: list[acl.SavedRule]) -> RuleList:
    return RuleList(rules=[_shape(rule) for rule in saved])
