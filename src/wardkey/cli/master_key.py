"""`wardkey master-key`: rotate the master key, and list or remove kept ones."""

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
    print_table,
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
    """Rotate the master key, list all versions, and remove kept old ones."""


@master_key.command()
@click.option(
    "--new-key-file",
    type=click.Path(path_type=Path),
    help="File with the new key: 64 hexadecimal digits. Required if the present key comes from "
    "the environment or a command; otherwise a key is generated.",
)
@click.option(
    "--new-broker-keys",
    is_flag=True,
    help="Also replace the broker's keys, for example after the master key leaked. The broker's "
    "retained messages and persistent sessions are lost.",
)
@as_json
@settings(*STORAGE)
def rotate(
    config: Config, new_key_file: Path | None, *, new_broker_keys: bool, as_json: bool
) -> None:
    """Re-encrypt everything under a new master key; servers must be stopped.

    Issued keys keep working and are rehashed at their next use. Earlier backups open only with the
    old master key, so it is kept beside the new one, where `wardkey restore` finds it, until you
    run `wardkey master-key forget`. The next start completes or undoes an interrupted rotation.
    """
    _require_deployment(config)
    source = master_key_source(config)
    if not source.uses_file and new_key_file is None:
        raise InvalidSetting(
            "The master key comes from the environment or a command, which this command can't "
            "change. Give the new key with --new-key-file, and change the setting afterwards.",
            field="new_key_file",
        )
    new_key = read_key(new_key_file) if new_key_file else MasterKey.generate()
    with open_deployment(config, alone=True) as runner:
        version = _rotate(runner, source, new_key, new_broker_keys=new_broker_keys)
    old_key_file = kept_file(source.file, version - 1).absolute() if source.uses_file else None
    text = f"Master key {version} is in use. Earlier backups open only with the old key"
    if old_key_file is None:
        text += ":\nkeep it as long as you keep them."
        text += "\nNow change the setting to the new key, and start the servers."
    else:
        text += f", kept in\n  {old_key_file}"
        text += (
            "\nOnce you no longer need those backups, remove it: "
            f"wardkey master-key forget {version - 1}"
        )
        if not config.embedded:
            text += f"\nCopy {source.file} to every other machine of this deployment."
    value = {"version": version, "change_setting": not source.uses_file}
    print_output(
        value | {"old_key_file": str(old_key_file) if old_key_file else None},
        as_json=as_json,
        text=text,
    )


@master_key.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Don't ask to type the version.")
@as_json
@settings(*STORAGE)
def forget(config: Config, version: int, *, yes: bool, as_json: bool) -> None:
    """Permanently remove the kept file of the old master key VERSION.

    Backups made under it can't be opened anymore unless you have a copy of the key. The deployment
    itself doesn't need it: the keys derived from it are stored in the database.
    """
    _require_deployment(config)
    source = master_key_source(config)
    path = kept_file(source.file, version)
    if version not in kept_files(source.file):
        raise MasterKeyNotKept(
            f"{path} does not exist; `wardkey master-key status` lists the kept keys."
        )
    if not yes:
        confirm(
            f"Backups made under master key {version} can't be opened without it. Type {version} "
            f"to remove {path}",
            str(version),
        )
    # Fails during a rotation, which may have just written this file.
    with hold_folder(config.data_dir, alone=False):
        forget_key(path)
    value = {"version": version, "file": str(path)}
    print_output(value, as_json=as_json, text=f"{path} removed.")


@master_key.command()
@as_json
@settings(*STORAGE)
def status(config: Config, *, as_json: bool) -> None:
    """List the master keys: the rows still hashed under each, and the files of kept ones."""
    _require_deployment(config)
    paths = kept_files(master_key_source(config).file)
    with (
        hold_folder(config.data_dir, alone=False),
        open_storage(config) as database,
        hold_database(database, alone=False),
    ):
        open_vault(database)
        items = Runner(database, CommitBarrier(database)).read(versions, operator())
    lines, values = [], []
    for item in items:
        created = iso(item.created_at)
        rows = ", ".join(f"{count:,} {table}" for table, count in item.rows.items())
        file = None if item.current else paths.get(item.version)
        where = "in use" if item.current else str(file) if file else "not kept here"
        lines.append((str(item.version), created, rows or "nothing", where))
        values.append(
            {
                "version": item.version,
                "created_at": created,
                "current": item.current,
                "hashed_under_it": item.rows,
                "kept_file": str(file) if file else None,
            }
        )
    names = ("version", "created", "hashed under it", "file")
    print_table(values, names, lines, as_json=as_json, empty="")


def _rotate(
    runner: Runner, source: MasterKeySource, new_key: MasterKey, *, new_broker_keys: bool
) -> int:
    """Keep the old key, write the new key's file, rekey the database, then rename the file.

    In this order the next start always finds the database's present key in a file, and the old
    key is kept in another file before it is replaced.
    """
    if source.uses_file:
        database = runner.database
        keep_key(source.file, database.vault.version, database.master)
        source.next_file.unlink(missing_ok=True)
        write_key(source.next_file, new_key)
    new_versions: list[int] = []

    def change(database: Database) -> None:
        runner = Runner(database, CommitBarrier(database))
        new_versions.append(
            runner.write(rotate_action, operator(), new_key, new_broker_keys=new_broker_keys)
        )

    if runner.database.kind == "sqlite":
        rekey_files(runner.database, new_key, change)
    else:
        change(runner.database)
    if source.uses_file:
        put_in_place(source.next_file, source.file)
    return new_versions[0]


def _require_deployment(config: Config) -> None:
    if not has_deployment(config):
        raise InvalidSetting(
            f"There is no deployment in {config.data_dir} yet; name its folder with --data-dir.",
            field="data_dir",
        )
