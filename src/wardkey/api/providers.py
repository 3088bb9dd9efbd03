"""Routes of auth providers: whose tokens may be exchanged, and a test that says what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from wardkey.actions.grants import providers
from wardkey.adapters.tokens import LONGEST_TOKEN
from wardkey.api.schemas import Id, Input, Origin, RateShape, WithSessions, ended_shape
from wardkey.domain import errors
from wardkey.domain.identity import Identity, Step
from wardkey.domain.keys import Rate
from wardkey.domain.providers import (
    ALGORITHMS,
    LONGEST_REFRESH_S,
    LONGEST_TTL_S,
    MOST_ITEMS,
    SHORTEST_TTL_S,
    AudienceClaim,
    ClaimMapping,
    ExchangeLimits,
    ProviderKind,
    ProviderSpec,
    UsernameFrom,
    token_rules,
)
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.problems import problem_responses, require_json

router = APIRouter(tags=["auth-providers"], dependencies=[Depends(require_json)])

_FAULTS = (
    errors.InvalidProvider,
    errors.InvalidOrigin,
    errors.InvalidRateLimit,
    errors.TooManyItems,
    errors.DuplicateProvider,
)
_URL = {"format": "issuer-url", "maxLength": 500}
Path = Annotated[str, Field(json_schema_extra={"format": "claim-path", "maxLength": 200})]
Url = Annotated[str, Field(json_schema_extra=_URL)]
Audience = Annotated[str, Field(json_schema_extra={"format": "audience", "maxLength": 255})]
Secret = Annotated[
    str,
    Field(
        max_length=512,
        description="The project's shared JWT secret, kept sealed and never shown again.",
        json_schema_extra={"format": "shared-secret", "minLength": 32, "maxLength": 512},
    ),
]
Items: Any = Field(default=[], json_schema_extra={"maxItems": MOST_ITEMS})


class _Settings(Input):
    """Settings of which each has a default; null is as if the setting were left out."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if v is not None or k not in cls.model_fields}


class MappingShape(_Settings):
    """Where in a token's claims things stand: names with dots between the levels."""

    user_id: Path = "sub"
    email: Path = "email"
    roles: Path = Field(default="", description="Empty where tokens name none.")
    variables: Annotated[
        dict[str, Path],
        Field(
            description="Each NAME is the variable {claim.NAME} of ACL rules.",
            json_schema_extra={
                "maxProperties": MOST_ITEMS,
                "propertyNames": {"pattern": "^[a-z]{1,32}$"},
            },
        ),
    ] = Field(default={})
    required: list[Path] = Items
    username_from: UsernameFrom = UsernameFrom.USER_ID
    verified_email_only: StrictBool = Field(
        default=False, description="Not of supabase, whose tokens do not prove it."
    )
    email_verified: Path = Field(
        default="email_verified", description="What verified_email_only looks at."
    )

    def spec(self) -> ClaimMapping:
        """Return the domain's record."""
        return ClaimMapping(
            self.user_id,
            self.email,
            self.roles,
            dict(self.variables),
            tuple(self.required),
            self.username_from,
            self.verified_email_only,
            self.email_verified,
        )


class LimitsShape(_Settings):
    """What may be had for a provider's tokens, by whom and how often."""

    max_ttl_s: StrictInt = Field(default=LONGEST_TTL_S, ge=SHORTEST_TTL_S, le=LONGEST_TTL_S)
    max_refresh_s: StrictInt = Field(
        default=LONGEST_REFRESH_S, ge=SHORTEST_TTL_S, le=LONGEST_REFRESH_S
    )
    rate: RateShape | None = Field(default=None, description="For all its exchanges together.")
    publishable_may_exchange: StrictBool = Field(
        default=False, description="Pages may exchange with a publishable key."
    )
    keyless_may_exchange: StrictBool = Field(
        default=False, description="Anybody with a token may exchange it, without a key."
    )

    def spec(self) -> ExchangeLimits:
        """Return the domain's record."""
        rate = None if self.rate is None else Rate(**self.rate.model_dump())
        return ExchangeLimits(
            self.max_ttl_s,
            self.max_refresh_s,
            rate,
            self.publishable_may_exchange,
            self.keyless_may_exchange,
        )


class ProviderFields(_Settings):
    """The settings of a provider; which of them it takes hangs on its kind."""

    name: Annotated[
        str,
        Field(
            description="What an exchange calls it; its kind unless given.",
            json_schema_extra={"pattern": "^[a-z0-9]{1,40}$"},
        ),
    ] = ""
    project_url: Url = Field(default="", description="supabase: the project's URL.")
    legacy_secret: StrictBool = Field(
        default=False, description="supabase: tokens are signed with the shared JWT secret."
    )
    secret: Secret | None = None
    project_id: str = Field(default="", description="firebase: the project's id.")
    domain: str = Field(default="", description="auth0: the tenant's domain; clerk: Frontend API.")
    issuer: Url = Field(default="", description="oidc: the issuer; supabase: if self-hosted.")
    jwks_uri: Url = Field(
        default="",
        description="oidc: where the key set is, for an issuer without a discovery document.",
    )
    audiences: list[Audience] = Items
    audience_claim: AudienceClaim = Field(
        default=AudienceClaim.AUD,
        description="oidc: the claim that has to be one of the audiences.",
    )
    allowed_origins: list[Origin] = Items
    algorithms: list[str] = Field(
        default=[], description="oidc: RS256 unless given.", json_schema_extra={"maxItems": 10}
    )
    mapping: MappingShape = MappingShape()
    limits: LimitsShape = LimitsShape()

    def spec_of(self, kind: ProviderKind) -> ProviderSpec:
        """Return the domain's record of what is wanted."""
        return ProviderSpec(
            kind,
            self.name,
            self.project_url,
            self.legacy_secret,
            self.project_id,
            self.domain,
            self.issuer,
            tuple(self.audiences),
            tuple(self.allowed_origins),
            tuple(self.algorithms),
            self.mapping.spec(),
            self.limits.spec(),
            self.jwks_uri,
            self.audience_claim,
        )


class NewProvider(ProviderFields):
    """A provider to be trusted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"kind": "supabase", "project_url": "https://abcdefgh.supabase.co"}
        },
    )

    kind: ProviderKind


class ProviderChanges(Input):
    """The settings to change; those left out stay. `mapping` and `limits` are given whole."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"limits": {"max_ttl_s": 900}}},
    )

    name: str | None = None
    project_url: Url | None = None
    legacy_secret: StrictBool | None = None
    secret: Secret | None = None
    project_id: str | None = None
    domain: str | None = None
    issuer: Url | None = None
    jwks_uri: Url | None = None
    audiences: list[Audience] | None = None
    audience_claim: AudienceClaim | None = None
    allowed_origins: list[Origin] | None = None
    algorithms: list[str] | None = None
    mapping: MappingShape | None = None
    limits: LimitsShape | None = None


class ProviderShape(BaseModel):
    """A provider as its organization sees it."""

    id: str
    kind: ProviderKind
    name: str
    environment: Environment
    enabled: bool
    issuer: str = Field(description="What the tokens' iss has to be, exactly.")
    keys_url: str = Field(description="Where its keys, or its discovery document, are fetched.")
    algorithms: list[str]
    project_url: str
    legacy_secret: bool
    has_secret: bool
    project_id: str
    domain: str
    jwks_uri: str
    audiences: list[str]
    audience_claim: AudienceClaim
    allowed_origins: list[str]
    mapping: MappingShape
    limits: LimitsShape
    created_at: str
    created_by: str
    updated_at: str


class ProviderList(BaseModel):
    """The providers of an environment, oldest first."""

    auth_providers: list[ProviderShape]


class DeletedProviderShape(WithSessions):
    """A provider that is gone, and what became of the live sessions of its grants."""

    id: str


class ProviderTest(_Settings):
    """What to test beside the provider's keys."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {}})

    token: str = Field(
        default="",
        max_length=LONGEST_TOKEN,
        description="A token of the provider's.",
    )


class NewProviderTest(ProviderTest):
    """A provider that need not be saved, and a token of its."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "provider": {"kind": "supabase", "project_url": "https://abcdefgh.supabase.co"}
            }
        },
    )

    provider: NewProvider


class StepShape(BaseModel):
    """One check; `detail` says why it failed, or names the keys that are left out and why."""

    step: str
    ok: bool
    detail: str


class IdentityShape(BaseModel):
    """Whom a token is taken for."""

    user_id: str
    user_email: str
    roles: list[str]
    variables: dict[str, str]
    username: str = Field(
        description="What an exchange puts before @ in the MQTT user name. The mark at its end is "
        "made of the provider's id; it is … for a provider that is not saved yet."
    )


class ProviderTested(BaseModel):
    """Every step up to the first that failed; of the claims all are told."""

    ok: bool
    steps: list[StepShape]
    identity: IdentityShape | None


@router.post(
    "/v2/auth-providers",
    status_code=201,
    responses=problem_responses(*_FAULTS, errors.TooManyProviders, body=True),
)
def create_auth_provider(
    wanted: NewProvider, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Trust a provider: its users' tokens can be exchanged from now on."""
    spec = wanted.spec_of(wanted.kind)
    return _shape(
        ctx.runner.write(
            providers.create,
            caller.by,
            spec,
            wanted.secret or "",
            http_allowed=ctx.token_exchange.private_issuers,
        )
    )


@router.get("/v2/auth-providers", responses=problem_responses())
def list_auth_providers(caller: CurrentCaller, ctx: CurrentContext) -> ProviderList:
    """List the providers of the environment."""
    found = ctx.runner.read(providers.list_providers, caller.by)
    return ProviderList(auth_providers=[_shape(one) for one in found])


@router.post(
    "/v2/auth-providers/test",
    responses=problem_responses(*_FAULTS, errors.Overloaded, body=True),
)
def try_new_auth_provider(
    wanted: NewProviderTest, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderTested:
    """Try settings before they are saved: fetch the keys, and check a token step by step."""
    spec = wanted.provider.spec_of(wanted.provider.kind)
    with ctx.runner.audit_refusals("try_new_auth_provider", caller.by):
        found = ctx.token_exchange.dry_run_unsaved(
            caller.by, spec, wanted.provider.secret or "", wanted.token
        )
    return _tested(*found)


@router.get(
    "/v2/auth-providers/{provider_id:id}", responses=problem_responses(errors.ProviderNotFound)
)
def get_auth_provider(provider_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ProviderShape:
    """Show one provider, never its secret."""
    return _shape(ctx.runner.read(providers.get, caller.by, provider_id))


@router.patch(
    "/v2/auth-providers/{provider_id:id}",
    responses=problem_responses(errors.ProviderNotFound, *_FAULTS, body=True),
)
def change_auth_provider(
    provider_id: Id, wanted: ProviderChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Change a provider's settings; grants that it stood for go on."""
    given = wanted.model_dump(exclude_none=True, exclude={"secret", "mapping", "limits"})
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    for name, part in (("mapping", wanted.mapping), ("limits", wanted.limits)):
        if part is not None:
            changes[name] = part.spec()
    return _shape(
        ctx.runner.write(
            providers.change,
            caller.by,
            provider_id,
            changes,
            wanted.secret,
            http_allowed=ctx.token_exchange.private_issuers,
        )
    )


@router.post(
    "/v2/auth-providers/{provider_id:id}/enable",
    responses=problem_responses(errors.ProviderNotFound),
)
def enable_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Let a provider's tokens be exchanged again."""
    return _shape(ctx.runner.write(providers.enable, caller.by, provider_id, enabled=True))


@router.post(
    "/v2/auth-providers/{provider_id:id}/disable",
    responses=problem_responses(errors.ProviderNotFound),
)
def disable_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Exchange no more of a provider's tokens; grants that there are go on."""
    return _shape(ctx.runner.write(providers.enable, caller.by, provider_id, enabled=False))


@router.delete(
    "/v2/auth-providers/{provider_id:id}", responses=problem_responses(errors.ProviderNotFound)
)
def delete_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> DeletedProviderShape:
    """Delete a provider; every grant that it stood for ends, and so do their live sessions."""
    _, confirmed = ctx.runner.write_confirmed(providers.remove, caller.by, provider_id)
    return DeletedProviderShape(id=provider_id, sessions=ended_shape(confirmed.sessions))


@router.post(
    "/v2/auth-providers/{provider_id:id}/test",
    responses=problem_responses(errors.ProviderNotFound, errors.Overloaded, body=True),
)
def try_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext, wanted: ProviderTest | None = None
) -> ProviderTested:
    """Fetch a provider's keys, and check a token of its step by step."""
    found = ctx.runner.read(providers.trusted, caller.by, provider_id)
    token = wanted.token if wanted else ""
    return _tested(
        *ctx.token_exchange.dry_run(caller.by, found.spec, found.secret, token, provider_id)
    )


@router.post(
    "/v2/auth-providers/{provider_id:id}/purge-keys",
    status_code=204,
    responses=problem_responses(errors.ProviderNotFound),
)
def purge_auth_provider_keys(provider_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """Have a provider's keys fetched anew: what one does after one of them was stolen."""
    ctx.runner.write(providers.purge_keys, caller.by, provider_id)


def _tested(steps: list[Step], identity: tuple[Identity, str] | None) -> ProviderTested:
    shown = None
    if identity is not None:
        who, username = identity
        shown = IdentityShape(
            user_id=who.user_id,
            user_email=who.email,
            roles=list(who.roles),
            variables=dict(who.variables),
            username=username,
        )
    return ProviderTested(
        ok=not any(step.fault for step in steps),
        steps=[
            StepShape(step=one.name, ok=not one.fault, detail=one.fault or one.note)
            for one in steps
        ],
        identity=shown,
    )


def _shape(found: providers.ProviderRecord) -> ProviderShape:
    spec, rules = found.spec, token_rules(found.spec)
    limits, rate = spec.limits, spec.limits.rate
    return ProviderShape(
        id=found.id,
        kind=spec.kind,
        name=spec.name,
        environment=found.environment,
        enabled=found.enabled,
        issuer=rules.issuer,
        keys_url=rules.keys.url,
        algorithms=[name for name in (*ALGORITHMS, "HS256") if name in rules.algorithms],
        project_url=spec.project_url,
        legacy_secret=spec.legacy_secret,
        has_secret=found.has_secret,
        project_id=spec.project_id,
        domain=spec.domain,
        jwks_uri=spec.jwks_uri,
        audiences=list(spec.audiences),
        audience_claim=spec.audience_claim,
        allowed_origins=list(spec.allowed_origins),
        mapping=MappingShape(
            user_id=spec.mapping.user_id,
            email=spec.mapping.email,
            roles=spec.mapping.roles,
            variables=dict(spec.mapping.variables),
            required=list(spec.mapping.required),
            username_from=spec.mapping.username_from,
            verified_email_only=spec.mapping.verified_email_only,
            email_verified=spec.mapping.email_verified,
        ),
        limits=LimitsShape(
            max_ttl_s=limits.max_ttl_s,
            max_refresh_s=limits.max_refresh_s,
            rate=None
            if rate is None
            else RateShape(limit=rate.limit, period_s=rate.period_s, burst=rate.burst),
            publishable_may_exchange=limits.publishable_may_exchange,
            keyless_may_exchange=limits.keyless_may_exchange,
        ),
        created_at=iso(found.created_at),
        created_by=found.created_by,
        updated_at=iso(found.updated_at),
    )
