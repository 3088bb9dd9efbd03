"""Actions on service keys, the operator's keys that can only verify keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert

from wardkey.actions.accounts.organizations import validate_name
from wardkey.actions.core.audit import Target, record
from wardkey.actions.operations.operator_tokens import list_tokens, revoke_token
from wardkey.db.engine import Transaction
from wardkey.db.schema import service_keys
from wardkey.domain.errors import InvalidAddress, ServiceKeyNotFound
from wardkey.domain.keys import clean_addresses
from wardkey.domain.principal import Principal
from wardkey.domain.secret import SecretKind, SecretText, generate


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service key without its text; times in epoch milliseconds."""

    kid: str
    name: str
    prefix: str
    allowed_addresses: tuple[str, ...]
    created_at: int
    revoked_at: int | None


def create(
    tx: Transaction, by: Principal, name: str, allowed_addresses: tuple[str, ...]
) -> tuple[ServiceKey, SecretText]:
    """Create a service key bound to addresses; only the result contains its text.

    Raises `InvalidName`, `InvalidAddress`.
    """
    by.require_operator()
    name = validate_name(name)
    addresses = clean_addresses(allowed_addresses)
    if not addresses:
        raise InvalidAddress(
            "A service key needs at least one allowed address or network; add one."
        )
    secret = generate(SecretKind.SERVICE, None, brand=tx.brand)
    tx.connection.execute(
        insert(service_keys).values(
            kid=secret.kid,
            name=name,
            prefix=secret.prefix,
            digest=tx.vault.digest(secret.text),
            pepper_version=tx.vault.version,
            allowed_addresses=list(addresses),
            created_at=tx.now,
        )
    )
    details = {"name": name, "allowed_addresses": addresses}
    record(tx, by, "service_key.created", Target("service_key", secret.kid), details)
    return ServiceKey(secret.kid, name, secret.prefix, addresses, tx.now, None), secret


def list_all(tx: Transaction, by: Principal) -> list[ServiceKey]:
    """Return every service key, oldest first."""
    return [_service_key(row) for row in list_tokens(tx, by, service_keys)]


def revoke(tx: Transaction, by: Principal, kid: str) -> ServiceKey:
    """Revoke a service key; a second call changes nothing. Raises `ServiceKeyNotFound`."""
    row = revoke_token(tx, by, service_keys, "service_key", kid)
    if row is None:
        raise ServiceKeyNotFound
    return _service_key(row)


def _service_key(row: Row[Any]) -> ServiceKey:
    return ServiceKey(
        row.kid,
        row.name,
        row.prefix,
        tuple(row.allowed_addresses),
        row.created_at,
        row.revoked_at,
    )
