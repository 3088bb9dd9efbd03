"""Messaging > Auth providers: whose tokens may be exchanged, and the test of one."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from fastapi import Request, Response

from wardkey.actions.core import audit
from wardkey.actions.grants import providers
from wardkey.adapters.tokens import LONGEST_TOKEN
from wardkey.dashboard.pages.keys.key_form import PERIODS
from wardkey.dashboard.pages.messaging.provider_form import (
    FORM_FIELDS,
    fault_at,
    read_kind,
    read_provider,
    values_of,
)
from wardkey.dashboard.shell.auth import Fields, MemberContext, VerifiedForm, Visiting
from wardkey.dashboard.shell.rendering import fault_of, page_router, render, see_other
from wardkey.dashboard.shell.session_notices import ended_sessions, receipt_query
from wardkey.db.engine import Transaction
from wardkey.domain.errors import Conflict, Invalid, InvalidRequest, Overloaded, WardkeyError
from wardkey.domain.identity import Identity, Step
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.providers import (
    ALGORITHMS,
    FIELDS,
    AudienceClaim,
    ProviderKind,
    ProviderSpec,
    token_rules,
)
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
PATH = "messaging/providers"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"
_ONE = f"{_ROUTE}/{{provider_id}}"

_DIALOGS = frozenset({"edit", "delete"})
_EVENTS = 10


@dataclass(frozen=True, slots=True)
class Tested:
    """What the test found: each step up to the first that failed, and whom the token is for."""

    steps: list[Step]
    user_id: str = ""
    username: str = ""

    @classmethod
    def of(cls, steps: list[Step], found: tuple[Identity, str] | None) -> Tested:
        """Return what `Exchanges` tell of a test."""
        return cls(steps) if found is None else cls(steps, found[0].user_id, found[1])

    @property
    def of_token(self) -> bool:
        """Tell whether a token was looked at, and not the keys alone."""
        return bool(self.steps) and self.steps[-1].name != "keys"

    @property
    def ok(self) -> bool:
        """Tell whether no step failed."""
        return not any(step.fault for step in self.steps)


@dataclass(frozen=True, slots=True)
class FormResult:
    """What an action left to show on the provider's page."""

    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None
    tested: Tested | None = None


@router.get(_ROUTE)
def list_providers(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the providers of the environment."""
    wanted = request.query_params.get("dialog", "")
    return _list(request, current, ctx, FormResult(wanted if wanted == "create" else ""))


@router.post(_ROUTE)
def create_provider(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Trust a provider."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        spec = read_provider(fields, read_kind(fields))
        made = ctx.runner.write(
            providers.create,
            current.by,
            spec,
            _secret(fields, spec),
            http_allowed=ctx.exchanges.private_issuers,
        )
    except (Invalid, Conflict) as failure:
        return _list(request, current, ctx, FormResult("create", failure, fields))
    return see_other(current.url(f"{PATH}/{made.id}"), done="provider-created")


@router.get(f"{_ROUTE}/test")
def back_to_providers(current: Visiting) -> Response:
    """Go to the list from the address of a form that was tested."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/test")
def try_new_provider(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Test the settings in the form for a new provider; they stay in it, unsaved."""
    try:
        with ctx.runner.audit_refusals("try_new_provider", current.by):
            current.by.require(Permission.PROVIDERS_WRITE)
            spec = read_provider(fields, read_kind(fields))
            found = ctx.exchanges.dry_run_unsaved(
                current.by, spec, _secret(fields, spec), _token(fields)
            )
    except (Invalid, Overloaded) as failure:
        return _list(request, current, ctx, FormResult("create", failure, fields))
    return _list(request, current, ctx, FormResult("create", sent=fields, tested=Tested.of(*found)))


@router.get(_ONE)
def show_provider(
    provider_id: str, request: Request, current: Visiting, ctx: CurrentContext
) -> Response:
    """Show a provider; `?dialog=` opens one of its dialogs."""
    wanted = request.query_params.get("dialog", "")
    may = current.by.holds(Permission.PROVIDERS_WRITE)
    dialog = wanted if wanted in _DIALOGS and may else ""
    return _page(request, current, ctx, provider_id, FormResult(dialog))


@router.get(f"{_ONE}/{{verb}}")
def back_to_provider(provider_id: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Go to the provider's page from the address of an action that was sent before."""
    return see_other(current.url(f"{PATH}/{provider_id}"))


@router.post(f"{_ONE}/edit")
def edit_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change a provider's settings; an empty secret stays what it is."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        kind = ctx.runner.read(providers.get, current.by, provider_id).spec.kind
        spec = read_provider(fields, kind)
        # Not as a dict of plain values: what is nested stays a record.
        wanted = {one.name: getattr(spec, one.name) for one in dataclass_fields(spec)}
        del wanted["kind"]
        ctx.runner.write(
            providers.change,
            current.by,
            provider_id,
            wanted,
            _secret(fields, spec) or None,
            http_allowed=ctx.exchanges.private_issuers,
        )
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, provider_id, FormResult("edit", failure, fields))
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-changed")


@router.post(f"{_ONE}/enable")
def enable_provider(
    provider_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Exchange the provider's tokens again."""
    ctx.runner.write(providers.enable, current.by, provider_id, enabled=True)
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-enabled")


@router.post(f"{_ONE}/disable")
def disable_provider(
    provider_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Exchange no more of the provider's tokens."""
    ctx.runner.write(providers.enable, current.by, provider_id, enabled=False)
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-disabled")


@router.post(f"{_ONE}/delete")
def delete_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete the provider, whose name was typed, and end its grants."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        name = ctx.runner.read(providers.get, current.by, provider_id).spec.name
        if fields.text("confirmation").strip() != name:
            told = "Type the provider's name as it stands there."
            raise InvalidRequest(told, errors=(("confirmation", told),))
        _, confirmed = ctx.runner.write_confirmed(providers.remove, current.by, provider_id)
    except Invalid as failure:
        return _page(request, current, ctx, provider_id, FormResult("delete", failure, fields))
    return see_other(current.url(PATH), done="provider-deleted", **receipt_query(confirmed))


@router.post(f"{_ONE}/test")
def try_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Fetch the provider's keys, and check a token of its step by step."""
    trusted = ctx.runner.read(providers.trusted, current.by, provider_id)
    try:
        token = _token(fields)
    except Invalid as failure:
        return _page(request, current, ctx, provider_id, FormResult(failure=failure))
    found = ctx.exchanges.dry_run(current.by, trusted.spec, trusted.secret, token, provider_id)
    return _page(request, current, ctx, provider_id, FormResult(tested=Tested.of(*found)))


@router.post(f"{_ONE}/test-changes")
def try_changes(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Test the settings in the form of a provider; they stay in it, unsaved."""
    trusted = ctx.runner.read(providers.trusted, current.by, provider_id)
    try:
        spec = read_provider(fields, trusted.spec.kind)
        found = ctx.exchanges.dry_run_unsaved(
            current.by, spec, _secret(fields, spec), _token(fields), trusted
        )
    except (Invalid, Overloaded) as failure:
        return _page(request, current, ctx, provider_id, FormResult("edit", failure, fields))
    outcome = FormResult("edit", sent=fields, tested=Tested.of(*found))
    return _page(request, current, ctx, provider_id, outcome)


def _secret(fields: Fields, spec: ProviderSpec) -> str:
    """Return the shared secret, whose field is out of sight where none is wanted."""
    return fields.text("secret") if spec.legacy_secret else ""


def _token(fields: Fields) -> str:
    token = fields.text("token").strip()
    if len(token) > LONGEST_TOKEN:
        told = f"A token has at most {LONGEST_TOKEN:,} characters."
        raise InvalidRequest(told, errors=(("token", told),))
    return token


def _list(
    request: Request, current: MemberContext, ctx: AppContext, outcome: FormResult
) -> Response:
    found = ctx.runner.read(providers.list_providers, current.by)
    failure, sent = outcome.failure, outcome.sent
    return render(
        request,
        "providers/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        rows=[(one, token_rules(one.spec).issuer) for one in found],
        url=current.url(PATH),
        ended=ended_sessions(request, current, ctx),
        why_not=current.why_not(Permission.PROVIDERS_WRITE),
        open_dialog=outcome.dialog == "create",
        tested=outcome.tested,
        fault=fault_at(failure) if failure else None,
        values=sent.texts_by_name() if sent else values_of(ProviderSpec(ProviderKind.SUPABASE)),
        **_form(),
    )


def _page(
    request: Request, current: MemberContext, ctx: AppContext, provider_id: str, outcome: FormResult
) -> Response:
    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        events = []
        if by.holds(Permission.AUDIT_READ):
            query = audit.AuditQuery(target_id=provider_id, limit=_EVENTS)
            events = audit.list_events(tx, by, query)
        return {"provider": providers.get(tx, by, provider_id), "events": events}

    seen = ctx.runner.read(look, current.by)
    spec: ProviderSpec = seen["provider"].spec
    failure = outcome.failure
    fault = None
    if failure is not None:
        fault = fault_at(failure) if outcome.dialog == "edit" else fault_of(failure)
    return render(
        request,
        "providers/provider.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        **seen,
        spec=spec,
        rules=token_rules(spec),
        url=current.url(f"{PATH}/{provider_id}"),
        list_url=current.url(PATH),
        grants_url=current.url("messaging/grants"),
        now=ctx.runner.database.clock(),
        why_not=current.why_not(Permission.PROVIDERS_WRITE),
        dialog=outcome.dialog,
        fault=fault,
        tested=outcome.tested,
        values=outcome.sent.texts_by_name()
        if outcome.sent and outcome.dialog == "edit"
        else values_of(spec),
        **_form(),
    )


def _form() -> dict[str, Any]:
    return {
        "kinds": ProviderKind,
        "audience_claims": AudienceClaim,
        "kind_fields": FIELDS,
        "form_fields": FORM_FIELDS,
        "algorithms": ALGORITHMS,
        "periods": PERIODS,
    }
