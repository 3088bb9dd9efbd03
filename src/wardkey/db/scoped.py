"""SQL conditions that limit a statement to one tenant scope."""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, bindparam

from wardkey.domain.tenants import TenantScope


def in_scope(table: FromClause, scope: TenantScope) -> ColumnElement[bool]:
    """Return the condition that rows of `table` belong to `scope`."""
    return (table.c.org_id == scope.org_id) & (table.c.environment == scope.environment)


def in_bound_scope(table: FromClause) -> ColumnElement[bool]:
    """Return the condition with bound parameters, for statements built once; see `bind_scope`."""
    return (table.c.org_id == bindparam("of_org")) & (
        table.c.environment == bindparam("of_environment")
    )


def bind_scope(scope: TenantScope) -> dict[str, str]:
    """Return the parameters of `in_bound_scope`."""
    return {"of_org": scope.org_id, "of_environment": scope.environment}
