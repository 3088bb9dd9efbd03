"""`wardkey backup` and `wardkey restore`: write an encrypted copy, and restore it."""

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

_PROGRESS_ROWS = 100_000
# Means standard output or standard input.
_STREAM = Path("-")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@as_json
@settings(*STORAGE)
def backup(config: Config, file: Path, *, force: bool, as_json: bool) -> None:
    """Write an encrypted copy of the whole database to FILE, or - for stdout, while servers run.

    The copy is a consistent snapshot. It opens with the same master key, which it never contains:
    store the key elsewhere. It is independent of the kind of database, so it can also move a
    deployment between SQLite and PostgreSQL. Usage counters are not included.
    """
    to_stream = file == _STREAM
    if to_stream and sys.stdout.isatty():
        raise UnwritableFile(
            "A backup is binary and can't be printed on a terminal; name a file, or pipe it: "
            "wardkey backup - | ssh host 'cat > wardkey.bak'"
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
        with _temporary_path(config.data_dir, "stdout") if to_stream else nullcontext(file) as path:
            head = write_backup(database, path, force=force, progress=_progress)
            size = path.stat().st_size
            if to_stream:
                _write_to_stdout(path)
    rows = sum(head.rows.values())
    print_output(
        {"file": str(file), "bytes": size, **_head_json(head)},
        as_json=as_json,
        text=f"{file}: {rows:,} rows at revision {head.revision}, encrypted under master key "
        f"{head.master_key_version}, which the file does not contain.",
        err=to_stream,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--accept-lost-revocations",
    "accept",
    is_flag=True,
    help="Restore even if the database to replace is missing, empty or unreadable.",
)
@click.option(
    "--backup-key-file",
    type=click.Path(path_type=Path),
    help="File with the master key that opens FILE, if it is neither the present key nor kept "
    "beside it.",
)
@as_json
@settings(*STORAGE)
def restore(
    config: Config, file: Path, *, accept: bool, backup_key_file: Path | None, as_json: bool
) -> None:
    """Replace the database with the backup FILE, or - for stdin; servers must be stopped.

    Anything revoked, disabled, suspended, removed or shortened since the backup stays so: it is
    carried over from the replaced database, as are the present ACL rules. Lost records and undone
    edits are listed. All users must sign in again. The deployment keeps its present master key,
    even if the backup was made under an older one.
    """
    make_folder(config.data_dir)
    with _read_stdin(config.data_dir) if file == _STREAM else nullcontext(file) as path:
        target = _inspect(config, path, backup_key_file)
        restored, lost_events_file = _restore_or_refuse(config, path, target, accept=accept)
    text = "\n".join(_lines(restored, lost_events_file))
    print_output(_restored_json(restored, lost_events_file), as_json=as_json, text=text)


def _restore_or_refuse(
    config: Config, file: Path, target: _Target, *, accept: bool
) -> tuple[Restored, Path | None]:
    """Restore; raises `RevocationsUnknown` if revocations would be lost without `accept`."""
    if not target.readable and not accept:
        raise RevocationsUnknown(
            f"The database to replace {'does not open' if target.initialized else 'is missing'}, "
            "so revocations made since the backup are unknown. --accept-lost-revocations restores "
            "anyway; then revoke those keys again."
        )
    try:
        return _restore(config, file, target, accept=accept)
    except DatabaseDamaged:
        if not accept:
            raise RevocationsUnknown(
                "The database to replace is damaged, so revocations made since the backup are "
                "unknown. --accept-lost-revocations restores anyway; then revoke those keys again."
            ) from None
        return _restore(config, file, replace(target, readable=False), accept=True)


@dataclass(frozen=True, slots=True)
class _Target:
    """The state of the database to replace, and the master key that opens the backup."""

    backup_key: MasterKey
    initialized: bool
    readable: bool


def _inspect(config: Config, file: Path, key_file: Path | None) -> _Target:
    """Check the backup and the database; raises `InvalidBackup` and the master key's errors."""
    source = master_key_source(config)
    with hold_folder(config.data_dir, alone=True):
        initialized = readable = is_initialized(config.storage_url)
        master = None
        if initialized:
            try:
                master = resolve_master_key(source, config.storage_url)
            except (WrongMasterKey, DatabaseDamaged):
                if not config.embedded:
                    raise
                readable = False
        master = master or source.load(may_create=False)
        key = read_key(key_file) if key_file else _backup_key(file, source, master)
        with open_backup(file, key, config.data_dir):
            return _Target(key, initialized, readable)


def _backup_key(file: Path, source: MasterKeySource, master: MasterKey) -> MasterKey:
    """Return the master key that opens a backup: the present one, or one kept beside it.

    Raises `InvalidBackup`, naming the required key's version if the backup states it.
    """
    if not file.is_file():
        raise InvalidBackup(f"{file} does not exist or is not a file.")
    if opens(file, master):
        return master
    kept_paths = kept_files(source.file).values()
    for path in kept_paths:
        try:
            key = read_key(path)
        except InvalidMasterKey:
            continue
        if opens(file, key):
            return key
    version = named_version(file)
    if version is None:
        # Opening the whole file with it gives a more precise error.
        return master
    tried = ", ".join(str(path) for path in kept_paths)
    raise InvalidBackup(
        f"{file} was made under master key {version}; neither the present key nor a kept one opens "
        f"it{f' (tried {tried})' if tried else ''}. Restore master key {version} as "
        f"{kept_file(source.file, version)}, or name its file with --backup-key-file. If that does "
        "not open it either, the backup was edited or damaged."
    )


def _restore(
    config: Config, file: Path, target: _Target, *, accept: bool
) -> tuple[Restored, Path | None]:
    with (
        _open_target(config, target) as runner,
        open_backup(file, target.backup_key, config.data_dir) as reader,
        _lost_events(file) as (out, path),
    ):
        restored = runner.write(
            restore_action, operator(), reader, out, accept_lost_revocations=accept
        )
        return restored, path if restored.lost_events else None


@contextmanager
def _open_target(config: Config, target: _Target) -> Iterator[Runner]:
    """Open the database to restore into; an unreadable file is replaced at the end.

    The new file is written beside it, so a kill leaves the old file in place.
    """
    if target.readable or not target.initialized:
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
    """Open a file beside the backup for lost audit events; it is removed if it stays empty."""
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
def _temporary_path(folder: Path, name: str) -> Iterator[Path]:
    """Yield a unique path in `folder`; a file there is removed afterwards."""
    path = folder / f"{name}-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _read_stdin(folder: Path) -> Iterator[Path]:
    """Yield a file with the contents of standard input, because reading a backup needs seeking."""
    if sys.stdin.isatty():
        raise InvalidBackup("Standard input is a terminal; name a file, or pipe a backup in.")
    with _temporary_path(folder, "stdin") as path:
        make_private(path)
        with path.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield path


def _write_to_stdout(path: Path) -> None:
    out = sys.stdout.buffer
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, out)
        out.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # Otherwise Python tries to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UnwritableFile(f"Can't write to standard output: {error.strerror}.") from None


def _progress(table: str, count: int) -> None:
    if count % _PROGRESS_ROWS == 0:
        click.echo(f"{table}: {count:,} rows", err=True)


def _head_json(head: BackupHead) -> dict[str, Any]:
    values = {name: getattr(head, name) for name in BackupHead.__slots__}
    return {**values, "rows": dict(head.rows), "created_at": iso(head.created_at)}


def _restored_json(restored: Restored, lost_events_file: Path | None) -> dict[str, Any]:
    return {
        "backup_created_at": iso(restored.created_at),
        "epoch": restored.epoch,
        "revision": restored.revision,
        "carried_over": [_carried_json(item) for item in restored.carried],
        "acl_rules_kept": [_rules_json(rules) for rules in restored.kept_rules],
        "lost": [_loss_json(item) for item in restored.lost],
        "widened": [_loss_json(item) for item in restored.widened],
        "lost_audit_events": restored.lost_events,
        "lost_audit_file": str(lost_events_file) if lost_events_file else None,
    }


def _carried_json(item: CarriedRestriction) -> dict[str, Any]:
    return {
        "action": item.action,
        "target": {"kind": item.target.kind, "id": item.target.id},
        "organization": item.org_id or None,
        "environment": item.environment or None,
        "details": dict(item.details),
    }


def _rules_json(rules: KeptRules) -> dict[str, Any]:
    return {
        "organization": rules.org_id,
        "environment": rules.environment,
        "rules": len(rules.rules),
        "backup_rules": rules.replaced,
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


def _lines(restored: Restored, lost_events_file: Path | None) -> Iterator[str]:
    yield f"Restored the backup of {iso(restored.created_at)}; epoch {restored.epoch}."
    yield "All users must sign in again. Audit heads exported since the backup no longer match."
    yield from _section("Carried over from the replaced database", restored.carried, _carried_line)
    yield from _section(
        "ACL rules that differ from the backup, kept unchanged", restored.kept_rules, _rules_line
    )
    yield from _section("Lost, created after the backup", restored.lost, _loss_line)
    yield from _section("Edits made after the backup, now undone", restored.widened, _loss_line)
    if restored.widened:
        yield "  Check each, and edit it again if needed."
    if lost_events_file:
        yield f"{restored.lost_events:,} audit events after the backup are in {lost_events_file}"


def _section(title: str, items: tuple[Any, ...], line: Callable[[Any], str]) -> Iterator[str]:
    yield f"{title}: {len(items) or 'none'}"
    for item in items:
        yield f"  {line(item)}"


def _carried_line(item: CarriedRestriction) -> str:
    label = item.details.get("name") or item.details.get("kid") or item.details.get("email") or ""
    return f"{item.action}  {item.target.id}  {label}  {item.org_id}".rstrip()


def _rules_line(rules: KeptRules) -> str:
    return (
        f"{rules.org_id}  {rules.environment}  {len(rules.rules):,} rules, instead of the backup's "
        f"{rules.replaced:,}"
    )


def _loss_line(item: LostRecord) -> str:
    more = " ".join((*item.prefixes, *item.fields))
    return f"{item.kind}  {item.id}  {item.label}  {item.org_id}  {more}".rstrip()
