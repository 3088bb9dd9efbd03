"""Listing and ending live MQTT sessions, for the API and the dashboard."""

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
    """Return the live sessions of clients and users, latest first.

    `username` is the MQTT user name, or empty for all; `subscribed` includes the sessions'
    subscriptions. Raises `BrokerUnreachable`.
    """
    with runner.audit_refusals("list_sessions", by):
        by.require(Permission.CLIENTS_READ)
    connected = run(partial(link.sessions, *by.scope, username, subscribed=subscribed))
    visible = [session for session in connected if session.username != BRIDGE]
    visible.sort(key=lambda session: session.started_at, reverse=True)
    return visible


def end_session(runner: Runner, link: BrokerLink, by: Principal, session_id: str) -> None:
    """End a live session; raises `SessionNotFound`, `BrokerUnreachable`."""
    with runner.audit_refusals("end_session", by):
        by.require(Permission.CLIENTS_WRITE)
    connected = run(link.sessions, *by.scope, "")
    session = next((item for item in connected if id_of(item) == session_id), None)
    if session is None:
        raise SessionNotFound
    runner.write(sessions.note_ended, by, session.client_id, session.username)
    run(link.kick, session.server, session.cid)


def live_connections(
    runner: Runner, link: BrokerLink | None, by: Principal
) -> set[ConnectionId] | None:
    """Return the live connections, or None if the broker can't be queried."""
    if link is None:
        return None
    try:
        connected = list_sessions(runner, link, by, subscribed=False)
    except BrokerUnreachable:
        return None
    return {(session.server, session.cid) for session in connected}


def free_client_id(
    runner: Runner, remover: SessionRemover | None, by: Principal, mqtt_id: str
) -> None:
    """Free a client id and remove its session and queue; raises `ClientIdNotFound`."""
    with runner.audit_refusals("free_client_id", by):
        by.require(Permission.CLIENTS_WRITE)
    client_id = runner.read(held_client_ids.get_held, by, mqtt_id)
    runner.write(held_client_ids.note_freed, by, client_id)
    freed_client_ids.force_free(runner.database, by.scope, mqtt_id)
    if remover is not None:
        remover.clear(by.scope, mqtt_id)


def id_of(session: Session) -> str:
    """Return the public id of a session."""
    return f"ses_{session.server}_{session.cid}"
