"""The page of one key: its secrets, their callers, and its actions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from wardkey.actions.core import audit
from wardkey.actions.keys import insights, keys, revocations, rotations, scopes, usage
from wardkey.actions.keys.keys import Issued
from wardkey.actions.keys.revocations import Receipt
from wardkey.actions.keys.rotations import SecretCallers
from wardkey.dashboard.pages.keys.key_form import (
    PERIODS,
    UNLISTED,
    permission_rows,
    read_changes,
    read_new_scopes,
)
from wardkey.dashboard.pages.keys.snippets import snippets
from wardkey.dashboard.shell import charts, strings
from wardkey.dashboard.shell.auth import (
    NOTHING_SENT,
    Fields,
    MemberContext,
    VerifiedForm,
    Visiting,
    require_recent_sign_in,
)
from wardkey.dashboard.shell.navigation import SCOPES, SETTINGS
from wardkey.dashboard.shell.once import write_once
from wardkey.dashboard.shell.rendering import distance, fault_of, page_router, render, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.callers import CallerRecord
from wardkey.domain.errors import (
    Conflict,
    FormSentBefore,
    Invalid,
    StillInUse,
    WardkeyError,
)
from wardkey.domain.keys import EXPIRING_MS, KeyRecord, KeyStatus
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import Confirmation
from wardkey.domain.times import DAY_MS
from wardkey.verify.pending import merge_pending
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.problems import status_of

router = page_router()
PATH = "settings/api-keys"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}/{{key_id}}"

_DIALOGS = frozenset({"edit", "rotate", "finish", "revoke"})
_EVENTS = 15
# The limit is the catalogue's maximum, so key forms list every scope.
ALL_SCOPES = scopes.ScopeQuery(limit=scopes.MOST_SCOPES, counts_keys=False)


@dataclass(frozen=True, slots=True)
class Status:
    """A key's status as shown: a color, a label and the reason."""

    kind: str
    label: str
    more: str = ""

    @classmethod
    def of(cls, key: KeyRecord, now: int) -> Status:
        """Return the most important status."""
        status = key.status(now)
        if status is KeyStatus.REVOKED:
            reason = str(key.revoke_reason)
            labels = {str(name): text for name, text in strings.REASONS.items()}
            return cls("bad", "Revoked", labels.get(reason, reason))
        if status is KeyStatus.EXPIRED:
            return cls("bad", "Expired", distance(key.expires_at or now, now))
        if status is KeyStatus.DISABLED:
            return cls("off", "Disabled", distance(key.disabled_at or now, now))
        if key.expires_at is not None and key.expires_at <= now + EXPIRING_MS:
            return cls("warn", "Expiring", distance(key.expires_at, now))
        if key.rotation_due(now):
            return cls("warn", "Rotate soon", f"{(now - key.rotated_at) // DAY_MS} days old")
        live = sum(secret.live(now) for secret in key.secrets)
        return cls("", "Active", f"{live} live secrets" if live > 1 else "")


@dataclass(frozen=True, slots=True)
class Use:
    """Usage of a key's live secrets in the last 24 hours."""

    requests: int
    callers: int
    last_at: int | None

    @classmethod
    def of(cls, usage: Sequence[SecretCallers], now: int) -> Use:
        """Add up the usage of the live secrets."""
        live = [item for item in usage if item.secret.live(now)]
        recent = {
            (caller.address, caller.product, caller.route)
            for item in live
            for caller in item.callers
            if caller.last_at > now - DAY_MS
        }
        times = [caller.last_at for item in live for caller in item.callers]
        requests = sum(sum(hour.counts.values()) for item in live for hour in item.hours)
        return cls(requests, len(recent), max(times, default=None))


@dataclass(frozen=True, slots=True)
class Proof:
    """The receipts of a revocation, and its confirmation by the verifiers."""

    receipts: tuple[Receipt, ...]
    confirmed: Confirmation


@dataclass(frozen=True, slots=True)
class FormResult:
    """The result of an action for the key's page: a secret, a proof, or a failed form."""

    issued: Issued | None = None
    proof: Proof | None = None
    dialog: str = ""
    failure: WardkeyError | None = None
    sent: Fields | None = None


@router.get(_ROUTE)
def show_key(key_id: str, request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the key; `?dialog=` opens one of its dialogs."""
    dialog = request.query_params.get("dialog", "")
    if dialog not in _DIALOGS or not current.by.holds(Permission.KEYS_WRITE):
        dialog = ""
    return key_page(request, current, ctx, key_id, FormResult(dialog=dialog))


@router.get(f"{_ROUTE}/{{verb}}")
def back_to_key(key_id: str, verb: str, current: Visiting) -> Response:  # noqa: ARG001 - any
    """Redirect to the key's page from the URL of an action, for example after a reload."""
    return see_other(current.url(f"{PATH}/{key_id}"))


@router.post(f"{_ROUTE}/edit")
def edit_key(
    key_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Update the key from the form."""
    try:
        key = ctx.runner.read(keys.get, current.by, key_id)
        changes = read_changes(fields, key, ctx.runner.database.clock())
        ctx.runner.write(keys.change, current.by, key_id, changes, read_new_scopes(fields))
    except (Invalid, Conflict) as failure:
        result = FormResult(dialog="edit", failure=failure, sent=fields)
        return key_page(request, current, ctx, key_id, result)
    return see_other(current.url(f"{PATH}/{key_id}"), done="key-changed")


@router.post(f"{_ROUTE}/disable")
def disable_key(
    key_id: str, request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Disable the key until it is enabled again."""
    try:
        ctx.runner.write(keys.disable, current.by, key_id)
    except Conflict as failure:
        return key_page(request, current, ctx, key_id, FormResult(failure=failure))
    return see_other(current.url(f"{PATH}/{key_id}"), done="key-disabled")


@router.post(f"{_ROUTE}/enable")
def enable_key(
    key_id: str, request: Request, current: Visiting, _fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Enable the key again."""
    try:
        ctx.runner.write(keys.enable, current.by, key_id)
    except Conflict as failure:
        return key_page(request, current, ctx, key_id, FormResult(failure=failure))
    return see_other(current.url(f"{PATH}/{key_id}"), done="key-enabled")


@router.post(f"{_ROUTE}/rotate")
def rotate_key(
    key_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Add a secret and show it in this response only."""
    current.by.require(Permission.KEYS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        grace = fields.text("grace")

        def rotate(tx: Transaction, by: Principal) -> tuple[str, Issued]:
            return key_id, keys.rotate(tx, by, key_id, grace)

        issued, _ = write_once(ctx, current, fields, rotate)
    except FormSentBefore:
        return see_other(current.url(f"{PATH}/{key_id}"), done="sent-before")
    except (Invalid, Conflict) as failure:
        result = FormResult(dialog="rotate", failure=failure, sent=fields)
        return key_page(request, current, ctx, key_id, result)
    return key_page(request, current, ctx, key_id, FormResult(issued=issued))


@router.post(f"{_ROUTE}/finish")
def finish_rotation(
    key_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Revoke all live secrets except the newest, unless an old one is in use."""
    current.by.require(Permission.KEYS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    try:
        # Raises if pending uses can't be merged: an unmerged use may be of an old secret.
        merge_pending(ctx.runner.database)
        callers = ctx.runner.read(rotations.callers_to_finish, current.by, key_id)
        done, confirmed = ctx.runner.write_confirmed(rotations.finish, current.by, key_id, callers)
    except Conflict as failure:
        result = FormResult(dialog="finish", failure=failure)
        return key_page(request, current, ctx, key_id, result)
    proof = Proof(done.receipts, confirmed) if done.receipts else None
    return key_page(request, current, ctx, key_id, FormResult(proof=proof))


@router.post(f"{_ROUTE}/revoke")
def revoke_key(
    key_id: str, request: Request, current: Visiting, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Revoke the key, or with `kid` one of its secrets, and show the receipt."""
    current.by.require(Permission.KEYS_WRITE)
    require_recent_sign_in(ctx, current.person, fields)
    reason, comment, kid = fields.text("reason"), fields.text("comment"), fields.text("kid")
    try:
        if kid:
            receipt, confirmed = ctx.runner.write_confirmed(
                revocations.revoke_secret, current.by, key_id, kid, reason, comment
            )
        else:
            name = ctx.runner.read(keys.get, current.by, key_id).name
            fields.require_typed(name, "key's name")
            receipt, confirmed = ctx.runner.write_confirmed(
                revocations.revoke, current.by, key_id, reason, comment
            )
    except Invalid as failure:
        result = FormResult(dialog="revoke", failure=failure, sent=fields)
        return key_page(request, current, ctx, key_id, result)
    result = FormResult(proof=Proof((receipt,), confirmed))
    return key_page(request, current, ctx, key_id, result)


def key_page(
    request: Request, current: MemberContext, ctx: AppContext, key_id: str, result: FormResult
) -> Response:
    """Return the key's page with the result of an action."""
    now = ctx.runner.database.clock()
    ctx.usage.catch_up()

    def look(tx: Transaction, by: Principal) -> dict[str, Any]:
        key = keys.get(tx, by, key_id)
        events = []
        if by.holds(Permission.AUDIT_READ):
            query = audit.AuditQuery(target_id=key_id, limit=_EVENTS)
            events = audit.list_events(tx, by, query)
        return {
            "key": key,
            "used": rotations.list_callers(tx, by, key_id),
            "chart": charts.bars(usage.days_by_key(tx, by, [key_id])[key_id]),
            "creators": insights.creator_names(
                tx, by, [key.created_by, *(secret.created_by for secret in key.secrets)]
            ),
            "events": events,
            "catalogue": scopes.list_scopes(tx, by, ALL_SCOPES),
        }

    values = ctx.runner.read(look, current.by)
    key: KeyRecord = values["key"]
    failure, issued = result.failure, result.issued
    old = _old_kids(key, now)
    return render(
        request,
        "keys/key.html",
        status_of(type(failure)) if failure else 200,
        current=current,
        tabs=SETTINGS,
        **values,
        url=current.url(f"{PATH}/{key_id}"),
        list_url=current.url(PATH),
        scopes_url=current.url(SCOPES),
        now=now,
        status=Status.of(key, now),
        live=sum(secret.live(now) for secret in key.secrets),
        old=old,
        use=Use.of(values["used"], now),
        why_not=current.why_not(Permission.KEYS_WRITE),
        once=secrets.token_hex(16),
        dialog=result.dialog if _can_open(result.dialog, key, now) else "",
        proof=result.proof,
        fault=fault_of(failure) if failure else None,
        blocking=_blocking_callers(failure),
        sent=result.sent.texts_by_name() if result.sent else NOTHING_SENT,
        ticked=_ticked_permissions(key, result.sent),
        own_scopes=_uncatalogued_permissions(current, key, values["catalogue"]),
        rows=permission_rows(current.by, key.type),
        periods=PERIODS,
        issued=issued,
        snippets=snippets(ctx.public_url, issued.secret.text) if issued else (),
    )


def _old_kids(key: KeyRecord, now: int) -> frozenset[str]:
    """Return the kids that finishing a rotation would revoke."""
    live = [secret for secret in key.secrets if secret.live(now)]
    return frozenset(secret.kid for secret in live[1:] if key.revoked_at is None)


def _can_open(dialog: str, key: KeyRecord, now: int) -> bool:
    if dialog == "finish":
        return bool(_old_kids(key, now))
    return key.revoked_at is None


def _blocking_callers(failure: WardkeyError | None) -> tuple[CallerRecord, ...]:
    return failure.callers if isinstance(failure, StillInUse) else ()


def _ticked_permissions(key: KeyRecord, sent: Fields | None) -> frozenset[str]:
    if sent is not None:
        return frozenset(sent.texts("permissions"))
    return frozenset(f"{key.type}/{name}" for name in key.permissions)


def _uncatalogued_permissions(
    current: MemberContext, key: KeyRecord, catalogue: Sequence[scopes.Scope]
) -> str:
    """Return the key's permissions without a checkbox in the form."""
    known = {box.name for row in permission_rows(current.by, key.type) for box in row.boxes}
    known |= {scope.name for scope in catalogue} | UNLISTED
    return ", ".join(name for name in key.permissions if name not in known)
