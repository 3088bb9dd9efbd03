"""Routes of auth providers, whose tokens can be exchanged, and tests of their settings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from wardkey.actions.grants import providers
from wardkey.adapters.tokens import LONGEST_TOKEN
from wardkey.api.schemas import Id, Input, Origin, RateShape, WithSessions, render_ended_sessions
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

_SETTING_ERRORS = (
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
        description="The project's shared JWT secret, stored sealed and never shown again.",
        json_schema_extra={"format": "shared-secret", "minLength": 32, "maxLength": 512},
    ),
]
Items: Any = Field(default=[], json_schema_extra={"maxItems": MOST_ITEMS})


class _Settings(Input):
    """Settings with defaults; null means omitted."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, settings: object) -> object:
        if not isinstance(settings, dict):
            return settings
        return {k: v for k, v in settings.items() if v is not None or k not in cls.model_fields}


class MappingShape(_Settings):
    """The paths of a token's claims, with dots between levels."""

    user_id: Path = "sub"
    email: Path = "email"
    roles: Path = Field(default="", description="Empty if tokens contain none.")
    variables: Annotated[
        dict[str, Path],
        Field(
            description="Each NAME is the variable {claim.NAME} in ACL rules.",
            json_schema_extra={
                "maxProperties": MOST_ITEMS,
                "propertyNames": {"pattern": "^[a-z]{1,32}$"},
            },
        ),
    ] = Field(default={})
    required: list[Path] = Items
    username_from: UsernameFrom = UsernameFrom.USER_ID
    verified_email_only: StrictBool = Field(
        default=False, description="Not for supabase, whose tokens don't prove it."
    )
    email_verified: Path = Field(
        default="email_verified", description="The claim that verified_email_only checks."
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
    """The limits on exchanging a provider's tokens."""

    max_ttl_s: StrictInt = Field(default=LONGEST_TTL_S, ge=SHORTEST_TTL_S, le=LONGEST_TTL_S)
    max_refresh_s: StrictInt = Field(
        default=LONGEST_REFRESH_S, ge=SHORTEST_TTL_S, le=LONGEST_REFRESH_S
    )
    rate: RateShape | None = Field(default=None, description="For all its exchanges together.")
    publishable_may_exchange: StrictBool = Field(
        default=False, description="Pages can exchange with a publishable key."
    )
    keyless_may_exchange: StrictBool = Field(
        default=False, description="Tokens can be exchanged without a key."
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
    """The settings of a provider; its kind determines which apply."""

    name: Annotated[
        str,
        Field(
            description="Its name in exchanges; its kind by default.",
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
        description="oidc: the key set's URL, for an issuer without a discovery document.",
    )
    audiences: list[Audience] = Items
    audience_claim: AudienceClaim = Field(
        default=AudienceClaim.AUD,
        description="oidc: the claim that must be one of the audiences.",
    )
    allowed_origins: list[Origin] = Items
    algorithms: list[str] = Field(
        default=[], description="oidc: RS256 by default.", json_schema_extra={"maxItems": 10}
    )
    mapping: MappingShape = MappingShape()
    limits: LimitsShape = LimitsShape()

    def spec_of(self, kind: ProviderKind) -> ProviderSpec:
        """Return the settings as the domain's record."""
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
    """A provider to trust."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"kind": "supabase", "project_url": "https://abcdefgh.supabase.co"}
        },
    )

    kind: ProviderKind


class ProviderChanges(Input):
    """The settings to change; omitted ones stay. `mapping` and `limits` are replaced whole."""

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
    issuer: str = Field(description="The exact iss that tokens must have.")
    keys_url: str = Field(description="The URL of its keys or its discovery document.")
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
    """The deleted provider, and the live sessions of its grants that were ended."""

    id: str


class ProviderTest(_Settings):
    """A token to test, besides the provider's keys."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {}})

    token: str = Field(
        default="",
        max_length=LONGEST_TOKEN,
        description="A token of the provider.",
    )


class NewProviderTest(ProviderTest):
    """Settings of a provider that need not be saved, and a token to test."""

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
    """A check; `detail` says why it failed, or which keys were skipped and why."""

    step: str
    ok: bool
    detail: str


class IdentityShape(BaseModel):
    """The user that a token identifies."""

    user_id: str
    user_email: str
    roles: list[str]
    variables: dict[str, str]
    username: str = Field(
        description="The part before @ of the MQTT user name. Its suffix is derived from the "
        "provider's id; for a provider that is not saved yet it is …."
    )


class ProviderTested(BaseModel):
    """The steps up to the first failure; all checks of claims are listed."""

    ok: bool
    steps: list[StepShape]
    identity: IdentityShape | None


@router.post(
    "/v2/auth-providers",
    status_code=201,
    responses=problem_responses(*_SETTING_ERRORS, errors.TooManyProviders, body=True),
)
def create_auth_provider(
    body: NewProvider, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Add a provider, whose tokens can then be exchanged."""
    spec = body.spec_of(body.kind)
    return _render_provider(
        ctx.runner.write(
            providers.create,
            caller.by,
            spec,
            body.secret or "",
            http_allowed=ctx.token_exchange.private_issuers,
        )
    )


@router.get("/v2/auth-providers", responses=problem_responses())
def list_auth_providers(caller: CurrentCaller, ctx: CurrentContext) -> ProviderList:
    """List the providers of the environment."""
    records = ctx.runner.read(providers.list_providers, caller.by)
    return ProviderList(auth_providers=[_render_provider(record) for record in records])


@router.post(
    "/v2/auth-providers/test",
    responses=problem_responses(*_SETTING_ERRORS, errors.Overloaded, body=True),
)
def try_new_auth_provider(
    body: NewProviderTest, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderTested:
    """Test settings before saving them: fetch the keys, and check a token step by step."""
    spec = body.provider.spec_of(body.provider.kind)
    with ctx.runner.audit_refusals("try_new_auth_provider", caller.by):
        steps, identity = ctx.token_exchange.dry_run_unsaved(
            caller.by, spec, body.provider.secret or "", body.token
        )
    return _render_test(steps, identity)


@router.get(
    "/v2/auth-providers/{provider_id:id}", responses=problem_responses(errors.ProviderNotFound)
)
def get_auth_provider(provider_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> ProviderShape:
    """Get a provider; its secret is never returned."""
    return _render_provider(ctx.runner.read(providers.get, caller.by, provider_id))


@router.patch(
    "/v2/auth-providers/{provider_id:id}",
    responses=problem_responses(errors.ProviderNotFound, *_SETTING_ERRORS, body=True),
)
def change_auth_provider(
    provider_id: Id, body: ProviderChanges, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Change a provider's settings; existing grants stay valid."""
    settings = body.model_dump(exclude_none=True, exclude={"secret", "mapping", "limits"})
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    for name, part in (("mapping", body.mapping), ("limits", body.limits)):
        if part is not None:
            changes[name] = part.spec()
    return _render_provider(
        ctx.runner.write(
            providers.change,
            caller.by,
            provider_id,
            changes,
            body.secret,
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
    """Enable a disabled provider."""
    return _render_provider(
        ctx.runner.write(providers.enable, caller.by, provider_id, enabled=True)
    )


@router.post(
    "/v2/auth-providers/{provider_id:id}/disable",
    responses=problem_responses(errors.ProviderNotFound),
)
def disable_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> ProviderShape:
    """Disable a provider: its tokens are refused, but existing grants stay valid."""
    return _render_provider(
        ctx.runner.write(providers.enable, caller.by, provider_id, enabled=False)
    )


@router.delete(
    "/v2/auth-providers/{provider_id:id}", responses=problem_responses(errors.ProviderNotFound)
)
def delete_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext
) -> DeletedProviderShape:
    """Delete a provider; all its grants and their live sessions end."""
    _, confirmed = ctx.runner.write_confirmed(providers.remove, caller.by, provider_id)
    return DeletedProviderShape(id=provider_id, sessions=render_ended_sessions(confirmed.sessions))


@router.post(
    "/v2/auth-providers/{provider_id:id}/test",
    responses=problem_responses(errors.ProviderNotFound, errors.Overloaded, body=True),
)
def try_auth_provider(
    provider_id: Id, caller: CurrentCaller, ctx: CurrentContext, body: ProviderTest | None = None
) -> ProviderTested:
    """Test a saved provider: fetch its keys, and check a token step by step."""
    provider = ctx.runner.read(providers.trusted, caller.by, provider_id)
    token = body.token if body else ""
    return _render_test(
        *ctx.token_exchange.dry_run(caller.by, provider.spec, provider.secret, token, provider_id)
    )


@router.post(
    "/v2/auth-providers/{provider_id:id}/purge-keys",
    status_code=204,
    responses=problem_responses(errors.ProviderNotFound),
)
def purge_auth_provider_keys(provider_id: Id, caller: CurrentCaller, ctx: CurrentContext) -> None:
    """Discard a provider's cached keys and fetch them again, for example after a key was stolen."""
    ctx.runner.write(providers.purge_keys, caller.by, provider_id)


def _render_test(steps: list[Step], identity: tuple[Identity, str] | None) -> ProviderTested:
    identified = None
    if identity is not None:
        user, username = identity
        identified = IdentityShape(
            user_id=user.user_id,
            user_email=user.email,
            roles=list(user.roles),
            variables=dict(user.variables),
            username=username,
        )
    return ProviderTested(
        ok=not any(step.fault for step in steps),
        steps=[
            StepShape(step=step.name, ok=not step.fault, detail=step.fault or step.note)
            for step in steps
        ],
        identity=identified,
    )


def _render_provider(record: providers.ProviderRecord) -> ProviderShape:
    spec, rules = record.spec, token_rules(record.spec)
    limits, rate = spec.limits, spec.limits.rate
    return ProviderShape(
        id=record.id,
        kind=spec.kind,
        name=spec.name,
        environment=record.environment,
        enabled=record.enabled,
        issuer=rules.issuer,
        keys_url=rules.keys.url,
        algorithms=[name for name in (*ALGORITHMS, "HS256") if name in rules.algorithms],
        project_url=spec.project_url,
        legacy_secret=spec.legacy_secret,
        has_secret=record.has_secret,
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
        created_at=iso(record.created_at),
        created_by=record.created_by,
        updated_at=iso(record.updated_at),
    )
