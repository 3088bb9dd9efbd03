"""Hook tokens, which authenticate your own brokers when they check logins and topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select

from wardkey.actions.accounts import organizations
from wardkey.actions.core.audit import Target, record
from wardkey.actions.operations.operator_tokens import list_tokens, revoke_token
from wardkey.db.engine import Transaction
from wardkey.db.schema import hook_tokens
from wardkey.domain.errors import HookTokenNotFound, InvalidHook, InvalidHookToken
from wardkey.domain.hooks import Hook, HookKind
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment, Malformed, SecretKind, SecretText, generate, parse


@dataclass(frozen=True, slots=True)
class HookToken:
    """A hook token without its text; times in epoch milliseconds."""

    kid: str
    hook: Hook
    prefix: str
    created_at: int
    revoked_at: int | None


def create(
    tx: Transaction,
    by: Principal,
    kind: HookKind,
    organization: str | None,
    environment: Environment | None,
) -> tuple[HookToken, SecretText]:
    """Create a token for one kind of broker; only the result contains its text.

    Raises `InvalidHook`, `OrganizationNotFound`.
    """
    by.require_operator()
    if (organization is None) is not (environment is None):
        raise InvalidHook
    org_id = None if organization is None else organizations.find(tx, by, organization).id
    if org_id is None and not kind.isolates_tenants:
        raise InvalidHook(
            f"A {kind} broker can't isolate organizations, so its hook belongs to one "
            "organization's environment; send both."
        )
    secret = generate(SecretKind.HOOK, None, brand=tx.brand)
    tx.connection.execute(
        insert(hook_tokens).values(
            kid=secret.kid,
            kind=kind,
            org_id=org_id,
            environment=environment,
            prefix=secret.prefix,
            digest=tx.vault.digest(secret.text),
            pepper_version=tx.vault.version,
            created_at=tx.now,
        )
    )
    details = {"kind": kind, "organization": org_id or "", "environment": environment or ""}
    record(tx, by, "hook_token.created", Target("hook_token", secret.kid), details)
    hook = Hook(kind, org_id, environment)
    return HookToken(secret.kid, hook, secret.prefix, tx.now, None), secret


def list_all(tx: Transaction, by: Principal) -> list[HookToken]:
    """Return every hook token, oldest first."""
    return [_hook_token(row) for row in list_tokens(tx, by, hook_tokens)]


def revoke(tx: Transaction, by: Principal, kid: str) -> HookToken:
    """Revoke a hook token; a second call changes nothing. Raises `HookTokenNotFound`."""
    row = revoke_token(tx, by, hook_tokens, "hook_token", kid)
    if row is None:
        raise HookTokenNotFound
    return _hook_token(row)


def identify_hook(tx: Transaction, kind: HookKind, text: str) -> Hook:
    """Return the hook that a token belongs to; raises `InvalidHookToken`."""
    secret = parse(text, brand=tx.brand)
    if isinstance(secret, Malformed) or secret.kind is not SecretKind.HOOK:
        raise InvalidHookToken
    row = tx.connection.execute(
        select(hook_tokens).where(
            hook_tokens.c.kid == secret.kid,
            hook_tokens.c.kind == kind,
            hook_tokens.c.revoked_at.is_(None),
        )
    ).one_or_none()
    if row is None or row.pepper_version not in tx.vault.peppers:
        raise InvalidHookToken
    if not tx.vault.matches(text, bytes(row.digest), row.pepper_version):
        raise InvalidHookToken
    return _hook_token(row).hook


def _hook_token(row: Row[Any]) -> HookToken:
    environment = None if row.environment is None else Environment(row.environment)
    hook = Hook(HookKind(row.kind), row.org_id, environment)
    return HookToken(row.kid, hook, row.prefix, row.created_at, row.revoked_at)
