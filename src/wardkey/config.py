"""The settings of a deployment, read from WARDKEY_* variables and command-line options."""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints
from urllib.parse import SplitResult, urlsplit

from wardkey.domain.addresses import Network, parse_networks
from wardkey.domain.errors import (
    InvalidSetting,
    UnknownSetting,
    UnsafeDatabase,
)
from wardkey.domain.permissions import Role
from wardkey.domain.secret import clean_brand
from wardkey.domain.single_sign_on import SignInPolicy

PREFIX = "WARDKEY_"
# Variables of the command line's client commands, not of the server.
_CLIENT_NAMES = frozenset({"WARDKEY_API_KEY", "WARDKEY_ORG", "WARDKEY_URL"})
# Kubernetes sets these in each pod for a Service named `wardkey` or `wardkey-…`.
_KUBERNETES = re.compile(
    r"WARDKEY_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]"
)
_HEADER_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_")
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "": False,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of a setting, used by the command line, the docs and the checks.

    A secret has a variable and no option, because options are visible in the process list.
    """

    help: str
    secret: bool = False
    # Minimum and maximum of a number, and its unit.
    bounds: tuple[int, int] | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All settings with their defaults; field `x` is option `--x` and variable `WARDKEY_X`."""

    data_dir: Annotated[Path, Setting("Folder of the database and the master key.")] = Path(
        "wardkey-data"
    )
    database_url: Annotated[
        str, Setting("postgresql://… for several machines, or sqlite:///path.")
    ] = ""
    database_encrypted_by_operator: Annotated[
        bool, Setting("Confirm that a remote PostgreSQL database is encrypted at rest.")
    ] = False
    listen: Annotated[str, Setting("Address and port to listen on.")] = "127.0.0.1:8787"
    tls_cert: Annotated[str, Setting("Certificate chain (PEM).")] = ""
    tls_key: Annotated[str, Setting("Private key (PEM).")] = ""
    behind_proxy: Annotated[
        bool, Setting("A proxy in front terminates TLS and sends the client's address.")
    ] = False
    trusted_proxies: Annotated[
        str, Setting("Proxies whose X-Forwarded-For is trusted (CIDR, comma-separated).")
    ] = "127.0.0.0/8,::1"
    workers: Annotated[int, Setting("Worker processes.", bounds=(1, 64))] = 1
    directory_memory: Annotated[
        int,
        Setting(
            "MiB of memory for cached keys, in each worker.", bounds=(16, 1_048_576), unit="MiB"
        ),
    ] = 256
    max_staleness: Annotated[
        int,
        Setting(
            "Seconds to keep verifying from memory without PostgreSQL; 0 refuses at once.",
            bounds=(0, 3_600),
            unit="seconds",
        ),
    ] = 0
    keep_alive: Annotated[
        int,
        Setting(
            "Seconds after which an idle HTTP connection is closed.",
            bounds=(5, 3_600),
            unit="seconds",
        ),
    ] = 120
    log_level: Annotated[
        str,
        Setting(
            "Lowest level of log records: debug, info, warning or error.",
            choices=("debug", "info", "warning", "error"),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        Setting(
            "Format of log records on stderr: text, or json with one object per line.",
            choices=("text", "json"),
        ),
    ] = "text"
    access_log: Annotated[
        bool, Setting("Log each HTTP request: method, path, status, time and client.")
    ] = False
    metrics_token: Annotated[
        str,
        Setting(
            "Token that /metrics requires, at least 16 characters; without one /metrics is off.",
            secret=True,
        ),
    ] = field(default="", repr=False)
    no_messaging: Annotated[bool, Setting("Turn MQTT off; no broker is started.")] = False
    mqtt_listen: Annotated[str, Setting("Address and port for MQTT.")] = "127.0.0.1:1883"
    websocket_listen: Annotated[
        str, Setting("Address and port for MQTT over WebSocket, at /mqtt.")
    ] = "127.0.0.1:8984"
    broker: Annotated[
        str,
        Setting(
            "tls://… of a broker that runs elsewhere with this deployment's operator; "
            "separate its nodes by commas."
        ),
    ] = ""
    broker_mqtt: Annotated[
        str,
        Setting(
            "mqtts://… of that broker's MQTT listener, if not on port 8883 (1883 for nats://)."
        ),
    ] = ""
    broker_ca: Annotated[
        str, Setting("Certificate authority (PEM) of that broker, if not a public one.")
    ] = ""
    broker_dir: Annotated[
        str,
        Setting("Data folder of a broker on this machine; publishing stops when its disk is full."),
    ] = ""
    broker_sync_always: Annotated[
        bool, Setting("Write each stored message to disk before acknowledging it.")
    ] = False
    nats_server: Annotated[str, Setting("The nats-server to run, if not the installed one.")] = ""
    private_issuers: Annotated[
        bool, Setting("Allow auth providers at private addresses and without TLS.")
    ] = False
    oidc_issuer: Annotated[
        str, Setting("https://… of the OIDC issuer that users sign in to the dashboard with.")
    ] = ""
    oidc_client_id: Annotated[
        str,
        Setting(
            "This deployment's client id at that issuer; set WARDKEY_OIDC_CLIENT_SECRET if "
            "it has a secret."
        ),
    ] = ""
    oidc_client_secret: Annotated[
        str, Setting("Secret of this deployment at the OIDC issuer.", secret=True)
    ] = field(default="", repr=False)
    oidc_name: Annotated[
        str, Setting("Name on the “Sign in with” button, if not the issuer's host.")
    ] = ""
    oidc_domains: Annotated[
        str,
        Setting(
            "E-mail domains whose users may join (comma-separated); without them only "
            "existing members may sign in."
        ),
    ] = ""
    oidc_organization: Annotated[
        str, Setting("Organization that they join: its id, or its slug, which an owner can change.")
    ] = ""
    oidc_role: Annotated[str, Setting("Role that they join with: viewer, member or admin.")] = (
        "viewer"
    )
    public_url: Annotated[str, Setting("URL at which people reach this deployment.")] = ""
    brand: Annotated[str, Setting("Text before every key of this deployment, such as acme.")] = ""
    key_headers: Annotated[
        str, Setting("Additional headers that may carry a key (comma-separated).")
    ] = ""
    master_key: Annotated[
        str, Setting("The master key itself, instead of a file.", secret=True)
    ] = field(default="", repr=False)
    master_key_file: Annotated[
        str, Setting("File of the master key, if not in the data folder.")
    ] = ""
    master_key_command: Annotated[str, Setting("Command that prints the master key.")] = ""
    organization: Annotated[str, Setting("Name of the first organization (first start only).")] = (
        "My organization"
    )
    owner: Annotated[str, Setting("E-mail address of its owner (first start only).")] = (
        "owner@localhost"
    )

    @property
    def host(self) -> str:
        """The address to listen on, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 means any free port."""
        return int(self.listen.rpartition(":")[2])

    @property
    def url(self) -> str:
        """The URL at which people reach the deployment, without a trailing slash."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"

    @property
    def messaging(self) -> bool:
        """Whether MQTT is on."""
        return not self.no_messaging

    @property
    def brokers(self) -> tuple[str, ...]:
        """The addresses of the broker's nodes; all have the scheme of the first."""
        return _addresses(self.broker)

    @property
    def mqtt_brokers(self) -> tuple[str, ...]:
        """The addresses of the broker's nodes for MQTT."""
        if self.broker_mqtt:
            return _addresses(self.broker_mqtt)
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in self.brokers]
        tls = self.broker.startswith("tls:")
        scheme, port = ("mqtts", 8883) if tls else ("mqtt", 1883)
        return tuple(f"{scheme}://{re.sub(r':[0-9]+$', '', host)}:{port}" for host in hosts)

    @property
    def mqtt_url(self) -> str:
        """The URL at which clients reach MQTT, or "" without messaging."""
        if not self.messaging:
            return ""
        if not self.broker_dir:
            return self.mqtt_brokers[0]
        return f"{'mqtts' if self.tls_cert else 'mqtt'}://{self._public_address(self.mqtt_listen)}"

    @property
    def websocket_url(self) -> str:
        """The URL of MQTT over WebSocket, or "" for an external broker, whose URL is unknown."""
        if not self.messaging or not self.broker_dir:
            return ""
        # A page loaded over TLS may only open wss:, so the proxy that terminates TLS serves it.
        scheme = "wss" if self.tls_cert or self.url.startswith("https:") else "ws"
        return f"{scheme}://{self._public_address(self.websocket_listen)}/mqtt"

    def _public_address(self, listen: str) -> str:
        host, port = urlsplit(self.url).hostname or "", listen.rpartition(":")[2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def storage_url(self) -> str:
        """The database's URL; by default an SQLite file in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'wardkey.db'}"

    @property
    def embedded(self) -> bool:
        """Whether the database is an SQLite file."""
        return self.storage_url.startswith("sqlite")

    @property
    def master_key_path(self) -> Path:
        """The file of the master key, used unless a key or a command is set."""
        return Path(self.master_key_file or self.data_dir / "master.key")

    @property
    def key_beside_data(self) -> bool:
        """Whether one folder contains both the database and its master key."""
        if not self.embedded or self.master_key or self.master_key_command:
            return False
        return self.master_key_path.absolute().parent == self.data_dir.absolute()

    @property
    def proxies(self) -> tuple[Network, ...]:
        """The proxies whose X-Forwarded-For is trusted; none without `behind_proxy`."""
        if not self.behind_proxy:
            return ()
        return parse_networks(item for item in self.trusted_proxies.split(",") if item.strip())

    @property
    def sign_in_policy(self) -> SignInPolicy:
        """Which users of the OIDC issuer may sign in, and the role of new members."""
        domains = (item.strip().lower() for item in self.oidc_domains.split(","))
        return SignInPolicy(
            frozenset(item for item in domains if item),
            self.oidc_organization,
            Role(self.oidc_role),
        )

    @property
    def extra_key_headers(self) -> tuple[bytes, ...]:
        """Further header names, in lower case, that may carry a key."""
        names = (name.strip().lower() for name in self.key_headers.split(","))
        return tuple(name.encode() for name in names if name)

    def environment(self) -> dict[str, str]:
        """Return the WARDKEY_* variables from which a worker process loads the same Config."""
        values = {}
        for item in fields(self):
            value = getattr(self, item.name)
            values[PREFIX + item.name.upper()] = (
                str(int(value)) if isinstance(value, bool) else str(value)
            )
        return values


SETTINGS: dict[str, Setting] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Config, include_extras=True).items()
}
# The options of `wardkey up`.
SERVING = tuple(name for name, setting in SETTINGS.items() if not setting.secret)


def load_config(environ: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Config:
    """Return the checked Config; options that are None leave the variable or the default.

    Raises `UnknownSetting`, `InvalidSetting`, `UnsafeListen`, `UnsafeDatabase`.
    """
    known = {item.name: item for item in fields(Config)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in _CLIENT_NAMES:
            continue
        setting = name.removeprefix(PREFIX).lower()
        if setting not in known:
            if _KUBERNETES.fullmatch(name):
                continue
            raise UnknownSetting(
                f"{name} is not a Wardkey setting; `wardkey up --help` lists them all.",
                field=name,
            )
        values[setting] = _parse_value(name, text, type(getattr(Config(), setting)))
    for setting, value in (options or {}).items():
        if isinstance(value, str):
            name = "--" + setting.replace("_", "-")
            values[setting] = _parse_value(name, value, type(getattr(Config(), setting)))
        elif value is not None:
            values[setting] = value
    config = Config(**values)
    _check(config)
    return config


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the WARDKEY_* names that Kubernetes set and that are not settings."""
    known = {PREFIX + item.name.upper() for item in fields(Config)} | _CLIENT_NAMES
    return sorted(name for name in environ if _KUBERNETES.fullmatch(name) and name not in known)


def _parse_value(name: str, text: str, kind: type) -> object:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise InvalidSetting(f"{name} is {text!r}; set 1 or 0.", field=name)
        return _BOOLEANS[text.lower()]
    if kind is int:
        if not text.isascii() or not text.isdecimal():
            raise InvalidSetting(f"{name} is {text!r}; set a whole number.", field=name)
        return int(text)
    if issubclass(kind, Path):
        if not text:
            raise InvalidSetting(f"{name} is empty; set the path of a folder.", field=name)
        return Path(text)
    return text


def _check(config: Config) -> None:
    for name in ("listen", "mqtt_listen", "websocket_listen"):
        text = getattr(config, name)
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004
            raise InvalidSetting(
                f"{text!r} is not an address and port; write 127.0.0.1:8787 or [::1]:8787.",
                field=name,
            )
    # In this order, because the second defaults to the first.
    for name, schemes, example in (
        ("brokers", ("nats", "tls"), "nats://127.0.0.1:4222"),
        ("mqtt_brokers", ("mqtt", "mqtts"), "mqtt://127.0.0.1:1883"),
    ):
        for url in getattr(config, name):
            parts = _split_url(url)
            if parts is None or parts.scheme not in schemes or not parts.hostname or not parts.port:
                raise InvalidSetting(
                    f"{url!r} is not a broker's address, such as {example}; separate several "
                    "by commas.",
                    field="broker" if name == "brokers" else "broker_mqtt",
                )
    _check_bounds(config)
    if config.metrics_token and len(config.metrics_token) < 16:  # noqa: PLR2004 - not guessed
        raise InvalidSetting("metrics_token needs at least 16 characters.", field="metrics_token")
    _check_names(config)
    _check_oidc(config)
    _check_database(config)


def _check_bounds(config: Config) -> None:
    for name, declared in SETTINGS.items():
        value = getattr(config, name)
        if declared.bounds is not None and not declared.bounds[0] <= value <= declared.bounds[1]:
            unit = f" of {declared.unit}" if declared.unit else ""
            minimum, maximum = declared.bounds
            raise InvalidSetting(
                f"{name} is {value}; set a number{unit} from {minimum} to {maximum}.", field=name
            )
        if declared.choices and value not in declared.choices:
            raise InvalidSetting(
                f"{value!r} is not a {name}; choose {', '.join(declared.choices)}.", field=name
            )


def _check_names(config: Config) -> None:
    try:
        clean_brand(config.brand)
    except ValueError as error:
        raise InvalidSetting(str(error), field="brand") from None
    try:
        parse_networks(item for item in config.trusted_proxies.split(",") if item.strip())
    except ValueError as error:
        raise InvalidSetting(str(error), field="trusted_proxies") from None
    for header in map(str.strip, config.key_headers.split(",")):
        if not set(header) <= _HEADER_CHARACTERS:
            raise InvalidSetting(
                f"{header!r} is not a header name, such as X-Api-Key.", field="key_headers"
            )
    if config.public_url:
        parts = _split_url(config.public_url)
        is_web = parts is not None and parts.scheme in ("http", "https") and bool(parts.netloc)
        if parts is None or not is_web or parts.query or parts.fragment:
            raise InvalidSetting(
                f"{config.public_url!r} is not a URL such as https://keys.example.com.",
                field="public_url",
            )


def _check_oidc(config: Config) -> None:
    if config.oidc_role not in (Role.ADMIN, Role.MEMBER, Role.VIEWER):
        raise InvalidSetting(
            f"{config.oidc_role!r} is not a role for new members; choose viewer, member or admin.",
            field="oidc_role",
        )
    if not config.oidc_issuer:
        for name in ("client_id", "client_secret", "name", "domains", "organization"):
            if getattr(config, f"oidc_{name}"):
                raise InvalidSetting(
                    "oidc_ settings require oidc_issuer; set it, or remove them.",
                    field=f"oidc_{name}",
                )
        return
    parts = _split_url(config.oidc_issuer)
    host = parts.hostname or "" if parts else ""
    is_safe = parts is not None and (
        parts.scheme == "https"
        or (parts.scheme == "http" and (host == "localhost" or is_loopback(host)))
    )
    if parts is None or not host or not is_safe or parts.query or parts.fragment:
        raise InvalidSetting(
            f"{config.oidc_issuer!r} is not an issuer's URL, such as https://login.acme.example.",
            field="oidc_issuer",
        )
    if not config.oidc_client_id:
        raise InvalidSetting(
            "oidc_issuer needs oidc_client_id: the client id of this deployment at the issuer.",
            field="oidc_client_id",
        )
    for domain in config.sign_in_policy.domains:
        if not _DOMAIN.fullmatch(domain):
            raise InvalidSetting(
                f"{domain!r} is not an e-mail domain, such as acme.example.",
                field="oidc_domains",
            )
    if bool(config.oidc_domains) != bool(config.oidc_organization):
        raise InvalidSetting(
            "oidc_domains and oidc_organization belong together: users of these domains may join "
            "that organization.",
            field="oidc_organization" if config.oidc_domains else "oidc_domains",
        )


def _addresses(text: str) -> tuple[str, ...]:
    first, *rest = (part.strip() for part in text.split(","))
    scheme = first.partition("://")[0]
    more = (part if "://" in part else f"{scheme}://{part}" for part in rest)
    return (first, *more) if first else ()


def _split_url(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed on access
    except ValueError:
        return None
    return parts


def _check_database(config: Config) -> None:
    parts = _split_url(config.storage_url)
    file = config.storage_url.removeprefix("sqlite:///") if config.embedded else ""
    if config.embedded and file not in ("", ":memory:", config.storage_url):
        return
    if parts is None or parts.scheme not in ("postgresql", "postgres"):
        raise InvalidSetting(
            "The database URL must be sqlite:///path or postgresql://…", field="database_url"
        )
    is_local = parts.hostname in (None, "localhost") or is_loopback(parts.hostname or "")
    if is_local:
        return
    if "sslmode=verify-full" not in parts.query:
        raise UnsafeDatabase(
            "PostgreSQL on another machine needs TLS; add sslmode=verify-full to its URL.",
            field="database_url",
        )
    if not config.database_encrypted_by_operator:
        raise UnsafeDatabase(
            "Wardkey doesn't encrypt a PostgreSQL database at rest; confirm with "
            "--database-encrypted-by-operator that its disk is encrypted.",
            field="database_url",
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
