"""Messaging > Auth providers: the issuers whose tokens can be exchanged, and their test."""

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
_PROVIDER_ROUTE = f"{_ROUTE}/{{provider_id}}"

_DIALOGS = frozenset({"edit", "delete"})
_EVENTS = 10


@dataclass(frozen=True, slots=True)
class Tested:
    """The result of a test: the steps up to the first failure, and the token's user."""

    steps: list[Step]
    user_id: str = ""
    username: str = ""

    @classmethod
    def of(cls, steps: list[Step], login: tuple[Identity, str] | None) -> Tested:
        """Convert the result of `ctx.token_exchange.dry_run`."""
        return cls(steps) if login is None else cls(steps, login[0].user_id, login[1])

    @property
    def of_token(self) -> bool:
        """Return whether a token was checked, not only the keys."""
        return bool(self.steps) and self.steps[-1].name != "keys"

    @property
    def ok(self) -> bool:
        """Return whether all steps passed."""
        return not any(step.fault for step in self.steps)


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of an action, for the provider's page."""

    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None
    tested: Tested | None = None


@router.get(_ROUTE)
def list_providers(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """List the providers of the environment."""
    dialog = request.query_params.get("dialog", "")
    return _list(request, current, ctx, FormResult(dialog if dialog == "create" else ""))


@router.post(_ROUTE)
def create_provider(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Add a provider."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        spec = read_provider(fields, read_kind(fields))
        provider = ctx.runner.write(
            providers.create,
            current.by,
            spec,
            _secret(fields, spec),
            http_allowed=ctx.token_exchange.private_issuers,
        )
    except (Invalid, Conflict) as failure:
        return _list(request, current, ctx, FormResult("create", failure, fields))
    return see_other(current.url(f"{PATH}/{provider.id}"), done="provider-created")


@router.get(f"{_ROUTE}/test")
def back_to_providers(current: Visiting) -> Response:
    """Redirect to the list from the URL of a test, for example after a reload."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/test")
def try_new_provider(
    request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Test the settings in the form of a new provider without saving them."""
    try:
        with ctx.runner.audit_refusals("try_new_provider", current.by):
            current.by.require(Permission.PROVIDERS_WRITE)
            spec = read_provider(fields, read_kind(fields))
            tested = ctx.token_exchange.dry_run_unsaved(
                current.by, spec, _secret(fields, spec), _token(fields)
            )
    except (Invalid, Overloaded) as failure:
        return _list(request, current, ctx, FormResult("create", failure, fields))
    result = FormResult("create", sent=fields, tested=Tested.of(*tested))
    return _list(request, current, ctx, result)


@router.get(_PROVIDER_ROUTE)
def show_provider(
    provider_id: str, request: Request, current: Visiting, ctx: CurrentContext
) -> Response:
    """Show a provider; `?dialog=` opens one of its dialogs."""
    dialog = request.query_params.get("dialog", "")
    if dialog not in _DIALOGS or not current.by.holds(Permission.PROVIDERS_WRITE):
        dialog = ""
    return _page(request, current, ctx, provider_id, FormResult(dialog))


@router.get(f"{_PROVIDER_ROUTE}/{{verb}}")
def back_to_provider(provider_id: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Redirect to the provider's page from the URL of an action, for example after a reload."""
    return see_other(current.url(f"{PATH}/{provider_id}"))


@router.post(f"{_PROVIDER_ROUTE}/edit")
def edit_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Change a provider's settings; an empty secret keeps the current one."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        kind = ctx.runner.read(providers.get, current.by, provider_id).spec.kind
        spec = read_provider(fields, kind)
        # `asdict` would also convert the nested records.
        changes = {field.name: getattr(spec, field.name) for field in dataclass_fields(spec)}
        del changes["kind"]
        ctx.runner.write(
            providers.change,
            current.by,
            provider_id,
            changes,
            _secret(fields, spec) or None,
            http_allowed=ctx.token_exchange.private_issuers,
        )
    except (Invalid, Conflict) as failure:
        return _page(request, current, ctx, provider_id, FormResult("edit", failure, fields))
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-changed")


@router.post(f"{_PROVIDER_ROUTE}/enable")
def enable_provider(
    provider_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Enable the exchange of the provider's tokens."""
    ctx.runner.write(providers.enable, current.by, provider_id, enabled=True)
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-enabled")


@router.post(f"{_PROVIDER_ROUTE}/disable")
def disable_provider(
    provider_id: str, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Disable the exchange of the provider's tokens."""
    ctx.runner.write(providers.enable, current.by, provider_id, enabled=False)
    return see_other(current.url(f"{PATH}/{provider_id}"), done="provider-disabled")


@router.post(f"{_PROVIDER_ROUTE}/delete")
def delete_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Delete the provider and end its grants; the form must contain its name."""
    current.by.require(Permission.PROVIDERS_WRITE)
    try:
        name = ctx.runner.read(providers.get, current.by, provider_id).spec.name
        fields.require_typed(name, "provider's name")
        _, confirmed = ctx.runner.write_confirmed(providers.remove, current.by, provider_id)
    except Invalid as failure:
        return _page(request, current, ctx, provider_id, FormResult("delete", failure, fields))
    return see_other(current.url(PATH), done="provider-deleted", **receipt_query(confirmed))


@router.post(f"{_PROVIDER_ROUTE}/test")
def try_provider(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Fetch the provider's keys and check a token step by step."""
    trusted = ctx.runner.read(providers.trusted, current.by, provider_id)
    try:
        token = _token(fields)
    except Invalid as failure:
        return _page(request, current, ctx, provider_id, FormResult(failure=failure))
    tested = ctx.token_exchange.dry_run(
        current.by, trusted.spec, trusted.secret, token, provider_id
    )
    return _page(request, current, ctx, provider_id, FormResult(tested=Tested.of(*tested)))


@router.post(f"{_PROVIDER_ROUTE}/test-changes")
def try_changes(
    provider_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Test the settings in a provider's edit form without saving them."""
    trusted = ctx.runner.read(providers.trusted, current.by, provider_id)
    try:
        spec = read_provider(fields, trusted.spec.kind)
        tested = ctx.token_exchange.dry_run_unsaved(
            current.by, spec, _secret(fields, spec), _token(fields), trusted
        )
    except (Invalid, Overloaded) as failure:
        return _page(request, current, ctx, provider_id, FormResult("edit", failure, fields))
    result = FormResult("edit", sent=fields, tested=Tested.of(*tested))
    return _page(request, current, ctx, provider_id, result)


def _secret(fields: Fields, spec: ProviderSpec) -> str:
    """Return the shared secret, or "" for providers that don't use one."""
    return fields.text("secret") if spec.legacy_secret else ""


def _token(fields: Fields) -> str:
    token = fields.text("token").strip()
    if len(token) > LONGEST_TOKEN:
        message = f"A token can have at most {LONGEST_TOKEN:,} characters."
        raise InvalidRequest(message, errors=(("token", message),))
    return token


def _list(
    request: Request, current: MemberContext, ctx: AppContext, result: FormResult
) -> Response:
    records = ctx.runner.read(providers.list_providers, current.by)
    failure, sent = result.failure, result.sent
    return render(
        request,
        "providers/list.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        rows=[(provider, token_rules(provider.spec).issuer) for provider in records],
        url=current.url(PATH),
        ended=ended_sessions(request, current, ctx),
        why_not=current.why_not(Permission.PROVIDERS_WRITE),
        open_dialog=result.dialog == "create",
        tested=result.tested,
        fault=fault_at(failure) if failure else None,
        values=sent.texts_by_name() if sent else values_of(ProviderSpec(ProviderKind.SUPABASE)),
        **_form_options(),
    )


def _page(
    request: Request, current: MemberContext, ctx: AppContext, provider_id: str, result: FormResult
) -> Response:
    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        events = []
        if by.holds(Permission.AUDIT_READ):
            query = audit.AuditQuery(target_id=provider_id, limit=_EVENTS)
            events = audit.list_events(tx, by, query)
        return {"provider": providers.get(tx, by, provider_id), "events": events}

    values = ctx.runner.read(look, current.by)
    spec: ProviderSpec = values["provider"].spec
    failure = result.failure
    fault = None
    if failure is not None:
        fault = fault_at(failure) if result.dialog == "edit" else fault_of(failure)
    return render(
        request,
        "providers/provider.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        **values,
        spec=spec,
        rules=token_rules(spec),
        url=current.url(f"{PATH}/{provider_id}"),
        list_url=current.url(PATH),
        grants_url=current.url("messaging/grants"),
        now=ctx.runner.database.clock(),
        why_not=current.why_not(Permission.PROVIDERS_WRITE),
        dialog=result.dialog,
        fault=fault,
        tested=result.tested,
        values=result.sent.texts_by_name()
        if result.sent and result.dialog == "edit"
        else values_of(spec),
        **_form_options(),
    )


def _form_options() -> dict[str, Any]:
    return {
        "kinds": ProviderKind,
        "audience_claims": AudienceClaim,
        "kind_fields": FIELDS,
        "form_fields": FORM_FIELDS,
        "algorithms": ALGORITHMS,
        "periods": PERIODS,
    }
