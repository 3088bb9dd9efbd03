"""`wardkey backup` and `wardkey restore`: an encrypted copy, and putting it in place again."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import click

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.restore import Restored
from wardkey.actions.operations.restore import restore as restore_action
from wardkey.actions.operations.restore_diff import CarriedRestriction, KeptRules, LostRecord
from wardkey.cli.terminal import STORAGE, as_json, print_output, settings
from wardkey.config import Config
from wardkey.db.atomic_files import make_private, put_in_place, set_aside
from wardkey.db.backup import BackupHead, open_backup, write_backup
from wardkey.db.engine import wall_clock
from wardkey.db.locks import hold_database, hold_folder
from wardkey.db.master_key import is_initialized, open_vault, resolve_master_key
from wardkey.db.vault import MasterKey
from wardkey.deployment import make_folder, master_key_source, open_deployment, open_storage
from wardkey.domain.errors import (
    DatabaseDamaged,
    InvalidSetting,
    RevocationsUnknown,
    WrongMasterKey,
)
from wardkey.domain.principal import operator
from wardkey.domain.times import iso

_TOLD_EVERY = 100_000


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@as_json
@settings(*STORAGE)
def backup(config: Config, file: Path, *, force: bool, as_json: bool) -> None:
    """Write an encrypted copy of the whole database to FILE, while servers run.

    The copy is of one moment and opens with the same master key, which is never in it: keep that
    elsewhere. It does not depend on the kind of database, so it also moves a deployment from
    SQLite to PostgreSQL and back. Usage counters are left out.
    """
    if not config.data_dir.is_dir() or not is_initialized(config.storage_url):
        raise InvalidSetting(
            f"There is no deployment in {config.data_dir} yet, so there is nothing to back up.",
            field="data_dir",
        )
    with (
        hold_folder(config.data_dir, alone=False),
        open_storage(config) as database,
        hold_database(database, alone=False),
    ):
        open_vault(database)
        head = write_backup(database, file, force=force, tell=_progress)
    rows = sum(head.rows.values())
    print_output(
        {"file": str(file), "bytes": file.stat().st_size, **_head_json(head)},
        as_json=as_json,
        text=f"{file}: {rows:,} rows at revision {head.revision}, encrypted under master key "
        f"{head.master_key_version}, which is not in it.",
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--accept-lost-revocations",
    "accept",
    is_flag=True,
    help="Restore though the database to replace is missing, empty or unreadable.",
)
@as_json
@settings(*STORAGE)
def restore(config: Config, file: Path, *, accept: bool, as_json: bool) -> None:
    """Put the backup FILE in the database's place; servers are stopped.

    Whatever was revoked, disabled, suspended, removed or shortened since the backup stays so: it
    is carried over from the database that is replaced, and so are ACL rules as they are now. What
    is lost, and what is wider again, is listed. Everybody signs in anew.
    """
    make_folder(config.data_dir)
    found = _look(config, file)
    if not found.readable and not accept:
        raise RevocationsUnknown(
            f"The database to replace {'does not open' if found.begun else 'is missing'}, so what "
            "was revoked since the backup is not known. --accept-lost-revocations restores all "
            "the same; revoke again what must stay dead."
        )
    try:
        done, kept = _restore(config, file, found, accept=accept)
    except DatabaseDamaged:
        if not accept:
            raise RevocationsUnknown(
                "The database to replace is damaged, so what was revoked since the backup is not "
                "known. --accept-lost-revocations restores all the same."
            ) from None
        done, kept = _restore(config, file, replace(found, readable=False), accept=True)
    print_output(_restored_json(done, kept), as_json=as_json, text="\n".join(_lines(done, kept)))


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands where the backup is to go, and the master key that opens the backup."""

    master: MasterKey
    begun: bool
    readable: bool


def _look(config: Config, file: Path) -> _Found:
    """Check the backup and the database; raises `InvalidBackup` and the master key's failures."""
    source = master_key_source(config)
    with hold_folder(config.data_dir, alone=True):
        begun = readable = is_initialized(config.storage_url)
        master = None
        if begun:
            try:
                master = resolve_master_key(source, config.storage_url)
            except (WrongMasterKey, DatabaseDamaged):
                if not config.embedded:
                    raise
                readable = False
        master = master or source.load(may_create=False)
        with open_backup(file, master, config.data_dir):
            return _Found(master, begun, readable)


def _restore(
    config: Config, file: Path, found: _Found, *, accept: bool
) -> tuple[Restored, Path | None]:
    with (
        _place(config, found) as runner,
        open_backup(file, found.master, config.data_dir) as opened,
        _lost_events(file) as (out, path),
    ):
        done = runner.write(restore_action, operator(), opened, out, accept_lost_revocations=accept)
        return done, path if done.lost_events else None


@contextmanager
def _place(config: Config, found: _Found) -> Iterator[Runner]:
    """Open the database to replace; one that cannot be read is replaced as a file afterwards.

    Until then the new one grows beside it, so that a kill leaves the old file where it was.
    """
    if found.readable or not found.begun:
        with open_deployment(config, alone=True) as runner:
            yield runner
        return
    path = Path(config.storage_url.removeprefix("sqlite:///"))
    beside = path.with_name(f"{path.name}.restoring-{secrets.token_hex(4)}")
    try:
        make_private(beside)
        fresh = replace(config, database_url=f"sqlite:///{beside}")
        with open_deployment(fresh, alone=True) as runner:
            yield runner
            runner.database.close()
            set_aside(path, wall_clock())
            put_in_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _lost_events(file: Path) -> Iterator[tuple[TextIO, Path]]:
    """Open the file beside the backup that takes lost audit events; no events leave no file."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = file.with_name(f"{file.name}-lost-audit-{now}-{secrets.token_hex(2)}.ndjson")
    make_private(path)
    try:
        with path.open("w", encoding="utf-8") as out:
            yield out, path
    except BaseException:
        path.unlink()
        raise
    if not path.stat().st_size:
        path.unlink()


def _progress(table: str, count: int) -> None:
    if count % _TOLD_EVERY == 0:
        click.echo(f"{table}: {count:,} rows", err=True)


def _head_json(head: BackupHead) -> dict[str, Any]:
    values = {name: getattr(head, name) for name in BackupHead.__slots__}
    return {**values, "rows": dict(head.rows), "created_at": iso(head.created_at)}


def _restored_json(done: Restored, kept: Path | None) -> dict[str, Any]:
    return {
        "backup_created_at": iso(done.created_at),
        "epoch": done.epoch,
        "revision": done.revision,
        "carried_over": [_carried_json(item) for item in done.carried],
        "acl_rules_kept": [_rules_json(kept) for kept in done.kept_rules],
        "lost": [_loss_json(item) for item in done.lost],
        "widened": [_loss_json(item) for item in done.widened],
        "lost_audit_events": done.lost_events,
        "lost_audit_file": str(kept) if kept else None,
    }


def _carried_json(item: CarriedRestriction) -> dict[str, Any]:
    return {
        "action": item.action,
        "target": {"kind": item.target.kind, "id": item.target.id},
        "organization": item.org_id or None,
        "environment": item.environment or None,
        "details": dict(item.details),
    }


def _rules_json(kept: KeptRules) -> dict[str, Any]:
    return {
        "organization": kept.org_id,
        "environment": kept.environment,
        "rules": len(kept.rules),
        "backup_rules": kept.replaced,
    }


def _loss_json(item: LostRecord) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "id": item.id,
        "name": item.label,
        "organization": item.org_id or None,
        "prefixes": list(item.prefixes),
        "fields": list(item.fields),
    }


def _lines(done: Restored, kept: Path | None) -> Iterator[str]:
    yield f"Restored the backup of {iso(done.created_at)}; epoch {done.epoch}."
    yield "Everybody signs in anew; signed audit heads exported since the backup no longer fit."
    yield from _section("Carried over from the replaced database", done.carried, _carried_line)
    yield from _section(
        "ACL rules that differ from the backup's, kept as they were", done.kept_rules, _rules_line
    )
    yield from _section("Lost, made after the backup", done.lost, _loss_line)
    yield from _section(
        "As at the backup again, edited since: check them", done.widened, _loss_line
    )
    if kept:
        yield f"{done.lost_events:,} audit events after the backup are in {kept}"


def _section(title: str, items: tuple[Any, ...], line: Callable[[Any], str]) -> Iterator[str]:
    yield f"{title}: {len(items) or 'nothing'}"
    for item in items:
        yield f"  {line(item)}"


def _carried_line(item: CarriedRestriction) -> str:
    named = item.details.get("name") or item.details.get("kid") or item.details.get("email") or ""
    return f"{item.action}  {item.target.id}  {named}  {item.org_id}".rstrip()


def _rules_line(kept: KeptRules) -> str:
    return (
        f"{kept.org_id}  {kept.environment}  {len(kept.rules):,} rules, not the {kept.replaced:,} "
        "of the backup"
    )


def _loss_line(item: LostRecord) -> str:
    more = " ".join((*item.prefixes, *item.fields))
    return f"{item.kind}  {item.id}  {item.label}  {item.org_id}  {more}".rstrip()
