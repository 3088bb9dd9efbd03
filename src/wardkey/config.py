"""The settings of a deployment: one frozen record, read from WARDKEY_* names and options."""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
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
# Read by the command line as a client, not by the server.
_CLIENT_NAMES = frozenset({"WARDKEY_API_KEY", "WARDKEY_ORG", "WARDKEY_URL"})
# What Kubernetes puts into each pod for a Service called `wardkey` or `wardkey-…`.
_KUBERNETES = re.compile(
    r"WARDKEY_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_CHOICES = {
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]"
)
_HEADER_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_")
_YES = {
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


_NUMBERS = {
    "workers": (1, 64, ""),
    "directory_memory": (16, 1_048_576, " of MiB"),
    "max_staleness": (0, 3_600, " of seconds"),
    "keep_alive": (5, 3_600, " of seconds"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting with its default; field `x` is option `--x` and variable `WARDKEY_X`."""

    data_dir: Path = Path("wardkey-data")
    database_url: str = ""
    database_encrypted_by_operator: bool = False
    listen: str = "127.0.0.1:8787"
    tls_cert: str = ""
    tls_key: str = ""
    behind_proxy: bool = False
    trusted_proxies: str = "127.0.0.0/8,::1"
    workers: int = 1
    directory_memory: int = 256
    max_staleness: int = 0
    keep_alive: int = 120
    log_level: str = "info"
    log_format: str = "text"
    access_log: bool = False
    metrics_token: str = field(default="", repr=False)
    no_messaging: bool = False
    mqtt_listen: str = "127.0.0.1:1883"
    websocket_listen: str = "127.0.0.1:8984"
    broker: str = ""
    broker_mqtt: str = ""
    broker_ca: str = ""
    broker_dir: str = ""
    broker_sync_always: bool = False
    nats_server: str = ""
    private_issuers: bool = False
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: str = field(default="", repr=False)
    oidc_name: str = ""
    oidc_domains: str = ""
    oidc_organization: str = ""
    oidc_role: str = "viewer"
    public_url: str = ""
    brand: str = ""
    key_headers: str = ""
    master_key: str = field(default="", repr=False)
    master_key_file: str = ""
    master_key_command: str = ""
    organization: str = "My organization"
    owner: str = "owner@localhost"

    @property
    def host(self) -> str:
        """The address to listen on, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 takes a free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def url(self) -> str:
        """Where people reach the deployment, without a slash at the end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"

    @property
    def messaging(self) -> bool:
        """Tell whether MQTT is part of it."""
        return not self.no_messaging

    @property
    def brokers(self) -> tuple[str, ...]:
        """The addresses of the broker's nodes for this product; the first one's scheme holds."""
        return _addresses(self.broker)

    @property
    def mqtt_brokers(self) -> tuple[str, ...]:
        """The addresses at which the broker's nodes take MQTT from this product."""
        if self.broker_mqtt:
            return _addresses(self.broker_mqtt)
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in self.brokers]
        tls = self.broker.startswith("tls:")
        scheme, port = ("mqtts", 8883) if tls else ("mqtt", 1883)
        return tuple(f"{scheme}://{re.sub(r':[0-9]+$', '', host)}:{port}" for host in hosts)

    @property
    def mqtt_url(self) -> str:
        """Where clients reach MQTT: the broker beside this by the name that people know."""
        if not self.messaging:
            return ""
        if not self.broker_dir:
            return self.mqtt_brokers[0]
        return f"{'mqtts' if self.tls_cert else 'mqtt'}://{self._named(self.mqtt_listen)}"

    @property
    def websocket_url(self) -> str:
        """Where clients reach MQTT over WebSocket; of a broker elsewhere that is not known."""
        if not self.messaging or not self.broker_dir:
            return ""
        # A page that came over TLS may open nothing else, so whoever ends TLS before this does too.
        scheme = "wss" if self.tls_cert or self.url.startswith("https:") else "ws"
        return f"{scheme}://{self._named(self.websocket_listen)}/mqtt"

    def _named(self, listen: str) -> str:
        host, port = urlsplit(self.url).hostname or "", listen.rpartition(":")[2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def storage_url(self) -> str:
        """The database's URL; the embedded default lies in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'wardkey.db'}"

    @property
    def embedded(self) -> bool:
        """Tell whether the database is an SQLite file."""
        return self.storage_url.startswith("sqlite")

    @property
    def master_key_path(self) -> Path:
        """The master key's file, where neither text nor command is set."""
        return Path(self.master_key_file or self.data_dir / "master.key")

    @property
    def key_beside_data(self) -> bool:
        """Tell whether one stolen folder has the database and the key that opens it."""
        if not self.embedded or self.master_key or self.master_key_command:
            return False
        return self.master_key_path.absolute().parent == self.data_dir.absolute()

    @property
    def proxies(self) -> tuple[Network, ...]:
        """The peers whose word about the client's address counts; none without a proxy."""
        if not self.behind_proxy:
            return ()
        return parse_networks(item for item in self.trusted_proxies.split(",") if item.strip())

    @property
    def welcome(self) -> SignInPolicy:
        """Who may sign in by the OIDC issuer."""
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
        """Return the WARDKEY_* variables that give a worker process this very Config."""
        values = {}
        for item in fields(self):
            value = getattr(self, item.name)
            values[PREFIX + item.name.upper()] = (
                str(int(value)) if isinstance(value, bool) else str(value)
            )
        return values


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
                f"{name} is no setting of Wardkey; `wardkey up --help` lists them all.",
                field=name,
            )
        values[setting] = _read(name, text, type(getattr(Config(), setting)))
    for setting, value in (options or {}).items():
        if isinstance(value, str):
            name = "--" + setting.replace("_", "-")
            values[setting] = _read(name, value, type(getattr(Config(), setting)))
        elif value is not None:
            values[setting] = value
    config = Config(**values)
    _check(config)
    return config


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the WARDKEY_* names that Kubernetes set and that are not settings."""
    known = {PREFIX + item.name.upper() for item in fields(Config)} | _CLIENT_NAMES
    return sorted(name for name in environ if _KUBERNETES.fullmatch(name) and name not in known)


def _read(name: str, text: str, kind: type) -> object:
    if kind is bool:
        if text.lower() not in _YES:
            raise InvalidSetting(f"{name} is {text!r}; say 1 or 0.", field=name)
        return _YES[text.lower()]
    if kind is int:
        if not text.isascii() or not text.isdecimal():
            raise InvalidSetting(f"{name} is {text!r}; it takes a whole number.", field=name)
        return int(text)
    if issubclass(kind, Path):
        if not text:
            raise InvalidSetting(f"{name} is empty; it takes a folder.", field=name)
        return Path(text)
    return text


def _check(config: Config) -> None:
    for name in ("listen", "mqtt_listen", "websocket_listen"):
        text = getattr(config, name)
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004
            raise InvalidSetting(
                f"{text!r} is no address to listen on; write 127.0.0.1:8787 or [::1]:8787.",
                field=name,
            )
    # In this order: the second may come from the first.
    for name, schemes, example in (
        ("brokers", ("nats", "tls"), "nats://127.0.0.1:4222"),
        ("mqtt_brokers", ("mqtt", "mqtts"), "mqtt://127.0.0.1:1883"),
    ):
        for url in getattr(config, name):
            parts = _split(url)
            if parts is None or parts.scheme not in schemes or not parts.hostname or not parts.port:
                raise InvalidSetting(
                    f"{url!r} is no broker's address, such as {example}; several are separated "
                    "by commas.",
                    field="broker" if name == "brokers" else "broker_mqtt",
                )
    _check_bounds(config)
    if config.metrics_token and len(config.metrics_token) < 16:  # noqa: PLR2004 - not guessed
        raise InvalidSetting("metrics_token has at least 16 characters.", field="metrics_token")
    _check_names(config)
    _check_oidc(config)
    _check_database(config)


def _check_bounds(config: Config) -> None:
    for name, (least, most, unit) in _NUMBERS.items():
        if not least <= getattr(config, name) <= most:
            raise InvalidSetting(f"{name} is a number{unit} from {least} to {most}.", field=name)
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise InvalidSetting(
                f"{getattr(config, name)!r} is not a {name}; choose {', '.join(choices)}.",
                field=name,
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
                f"{header!r} is no name of a header, such as X-Api-Key.", field="key_headers"
            )
    if config.public_url:
        parts = _split(config.public_url)
        web = parts is not None and parts.scheme in ("http", "https") and bool(parts.netloc)
        if parts is None or not web or parts.query or parts.fragment:
            raise InvalidSetting(
                f"{config.public_url!r} is no URL such as https://keys.example.com.",
                field="public_url",
            )


def _check_oidc(config: Config) -> None:
    if config.oidc_role not in (Role.ADMIN, Role.MEMBER, Role.VIEWER):
        raise InvalidSetting(
            f"{config.oidc_role!r} is no role to begin with; take viewer, member or admin.",
            field="oidc_role",
        )
    if not config.oidc_issuer:
        for name in ("client_id", "client_secret", "name", "domains", "organization"):
            if getattr(config, f"oidc_{name}"):
                raise InvalidSetting(
                    "Settings of the sign-in are given, but no oidc_issuer.", field=f"oidc_{name}"
                )
        return
    parts = _split(config.oidc_issuer)
    host = parts.hostname or "" if parts else ""
    safe = parts is not None and (
        parts.scheme == "https"
        or (parts.scheme == "http" and (host == "localhost" or is_loopback(host)))
    )
    if parts is None or not host or not safe or parts.query or parts.fragment:
        raise InvalidSetting(
            f"{config.oidc_issuer!r} is no issuer's URL, such as https://login.acme.example.",
            field="oidc_issuer",
        )
    if not config.oidc_client_id:
        raise InvalidSetting(
            "The issuer needs to know for whom it is asked; give the client id that it has for "
            "this deployment.",
            field="oidc_client_id",
        )
    for domain in config.welcome.domains:
        if not _DOMAIN.fullmatch(domain):
            raise InvalidSetting(
                f"{domain!r} is no domain of e-mail addresses, such as acme.example.",
                field="oidc_domains",
            )
    if bool(config.oidc_domains) != bool(config.oidc_organization):
        raise InvalidSetting(
            "oidc_domains and oidc_organization go together: addresses of the domains may join "
            "that organization (its slug).",
            field="oidc_organization" if config.oidc_domains else "oidc_domains",
        )


def _addresses(text: str) -> tuple[str, ...]:
    first, *rest = (part.strip() for part in text.split(","))
    scheme = first.partition("://")[0]
    more = (part if "://" in part else f"{scheme}://{part}" for part in rest)
    return (first, *more) if first else ()


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # is parsed when it is asked for
    except ValueError:
        return None
    return parts


def _check_database(config: Config) -> None:
    parts = _split(config.storage_url)
    file = config.storage_url.removeprefix("sqlite:///") if config.embedded else ""
    if config.embedded and file not in ("", ":memory:", config.storage_url):
        return
    if parts is None or parts.scheme not in ("postgresql", "postgres"):
        raise InvalidSetting(
            "The database URL is sqlite:///path or postgresql://…", field="database_url"
        )
    local = parts.hostname in (None, "localhost") or is_loopback(parts.hostname or "")
    if local:
        return
    if "sslmode=verify-full" not in parts.query:
        raise UnsafeDatabase(
            "A PostgreSQL on another machine needs sslmode=verify-full in its URL.",
            field="database_url",
        )
    if not config.database_encrypted_by_operator:
        raise UnsafeDatabase(
            "Wardkey does not encrypt a PostgreSQL at rest; confirm with "
            "--database-encrypted-by-operator that its disk is encrypted.",
            field="database_url",
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host is an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
