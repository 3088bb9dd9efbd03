"""The broker that `wardkey up` starts: nats-server in operator mode, its keys and its settings.

Follows docs.nats.io: operator mode, auth callout (ADR-26), MQTT.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from wardkey.adapters.nkeys import NKey, Role

log = logging.getLogger(__name__)

_UNLIMITED = -1
_LIMITS = {
    "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED, "imports": _UNLIMITED,
    "exports": _UNLIMITED, "wildcards": True, "conn": _UNLIMITED, "leaf": _UNLIMITED,
}  # fmt: skip
# Reserved for each account: the broker takes no further one once their sum is above its own
# (`_ALL_STORED`), which therefore stands for 100,000 accounts and not for the size of a disk.
_STORED = {"mem_storage": 0, "disk_storage": 10**10, "streams": -1, "consumer": -1}
_ALL_STORED = "1PB"
# Unacknowledged QoS 1 messages per subscription. nats-server refuses a subscription once a
# session's sum exceeds 65,535; one that ends with # counts twice. See decision 29.
MAX_ACK_PENDING = 100
# How long a client may take to acknowledge a message before it is delivered again.
ACK_WAIT_S = 30
# Variables that nats-server, or a script around it, may need. Others may hold secrets.
_INHERITED = (
    "PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK",
)  # fmt: skip
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STOP_S = 0.1, 10.0, 15.0
_LOOK_S = 0.2
# What the broker warns of though `listening.check_listening` has made sure that it is right.
_CHECKED = ("Websocket not configured with TLS",)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class BrokerKeys:
    """Every key pair of a deployment's broker, all of them made from one root of 32 bytes."""

    root: bytes

    @property
    def operator(self) -> NKey:
        """Who the broker trusts: it signs the accounts."""
        return self._key(Role.OPERATOR, "operator")

    @property
    def system(self) -> NKey:
        """The account through which accounts are made and sessions ended."""
        return self._key(Role.ACCOUNT, "system")

    @property
    def auth(self) -> NKey:
        """The account in which logins are asked about."""
        return self._key(Role.ACCOUNT, "auth")

    @property
    def system_user(self) -> NKey:
        """Who acts in the system account."""
        return self._key(Role.USER, "system user")

    @property
    def callout_user(self) -> NKey:
        """Who answers whether somebody may log in."""
        return self._key(Role.USER, "callout user")

    @property
    def sentinel(self) -> NKey:
        """Whom everybody is taken for until the callout has said who he is."""
        return self._key(Role.USER, "sentinel")

    def account(self, org_id: str, environment: str) -> NKey:
        """Return the account of an organization's environment."""
        return self._key(Role.ACCOUNT, f"{org_id}/{environment}")

    def account_token(self, org_id: str, environment: str, at: int, *, suspended: bool) -> str:
        """Return the account's JWT; one that is suspended takes no connection."""
        limits = _LIMITS | _STORED | ({"conn": 0} if suspended else {})
        key = self.account(org_id, environment)
        return self.operator.issue(
            key.public, f"{org_id}/{environment}", {"type": "account", "limits": limits}, iat=at
        )

    def system_token(self, at: int) -> str:
        """Return the JWT with which this process logs in to the system account."""
        return self.system.issue(self.system_user.public, "wardkey", _USER, iat=at)

    def callout_token(self, at: int) -> str:
        """Return the JWT with which this process answers logins."""
        return self.auth.issue(self.callout_user.public, "wardkey-callout", _USER, iat=at)

    def _key(self, role: Role, name: str) -> NKey:
        return _derived(self.root, role, name)


# Each login is signed with two of them, and making one takes as long as signing.
@lru_cache(maxsize=4_096)
def _derived(root: bytes, role: Role, name: str) -> NKey:
    raw = blake2b(name.encode(), key=root, digest_size=32, person=b"wardkey/broker").digest()
    return NKey.of(role, raw)


_USER: dict[str, Any] = {"type": "user", "subs": -1, "data": -1, "payload": -1}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form; with `ca`, other nodes must show a certificate that it signed."""

    cert: str
    key: str
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a node needs to know of the others; `routes` are their addresses for one another."""

    name: str
    listen: str
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A broker's addresses and files: `inside` for this product, the rest for MQTT clients."""

    inside: str
    mqtt: str
    websocket: str
    folder: Path
    name: str = "wardkey"
    tls: Tls | None = None
    # Off where `inside` is on loopback, for one machine alone.
    tls_inside: bool = False
    cluster: Cluster | None = None
    sync_always: bool = False


def broker_settings(keys: BrokerKeys, node: Node, now: int) -> str:
    """Return the text of nats-server's settings file; it holds no seed.

    It must never be read again while the server runs: that deletes every retained message.
    """
    tls = f", {_tls(node.tls)}" if node.tls else ""
    lines = [
        "# Never reload these while the server runs: that deletes every retained message.",
        f"server_name: {json.dumps(node.name)}",
        f"listen: {json.dumps(node.inside)}",
        _tls(node.tls, more="handshake_first: true") if node.tls and node.tls_inside else "",
        "jetstream {",
        f"  store_dir: {json.dumps(str(node.folder / 'jetstream'))}",
        f"  max_mem: 256MB, max_file: {_ALL_STORED}",
        f'  sync_interval: "{"always" if node.sync_always else "2m"}"',
        "  limits { default_max_consumers: 1000000 }",
        "}",
        "mqtt {",
        f'  listen: {json.dumps(node.mqtt)}, ack_wait: "{ACK_WAIT_S}s"{tls}',
        f"  max_ack_pending: {MAX_ACK_PENDING}",
        "}",
        f"websocket {{ listen: {json.dumps(node.websocket)}{tls or ', no_tls: true'} }}",
        _cluster(node.cluster, node.tls) if node.cluster else "",
        *_trust(keys, now),
        "resolver {",
        f"  type: full, dir: {json.dumps(str(node.folder / 'accounts'))}",
        '  allow_delete: true, interval: "2m"',
        "}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _trust(keys: BrokerKeys, now: int) -> list[str]:
    """Return whom the broker trusts, and whom it asks about logins."""
    auth_claims = {
        "type": "account",
        "limits": _LIMITS,
        "authorization": {
            "auth_users": [keys.callout_user.public],
            "allowed_accounts": ["*"],
        },
    }
    system_claims = {"type": "account", "limits": _LIMITS}
    system = keys.operator.issue(keys.system.public, "SYS", system_claims, iat=now)
    auth = keys.operator.issue(keys.auth.public, "AUTH", auth_claims, iat=now)
    operator_claims = {"type": "operator", "system_account": keys.system.public}
    operator = keys.operator.issue(keys.operator.public, "wardkey", operator_claims, iat=now)
    nobody = {"deny": [">"]}
    sentinel_claims = {**_USER, "bearer_token": True, "pub": nobody, "sub": nobody}
    sentinel = keys.auth.issue(keys.sentinel.public, "sentinel", sentinel_claims, iat=now)
    return [
        f"operator: {operator}",
        f"system_account: {keys.system.public}",
        f"resolver_preload: {{ {keys.system.public}: {system}, {keys.auth.public}: {auth} }}",
        f"default_sentinel: {sentinel}",
    ]


def _cluster(cluster: Cluster, tls: Tls | None) -> str:
    routes = ", ".join(json.dumps(f"nats://{route}") for route in cluster.routes)
    told = f"name: {json.dumps(cluster.name)}, listen: {json.dumps(cluster.listen)}"
    mutual = f", {_tls(tls, more='verify: true')}" if tls else ""
    return f"cluster {{ {told}, no_advertise: true{mutual}, routes: [{routes}] }}"


def _tls(tls: Tls, *, more: str = "") -> str:
    told = [f"cert_file: {json.dumps(tls.cert)}", f"key_file: {json.dumps(tls.key)}"]
    if tls.ca:
        told.append(f"ca_file: {json.dumps(tls.ca)}")
    return f"tls {{ {', '.join([*told, more]) if more else ', '.join(told)} }}"


@dataclass(frozen=True, slots=True)
class HeldPorts:
    """The broker's ports before it runs; `inside` listens, at the others clients are refused."""

    inside: socket.socket
    others: tuple[socket.socket, ...]

    def wait_for_worker(self, stopped: threading.Event) -> None:
        """Free the ports once a worker, ready to answer logins, has connected to `inside`."""
        self.inside.settimeout(_LOOK_S)
        while not stopped.is_set():
            with suppress(TimeoutError):
                self.inside.accept()[0].close()
                break
        self.close()

    def close(self) -> None:
        """Free the ports."""
        for port in (self.inside, *self.others):
            port.close()


class BrokerProcess:
    """A running nats-server, started again with growing pauses when it dies, until `stop`.

    With `ports` it starts once a worker is there to answer logins: until then it would refuse them.
    """

    def __init__(
        self, program: str, settings: str, folder: Path, ports: HeldPorts | None = None
    ) -> None:
        self._program, self._folder, self._ports = program, folder, ports
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / "nats.conf"
        self._file.touch(mode=0o600)
        self._file.write_text("# Made anew at each start; changes here are lost.\n" + settings)
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._restarting = False
        # The kernel ends the broker with the thread that started it, so that one lasts.
        self._thread = threading.Thread(target=self._run, name="wardkey-broker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, after it has told its clients and closed its files."""
        self._stopped.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(_STOP_S)
        if process is not None and process.poll() is None:
            process.kill()

    def restart(self) -> None:
        """End it, so that it is started again at once and reads its certificate anew."""
        process = self._process
        if process is not None and process.poll() is None:
            self._restarting = True
            process.terminate()

    def kill(self) -> None:
        """End it at once, as a power cut would, and for good."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        if self._ports is not None:
            self._ports.wait_for_worker(self._stopped)
        while not self._stopped.is_set():
            process = subprocess.Popen(  # noqa: S603 - the pinned program, or the operator's own
                [self._program, "-c", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={name: os.environ[name] for name in _INHERITED if name in os.environ},
                # A terminal's Ctrl-C is for this process, and its hang-up would be a reload.
                process_group=0,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one call into the kernel
            )
            self._process = process
            assert process.stderr is not None  # noqa: S101 - asked for above
            for line in process.stderr:
                _tell(line)
                if "Server is ready" in line:
                    pause = _FIRST_PAUSE_S
            process.stderr.close()
            code = process.wait()
            if self._stopped.is_set():
                return
            if self._restarting:
                self._restarting = False
                log.info("the broker is started again, with the renewed certificate")
                continue
            log.error("the broker ended with %s; it is started again in %.1f s", code, pause)
            self._stopped.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _tell(line: str) -> None:
    """Log a line of the broker's: `[pid] date time [INF] text`."""
    _, found, rest = line.partition(" [")
    level, _, said = rest.partition("] ")
    if not found or level in ("ERR", "FTL"):
        log.warning("broker: %s", said.strip() or line.strip())
    elif level == "WRN" and not said.startswith(_CHECKED):
        log.info("broker: %s", said.strip())


def broker_program(wanted: str) -> str:
    """Return the path of nats-server: `wanted`, or the one that is installed with this package."""
    found = wanted or shutil.which(
        "nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    return found or ""
