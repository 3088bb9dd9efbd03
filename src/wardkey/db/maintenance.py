"""Database maintenance: the change feed's first row, cleanup, rehashing and health checks."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Mapping

from sqlalchemy import delete, func, insert, select, update

from wardkey.db.engine import Database, storage_errors
from wardkey.db.schema import (
    browser_sessions,
    callers,
    challenges,
    changes,
    clients,
    feed,
    grant_cutoffs,
    grants,
    hours,
    idempotency,
    imported,
    publications,
    refused,
    secrets,
    service_keys,
    spent_forms,
    user_tokens,
)
from wardkey.domain.times import DAY_MS, HOUR_MS

KEPT_CHANGES = 100_000
KEPT_ANSWERS_MS = 600_000
# Twice the 30 days for which a grant can be refreshed, to allow for wrong clocks.
KEPT_CUTOFFS_MS = 60 * DAY_MS
KEPT_USAGE_MS = 90 * DAY_MS
# An Idempotency-Key of a publication is valid for a day.
KEPT_PUBLICATIONS_MS = DAY_MS
# No browser session lives this long, so none of its forms can be submitted again.
KEPT_SESSIONS_MS = 60 * DAY_MS


def init_feed(database: Database) -> None:
    """Insert the change feed's single row if the database is new."""
    with database.writer.begin() as connection:
        if connection.execute(select(func.count()).select_from(feed)).scalar_one() == 0:
            connection.execute(
                insert(feed).values(id=1, epoch=randomness.token_hex(12), revision=0)
            )


def clean_up(database: Database) -> None:
    """Delete old stored responses, sessions, user tokens and change-feed rows.

    100,000 feed rows are kept; a reader that is behind the oldest of them empties its memory.
    """
    with storage_errors(), database.writer.begin() as connection:
        connection.execute(
            delete(idempotency).where(
                idempotency.c.created_at <= database.clock() - KEPT_ANSWERS_MS
            )
        )
        cutoff = database.clock() - KEPT_SESSIONS_MS
        connection.execute(delete(browser_sessions).where(browser_sessions.c.created_at <= cutoff))
        connection.execute(delete(user_tokens).where(user_tokens.c.expires_at <= cutoff))
        connection.execute(delete(spent_forms).where(spent_forms.c.at <= cutoff))
        connection.execute(delete(challenges).where(challenges.c.expires_at <= database.clock()))
        newest = connection.execute(select(feed.c.revision)).scalar_one()
        connection.execute(delete(changes).where(changes.c.revision <= newest - KEPT_CHANGES))


def clean_up_grants(database: Database) -> None:
    """Delete grants that can't be refreshed any more, and cutoffs older than any live grant.

    Neither changes anyone's access.
    """
    now = database.clock()
    with storage_errors(), database.writer.begin() as connection:
        connection.execute(delete(grants).where(grants.c.refreshable_until <= now))
        # A cutoff older than the longest grant lifetime can't apply to any grant.
        connection.execute(delete(grant_cutoffs).where(grant_cutoffs.c.at <= now - KEPT_CUTOFFS_MS))


def clean_up_usage(database: Database) -> None:
    """Delete counts and callers older than 90 days, and publications after a day.

    A publishable key or an anonymous user can add rows to each of these tables.
    """
    now = database.clock()
    since = now - KEPT_USAGE_MS
    with database.counting() as connection:
        connection.execute(delete(hours).where(hours.c.hour < since // HOUR_MS))
        connection.execute(delete(refused).where(refused.c.hour < since // HOUR_MS))
        connection.execute(delete(callers).where(callers.c.last_at < since))
        over = publications.c.created_at <= now - KEPT_PUBLICATIONS_MS
        connection.execute(delete(publications).where(over))


def touch_session(database: Database, session_id: str, now: int) -> None:
    """Update a browser session's `seen_at`; no rights change, so no change-feed row is needed."""
    with storage_errors(), database.writer.begin() as connection:
        connection.execute(
            update(browser_sessions).where(browser_sessions.c.id == session_id).values(seen_at=now)
        )


def feed_revision(database: Database) -> int:
    """Return the revision of the last commit; raises the storage's error."""
    with database.read() as tx:
        return int(tx.connection.execute(select(feed.c.revision)).scalar_one())


def check_storage(database: Database) -> None:
    """Read the change feed's row; raises the storage's error if that fails."""
    with database.read() as tx:
        tx.connection.execute(select(feed.c.revision)).scalar_one()


def rehash(database: Database, digests: Mapping[str, tuple[bytes, int]]) -> None:
    """Store digests under the current pepper for secrets that were used under an older one.

    No verdict changes, so this writes no audit event and no change-feed row.
    """
    if not digests:
        return
    with storage_errors(), database.writer.begin() as connection:
        for kid, (digest, old_version) in sorted(digests.items()):
            values = {"digest": digest, "pepper_version": database.vault.version}
            changed = connection.execute(
                update(secrets)
                .where(secrets.c.kid == kid, secrets.c.pepper_version == old_version)
                .values(values)
            )
            if changed.rowcount:
                connection.execute(update(imported).where(imported.c.kid == kid).values(values))
            else:
                connection.execute(
                    update(service_keys)
                    .where(service_keys.c.kid == kid, service_keys.c.pepper_version == old_version)
                    .values(values)
                )


def rehash_passwords(database: Database, digests: Mapping[str, tuple[bytes, int]]) -> None:
    """Store digests under the current pepper for generated client passwords under an older one.

    As in `rehash`, this writes no audit event and no change-feed row.
    """
    if not digests:
        return
    with storage_errors(), database.writer.begin() as connection:
        for client_id, (digest, old_version) in sorted(digests.items()):
            # The condition skips clients whose password has changed since.
            connection.execute(
                update(clients)
                .where(clients.c.id == client_id, clients.c.pepper_version == old_version)
                .values(digest=digest, pepper_version=database.vault.version)
            )
