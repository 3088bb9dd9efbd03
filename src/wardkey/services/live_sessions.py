"""Live MQTT sessions, as every door lists and ends them."""

from __future__ import annotations

from functools import partial

from anyio.from_thread import run

from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging import freed_client_ids, held_client_ids, sessions
from wardkey.actions.messaging.client_ids import ConnectionId
from wardkey.adapters.broker_link import BrokerLink, Session
from wardkey.adapters.publishers import BRIDGE
from wardkey.domain.errors import BrokerUnreachable, SessionNotFound
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.services.session_removal import SessionRemover


def list_sessions(
    runner: Runner,
    link: BrokerLink,
    by: Principal,
    username: str = "",
    *,
    subscribed: bool = True,
) -> list[Session]:
    """Return the live sessions of people, latest first; `username` as it is on the wire.

    `subscribed` asks for their subscriptions too. Raises `BrokerUnreachable`.
    """
    with runner.audit_refusals("list_sessions", by):
        by.require(Permission.CLIENTS_READ)
    found = run(partial(link.sessions, *by.scope, username, subscribed=subscribed))
    kept = [one for one in found if one.username != BRIDGE]
    kept.sort(key=lambda one: one.started_at, reverse=True)
    return kept


def end_session(runner: Runner, link: BrokerLink, by: Principal, session_id: str) -> None:
    """End a live session; raises `SessionNotFound`, `BrokerUnreachable`."""
    with runner.audit_refusals("end_session", by):
        by.require(Permission.CLIENTS_WRITE)
    found = run(link.sessions, *by.scope, "")
    ended = next((one for one in found if id_of(one) == session_id), None)
    if ended is None:
        raise SessionNotFound
    runner.write(sessions.note_ended, by, ended.client_id, ended.username)
    run(link.kick, ended.server, ended.cid)


def live_connections(
    runner: Runner, link: BrokerLink | None, by: Principal
) -> set[ConnectionId] | None:
    """Return the live connections, as client ids name them; None if they are not known."""
    if link is None:
        return None
    try:
        found = list_sessions(runner, link, by, subscribed=False)
    except BrokerUnreachable:
        return None
    return {(one.server, one.cid) for one in found}


def free_client_id(
    runner: Runner, remover: SessionRemover | None, by: Principal, mqtt_id: str
) -> None:
    """Free a client id, with its live session and its queue; raises `ClientIdNotFound`."""
    with runner.audit_refusals("free_client_id", by):
        by.require(Permission.CLIENTS_WRITE)
    held = runner.read(held_client_ids.get_held, by, mqtt_id)
    runner.write(held_client_ids.note_freed, by, held)
    freed_client_ids.force_free(runner.database, by.scope, mqtt_id)
    if remover is not None:
        remover.clear(by.scope, mqtt_id)


def id_of(one: Session) -> str:
    """Return what a session is called outside."""
    return f"ses_{one.server}_{one.cid}"
