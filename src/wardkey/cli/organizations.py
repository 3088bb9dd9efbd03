"""`wardkey org` and `wardkey setup-link`: what the operator does with organizations."""

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
    say_table,
    settings,
)
from wardkey.config import Config
from wardkey.db.engine import Transaction
from wardkey.deployment import open_existing
from wardkey.domain.principal import Principal, operator
from wardkey.domain.times import iso

# With one organization, a forward-auth URL need not name it.
SECOND = 2


@click.group(cls=Subgroup)
def org() -> None:
    """Create, list, suspend, resume and delete organizations."""


@org.command()
@click.argument("name")
@click.option("--owner", required=True, help="E-mail address of its owner.")
@click.option("--slug", default="", help="Short name in addresses; made from NAME if left out.")
@as_json
@settings(*STORAGE, "public_url")
def create(config: Config, name: str, owner: str, slug: str, *, as_json: bool) -> None:
    """Create an organization NAME with its owner.

    An owner who has no password yet gets a one-time link to set one.
    """

    def make(tx: Transaction, by: Principal) -> tuple[Organization, str]:
        made, _ = organizations.create(tx, by, name, owner, slug)
        _, password = people.password_hash_of(tx, owner)
        link = "" if password else people.create_setup_link(tx, by, owner)
        return made, link

    with open_existing(config) as runner:
        url = link_url(config)
        made, link = runner.write(make, operator())
        count = len(runner.read(organizations.list_all, operator()))
    address = f"{url}/setup/{link}" if link else ""
    text = f"Organization {made.name} ({made.slug}, {made.id}) is made."
    if address:
        text += f"\nSet-up link for {owner}, once, within 7 days:\n  {address}"
    print_output(
        _json(made) | {"owner": owner, "setup_link": address or None}, as_json=as_json, text=text
    )
    if count == SECOND:
        click.echo(
            "This is the second organization: from now on each proxy's forward-auth URL has to "
            "name one,\nas /v2/auth?organization=<id>, or organization=any to take keys of all.\n"
            "Proxies whose URL names none are refused (organization_required).",
            err=True,
        )


@org.command(name="list")
@as_json
@settings(*STORAGE)
def list_(config: Config, *, as_json: bool) -> None:
    """List the organizations of this deployment."""
    with open_existing(config) as runner:
        found = runner.read(organizations.list_all, operator())
    rows = [
        (item.slug, "suspended" if item.suspended_at else "active", item.id, item.name)
        for item in found
    ]
    say_table(
        [_json(item) for item in found],
        ("slug", "state", "id", "name"),
        rows,
        as_json=as_json,
        empty="No organization yet; `wardkey org create NAME --owner EMAIL` makes one.",
    )


@org.command()
@click.argument("organization")
@as_json
@settings(*STORAGE)
def suspend(config: Config, organization: str, *, as_json: bool) -> None:
    """Stop everything of ORGANIZATION (slug or id) at once, until it is resumed."""
    with open_existing(config) as runner:
        done = runner.write(organizations.suspend, operator(), organization)
    text = f"{done.name} is suspended: its keys are refused and its members kept out."
    print_output(_json(done), as_json=as_json, text=text)


@org.command()
@click.argument("organization")
@as_json
@settings(*STORAGE)
def resume(config: Config, organization: str, *, as_json: bool) -> None:
    """Let a suspended ORGANIZATION (slug or id) go on."""
    with open_existing(config) as runner:
        done = runner.write(organizations.resume, operator(), organization)
    print_output(_json(done), as_json=as_json, text=f"{done.name} goes on.")


@org.command()
@click.argument("organization")
@click.option("--yes", is_flag=True, help="Do not ask for the slug.")
@as_json
@settings(*STORAGE)
def delete(config: Config, organization: str, *, yes: bool, as_json: bool) -> None:
    """Delete ORGANIZATION (slug or id) for good: its keys are revoked, its audit is kept."""
    with open_existing(config) as runner:
        found = runner.read(organizations.find, operator(), organization)
        if not yes:
            confirm(f"Type {found.slug} to delete {found.name}", found.slug)
        done = runner.write(organizations.delete, operator(), found.id)
    print_output(
        _json(done), as_json=as_json, text=f"{done.name} is deleted and its keys are revoked."
    )


@click.command()
@click.argument("email")
@as_json
@settings(*STORAGE, "public_url")
def setup_link(config: Config, email: str, *, as_json: bool) -> None:
    """Make a one-time link, valid 7 days, with which EMAIL sets a new password.

    Earlier links of the same person end.
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
