"""`wardkey master-key`: taking a new master key, and what still stands under which."""

from __future__ import annotations

from pathlib import Path

import click

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.master_keys import rotate as rotate_action
from wardkey.actions.operations.master_keys import versions
from wardkey.cli.terminal import STORAGE, as_json, print_output, settings
from wardkey.config import Config
from wardkey.db.atomic_files import put_in_place
from wardkey.db.engine import Database
from wardkey.db.leases import CommitBarrier
from wardkey.db.locks import hold_database, hold_folder
from wardkey.db.master_key import MasterKeySource, is_initialized, open_vault, write_key
from wardkey.db.rotation import rekey_files
from wardkey.db.vault import MasterKey
from wardkey.deployment import master_key_source, open_deployment, open_storage
from wardkey.domain.errors import InvalidMasterKey, InvalidSetting
from wardkey.domain.principal import operator
from wardkey.domain.times import iso


@click.group("master-key")
def master_key() -> None:
    """Rotate the master key, or say what still stands under an older one."""


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
    open with the old master key only: keep a copy of it for as long as you keep them, or make a
    new backup afterwards. A rotation that is cut off is finished, or undone, by the next start.
    """
    _check_begun(config)
    source = master_key_source(config)
    if not source.uses_file and new_key_file is None:
        raise InvalidSetting(
            "The master key comes from the environment or a command, which this cannot change. "
            "Give the new key with --new-key-file, and change the setting afterwards.",
            field="new_key_file",
        )
    following = _read(new_key_file) if new_key_file else MasterKey.generate()
    with open_deployment(config, alone=True) as runner:
        version = _rotate(runner, source, following, new_broker_keys=new_broker_keys)
    text = f"Master key {version} is in use. Backups made before open with the old one only."
    if not source.uses_file:
        text += "\nNow change the setting, so that it gives the new key, and start the servers."
    elif not config.embedded:
        text += f"\nCopy {source.file} to every other machine of this deployment."
    print_output(
        {"version": version, "change_setting": not source.uses_file}, as_json=as_json, text=text
    )


@master_key.command()
@as_json
@settings(*STORAGE)
def status(config: Config, *, as_json: bool) -> None:
    """Say which master keys there were, and how much is still hashed under each."""
    _check_begun(config)
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
        current = " (in use)" if item.current else ""
        lines.append(f"{item.version}  {made}  {rows or 'nothing'}{current}")
        values.append(
            {
                "version": item.version,
                "created_at": made,
                "current": item.current,
                "hashed_under_it": item.rows,
            }
        )
    print_output(values, as_json=as_json, text="\n".join(lines))


def _rotate(
    runner: Runner, source: MasterKeySource, following: MasterKey, *, new_broker_keys: bool
) -> int:
    """Write the new key's file, then the database, then rename the file: in that order.

    So at any time the database's key is in one of the two files, where the next start finds it.
    """
    if source.uses_file:
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
    if not config.data_dir.is_dir() or not is_initialized(config.storage_url):
        raise InvalidSetting(f"There is no deployment in {config.data_dir} yet.", field="data_dir")


def _read(path: Path) -> MasterKey:
    try:
        return MasterKey.parse(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidMasterKey(f"{path} cannot be read as a master key: {error}") from None
