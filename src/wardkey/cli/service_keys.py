"""`wardkey service-key`: keys that can only verify keys, of any organization."""

from __future__ import annotations

from typing import Any

import click

from wardkey.actions.operations import service_keys
from wardkey.actions.operations.service_keys import ServiceKey
from wardkey.cli.terminal import STORAGE, Subgroup, as_json, print_output, print_table, settings
from wardkey.config import Config
from wardkey.deployment import open_existing
from wardkey.domain.principal import operator
from wardkey.domain.times import iso


@click.group(cls=Subgroup)
def service_key() -> None:
    """Create, list and revoke keys that can only verify other keys."""


@service_key.command()
@click.argument("name")
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    required=True,
    help="Address or network (CIDR) from which the key can be used; repeatable.",
)
@as_json
@settings(*STORAGE)
def create(config: Config, name: str, allowed: tuple[str, ...], *, as_json: bool) -> None:
    """Create a service key NAME; its text is printed only once."""
    with open_existing(config) as runner:
        key, secret = runner.write(service_keys.create, operator(), name, allowed)
    click.echo(
        "Shown only once; store it where only the service that uses it can read it.", err=True
    )
    print_output(_json(key) | {"secret": secret.text}, as_json=as_json, text=secret.text)


@service_key.command(name="list")
@as_json
@settings(*STORAGE)
def list_(config: Config, *, as_json: bool) -> None:
    """List the service keys of this deployment."""
    with open_existing(config) as runner:
        keys = runner.read(service_keys.list_all, operator())
    rows = [
        (
            item.kid,
            "revoked" if item.revoked_at else "active",
            item.name,
            ", ".join(item.allowed_addresses),
        )
        for item in keys
    ]
    print_table(
        [_json(item) for item in keys],
        ("kid", "state", "name", "addresses"),
        rows,
        as_json=as_json,
        empty="No service keys yet; create one: `wardkey service-key create NAME --allow CIDR`.",
    )


@service_key.command()
@click.argument("kid")
@as_json
@settings(*STORAGE)
def revoke(config: Config, kid: str, *, as_json: bool) -> None:
    """Revoke the service key KID permanently."""
    with open_existing(config) as runner:
        key = runner.write(service_keys.revoke, operator(), kid)
    print_output(_json(key), as_json=as_json, text=f"Service key {key.name} ({key.kid}) revoked.")


def _json(item: ServiceKey) -> dict[str, Any]:
    return {
        "kid": item.kid,
        "name": item.name,
        "prefix": item.prefix,
        "allowed_addresses": list(item.allowed_addresses),
        "created_at": iso(item.created_at),
        "revoked_at": None if item.revoked_at is None else iso(item.revoked_at),
    }
