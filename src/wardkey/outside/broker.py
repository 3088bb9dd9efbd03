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
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from wardkey.outside.nkeys import NKey, Role

log = logging.getLogger("wardkey")

_UNLIMITED = -1
_LIMITS = {
    "subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED, "imports": _UNLIMITED,
    "exports": _UNLIMITED, "wildcards": True, "conn": _UNLIMITED, "leaf": _UNLIMITED,
}  # fmt: skip
# Reservations, not limits: with memory above 0 the broker refuses once their sum is its own.
_STORED = {"mem_storage": 0, "disk_storage": 10**10, "streams": -1, "consumer": -1}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STOP_S = 0.1, 10.0, 15.0
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
class Listening:
    """Where the broker listens: `inside` for this product alone, the rest for MQTT clients."""

    inside: str
    mqtt: str
    websocket: str
    tls_cert: str = ""
    tls_key: str = ""


def broker_settings(keys: BrokerKeys, at: Listening, folder: Path, now: int) -> str:
    """Return the text of nats-server's settings file.

    It must never be read again while the server runs: that deletes every retained message.
    """
    auth_claims = {
        "type": "account",
        "limits": _LIMITS,
        "authorization": {
            "auth_users": [keys.callout_user.public],
            "allowed_accounts": ["*"],
        },
    }
    system = keys.operator.issue(
        keys.system.public, "SYS", {"type": "account", "limits": _LIMITS}, iat=now
    )
    auth = keys.operator.issue(keys.auth.public, "AUTH", auth_claims, iat=now)
    operator = keys.operator.issue(
        keys.operator.public,
        "wardkey",
        {"type": "operator", "system_account": keys.system.public},
        iat=now,
    )
    nobody = {"deny": [">"]}
    sentinel = keys.auth.issue(
        keys.sentinel.public,
        "sentinel",
        {**_USER, "bearer_token": True, "pub": nobody, "sub": nobody},
        iat=now,
    )
    tls = ""
    if at.tls_cert:
        tls = (
            f", tls {{ cert_file: {json.dumps(at.tls_cert)}, key_file: {json.dumps(at.tls_key)} }}"
        )
    return f"""# Made anew at each start; changes here are lost.
server_name: wardkey
listen: {json.dumps(at.inside)}
jetstream {{
  store_dir: {json.dumps(str(folder / "jetstream"))}
  max_mem: 256MB
  max_file: 200GB
  limits {{ default_max_consumers: 1000000 }}
}}
mqtt {{ listen: {json.dumps(at.mqtt)}, ack_wait: "5s"{tls} }}
websocket {{ listen: {json.dumps(at.websocket)} {tls or ", no_tls: true"} }}
operator: {operator}
system_account: {keys.system.public}
resolver {{
  type: full
  dir: {json.dumps(str(folder / "accounts"))}
  allow_delete: true
  interval: "2m"
}}
resolver_preload: {{ {keys.system.public}: {system}, {keys.auth.public}: {auth} }}
default_sentinel: {sentinel}
"""


class BrokerProcess:
    """A running nats-server, started again with growing pauses when it dies, until `stop`."""

    def __init__(self, program: str, settings: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / "nats.conf"
        self._file.touch(mode=0o600)
        self._file.write_text(settings)
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None
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

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            process = subprocess.Popen(  # noqa: S603 - the pinned program, or the operator's own
                [self._program, "-c", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one call into the kernel
            )
            self._process = process
            assert process.stderr is not None  # noqa: S101 - asked for above
            for line in process.stderr:
                _tell(line)
                if "Server is ready" in line:
                    pause = _FIRST_PAUSE_S
            code = process.wait()
            if self._stopped.is_set():
                return
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
    elif level == "WRN":
        log.info("broker: %s", said.strip())


def broker_program(wanted: str) -> str:
    """Return the path of nats-server: `wanted`, or the one that is installed with this package."""
    found = wanted or shutil.which(
        "nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    return found or ""
