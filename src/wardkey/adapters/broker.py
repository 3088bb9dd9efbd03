"""The broker that `wardkey up` starts: nats-server in operator mode, its keys and settings.

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
# Storage reserved for each account. The broker accepts no account beyond its own maximum
# (`_MAX_STORAGE`), so that maximum allows 100,000 accounts; it is not a disk size.
_ACCOUNT_STORAGE = {"mem_storage": 0, "disk_storage": 10**10, "streams": -1, "consumer": -1}
_MAX_STORAGE = "1PB"
# Unacknowledged QoS 1 messages per subscription. nats-server refuses a subscription once a
# session's sum exceeds 65,535; one that ends with # counts twice. See decision 29.
MAX_ACK_PENDING = 100
# An unacknowledged message is redelivered after this time.
ACK_WAIT_S = 30
# Variables that nats-server or a wrapper script may need; others may contain secrets.
_INHERITED = (
    "PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK",
)  # fmt: skip
_MIN_PAUSE_S, _MAX_PAUSE_S, _STOP_S = 0.1, 10.0, 15.0
_POLL_S = 0.2
# Warnings not logged, because `preflight.check_listening` has checked the setting.
_IGNORED_WARNINGS = ("Websocket not configured with TLS",)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class BrokerKeys:
    """The key pairs of a deployment's broker, all derived from one 32-byte root."""

    root: bytes

    @property
    def operator(self) -> NKey:
        """The key that the broker trusts; it signs the accounts."""
        return self._key(Role.OPERATOR, "operator")

    @property
    def system(self) -> NKey:
        """The account through which accounts are created and sessions closed."""
        return self._key(Role.ACCOUNT, "system")

    @property
    def auth(self) -> NKey:
        """The account that receives the auth callouts."""
        return self._key(Role.ACCOUNT, "auth")

    @property
    def system_user(self) -> NKey:
        """The user of the system account."""
        return self._key(Role.USER, "system user")

    @property
    def callout_user(self) -> NKey:
        """The user that answers auth callouts."""
        return self._key(Role.USER, "callout user")

    @property
    def sentinel(self) -> NKey:
        """The placeholder user of every connection until the auth callout identifies the client."""
        return self._key(Role.USER, "sentinel")

    def account(self, org_id: str, environment: str) -> NKey:
        """Return the account of an organization's environment."""
        return self._key(Role.ACCOUNT, f"{org_id}/{environment}")

    def account_token(self, org_id: str, environment: str, at: int, *, suspended: bool) -> str:
        """Return the account's JWT; a suspended account accepts no connections."""
        limits = _LIMITS | _ACCOUNT_STORAGE | ({"conn": 0} if suspended else {})
        key = self.account(org_id, environment)
        return self.operator.issue(
            key.public, f"{org_id}/{environment}", {"type": "account", "limits": limits}, iat=at
        )

    def system_token(self, at: int) -> str:
        """Return the JWT with which this process logs in to the system account."""
        return self.system.issue(self.system_user.public, "wardkey", _USER, iat=at)

    def callout_token(self, at: int) -> str:
        """Return the JWT with which this process answers auth callouts."""
        return self.auth.issue(self.callout_user.public, "wardkey-callout", _USER, iat=at)

    def _key(self, role: Role, name: str) -> NKey:
        return _derived(self.root, role, name)


# Each login is signed with two of these keys, and deriving one takes as long as signing.
@lru_cache(maxsize=4_096)
def _derived(root: bytes, role: Role, name: str) -> NKey:
    raw = blake2b(name.encode(), key=root, digest_size=32, person=b"wardkey/broker").digest()
    return NKey.of(role, raw)


_USER: dict[str, Any] = {"type": "user", "subs": -1, "data": -1, "payload": -1}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files; with `ca`, other nodes must present a certificate signed by it."""

    cert: str
    key: str
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A node's cluster settings; `routes` are the nodes' addresses for each other."""

    name: str
    listen: str
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A broker's addresses and files: `inside` is for Wardkey, the others for MQTT clients."""

    inside: str
    mqtt: str
    websocket: str
    folder: Path
    name: str = "wardkey"
    tls: Tls | None = None
    # Off if `inside` is on loopback (a single machine).
    tls_inside: bool = False
    cluster: Cluster | None = None
    sync_always: bool = False


def broker_settings(keys: BrokerKeys, node: Node, now: int) -> str:
    """Return the text of nats-server's settings file; it contains no seed.

    The running server must never reload it: that deletes every retained message.
    """
    tls = f", {_tls(node.tls)}" if node.tls else ""
    lines = [
        "# Never reload these while the server runs: that deletes every retained message.",
        f"server_name: {json.dumps(node.name)}",
        f"listen: {json.dumps(node.inside)}",
        _tls(node.tls, more="handshake_first: true") if node.tls and node.tls_inside else "",
        "jetstream {",
        f"  store_dir: {json.dumps(str(node.folder / 'jetstream'))}",
        f"  max_mem: 256MB, max_file: {_MAX_STORAGE}",
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
    """Return the settings lines for the operator, the accounts and the auth callout."""
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
    nothing = {"deny": [">"]}
    sentinel_claims = {**_USER, "bearer_token": True, "pub": nothing, "sub": nothing}
    sentinel = keys.auth.issue(keys.sentinel.public, "sentinel", sentinel_claims, iat=now)
    return [
        f"operator: {operator}",
        f"system_account: {keys.system.public}",
        f"resolver_preload: {{ {keys.system.public}: {system}, {keys.auth.public}: {auth} }}",
        f"default_sentinel: {sentinel}",
    ]


def _cluster(cluster: Cluster, tls: Tls | None) -> str:
    routes = ", ".join(json.dumps(f"nats://{route}") for route in cluster.routes)
    head = f"name: {json.dumps(cluster.name)}, listen: {json.dumps(cluster.listen)}"
    mutual_tls = f", {_tls(tls, more='verify: true')}" if tls else ""
    return f"cluster {{ {head}, no_advertise: true{mutual_tls}, routes: [{routes}] }}"


def _tls(tls: Tls, *, more: str = "") -> str:
    options = [f"cert_file: {json.dumps(tls.cert)}", f"key_file: {json.dumps(tls.key)}"]
    if tls.ca:
        options.append(f"ca_file: {json.dumps(tls.ca)}")
    if more:
        options.append(more)
    return f"tls {{ {', '.join(options)} }}"


@dataclass(frozen=True, slots=True)
class HeldPorts:
    """The broker's ports until it starts; `inside` listens, the others refuse connections."""

    inside: socket.socket
    others: tuple[socket.socket, ...]

    def wait_for_worker(self, stopped: threading.Event) -> None:
        """Free the ports once a worker, ready to answer logins, has connected to `inside`."""
        self.inside.settimeout(_POLL_S)
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
    """A running nats-server, restarted with growing pauses when it dies, until `stop`.

    With `ports` it starts once a worker can answer logins; before that it would refuse them.
    """

    def __init__(
        self, program: str, settings: str, folder: Path, ports: HeldPorts | None = None
    ) -> None:
        self._program, self._folder, self._ports = program, folder, ports
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / "nats.conf"
        self._file.touch(mode=0o600)
        self._file.write_text("# Generated at each start; edits here are lost.\n" + settings)
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._restarting = False
        # The kernel ends the broker with the thread that started it, so this thread stays alive.
        self._thread = threading.Thread(target=self._run, name="wardkey-broker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, letting it notify its clients and close its files."""
        self._stopped.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(_STOP_S)
        if process is not None and process.poll() is None:
            process.kill()

    def restart(self) -> None:
        """Restart it at once, so it reads its certificate again."""
        process = self._process
        if process is not None and process.poll() is None:
            self._restarting = True
            process.terminate()

    def kill(self) -> None:
        """Kill it like a power cut and don't restart it."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        pause = _MIN_PAUSE_S
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
                # Its own group: a terminal's Ctrl-C is for this process, and a hang-up would
                # make nats-server reload.
                process_group=0,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - only a system call
            )
            self._process = process
            assert process.stderr is not None  # noqa: S101 - a pipe was requested
            for line in process.stderr:
                _log_line(line)
                if "Server is ready" in line:
                    pause = _MIN_PAUSE_S
            process.stderr.close()
            code = process.wait()
            if self._stopped.is_set():
                return
            if self._restarting:
                self._restarting = False
                log.info("restarting the broker with the renewed certificate")
                continue
            log.error("the broker exited with status %s; restarting it in %.1f s", code, pause)
            self._stopped.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


def _log_line(line: str) -> None:
    """Log a line of the broker's output: `[pid] date time [INF] text`."""
    _, separator, rest = line.partition(" [")
    level, _, text = rest.partition("] ")
    if not separator or level in ("ERR", "FTL"):
        log.warning("broker: %s", text.strip() or line.strip())
    elif level == "WRN" and not text.startswith(_IGNORED_WARNINGS):
        log.info("broker: %s", text.strip())


def broker_program(configured: str) -> str:
    """Return the path of nats-server: `configured`, or the installed one; empty if none."""
    path = configured or shutil.which(
        "nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    return path or ""
