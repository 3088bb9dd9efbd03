"""`wardkey org` and `wardkey setup-link`: manage organizations and create set-up links."""

from __future__ import annotations

from typing import Any

import click

from wardkey.actions.accounts import organizations, people
from wardkey.actions.accounts.organizations import Organization
from wardkey.cli.address import link_url
from wardkey.cli.terminal import (
    STORAGE,
    Subgroup,
    as_json,
    confirm,
    print_output,
    print_table,
    settings,
)
from wardkey.config import Config
from wardkey.db.engine import Transaction
from wardkey.deployment import open_existing
from wardkey.domain.principal import Principal, operator
from wardkey.domain.times import iso

# From the second organization on, forward-auth URLs must name one.
SECOND = 2


@click.group(cls=Subgroup)
def org() -> None:
    """Create, list, suspend, resume and delete organizations."""


@org.command()
@click.argument("name")
@click.option("--owner", required=True, help="The owner's e-mail address.")
@click.option("--slug", default="", help="Short name used in URLs; derived from NAME if omitted.")
@as_json
@settings(*STORAGE, "public_url")
def create(config: Config, name: str, owner: str, slug: str, *, as_json: bool) -> None:
    """Create an organization NAME with its owner.

    An owner who has no password yet gets a one-time link to set one.
    """

    def make(tx: Transaction, by: Principal) -> tuple[Organization, str]:
        organization, _ = organizations.create(tx, by, name, owner, slug)
        _, password = people.password_hash_of(tx, owner)
        link = "" if password else people.create_setup_link(tx, by, owner)
        return organization, link

    with open_existing(config) as runner:
        url = link_url(config)
        organization, link = runner.write(make, operator())
        count = len(runner.read(organizations.list_all, operator()))
    address = f"{url}/setup/{link}" if link else ""
    text = f"Organization {organization.name} ({organization.slug}, {organization.id}) created."
    if address:
        text += f"\nOne-time set-up link for {owner}, valid for 7 days:\n  {address}"
    print_output(
        _json(organization) | {"owner": owner, "setup_link": address or None},
        as_json=as_json,
        text=text,
    )
    if count == SECOND:
        click.echo(
            "This is the second organization: from now on each proxy's forward-auth URL must name "
            "one,\nas /v2/auth?organization=<id>, or organization=any to accept keys of all.\n"
            "Requests whose URL names none are rejected (organization_required).",
            err=True,
        )


@org.command(name="list")
@as_json
@settings(*STORAGE)
def list_(config: Config, *, as_json: bool) -> None:
    """List the organizations of this deployment."""
    with open_existing(config) as runner:
        items = runner.read(organizations.list_all, operator())
    rows = [
        (item.slug, "suspended" if item.suspended_at else "active", item.id, item.name)
        for item in items
    ]
    print_table(
        [_json(item) for item in items],
        ("slug", "state", "id", "name"),
        rows,
        as_json=as_json,
        empty="No organizations yet; create one with `wardkey org create NAME --owner EMAIL`.",
    )


@org.command()
@click.argument("organization")
@as_json
@settings(*STORAGE)
def suspend(config: Config, organization: str, *, as_json: bool) -> None:
    """Suspend ORGANIZATION (slug or id) at once: its keys and members are refused until resumed."""
    with open_existing(config) as runner:
        suspended = runner.write(organizations.suspend, operator(), organization)
    text = f"{suspended.name} suspended. Its keys are rejected and its members can't access it."
    print_output(_json(suspended), as_json=as_json, text=text)


@org.command()
@click.argument("organization")
@as_json
@settings(*STORAGE)
def resume(config: Config, organization: str, *, as_json: bool) -> None:
    """Resume a suspended ORGANIZATION (slug or id)."""
    with open_existing(config) as runner:
        resumed = runner.write(organizations.resume, operator(), organization)
    print_output(_json(resumed), as_json=as_json, text=f"{resumed.name} resumed.")


@org.command()
@click.argument("organization")
@click.option("--yes", is_flag=True, help="Don't ask to type the slug.")
@as_json
@settings(*STORAGE)
def delete(config: Config, organization: str, *, yes: bool, as_json: bool) -> None:
    """Delete ORGANIZATION (slug or id) permanently; its keys are revoked, its audit log is kept."""
    with open_existing(config) as runner:
        target = runner.read(organizations.find, operator(), organization)
        if not yes:
            confirm(f"Type {target.slug} to delete {target.name}", target.slug)
        deleted = runner.write(organizations.delete, operator(), target.id)
    print_output(
        _json(deleted), as_json=as_json, text=f"{deleted.name} deleted. Its keys are revoked."
    )


@click.command()
@click.argument("email")
@as_json
@settings(*STORAGE, "public_url")
def setup_link(config: Config, email: str, *, as_json: bool) -> None:
    """Create a one-time link, valid for 7 days, with which EMAIL sets a new password.

    It replaces earlier links for the same person.
    """
    with open_existing(config) as runner:
        url = link_url(config)
        link = runner.write(people.create_setup_link, operator(), email)
    address = f"{url}/setup/{link}"
    print_output({"email": email, "setup_link": address}, as_json=as_json, text=address)


def _json(item: Organization) -> dict[str, Any]:
    return {
        "id": item.id,
        "slug": item.slug,
        "name": item.name,
        "created_at": iso(item.created_at),
        "suspended": item.suspended_at is not None,
        "deleted": item.deleted_at is not None,
    }
