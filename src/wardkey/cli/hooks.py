"""`wardkey hook`: tokens for your own brokers, which ask Wardkey about logins and topics."""

from __future__ import annotations

from typing import Any

import click

from wardkey.actions.operations import hook_tokens
from wardkey.actions.operations.hook_tokens import HookToken
from wardkey.cli.terminal import STORAGE, Subgroup, as_json, print_output, print_table, settings
from wardkey.config import Config
from wardkey.deployment import open_existing
from wardkey.domain.hooks import HookKind
from wardkey.domain.principal import operator
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso


@click.group(cls=Subgroup)
def hook() -> None:
    """Create, list and revoke tokens for your own brokers."""


@hook.command()
@click.argument("kind", type=click.Choice([kind.value for kind in HookKind]))
@click.option("--organization", help="Restrict the token to one organization (slug or id).")
@click.option(
    "--environment",
    type=click.Choice([environment.value for environment in Environment]),
    help="The organization's environment that the token is for.",
)
@as_json
@settings(*STORAGE)
def create(
    config: Config, kind: str, organization: str | None, environment: str | None, *, as_json: bool
) -> None:
    """Create a token for a broker of this KIND; its text is printed only once.

    Without --organization it is valid for all organizations, which mosquitto can't keep apart.
    """
    token_environment = None if environment is None else Environment(environment)
    with open_existing(config) as runner:
        token, secret = runner.write(
            hook_tokens.create, operator(), HookKind(kind), organization, token_environment
        )
    click.echo("Shown only once; store it where only your broker can read it.", err=True)
    print_output(_json(token) | {"secret": secret.text}, as_json=as_json, text=secret.text)


@hook.command(name="list")
@as_json
@settings(*STORAGE)
def list_(config: Config, *, as_json: bool) -> None:
    """List the hook tokens of this deployment."""
    with open_existing(config) as runner:
        tokens = runner.read(hook_tokens.list_all, operator())
    rows = [
        (item.kid, "revoked" if item.revoked_at else "active", item.hook.kind, _scope_text(item))
        for item in tokens
    ]
    print_table(
        [_json(item) for item in tokens],
        ("kid", "state", "kind", "organizations"),
        rows,
        as_json=as_json,
        empty="No hook tokens yet; create one with `wardkey hook create KIND`.",
    )


@hook.command()
@click.argument("kid")
@as_json
@settings(*STORAGE)
def revoke(config: Config, kid: str, *, as_json: bool) -> None:
    """Revoke the hook token KID permanently."""
    with open_existing(config) as runner:
        token = runner.write(hook_tokens.revoke, operator(), kid)
    print_output(
        _json(token), as_json=as_json, text=f"Hook token {token.kid} ({token.hook.kind}) revoked."
    )


def _scope_text(item: HookToken) -> str:
    if item.hook.org_id is None:
        return "all organizations"
    return f"{item.hook.org_id} {item.hook.environment}"


def _json(item: HookToken) -> dict[str, Any]:
    return {
        "kid": item.kid,
        "kind": item.hook.kind,
        "organization_id": item.hook.org_id,
        "environment": item.hook.environment,
        "prefix": item.prefix,
        "created_at": iso(item.created_at),
        "revoked_at": None if item.revoked_at is None else iso(item.revoked_at),
    }
