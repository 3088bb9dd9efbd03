"""`wardkey backup` and `wardkey restore`: an encrypted copy, and putting it in place again."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from wardkey.db.backup import BackupHead, named_version, open_backup, opens, write_backup
from wardkey.db.engine import wall_clock
from wardkey.db.kept_keys import kept_file, kept_files, read_key
from wardkey.db.locks import hold_database, hold_folder
from wardkey.db.master_key import MasterKeySource, is_initialized, open_vault, resolve_master_key
from wardkey.db.vault import MasterKey
from wardkey.deployment import (
    has_deployment,
    make_folder,
    master_key_source,
    open_deployment,
    open_storage,
)
from wardkey.domain.errors import (
    DatabaseDamaged,
    InvalidBackup,
    InvalidMasterKey,
    InvalidSetting,
    RevocationsUnknown,
    UnwritableFile,
    WrongMasterKey,
)
from wardkey.domain.principal import operator
from wardkey.domain.times import iso

_TOLD_EVERY = 100_000
# Standard output, or standard input.
_STREAM = Path("-")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@as_json
@settings(*STORAGE)
def backup(config: Config, file: Path, *, force: bool, as_json: bool) -> None:
    """Write an encrypted copy of the whole database to FILE, or - for stdout, while servers run.

    The copy is of one moment and opens with the same master key, which is never in it: keep that
    elsewhere. It does not depend on the kind of database, so it also moves a deployment from
    SQLite to PostgreSQL and back. Usage counters are left out.
    """
    to_stream = file == _STREAM
    if to_stream and sys.stdout.isatty():
        raise UnwritableFile(
            "A backup is no text for a terminal; name a file, or send it on: "
            "wardkey backup - | ssh elsewhere 'cat > wardkey.bak'"
        )
    if not has_deployment(config):
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
        with _scratch(config.data_dir, "stdout") if to_stream else nullcontext(file) as path:
            head = write_backup(database, path, force=force, progress=_progress)
            size = path.stat().st_size
            if to_stream:
                _send(path)
    rows = sum(head.rows.values())
    print_output(
        {"file": str(file), "bytes": size, **_head_json(head)},
        as_json=as_json,
        text=f"{file}: {rows:,} rows at revision {head.revision}, encrypted under master key "
        f"{head.master_key_version}, which is not in it.",
        err=to_stream,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--accept-lost-revocations",
    "accept",
    is_flag=True,
    help="Restore though the database to replace is missing, empty or unreadable.",
)
@click.option(
    "--backup-key-file",
    type=click.Path(path_type=Path),
    help="The master key that opens FILE, where it is neither the present one nor kept beside it.",
)
@as_json
@settings(*STORAGE)
def restore(
    config: Config, file: Path, *, accept: bool, backup_key_file: Path | None, as_json: bool
) -> None:
    """Put the backup FILE, or - for stdin, in the database's place; servers are stopped.

    Whatever was revoked, disabled, suspended, removed or shortened since the backup stays so: it
    is carried over from the database that is replaced, and so are ACL rules as they are now. What
    is lost, and what is wider again, is listed. Everybody signs in anew. The deployment stays
    under its present master key, also where the backup was made under an older one.
    """
    make_folder(config.data_dir)
    with _received(config.data_dir) if file == _STREAM else nullcontext(file) as path:
        found = _look(config, path, backup_key_file)
        done, kept = _put_back(config, path, found, accept=accept)
    print_output(_restored_json(done, kept), as_json=as_json, text="\n".join(_lines(done, kept)))


def _put_back(
    config: Config, file: Path, found: _Found, *, accept: bool
) -> tuple[Restored, Path | None]:
    """Restore; raises `RevocationsUnknown` where that is not accepted."""
    if not found.readable and not accept:
        raise RevocationsUnknown(
            f"The database to replace {'does not open' if found.begun else 'is missing'}, so what "
            "was revoked since the backup is not known. --accept-lost-revocations restores all "
            "the same; revoke again what must stay dead."
        )
    try:
        return _restore(config, file, found, accept=accept)
    except DatabaseDamaged:
        if not accept:
            raise RevocationsUnknown(
                "The database to replace is damaged, so what was revoked since the backup is not "
                "known. --accept-lost-revocations restores all the same."
            ) from None
        return _restore(config, file, replace(found, readable=False), accept=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands where the backup is to go, and the master key that opens the backup."""

    backup_key: MasterKey
    begun: bool
    readable: bool


def _look(config: Config, file: Path, key_file: Path | None) -> _Found:
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
        key = read_key(key_file) if key_file else _backup_key(file, source, master)
        with open_backup(file, key, config.data_dir):
            return _Found(key, begun, readable)


def _backup_key(file: Path, source: MasterKeySource, master: MasterKey) -> MasterKey:
    """Return the master key that opens a backup: the present one, or one kept beside it.

    Raises `InvalidBackup`, which names the key that is needed where the backup does.
    """
    if not file.is_file():
        raise InvalidBackup(f"There is no file {file}.")
    if opens(file, master):
        return master
    kept = kept_files(source.file)
    for path in kept.values():
        try:
            key = read_key(path)
        except InvalidMasterKey:
            continue
        if opens(file, key):
            return key
    version = named_version(file)
    if version is None:
        # Checking the whole file says more.
        return master
    tried = ", ".join(str(path) for path in kept.values())
    raise InvalidBackup(
        f"{file} was made under master key {version}, and the present one does not open it"
        f"{f', nor do {tried}' if tried else ''}. Put master key {version} back as "
        f"{kept_file(source.file, version)}, or name its file with --backup-key-file. If that does "
        "not open it either, the backup was edited or damaged."
    )


def _restore(
    config: Config, file: Path, found: _Found, *, accept: bool
) -> tuple[Restored, Path | None]:
    with (
        _place(config, found) as runner,
        open_backup(file, found.backup_key, config.data_dir) as opened,
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


@contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    """Give a file's path in `folder`; the file is gone afterwards."""
    path = folder / f"{name}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _received(folder: Path) -> Iterator[Path]:
    """Give a file with what standard input holds, because a backup is not read in one direction."""
    if sys.stdin.isatty():
        raise InvalidBackup("Nothing comes on standard input; name a file, or pipe a backup in.")
    with _scratch(folder, "stdin") as path:
        make_private(path)
        with path.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield path


def _send(path: Path) -> None:
    out = sys.stdout.buffer
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, out)
        out.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UnwritableFile(f"Standard output cannot be written: {error.strerror}.") from None


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
    yield from _section("Edits made after the backup, now undone", done.widened, _loss_line)
    if done.widened:
        yield "  Check each, and edit it again where needed."
    if kept:
        yield f"{done.lost_events:,} audit events after the backup are in {kept}"


def _section(title: str, items: tuple[Any, ...], line: Callable[[Any], str]) -> Iterator[str]:
    yield f"{title}: {len(items) or 'none'}"
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
