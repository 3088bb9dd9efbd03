"""This process's connections to the broker: manages accounts and sessions, and answers logins."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from wardkey.adapters.broker import BrokerKeys
from wardkey.adapters.nkeys import NKey, verify_jwt
from wardkey.adapters.turns import Turns
from wardkey.domain.errors import BrokerUnreachable, Overloaded, TooManyAttempts, WardkeyError

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 2.0
# A silent broker is abandoned after three missed pings; other nodes of its cluster may respond.
_PING_S = 5
# The broker accepts MQTT logins shortly before this connection, so reconnect attempts are frequent.
_RECONNECT_S = 0.1
# Shorter disconnections are not logged.
_QUIET_DISCONNECT_S = 2.0
# A response to a login is useless after the broker's auth timeout; this is just below it.
_LOGIN_TIMEOUT_S = 1.8
# More than can wait for password hashes, so logins without a hash are not blocked by them.
_MAX_RUNNING, _MAX_WAITING = 48, 1_024
_GATHER_S = 0.25
_ACCOUNT_CLIENT_S = 60
_MAX_TOPICS = 4_096
_PUBLISH_DENY = (
    "$JS.>", "$SYS.>", "$MQTT.>", "$KV.>", "$O.>", "$SRV.>", "$NRG.>", "_INBOX.>", "_R_.>",
    "_GR_.>",
)  # fmt: skip
_SUBSCRIBE_DENY = tuple(subject for subject in _PUBLISH_DENY if subject != "$MQTT.>")
# The subjects on which the broker's MQTT gateway delivers messages to a session.
_GATEWAY_SUBJECTS = "$MQTT.>"


@dataclass(frozen=True, slots=True)
class Login:
    """A login to check; `server` and `cid` name the connection, as in `Session`."""

    username: str
    password: str = field(repr=False)
    client_id: str = ""
    address: str = ""
    is_mqtt: bool = False
    server: str = ""
    cid: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """An admitted client and its rights, as NATS subjects; times in epoch milliseconds.

    Its grant expires at `expires_at`; the broker closes the session at `session_until`.
    """

    org_id: str
    environment: str
    username: str
    publish_allow: tuple[str, ...]
    publish_deny: tuple[str, ...]
    subscribe_allow: tuple[str, ...]
    subscribe_deny: tuple[str, ...]
    expires_at: int | None = None
    session_until: int | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A live MQTT session; `started_at` is the broker's RFC 3339 text."""

    server: str
    cid: int
    client_id: str
    username: str
    address: str
    started_at: str
    subscriptions: tuple[str, ...]
    received: int
    sent: int
    tags: tuple[str, ...]


Judge = Callable[[Login], Awaitable[Admitted | None]]


class BrokerLink:
    """Two connections to the broker: in the system account, and for auth callouts."""

    def __init__(
        self,
        urls: Sequence[str],
        keys: BrokerKeys,
        clock: Callable[[], int],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._urls, self._keys, self._clock, self._tls = list(urls), keys, clock, tls
        self._system = Client()
        self._callout = Client()
        self._closed = asyncio.Event()
        # Accounts sent to the broker, and whether each is suspended.
        self._accounts: dict[tuple[str, str], bool] = {}
        self._turns = Turns(_MAX_RUNNING, _MAX_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        # Connections whose login is being checked by this process.
        self._pending_logins: set[tuple[str, int]] = set()
        self._node_count = 0
        self._last_error = ""
        self._disconnected_since: float | None = None
        self._subscription: Subscription | None = None
        self._opened = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Return whether the broker is connected."""
        return self._system.is_connected

    async def keep(self, judge: Judge) -> None:
        """Stay connected and answer logins by `judge`, until cancelled."""
        while True:
            try:
                await self.open(judge)
                # The library doesn't reconnect if the broker gave a reason for closing.
                await self._closed.wait()
            except (OSError, TimeoutError, BrokerUnreachable, nats.errors.Error) as error:
                await self._log_error(error)
            await self.close()
            await asyncio.sleep(_RECONNECT_S)

    async def open(self, judge: Judge) -> None:
        """Connect, retrying until it succeeds, and answer logins by `judge`."""
        self._system, self._callout, self._closed = Client(), Client(), asyncio.Event()
        now = self._clock() // 1000
        self._subscription = None
        await self._connect(self._system, self._keys.system_user, self._keys.system_token(now))
        await self._connect(self._callout, self._keys.callout_user, self._keys.callout_token(now))

        async def on_login(message: Msg) -> None:
            task = asyncio.create_task(self._answer(message, judge))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        # If the connection ended meanwhile, the library subscribes on the next one.
        self._subscription = await self._callout.subscribe(
            "$SYS.REQ.USER.AUTH", queue="wardkey", cb=on_login
        )
        await self._callout.flush()
        self._disconnected_since = None
        self._opened.set()
        await self._close_unanswered()

    async def wait_until_open(self, within_s: float) -> bool:
        """Return whether logins are answered within this many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), within_s)
        return self._opened.is_set()

    async def close(self) -> None:
        """Answer the logins already received, then close both connections."""
        if self._callout.is_connected and self._subscription is not None:
            with suppress(nats.errors.Error, OSError):
                # From now on other workers receive the logins.
                await self._subscription.unsubscribe()
                await self._callout.flush(1)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LOGIN_TIMEOUT_S)
        for client in (self._callout, self._system):
            await client.close()

    async def put_account(self, org_id: str, environment: str, *, suspended: bool = False) -> None:
        """Create an account at the broker, or suspend it, which closes its sessions.

        Raises `BrokerUnreachable`, as do all methods below.
        """
        if self._accounts.get((org_id, environment)) is suspended:
            return
        token = self._keys.account_token(
            org_id, environment, self._clock() // 1000, suspended=suspended
        )
        with self._connected_errors():
            message = await self._system.request(
                "$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=_REQUEST_TIMEOUT_S
            )
        response = json.loads(message.data)
        if response.get("data", {}).get("code") != 200:  # noqa: PLR2004 - the broker's own code
            log.error("the broker rejected an account: %s", response.get("error"))
            raise BrokerUnreachable
        self._accounts[org_id, environment] = suspended

    async def sessions(
        self,
        org_id: str,
        environment: str,
        username: str = "",
        *,
        patient: bool = False,
        subscribed: bool = True,
    ) -> list[Session]:
        """Return the live sessions of a tenant scope on all the broker's nodes.

        `patient` waits for nodes that may have joined since they were counted; `subscribed`
        includes the subscriptions.
        """
        if (org_id, environment) not in self._accounts:
            # The broker would search two seconds for an account that it doesn't know.
            await self.put_account(org_id, environment)
        account = self._keys.account(org_id, environment).public
        query: dict[str, Any] = {
            "acc": account, "auth": True, "subscriptions": subscribed, "limit": 1_000_000,
            "state": 0,
        }  # fmt: skip
        if username:
            query["user"] = username
        sessions = []
        with self._connected_errors():
            responses = await self._gather("$SYS.REQ.SERVER.PING.CONNZ", query, patient=patient)
        for response in responses:
            server = response["server"]["id"]
            for connection in response.get("data", {}).get("connections") or []:
                if connection.get("mqtt_client") is None:
                    continue
                sessions.append(_session(server, connection))
        return sessions

    async def _close_unanswered(self) -> None:
        """Close connections whose login callout was sent before any process subscribed.

        The broker would time out and refuse them like wrong passwords. A login that another
        process is checking is closed too; its client tries again.
        """
        account = self._keys.auth.public
        query = {"acc": account, "auth": True, "limit": 1_000_000, "state": 0}
        for response in await self._gather("$SYS.REQ.SERVER.PING.CONNZ", query, patient=False):
            server = response["server"]["id"]
            for connection in response.get("data", {}).get("connections") or []:
                is_waiting = (
                    connection.get("type") == "mqtt" and connection.get("account") == account
                )
                if is_waiting and (server, connection["cid"]) not in self._pending_logins:
                    await self.kick(server, connection["cid"])

    async def kick(self, server: str, cid: int) -> None:
        """Close a session; it may have ended already."""
        request = json.dumps({"cid": cid}).encode()
        subject = f"$SYS.REQ.SERVER.{server}.KICK"
        with self._connected_errors():
            await self._system.request(subject, request, timeout=_REQUEST_TIMEOUT_S)

    def bridge_token(self, org_id: str, environment: str, name: str, lifetime_s: int) -> str:
        """Return a password with which Wardkey itself publishes, without the auth callout."""
        account = self._keys.account(org_id, environment)
        now = self._clock() // 1000
        claims = _user_claims((">",), (), (), ()) | {"bearer_token": True}
        user = self._keys.sentinel.public
        return account.issue(user, name, claims, iat=now, exp=now + lifetime_s)

    @asynccontextmanager
    async def account_client(
        self, account: tuple[str, str], subjects: tuple[str, ...]
    ) -> AsyncIterator[Client]:
        """Connect to an account for a minute, with the right to publish only to `subjects`."""
        await self.put_account(*account)
        claims = {
            "type": "user",
            "pub": {"allow": list(subjects)},
            "sub": {"allow": ["_INBOX.>"]},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "bearer_token": True,
        }
        user, now = self._keys.sentinel, self._clock() // 1000
        token = self._keys.account(*account).issue(
            user.public, "wardkey", claims, iat=now, exp=now + _ACCOUNT_CLIENT_S
        )
        client = Client()
        await self._connect(client, user, token, lasting=False)
        try:
            yield client
        finally:
            await client.close()

    async def _connect(
        self, client: Client, user: NKey, token: str, *, lasting: bool = True
    ) -> None:
        async def on_closed() -> None:
            self._closed.set()

        async def on_reconnected() -> None:
            self._disconnected_since = None
            # It may have restarted with another folder; accounts are sent again when needed.
            self._accounts = {
                account: True for account, suspended in self._accounts.items() if suspended
            }
            try:
                await self._close_unanswered()
            except (BrokerUnreachable, OSError, TimeoutError, nats.errors.Error) as error:
                await self._log_error(error)

        await client.connect(
            self._urls,
            user_jwt_cb=lambda: bytearray(token.encode()),
            signature_cb=lambda nonce: base64.b64encode(user.sign(nonce.encode())),
            error_cb=self._log_error,
            closed_cb=on_closed if lasting else None,
            reconnected_cb=on_reconnected if lasting else None,
            tls=self._tls,
            # Otherwise a man in the middle could downgrade the connection to plain text.
            tls_handshake_first=self._tls is not None,
            max_reconnect_attempts=-1 if lasting else 0,
            reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type]  # it sleeps so long
            ping_interval=_PING_S,
            allow_reconnect=lasting,
        )

    async def _log_error(self, error: Exception) -> None:
        """Log a connection error, but no repetitions and no short disconnections."""
        now, text = asyncio.get_running_loop().time(), repr(error)
        if not (self._system.is_connected and self._callout.is_connected):
            self._disconnected_since = self._disconnected_since or now
            if now - self._disconnected_since < _QUIET_DISCONNECT_S:
                return
        if text != self._last_error:
            log.warning("connection to the broker: %s", text)
        self._last_error = text

    async def _gather(
        self, subject: str, request: dict[str, Any], *, patient: bool
    ) -> list[dict[str, Any]]:
        """Send a request to every node and return the responses.

        It ends once as many nodes responded as were counted the last time it waited for all, or
        once a quarter of a second passes without a response.
        """
        inbox = self._system.new_inbox()
        subscription = await self._system.subscribe(inbox)
        responses: list[dict[str, Any]] = []
        try:
            await self._system.publish(subject, json.dumps(request).encode(), reply=inbox)
            timeout = _REQUEST_TIMEOUT_S
            while patient or not self._node_count or len(responses) < self._node_count:
                message = await subscription.next_msg(timeout)
                responses.append(json.loads(message.data))
                timeout = _GATHER_S
        except (nats.errors.TimeoutError, TimeoutError):
            self._node_count = len(responses)
            if not responses:
                raise
            return responses
        else:
            return responses
        finally:
            await subscription.unsubscribe()

    async def _answer(self, message: Msg, judge: Judge) -> None:
        started_at = asyncio.get_running_loop().time()
        try:
            claims = verify_jwt(message.data.decode())
        except ValueError:
            return
        request = claims["nats"]
        server, user = request["server_id"]["id"], request["user_nkey"]
        if claims["iss"] != server:
            return
        login = _login(request, server)
        result: dict[str, Any] = {"error": "refused"}
        reason = ""
        self._pending_logins.add((server, login.cid))
        try:
            async with self._turns.take(login.address):
                left = _LOGIN_TIMEOUT_S - (asyncio.get_running_loop().time() - started_at)
                admitted = await asyncio.wait_for(judge(login), left)
                if admitted is not None:
                    await self.put_account(admitted.org_id, admitted.environment)
                    result = {"jwt": self._user_token(user, admitted)}
        except TimeoutError:
            reason = "timeout"
        except WardkeyError as error:
            reason = error.code
        except Exception:  # the broker waits for a response, whatever went wrong here
            log.exception("checking a login failed")
            reason = "internal error"
        finally:
            self._pending_logins.discard((server, login.cid))
        if reason:
            # A refusal would look like a wrong password, and the client may never try again.
            expected = reason in (Overloaded.code, TooManyAttempts.code)
            log.log(
                logging.INFO if expected else logging.WARNING,
                "a login could not be checked, so its connection was closed: %s",
                reason,
            )
            with suppress(BrokerUnreachable):
                await self.kick(server, login.cid)
        now = self._clock() // 1000
        response = self._keys.auth.issue(
            user, "", {"type": "authorization_response", **result}, iat=now, aud=server
        )
        await message.respond(response.encode())

    @contextmanager
    def _connected_errors(self) -> Iterator[None]:
        """As `broker_errors`; also raises `BrokerUnreachable` without a connection."""
        if not self._system.is_connected:
            # After a request before the first connection the library would miss all responses.
            raise BrokerUnreachable
        with broker_errors():
            yield

    def _user_token(self, user: str, admitted: Admitted) -> str:
        account = self._keys.account(admitted.org_id, admitted.environment)
        claims = _user_claims(
            admitted.publish_allow,
            admitted.publish_deny,
            admitted.subscribe_allow,
            admitted.subscribe_deny,
        )
        claims["tags"] = list(admitted.tags)
        now, elapsed_ms = divmod(self._clock(), 1000)
        expiry = {}
        if admitted.session_until is not None:
            # The broker counts whole seconds from the login, so the part of the present second
            # that has passed is subtracted; otherwise the session would end that much too late.
            expiry["exp"] = -(-(admitted.session_until - elapsed_ms) // 1000)
        return account.issue(user, admitted.username, claims, iat=now, aud=account.public, **expiry)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise nats-py's connection errors as `BrokerUnreachable`."""
    try:
        yield
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise BrokerUnreachable from error


def _user_claims(
    publish_allow: tuple[str, ...],
    publish_deny: tuple[str, ...],
    subscribe_allow: tuple[str, ...],
    subscribe_deny: tuple[str, ...],
) -> dict[str, Any]:
    publish: dict[str, Any] = {"deny": [*publish_deny, *_PUBLISH_DENY]}
    if publish_allow:
        publish["allow"] = list(publish_allow)
    else:
        publish["deny"] = [">"]
    return {
        "type": "user",
        "pub": publish,
        "sub": {
            "allow": [*subscribe_allow, _GATEWAY_SUBJECTS],
            "deny": [*subscribe_deny, *_SUBSCRIBE_DENY],
        },
        "subs": -1,
        "data": -1,
        "payload": -1,
    }


def _login(request: dict[str, Any], server: str) -> Login:
    options, info = request["connect_opts"], request["client_info"]
    return Login(
        username=options.get("user", ""),
        password=options.get("pass", ""),
        client_id=info.get("mqtt_id", ""),
        address=info.get("host", ""),
        is_mqtt=info.get("type") == "mqtt",
        server=server,
        cid=info.get("id", 0),
    )


def _session(server: str, connection: dict[str, Any]) -> Session:
    subjects = connection.get("subscriptions_list") or []
    return Session(
        server=server,
        cid=connection["cid"],
        client_id=connection["mqtt_client"],
        username=connection.get("authorized_user", ""),
        address=connection.get("ip", ""),
        started_at=connection["start"],
        subscriptions=tuple(s for s in subjects if not s.startswith("$MQTT"))[:_MAX_TOPICS],
        received=connection.get("in_msgs", 0),
        sent=connection.get("out_msgs", 0),
        tags=tuple(connection.get("tags") or ()),
    )
