"""Live MQTT sessions, as every door lists and ends them."""

from __future__ import annotations

from functools import partial

from anyio.from_thread import run

from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging import sessions
from wardkey.adapters.broker_link import BrokerLink, Session
from wardkey.adapters.publishers import BRIDGE
from wardkey.domain.errors import SessionNotFound
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal


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


def id_of(one: Session) -> str:
    """Return what a session is called outside."""
    return f"ses_{one.server}_{one.cid}"
