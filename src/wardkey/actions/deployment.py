"""What happens to a deployment as a whole: its first start, its epoch, its clean-up."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update

from wardkey.actions.idempotency import KEPT_MS
from wardkey.actions.keys import Issued, issue
from wardkey.actions.organizations import Organization, create
from wardkey.actions.people import create_setup_link
from wardkey.db.engine import Database, Transaction, telling
from wardkey.db.schema import changes, feed, idempotency, imported, organizations
from wardkey.db.schema import secrets as secrets_table
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import TICKED_EXPLICITLY, KeyType, Permission, Role
from wardkey.domain.principal import Principal, member
from wardkey.domain.secret import Environment

FIRST_KEY_NAME = "live-wardkey-bootstrap"
_KEPT_CHANGES = 100_000


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What the first start made, with the two texts that are shown once."""

    organization: Organization
    owner_email: str
    setup_link: str
    issued: Issued


def begin_feed(database: Database) -> None:
    """Write the feed's one row in a database that is new."""
    with database.writer.begin() as connection:
        if connection.execute(select(func.count()).select_from(feed)).scalar_one() == 0:
            connection.execute(insert(feed).values(id=1, epoch=secrets.token_hex(12), revision=0))


def is_new(tx: Transaction) -> bool:
    """Tell whether no organization was ever made."""
    count = tx.connection.execute(select(func.count()).select_from(organizations)).scalar_one()
    return bool(count == 0)


def first_start(tx: Transaction, by: Principal, name: str, owner_email: str) -> FirstStart | None:
    """Make the first organization, its owner and a secret key, all or nothing.

    Returns None if another process was first. The key may make keys, so that a new deployment
    can be used from the command line at once.
    """
    by.require_operator()
    if not is_new(tx):
        return None
    organization, user_id = create(tx, by, name, owner_email)
    link = create_setup_link(tx, by, owner_email)
    owner = member(
        user_id=user_id,
        email=owner_email,
        org_id=organization.id,
        role=Role.OWNER,
        environment=Environment.LIVE,
    )
    permissions = tuple(
        sorted((frozenset(Permission) - TICKED_EXPLICITLY) | {Permission.KEYS_WRITE})
    )
    spec = KeySpec(
        name=FIRST_KEY_NAME,
        type=KeyType.SECRET,
        environment=Environment.LIVE,
        permissions=permissions,
        description="Made by the first start. Revoke it once you have keys of your own.",
    )
    return FirstStart(organization, owner_email, link, issue(tx, owner, spec))


def clean_up(database: Database) -> None:
    """Delete kept answers that are over and all but the newest 100,000 change-feed rows.

    A reader older than the oldest kept row drops all it knows.
    """
    with telling(), database.writer.begin() as connection:
        connection.execute(
            delete(idempotency).where(idempotency.c.created_at <= database.clock() - KEPT_MS)
        )
        newest = connection.execute(select(feed.c.revision)).scalar_one()
        connection.execute(delete(changes).where(changes.c.revision <= newest - _KEPT_CHANGES))


def check_storage(database: Database) -> None:
    """Ask the database for the feed's row; raises the storage's failure if it cannot answer."""
    with database.read() as tx:
        tx.connection.execute(select(feed.c.revision)).scalar_one()


def rehash(database: Database, digests: Mapping[str, tuple[bytes, int]]) -> None:
    """Store digests under the current pepper for secrets that were used under an older one.

    No verdict changes by it, so it stands neither in the audit nor in the change feed.
    """
    if not digests:
        return
    with telling(), database.writer.begin() as connection:
        for kid, (digest, old_version) in sorted(digests.items()):
            values = {"digest": digest, "pepper_version": database.keys.version}
            changed = connection.execute(
                update(secrets_table)
                .where(secrets_table.c.kid == kid, secrets_table.c.pepper_version == old_version)
                .values(values)
            )
            if changed.rowcount:
                connection.execute(update(imported).where(imported.c.kid == kid).values(values))
