"""`wardkey audit`: verify the chains, keep their ends elsewhere, export their events."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TextIO

import click

from wardkey.actions import audit as actions
from wardkey.actions import organizations
from wardkey.actions.audit import DEPLOYMENT, AuditQuery
from wardkey.actions.run import Runner
from wardkey.app import open_existing
from wardkey.cli.edge import STORAGE, as_json, say, settings
from wardkey.config import Config
from wardkey.domain.errors import AuditBroken
from wardkey.domain.principal import operator
from wardkey.domain.times import iso

_which = click.option(
    "--org", "organization", default="", help="Slug or id, or `deployment`; all if left out."
)


@click.group()
def audit() -> None:
    """Verify audit chains and export their ends."""


@audit.command()
@_which
@click.option(
    "--head", "head", type=click.File("r"), help="A head from `audit head`, to see a cut-off end."
)
@as_json
@settings(*STORAGE)
def verify(config: Config, organization: str, head: TextIO | None, *, as_json: bool) -> None:
    """Check every link; an edited, removed or reordered event is told, and exits with 6."""
    results = []
    with open_existing(config) as runner:
        for name, org_id in _chains(runner, organization):
            heads = [line for line in head if line.strip()] if head else []
            known = next((h.split()[1] for h in heads if h.split()[0] == org_id), "")
            if head:
                head.seek(0)
            count, breaks = runner.look(actions.verify_chain, operator(), org_id, known)
            results.append((name, org_id, count, breaks))
    lines = []
    for name, _, count, breaks in results:
        lines.append(f"{name}: {count} events, " + ("broken" if breaks else "every link holds"))
        lines += [f"  event {item.seq}: {item.what}" for item in breaks]
    shown = [
        {
            "name": name,
            "org_id": org_id,
            "events": count,
            "holds": not breaks,
            "breaks": [asdict(item) for item in breaks],
        }
        for name, org_id, count, breaks in results
    ]
    say(shown, as_json=as_json, text="\n".join(lines))
    if any(breaks for *_, breaks in results):
        raise AuditBroken


@audit.command()
@_which
@settings(*STORAGE)
def head(config: Config, organization: str) -> None:
    """Print the signed end of each chain, to be kept where nobody edits it."""
    with open_existing(config) as runner:
        for _, org_id in _chains(runner, organization):
            click.echo(f"{org_id} {runner.look(actions.export_head, operator(), org_id)}")


@audit.command()
@click.option("--org", "organization", required=True, help="Slug or id, or `deployment`.")
@settings(*STORAGE)
def export(config: Config, organization: str) -> None:
    """Print the events of one chain as NDJSON, oldest first."""
    with open_existing(config) as runner:
        ((_, org_id),) = _chains(runner, organization)
        by = replace(operator(), org_id=org_id)
        with runner.database.read() as tx:
            for event in actions.export_events(tx, by, AuditQuery()):
                line = json.dumps(asdict(event) | {"at": iso(event.at)}, ensure_ascii=False)
                sys.stdout.write(line + "\n")


def _chains(runner: Runner, organization: str) -> list[tuple[str, str]]:
    if organization == DEPLOYMENT:
        return [(DEPLOYMENT, DEPLOYMENT)]
    if organization:
        found = runner.look(organizations.find, operator(), organization)
        return [(found.slug, found.id)]
    everyone = runner.look(organizations.list_all, operator())
    return [(DEPLOYMENT, DEPLOYMENT), *((item.slug, item.id) for item in everyone)]
