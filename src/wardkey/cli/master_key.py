"""`wardkey master-key`: taking a new master key, and what still stands under which."""

from __future__ import annotations

from pathlib import Path

import click

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.master_keys import rotate as rotate_action
from wardkey.actions.operations.master_keys import versions
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
from wardkey.db.atomic_files import put_in_place
from wardkey.db.engine import Database
from wardkey.db.kept_keys import forget_key, keep_key, kept_file, kept_files, read_key
from wardkey.db.leases import CommitBarrier
from wardkey.db.locks import hold_database, hold_folder
from wardkey.db.master_key import MasterKeySource, open_vault, write_key
from wardkey.db.rotation import rekey_files
from wardkey.db.vault import MasterKey
from wardkey.deployment import has_deployment, master_key_source, open_deployment, open_storage
from wardkey.domain.errors import InvalidSetting, MasterKeyNotKept
from wardkey.domain.principal import operator
from wardkey.domain.times import iso


@click.group("master-key", cls=Subgroup)
def master_key() -> None:
    """Rotate the master key, list all of them, and remove old ones that were kept."""


@master_key.command()
@click.option(
    "--new-key-file",
    type=click.Path(path_type=Path),
    help="A file with the new key: 64 hexadecimal digits. Needed where the present key comes "
    "from the environment or a command; else a new one is made.",
)
@click.option(
    "--new-broker-keys",
    is_flag=True,
    help="Change the broker's keys as well, because the old master key leaked. Its retained "
    "messages and persistent sessions are left behind.",
)
@as_json
@settings(*STORAGE)
def rotate(
    config: Config, new_key_file: Path | None, *, new_broker_keys: bool, as_json: bool
) -> None:
    """Encrypt everything under a new master key; servers are stopped.

    Keys that were issued go on, and are hashed anew when they are next used. Backups made before
    open with the old master key only, so it is kept beside the new one, where `wardkey restore`
    finds it, until `wardkey master-key forget`. A rotation that is cut off is finished, or undone,
    by the next start.
    """
    _check_begun(config)
    source = master_key_source(config)
    if not source.uses_file and new_key_file is None:
        raise InvalidSetting(
            "The master key comes from the environment or a command, which this cannot change. "
            "Give the new key with --new-key-file, and change the setting afterwards.",
            field="new_key_file",
        )
    following = read_key(new_key_file) if new_key_file else MasterKey.generate()
    with open_deployment(config, alone=True) as runner:
        version = _rotate(runner, source, following, new_broker_keys=new_broker_keys)
    kept = kept_file(source.file, version - 1).absolute() if source.uses_file else None
    text = f"Master key {version} is in use. Backups made before open with the old one only"
    if kept is None:
        text += ": keep it for as\nlong as you keep them."
        text += "\nNow change the setting, so that it gives the new key, and start the servers."
    else:
        text += f", which is kept:\n  {kept}"
        text += f"\nWithout such backups, remove it: wardkey master-key forget {version - 1}"
        if not config.embedded:
            text += f"\nCopy {source.file} to every other machine of this deployment."
    value = {"version": version, "change_setting": not source.uses_file}
    print_output(value | {"old_key_file": str(kept) if kept else None}, as_json=as_json, text=text)


@master_key.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Do not ask for the version.")
@as_json
@settings(*STORAGE)
def forget(config: Config, version: int, *, yes: bool, as_json: bool) -> None:
    """Remove the kept file of the old master key VERSION for good.

    Backups that were made under it open no more, unless you have a copy of the key. The
    deployment does not need it: what it derived is kept in the database.
    """
    _check_begun(config)
    source = master_key_source(config)
    path = kept_file(source.file, version)
    if version not in kept_files(source.file):
        raise MasterKeyNotKept(
            f"There is no {path}; `wardkey master-key status` lists the keys that are kept."
        )
    if not yes:
        confirm(
            f"Backups made under master key {version} will open no more. Type {version} to remove "
            f"{path}",
            str(version),
        )
    # Not while a rotation is under way, which has just written it.
    with hold_folder(config.data_dir, alone=False):
        forget_key(path)
    value = {"version": version, "file": str(path)}
    print_output(value, as_json=as_json, text=f"{path} is removed.")


@master_key.command()
@as_json
@settings(*STORAGE)
def status(config: Config, *, as_json: bool) -> None:
    """List the master keys: what is still hashed under each, and where old ones are kept."""
    _check_begun(config)
    kept = kept_files(master_key_source(config).file)
    with (
        hold_folder(config.data_dir, alone=False),
        open_storage(config) as database,
        hold_database(database, alone=False),
    ):
        open_vault(database)
        found = Runner(database, CommitBarrier(database)).read(versions, operator())
    lines, values = [], []
    for item in found:
        made = iso(item.created_at)
        rows = ", ".join(f"{count:,} {table}" for table, count in item.rows.items())
        file = None if item.current else kept.get(item.version)
        where = "in use" if item.current else str(file) if file else "not kept here"
        lines.append((str(item.version), made, rows or "nothing", where))
        values.append(
            {
                "version": item.version,
                "created_at": made,
                "current": item.current,
                "hashed_under_it": item.rows,
                "kept_file": str(file) if file else None,
            }
        )
    names = ("version", "created", "hashed under it", "file")
    say_table(values, names, lines, as_json=as_json, empty="")


def _rotate(
    runner: Runner, source: MasterKeySource, following: MasterKey, *, new_broker_keys: bool
) -> int:
    """Keep the old key, write the new one's file, then the database, then rename the file.

    In that order, so that at any time the database's key is in a file where the next start finds
    it, and the old one is in another once it is replaced.
    """
    if source.uses_file:
        database = runner.database
        keep_key(source.file, database.vault.version, database.master)
        source.next_file.unlink(missing_ok=True)
        write_key(source.next_file, following)
    done: list[int] = []

    def change(database: Database) -> None:
        runner = Runner(database, CommitBarrier(database))
        done.append(
            runner.write(rotate_action, operator(), following, new_broker_keys=new_broker_keys)
        )

    if runner.database.kind == "sqlite":
        rekey_files(runner.database, following, change)
    else:
        change(runner.database)
    if source.uses_file:
        put_in_place(source.next_file, source.file)
    return done[0]


def _check_begun(config: Config) -> None:
    if not has_deployment(config):
        raise InvalidSetting(f"There is no deployment in {config.data_dir} yet.", field="data_dir")
