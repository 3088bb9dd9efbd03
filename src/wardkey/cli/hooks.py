"""`wardkey hook`: tokens with which a broker of one's own asks about logins and topics."""

from __future__ import annotations

from typing import Any

import click

from wardkey.actions.operations import hook_tokens
from wardkey.actions.operations.hook_tokens import HookToken
from wardkey.cli.terminal import STORAGE, Subgroup, as_json, print_output, say_table, settings
from wardkey.config import Config
from wardkey.deployment import open_existing
from wardkey.domain.hooks import HookKind
from wardkey.domain.principal import operator
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso


@click.group(cls=Subgroup)
def hook() -> None:
    """Create, list and revoke tokens for brokers of your own."""


@hook.command()
@click.argument("kind", type=click.Choice([kind.value for kind in HookKind]))
@click.option("--organization", help="Slug or id of the one organization that it is for.")
@click.option(
    "--environment",
    type=click.Choice([environment.value for environment in Environment]),
    help="Which of the organization's environments.",
)
@as_json
@settings(*STORAGE)
def create(
    config: Config, kind: str, organization: str | None, environment: str | None, *, as_json: bool
) -> None:
    """Create a token for a broker of a KIND; its text is printed this once.

    Without an organization it serves all of them, which mosquitto cannot keep apart.
    """
    wanted = None if environment is None else Environment(environment)
    with open_existing(config) as runner:
        made, secret = runner.write(
            hook_tokens.create, operator(), HookKind(kind), organization, wanted
        )
    click.echo("Shown this once; store it where only your broker reads it.", err=True)
    print_output(_json(made) | {"secret": secret.text}, as_json=as_json, text=secret.text)


@hook.command(name="list")
@as_json
@settings(*STORAGE)
def list_(config: Config, *, as_json: bool) -> None:
    """List the hook tokens of this deployment."""
    with open_existing(config) as runner:
        found = runner.read(hook_tokens.list_all, operator())
    rows = [
        (item.kid, "revoked" if item.revoked_at else "active", item.hook.kind, _scope_text(item))
        for item in found
    ]
    say_table(
        [_json(item) for item in found],
        ("kid", "state", "kind", "organizations"),
        rows,
        as_json=as_json,
        empty="No hook token yet; `wardkey hook create KIND` makes one.",
    )


@hook.command()
@click.argument("kid")
@as_json
@settings(*STORAGE)
def revoke(config: Config, kid: str, *, as_json: bool) -> None:
    """Revoke the hook token KID for good."""
    with open_existing(config) as runner:
        done = runner.write(hook_tokens.revoke, operator(), kid)
    print_output(_json(done), as_json=as_json, text=f"{done.kid} ({done.hook.kind}) is revoked.")


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
