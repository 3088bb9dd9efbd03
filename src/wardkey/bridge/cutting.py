"""Live MQTT sessions follow every change: who may no longer, or may something else, is cut off."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from wardkey.actions.rights import Rights
from wardkey.actions.sessions import (
    Owner,
    Room,
    changes_since,
    find_owners,
    stopped_organizations,
)
from wardkey.bridge.logins import mark_of
from wardkey.db.engine import Transaction
from wardkey.domain.secret import Environment
from wardkey.domain.times import parse_iso
from wardkey.outside.broker_link import BrokerLink, Session
from wardkey.outside.publishers import BRIDGE
from wardkey.web.context import Context

log = logging.getLogger("wardkey")

_LOOK_S = 0.03
# The broker's own bound on a login, and a little: one in flight is there by then or never.
AGAIN_S = 2.1


@dataclass(slots=True)
class Cutting:
    """Follows the change feed; every process does, so that one of them always lives to do it."""

    here: Context
    link: BrokerLink
    rights: Rights
    _again: set[asyncio.Task[None]] = field(default_factory=set)

    async def follow(self) -> None:
        """Cut what changes, for ever; what fails is done at the next look."""
        # Sessions may have outlived the process that would have cut them.
        seen, stopped = -1, frozenset[str]()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if not self.link.is_connected or self.here.verifier.directory.revision() == seen:
                    continue
                change = await run_in_threadpool(changes_since, self.here.runner.database, seen)
                if change is None:
                    continue
                if change.organizations:
                    stopped = await self._stop_organizations(stopped)
                await asyncio.gather(*(self.cut(room) for room in change.rooms))
                for room in change.rooms:
                    task = asyncio.create_task(self._cut_again(room))
                    self._again.add(task)
                    task.add_done_callback(self._again.discard)
                seen = change.revision
            except Exception:  # sessions must be followed for as long as this process lives
                log.exception("live sessions could not be cut")
                await asyncio.sleep(1)

    async def cut(self, room: Room, *, patient: bool = False) -> int:
        """End the sessions of a room that would not be let in as they are; return how many."""
        sessions = await self.link.sessions(*room, patient=patient)
        wrong = await run_in_threadpool(self._wrong, room, sessions)
        await asyncio.gather(*(self.link.kick(one.server, one.cid) for one in wrong))
        return len(wrong)

    async def _cut_again(self, room: Room) -> None:
        await asyncio.sleep(AGAIN_S)
        try:
            await self.cut(room, patient=True)
        except Exception:  # as above
            log.exception("live sessions could not be cut")

    async def _stop_organizations(self, before: frozenset[str]) -> frozenset[str]:
        stopped = await run_in_threadpool(stopped_organizations, self.here.runner.database)
        for org_id in stopped ^ before:
            for environment in Environment:
                await self.link.put_account(org_id, environment, suspended=org_id in stopped)
        return stopped

    def _wrong(self, room: Room, sessions: list[Session]) -> list[Session]:
        by_id: defaultdict[str, list[Session]] = defaultdict(list)
        for one in sessions:
            by_id[one.client_id].append(one)
        wrong = []
        with self.here.runner.database.read() as tx:
            owners = find_owners(tx, room, list(by_id))
            for mqtt_id, found in by_id.items():
                owner = owners.get(mqtt_id)
                if owner is None:
                    # Nobody can say whose it is, so whoever it is logs in anew.
                    wrong += [one for one in found if one.username != BRIDGE]
                    continue
                wrong += [one for one in found if not self._may_stay(tx, room, owner, one)]
        return wrong

    def _may_stay(self, tx: Transaction, room: Room, owner: Owner, session: Session) -> bool:
        if not owner.enabled or owner.password_set_at > parse_iso(session.started_at):
            return False
        now = self.rights.of(tx, room, owner.subject_id, owner.username, session.client_id)
        return mark_of(now) == owner.rights
