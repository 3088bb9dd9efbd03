"""This process's line to the broker: accounts, sessions, and the answer to each login."""

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
from wardkey.adapters.nkeys import NKey, verified
from wardkey.adapters.turns import Turns
from wardkey.domain.errors import BrokerUnreachable, Overloaded, TooManyAttempts, WardkeyError

log = logging.getLogger(__name__)

_ANSWER_S = 2.0
# A broker that went silent is left after three of these; others of its cluster may live.
_PING_S = 5
# The broker takes MQTT logins a moment before it takes this line, so it is tried often.
_AGAIN_S = 0.1
# What is over sooner is not worth a warning.
_AWAY_S = 2.0
# How long after a broker's request an answer to it is still worth anything: its auth timeout.
_LOGIN_S = 1.8
# More than wait for password hashes, so that these keep out nobody who needs none.
_AT_ONCE, _MOST_WAITING = 48, 1_024
_GATHER_S = 0.25
_LINE_S = 60
_MOST_TOPICS = 4_096
_PUBLISH_DENY = (
    "$JS.>", "$SYS.>", "$MQTT.>", "$KV.>", "$O.>", "$SRV.>", "$NRG.>", "_INBOX.>", "_R_.>",
    "_GR_.>",
)  # fmt: skip
_SUBSCRIBE_DENY = tuple(subject for subject in _PUBLISH_DENY if subject != "$MQTT.>")
# Where the broker's own MQTT gateway delivers to a session.
_OWN = "$MQTT.>"


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who wants to log in; `server` and `cid` name the connection, as in `Session`."""

    username: str
    password: str = field(repr=False)
    client_id: str = ""
    address: str = ""
    is_mqtt: bool = False
    server: str = ""
    cid: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who logged in, and what he may do, as NATS subjects; times in epoch milliseconds.

    The grant that was shown ends at `expires_at`; the broker ends the session at `session_until`.
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
    """A live MQTT session; `started_at` as the broker tells it (RFC 3339)."""

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
    """Two connections to the broker, in the system account and as the answerer of logins."""

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
        self._ended = asyncio.Event()
        self._known: dict[tuple[str, str], bool] = {}
        self._turns = Turns(_AT_ONCE, _MOST_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        # Connections whose login is being judged here.
        self._judging: set[tuple[str, int]] = set()
        self._nodes = 0
        self._last_fault = ""
        self._away_since: float | None = None
        self._asked: Subscription | None = None
        self._opened = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Tell whether the broker answers."""
        return self._system.is_connected

    async def keep(self, judge: Judge) -> None:
        """Stay connected and answer logins by `judge`, until cancelled."""
        while True:
            try:
                await self.open(judge)
                # The library gives a connection up when the broker says why it ended it.
                await self._ended.wait()
            except (OSError, TimeoutError, BrokerUnreachable, nats.errors.Error) as error:
                await self._told(error)
            await self.close()
            await asyncio.sleep(_AGAIN_S)

    async def open(self, judge: Judge) -> None:
        """Connect, trying until it is done, and answer logins by `judge`."""
        self._system, self._callout, self._ended = Client(), Client(), asyncio.Event()
        now = self._clock() // 1000
        self._asked = None
        await self._connect(self._system, self._keys.system_user, self._keys.system_token(now))
        await self._connect(self._callout, self._keys.callout_user, self._keys.callout_token(now))

        async def asked(message: Msg) -> None:
            task = asyncio.create_task(self._answer(message, judge))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        # Sent with the next connection if this one ended meanwhile.
        self._asked = await self._callout.subscribe("$SYS.REQ.USER.AUTH", queue="wardkey", cb=asked)
        await self._callout.flush()
        self._away_since = None
        self._opened.set()
        await self._drop_unjudged()

    async def wait_until_open(self, within_s: float) -> bool:
        """Return whether logins are answered by then."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._opened.wait(), within_s)
        return self._opened.is_set()

    async def close(self) -> None:
        """Answer what was asked already, then end both connections."""
        if self._callout.is_connected and self._asked is not None:
            with suppress(nats.errors.Error, OSError):
                # Another worker is asked from here on.
                await self._asked.unsubscribe()
                await self._callout.flush(1)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LOGIN_S)
        for client in (self._callout, self._system):
            await client.close()

    async def put_account(self, org_id: str, environment: str, *, suspended: bool = False) -> None:
        """Make an account known to the broker, or suspend it, which ends its sessions.

        Raises `BrokerUnreachable`, as all that follow do.
        """
        if self._known.get((org_id, environment)) is suspended:
            return
        token = self._keys.account_token(
            org_id, environment, self._clock() // 1000, suspended=suspended
        )
        with self._telling():
            told = await self._system.request(
                "$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=_ANSWER_S
            )
        answer = json.loads(told.data)
        if answer.get("data", {}).get("code") != 200:  # noqa: PLR2004 - the broker's own code
            log.error("the broker refused an account: %s", answer.get("error"))
            raise BrokerUnreachable
        self._known[org_id, environment] = suspended

    async def sessions(
        self,
        org_id: str,
        environment: str,
        username: str = "",
        *,
        patient: bool = False,
        subscribed: bool = True,
    ) -> list[Session]:
        """Return the live sessions of an organization's environment, of all the broker's nodes.

        `patient` waits for nodes that may have joined since they were counted; `subscribed` asks
        for subscriptions too.
        """
        if (org_id, environment) not in self._known:
            # The broker would look for an account that it does not know for two seconds.
            await self.put_account(org_id, environment)
        account = self._keys.account(org_id, environment).public
        asked: dict[str, Any] = {
            "acc": account, "auth": True, "subscriptions": subscribed, "limit": 1_000_000,
            "state": 0,
        }  # fmt: skip
        if username:
            asked["user"] = username
        found = []
        with self._telling():
            answers = await self._gather("$SYS.REQ.SERVER.PING.CONNZ", asked, patient=patient)
        for answer in answers:
            server = answer["server"]["id"]
            for one in answer.get("data", {}).get("connections") or []:
                if one.get("mqtt_client") is None:
                    continue
                found.append(_session(server, one))
        return found

    async def _drop_unjudged(self) -> None:
        """Close connections whose login the broker asked about before anyone could hear it.

        It would refuse them, once it has waited, as it refuses wrong passwords. A login that
        another process is judging is closed too, and its client tries again.
        """
        account = self._keys.auth.public
        asked = {"acc": account, "auth": True, "limit": 1_000_000, "state": 0}
        for answer in await self._gather("$SYS.REQ.SERVER.PING.CONNZ", asked, patient=False):
            server = answer["server"]["id"]
            for one in answer.get("data", {}).get("connections") or []:
                waits = one.get("type") == "mqtt" and one.get("account") == account
                if waits and (server, one["cid"]) not in self._judging:
                    await self.kick(server, one["cid"])

    async def kick(self, server: str, cid: int) -> None:
        """End a session; one that ended by itself is no fault."""
        asked = json.dumps({"cid": cid}).encode()
        with self._telling():
            await self._system.request(f"$SYS.REQ.SERVER.{server}.KICK", asked, timeout=_ANSWER_S)

    def bridge_token(self, org_id: str, environment: str, name: str, lasts_s: int) -> str:
        """Return a password with which this product itself publishes, whatever the callout does."""
        account = self._keys.account(org_id, environment)
        now = self._clock() // 1000
        claims = _user_claims((">",), (), (), ()) | {"bearer_token": True}
        user = self._keys.sentinel.public
        return account.issue(user, name, claims, iat=now, exp=now + lasts_s)

    @asynccontextmanager
    async def account_client(
        self, account: tuple[str, str], subjects: tuple[str, ...]
    ) -> AsyncIterator[Client]:
        """Open a line of a minute into an account, which may publish to `subjects` alone."""
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
            user.public, "wardkey", claims, iat=now, exp=now + _LINE_S
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
        async def ended() -> None:
            self._ended.set()

        async def came_back() -> None:
            self._away_since = None
            # It may have come back with another folder, and learns them when they are needed.
            self._known = {account: True for account, stopped in self._known.items() if stopped}
            try:
                await self._drop_unjudged()
            except (BrokerUnreachable, OSError, TimeoutError, nats.errors.Error) as error:
                await self._told(error)

        await client.connect(
            self._urls,
            user_jwt_cb=lambda: bytearray(token.encode()),
            signature_cb=lambda nonce: base64.b64encode(user.sign(nonce.encode())),
            error_cb=self._told,
            closed_cb=ended if lasting else None,
            reconnected_cb=came_back if lasting else None,
            tls=self._tls,
            # Otherwise whoever sits in between could have the line go on in the clear.
            tls_handshake_first=self._tls is not None,
            max_reconnect_attempts=-1 if lasting else 0,
            reconnect_time_wait=_AGAIN_S,  # type: ignore[arg-type]  # it sleeps so long
            ping_interval=_PING_S,
            allow_reconnect=lasting,
        )

    async def _told(self, fault: Exception) -> None:
        """Log what went wrong, but not the same each time, nor what a moment heals."""
        now, text = asyncio.get_running_loop().time(), repr(fault)
        if not (self._system.is_connected and self._callout.is_connected):
            self._away_since = self._away_since or now
            if now - self._away_since < _AWAY_S:
                return
        if text != self._last_fault:
            log.warning("the line to the broker: %s", text)
        self._last_fault = text

    async def _gather(
        self, subject: str, asked: dict[str, Any], *, patient: bool
    ) -> list[dict[str, Any]]:
        """Ask every node; return what came.

        That is known to be all once as many answered as did when there was time to wait, else once
        nobody did for a quarter of a second.
        """
        inbox = self._system.new_inbox()
        waiting = await self._system.subscribe(inbox)
        found: list[dict[str, Any]] = []
        try:
            await self._system.publish(subject, json.dumps(asked).encode(), reply=inbox)
            timeout = _ANSWER_S
            while patient or not self._nodes or len(found) < self._nodes:
                message = await waiting.next_msg(timeout)
                found.append(json.loads(message.data))
                timeout = _GATHER_S
        except (nats.errors.TimeoutError, TimeoutError):
            self._nodes = len(found)
            if not found:
                raise
            return found
        else:
            return found
        finally:
            await waiting.unsubscribe()

    async def _answer(self, message: Msg, judge: Judge) -> None:
        began = asyncio.get_running_loop().time()
        try:
            claims = verified(message.data.decode())
        except ValueError:
            return
        asked = claims["nats"]
        server, user = asked["server_id"]["id"], asked["user_nkey"]
        if claims["iss"] != server:
            return
        login = _login(asked, server)
        said: dict[str, Any] = {"error": "refused"}
        why = ""
        self._judging.add((server, login.cid))
        try:
            async with self._turns.taken(login.address):
                left = _LOGIN_S - (asyncio.get_running_loop().time() - began)
                admitted = await asyncio.wait_for(judge(login), left)
                if admitted is not None:
                    await self.put_account(admitted.org_id, admitted.environment)
                    said = {"jwt": self._user_token(user, admitted)}
        except TimeoutError:
            why = "not in time"
        except WardkeyError as failure:
            why = failure.code
        except Exception:  # the broker waits for an answer, whatever went wrong here
            log.exception("a login could not be judged")
            why = "a fault"
        finally:
            self._judging.discard((server, login.cid))
        if why:
            # Refused, its client would take its password for a wrong one and may give up for good.
            log.log(
                logging.INFO if why in (Overloaded.code, TooManyAttempts.code) else logging.WARNING,
                "a login was not judged, and its connection closed: %s",
                why,
            )
            with suppress(BrokerUnreachable):
                await self.kick(server, login.cid)
        now = self._clock() // 1000
        answer = self._keys.auth.issue(
            user, "", {"type": "authorization_response", **said}, iat=now, aud=server
        )
        await message.respond(answer.encode())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what nats-py says of a broker that is away into the failure that it stands for."""
        if not self._system.is_connected:
            # A request before the first connection would leave the library deaf to all answers.
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
        now, begun_ms = divmod(self._clock(), 1000)
        more = {}
        if admitted.session_until is not None:
            # The broker counts whole seconds from the login on, so one that begins late in its
            # second would end as late.
            more["exp"] = -(-(admitted.session_until - begun_ms) // 1000)
        return account.issue(user, admitted.username, claims, iat=now, aud=account.public, **more)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what nats-py says of a broker that is away into the failure that it stands for."""
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
            "allow": [*subscribe_allow, _OWN],
            "deny": [*subscribe_deny, *_SUBSCRIBE_DENY],
        },
        "subs": -1,
        "data": -1,
        "payload": -1,
    }


def _login(asked: dict[str, Any], server: str) -> Login:
    told, info = asked["connect_opts"], asked["client_info"]
    return Login(
        username=told.get("user", ""),
        password=told.get("pass", ""),
        client_id=info.get("mqtt_id", ""),
        address=info.get("host", ""),
        is_mqtt=info.get("type") == "mqtt",
        server=server,
        cid=info.get("id", 0),
    )


def _session(server: str, one: dict[str, Any]) -> Session:
    subscribed = one.get("subscriptions_list") or []
    return Session(
        server=server,
        cid=one["cid"],
        client_id=one["mqtt_client"],
        username=one.get("authorized_user", ""),
        address=one.get("ip", ""),
        started_at=one["start"],
        subscriptions=tuple(s for s in subscribed if not s.startswith("$MQTT"))[:_MOST_TOPICS],
        received=one.get("in_msgs", 0),
        sent=one.get("out_msgs", 0),
        tags=tuple(one.get("tags") or ()),
    )
