"""Opening a deployment, new or not: its folder, its master key and its migrated database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wardkey.actions.core.runner import Runner
from wardkey.config import Config
from wardkey.db.engine import Database, open_database, storage_errors
from wardkey.db.leases import CommitBarrier
from wardkey.db.locks import check_folder, hold_database, hold_folder
from wardkey.db.maintenance import init_feed
from wardkey.db.master_key import MasterKeySource, is_initialized, open_vault, resolve_master_key
from wardkey.domain.errors import DeploymentNotFound, InvalidSetting

if TYPE_CHECKING:
    from wardkey.adapters.single_sign_on import SignInIssuer


def master_key_source(config: Config) -> MasterKeySource:
    """Return where the deployment's master key comes from."""
    return MasterKeySource(config.master_key_path, config.master_key, config.master_key_command)


@contextmanager
def open_deployment(config: Config, *, alone: bool = False) -> Iterator[Runner]:
    """Open a deployment, new or not: folder, master key, migrated database; yield its runner.

    `alone` refuses while servers use it. Raises the failures of each of these.
    """
    # Late, because a worker finds its database migrated and does without Alembic.
    from wardkey.db.migrate import migrate

    make_folder(config.data_dir)
    with (
        hold_folder(config.data_dir, alone=alone),
        open_storage(config) as database,
        hold_database(database, alone=alone),
    ):
        migrate(database)
        init_feed(database)
        open_vault(database)
        yield Runner(database, CommitBarrier(database))


def has_deployment(config: Config) -> bool:
    """Tell whether a deployment was made; raises `StorageReadOnly` for a folder without rights."""
    if not config.data_dir.is_dir():
        return False
    check_folder(config.data_dir)
    return is_initialized(config.storage_url)


@contextmanager
def open_existing(config: Config) -> Iterator[Runner]:
    """Open a deployment that was made before; raises `DeploymentNotFound` if there is none."""
    if not has_deployment(config):
        raise DeploymentNotFound(
            f"There is no deployment in {config.data_dir}; name its folder with --data-dir, or "
            "make one with `wardkey up`."
        )
    with open_deployment(config) as runner:
        yield runner


@contextmanager
def open_storage(config: Config) -> Iterator[Database]:
    """Open the database with the master key that fits it, as it is; made if it is new."""
    master = resolve_master_key(master_key_source(config), config.storage_url)
    database = open_database(config.storage_url, master, config.brand)
    try:
        yield database
    finally:
        database.close()


def make_folder(path: Path) -> None:
    """Make the data folder, for its owner alone; an existing one is left as it is.

    Raises `StorageReadOnly`, and `InvalidSetting` where something else has its name.
    """
    try:
        with storage_errors():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidSetting(
            f"{path} cannot be the data folder: a part of its path is a file.", field="data_dir"
        ) from None


def sign_in_issuer(config: Config) -> SignInIssuer | None:
    """Return the OIDC issuer by which people sign in to the dashboard, if there is one."""
    if not config.oidc_issuer:
        return None
    # Late, because most commands start without what checks tokens.
    from wardkey.adapters.fetch import Fetch
    from wardkey.adapters.single_sign_on import CALLBACK, SignInIssuer

    return SignInIssuer(
        config.oidc_issuer,
        config.oidc_client_id,
        config.oidc_client_secret,
        f"{config.url}{CALLBACK}",
        config.oidc_name or urlsplit(config.oidc_issuer).netloc,
        # The operator chose it, so it may be in his own network.
        Fetch(private_allowed=True),
    )
