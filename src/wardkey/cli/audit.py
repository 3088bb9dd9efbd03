"""`wardkey audit`: verify the chains, keep their ends elsewhere, export their events."""

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

_which = click.option(
    "--org", "organization", default="", help="Slug or id, or `deployment`; all if left out."
)


@click.group(cls=Subgroup)
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
    heads = _heads(head) if head else {}
    with open_existing(config) as runner:
        chains = _chains(runner, organization)
        if organization and head and chains[0][1] not in heads:
            raise InvalidSetting(f"{head.name} has no head of {organization}.", field="head")
        if not organization:
            # A chain that was removed with its organization is named by its head only.
            there = {org_id for _, org_id in chains}
            chains += [(org_id, org_id) for org_id in heads if org_id not in there]
        shown = [_verified(runner, name, org_id, heads.get(org_id, "")) for name, org_id in chains]
    lines = []
    for item in shown:
        held = "every link holds" if item["holds"] else "broken"
        beyond = " (no head of it was given)" if head and not item["checked_against_head"] else ""
        lines.append(f"{item['name']}: {item['events']} events, {held}{beyond}")
        lines += [f"  event {found['seq']}: {found['what']}" for found in item["breaks"]]
    print_output(shown, as_json=as_json, text="\n".join(lines))
    if not all(item["holds"] for item in shown):
        raise AuditBroken


@audit.command()
@_which
@as_json
@settings(*STORAGE)
def head(config: Config, organization: str, *, as_json: bool) -> None:
    """Print the signed end of each chain, to be kept where nobody edits it.

    A line has the organization's id and its head; `audit verify --head` reads these lines, or
    their JSON, back.
    """
    with open_existing(config) as runner:
        shown = [
            {
                "name": name,
                "org_id": org_id,
                "head": runner.read(actions.export_head, operator(), org_id),
            }
            for name, org_id in _chains(runner, organization)
        ]
    lines = [f"{item['org_id']} {item['head']}" for item in shown]
    print_output(shown, as_json=as_json, text="\n".join(lines))


@audit.command()
@click.option("--org", "organization", required=True, help="Slug or id, or `deployment`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of lines.")
@settings(*STORAGE)
def export(config: Config, organization: str, *, as_json: bool) -> None:
    """Print the events of one chain, oldest first, as a line of JSON each (NDJSON)."""
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


def _verified(runner: Runner, name: str, org_id: str, known: str) -> dict[str, Any]:
    count, breaks = audit_walks.verify_chain(runner.database, operator(), org_id, known)
    return {
        "name": name,
        "org_id": org_id,
        "events": count,
        "holds": not breaks,
        "checked_against_head": bool(known),
        "breaks": [asdict(item) for item in breaks],
    }


def _heads(file: TextIO) -> dict[str, str]:
    """Read what `audit head` printed, with or without --json: organization id -> head."""
    try:
        text = file.read()
        if text.lstrip().startswith("["):
            return {str(item["org_id"]): str(item["head"]) for item in json.loads(text)}
        return dict(line.split() for line in text.splitlines() if line.strip())
    except (ValueError, TypeError, KeyError):
        raise InvalidSetting(
            f"{file.name} is not what `wardkey audit head` printed; give that file, unchanged.",
            field="head",
        ) from None


def _chains(runner: Runner, organization: str) -> list[tuple[str, str]]:
    found = runner.read(actions.list_chains, operator())
    if organization:
        found = [chain for chain in found if organization in chain]
        if not found:
            raise OrganizationNotFound
    return found
