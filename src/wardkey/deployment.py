"""Opens a deployment: its folder, master key and database, created or migrated if necessary."""

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
    """Return the source of the deployment's master key."""
    return MasterKeySource(config.master_key_path, config.master_key, config.master_key_command)


@contextmanager
def open_deployment(config: Config, *, alone: bool = False) -> Iterator[Runner]:
    """Open a deployment, creating or migrating it if necessary; yield its runner.

    `alone` refuses while servers use it. Raises the errors of the folder, the master key and the
    database.
    """
    # Imported late: a worker's database is already migrated, so it doesn't need Alembic.
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
    """Return whether the deployment exists; raises `StorageReadOnly` if it can't be written."""
    if not config.data_dir.is_dir():
        return False
    check_folder(config.data_dir)
    return is_initialized(config.storage_url)


@contextmanager
def open_existing(config: Config) -> Iterator[Runner]:
    """Open an existing deployment; raises `DeploymentNotFound` if it doesn't exist."""
    if not has_deployment(config):
        raise DeploymentNotFound(
            f"{config.data_dir} contains no deployment; set its folder with --data-dir, or create "
            "one with `wardkey up`."
        )
    with open_deployment(config) as runner:
        yield runner


@contextmanager
def open_storage(config: Config) -> Iterator[Database]:
    """Open the database with its master key, without migrating it; create the key if it is new."""
    master = resolve_master_key(master_key_source(config), config.storage_url)
    database = open_database(config.storage_url, master, config.brand)
    try:
        yield database
    finally:
        database.close()


def make_folder(path: Path) -> None:
    """Create the data folder, accessible only to its owner; an existing one is left unchanged.

    Raises `StorageReadOnly`, or `InvalidSetting` if part of the path is a file.
    """
    try:
        with storage_errors():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidSetting(
            f"{path} can't be the data folder, because part of its path is a file; choose another "
            "folder.",
            field="data_dir",
        ) from None


def sign_in_issuer(config: Config) -> SignInIssuer | None:
    """Return the OIDC issuer for single sign-on to the dashboard, if one is configured."""
    if not config.oidc_issuer:
        return None
    # Imported late, because most commands don't check tokens.
    from wardkey.adapters.fetch import Fetch
    from wardkey.adapters.single_sign_on import CALLBACK, SignInIssuer

    return SignInIssuer(
        config.oidc_issuer,
        config.oidc_client_id,
        config.oidc_client_secret,
        f"{config.url}{CALLBACK}",
        config.oidc_name or urlsplit(config.oidc_issuer).netloc,
        # The operator chose the issuer, so it may be in a private network.
        Fetch(private_allowed=True),
    )
