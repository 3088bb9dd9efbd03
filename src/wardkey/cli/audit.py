"""`wardkey audit`: verify audit chains, print their signed heads, and export their events."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any, TextIO

import click

from wardkey.actions.core import audit as actions
from wardkey.actions.core import audit_walks
from wardkey.actions.core.audit import AuditQuery
from wardkey.actions.core.runner import Runner
from wardkey.cli.terminal import STORAGE, Subgroup, as_json, print_output, settings
from wardkey.config import Config
from wardkey.deployment import open_existing
from wardkey.domain.errors import AuditBroken, InvalidSetting, OrganizationNotFound
from wardkey.domain.principal import operator
from wardkey.domain.times import iso

_organization_option = click.option(
    "--org", "organization", default="", help="Slug or id, or `deployment`; all chains if omitted."
)


@click.group(cls=Subgroup)
def audit() -> None:
    """Verify and export audit chains, and print their signed heads."""


@audit.command()
@_organization_option
@click.option(
    "--head",
    "head",
    type=click.File("r"),
    help="Output of `audit head`, to detect truncated chains.",
)
@as_json
@settings(*STORAGE)
def verify(config: Config, organization: str, head: TextIO | None, *, as_json: bool) -> None:
    """Check every link of the audit chains.

    Edited, removed and reordered events are listed; the command then exits with 6.
    """
    heads = _heads(head) if head else {}
    with open_existing(config) as runner:
        chains = _chains(runner, organization)
        if organization and head and chains[0][1] not in heads:
            raise InvalidSetting(f"{head.name} has no head of {organization}.", field="head")
        if not organization:
            # A chain that was deleted with its organization is known only by its head.
            stored = {org_id for _, org_id in chains}
            chains += [(org_id, org_id) for org_id in heads if org_id not in stored]
        results = [_verify(runner, name, org_id, heads.get(org_id, "")) for name, org_id in chains]
    lines = []
    for item in results:
        state = "intact" if item["holds"] else "broken"
        note = " (not checked against a head)" if head and not item["checked_against_head"] else ""
        lines.append(f"{item['name']}: {item['events']} events, {state}{note}")
        lines += [f"  event {entry['seq']}: {entry['what']}" for entry in item["breaks"]]
    print_output(results, as_json=as_json, text="\n".join(lines))
    if not all(item["holds"] for item in results):
        raise AuditBroken


@audit.command()
@_organization_option
@as_json
@settings(*STORAGE)
def head(config: Config, organization: str, *, as_json: bool) -> None:
    """Print the signed head of each chain; store it where it can't be edited.

    Each line has an organization's id and its head; `audit verify --head` reads these lines, or
    their JSON.
    """
    with open_existing(config) as runner:
        heads = [
            {
                "name": name,
                "org_id": org_id,
                "head": runner.read(actions.export_head, operator(), org_id),
            }
            for name, org_id in _chains(runner, organization)
        ]
    lines = [f"{item['org_id']} {item['head']}" for item in heads]
    print_output(heads, as_json=as_json, text="\n".join(lines))


@audit.command()
@click.option("--org", "organization", required=True, help="Slug or id, or `deployment`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of lines.")
@settings(*STORAGE)
def export(config: Config, organization: str, *, as_json: bool) -> None:
    """Print the events of one chain, oldest first, as one line of JSON each (NDJSON)."""
    with open_existing(config) as runner:
        ((_, org_id),) = _chains(runner, organization)
        by = replace(operator(), org_id=org_id)
        before, between, after = ("[", ",\n", "") if as_json else ("", "", "\n")
        for events in audit_walks.export_events(runner.database, by, AuditQuery()):
            for event in events:
                line = json.dumps(asdict(event) | {"at": iso(event.at)}, ensure_ascii=False)
                sys.stdout.write(before + line + after)
                before = between
    if as_json:
        sys.stdout.write("[]\n" if before == "[" else "]\n")


def _verify(runner: Runner, name: str, org_id: str, head: str) -> dict[str, Any]:
    count, breaks = audit_walks.verify_chain(runner.database, operator(), org_id, head)
    return {
        "name": name,
        "org_id": org_id,
        "events": count,
        "holds": not breaks,
        "checked_against_head": bool(head),
        "breaks": [asdict(item) for item in breaks],
    }


def _heads(file: TextIO) -> dict[str, str]:
    """Parse the output of `audit head`, with or without --json: organization id -> head."""
    try:
        text = file.read()
        if text.lstrip().startswith("["):
            return {str(item["org_id"]): str(item["head"]) for item in json.loads(text)}
        return dict(line.split() for line in text.splitlines() if line.strip())
    except (ValueError, TypeError, KeyError):
        raise InvalidSetting(
            f"{file.name} is not output of `wardkey audit head`; pass that output unchanged.",
            field="head",
        ) from None


def _chains(runner: Runner, organization: str) -> list[tuple[str, str]]:
    chains = runner.read(actions.list_chains, operator())
    if organization:
        chains = [chain for chain in chains if organization in chain]
        if not chains:
            raise OrganizationNotFound
    return chains
