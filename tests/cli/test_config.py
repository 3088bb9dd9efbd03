from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from wardkey.cli import main
from wardkey.cli.terminal import STORAGE, settings
from wardkey.config import SERVING, Config, load_config
from wardkey.domain.errors import InvalidSetting, WardkeyError

REMOTE = "postgresql://db.acme.example/wardkey?sslmode=verify-full"
# setting -> (option, its parsed value, variable, its parsed value)
GIVEN: dict[str, tuple[str, Any, str, Any]] = {
    "data_dir": ("one", Path("one"), "two", Path("two")),
    "database_url": ("sqlite:///one", "sqlite:///one", "sqlite:///two", "sqlite:///two"),
    "database_encrypted_by_operator": ("", True, "yes", True),
    "listen": ("127.0.0.1:1", "127.0.0.1:1", "[::1]:2", "[::1]:2"),
    "tls_cert": ("one.pem", "one.pem", "two.pem", "two.pem"),
    "tls_key": ("one.pem", "one.pem", "two.pem", "two.pem"),
    "behind_proxy": ("", True, "1", True),
    "private_issuers": ("", True, "on", True),
    "trusted_proxies": ("192.0.2.1", "192.0.2.1", "192.0.2.0/24", "192.0.2.0/24"),
    "workers": ("2", 2, "3", 3),
    "directory_memory": ("16", 16, "17", 17),
    "max_staleness": ("1", 1, "2", 2),
    "keep_alive": ("75", 75, "90", 90),
    "log_level": ("error", "error", "debug", "debug"),
    "log_format": ("json",) * 4,
    "access_log": ("", True, "1", True),
    "no_messaging": ("", True, "1", True),
    "mqtt_listen": ("127.0.0.1:1", "127.0.0.1:1", "[::1]:2", "[::1]:2"),
    "websocket_listen": ("127.0.0.1:1", "127.0.0.1:1", "[::1]:2", "[::1]:2"),
    "broker": ("nats://one.example:4222",) * 2 + ("tls://two.example:4222",) * 2,
    "broker_mqtt": ("mqtt://one.example:1883",) * 2 + ("mqtts://two.example:8883",) * 2,
    "broker_ca": ("one.pem", "one.pem", "two.pem", "two.pem"),
    "broker_dir": ("/one", "/one", "/two", "/two"),
    "broker_sync_always": ("", True, "1", True),
    "nats_server": ("/one", "/one", "/two", "/two"),
    "oidc_issuer": ("https://one.example",) * 2 + ("http://127.0.0.1:2/realm",) * 2,
    "oidc_client_id": ("one", "one", "two", "two"),
    "oidc_name": ("One", "One", "Two", "Two"),
    "oidc_domains": ("one.example",) * 2 + ("two.example, b.example",) * 2,
    "oidc_organization": ("one", "one", "two", "two"),
    "oidc_role": ("member", "member", "admin", "admin"),
    "public_url": ("https://one.example",) * 2 + ("https://two.example/",) * 2,
    "brand": ("one", "one", "two", "two"),
    "key_headers": ("X-One", "X-One", "X-Two", "X-Two"),
    "master_key_file": ("one", "one", "two", "two"),
    "master_key_command": ("cat one", "cat one", "cat two", "cat two"),
    "organization": ("One", "One", "Two", "Two"),
    "owner": ("admin@one.example",) * 2 + ("admin@two.example",) * 2,
}
# Secrets are not options, because other users of the machine see the process list.
SECRET = {"master_key", "metrics_token", "oidc_client_secret"}
# These depend on each other, so each is tested together with the others.
OIDC = {
    "WARDKEY_OIDC_ISSUER": "https://login.acme.example",
    "WARDKEY_OIDC_CLIENT_ID": "wardkey",
    "WARDKEY_OIDC_DOMAINS": "acme.example",
    "WARDKEY_OIDC_ORGANIZATION": "acme",
}
BAD = [
    ("data_dir", "", "data_dir"),
    ("database_url", "mysql://localhost/wardkey", "database_url"),
    ("database_url", "postgresql://[::1/wardkey", "database_url"),
    ("database_url", "postgresql://localhost:many/wardkey", "database_url"),
    ("database_url", "sqlite:wardkey.db", "database_url"),
    ("database_url", "sqlite:///", "database_url"),
    ("database_url", "sqlite:///:memory:", "database_url"),
    ("listen", "", "listen"),
    ("listen", "8787", "listen"),
    ("listen", "127.0.0.1:http", "listen"),
    ("listen", "127.0.0.1:65536", "listen"),
    ("mqtt_listen", "1883", "mqtt_listen"),
    ("websocket_listen", "127.0.0.1:ws", "websocket_listen"),
    ("broker", "http://one.example:4222", "broker"),
    ("broker", "nats://[::1", "broker"),
    ("broker", "nats://one.example:4222,tls:two.example:4222", "broker"),
    ("broker", "nats://one.example", "broker"),
    ("broker_mqtt", "nats://one.example:1883", "broker_mqtt"),
    ("workers", "many", "workers"),
    ("workers", "0", "workers"),
    ("workers", "-1", "workers"),
    ("workers", "65", "workers"),
    ("workers", "²", "workers"),
    ("directory_memory", "15", "directory_memory"),
    ("max_staleness", "3601", "max_staleness"),
    ("keep_alive", "4", "keep_alive"),
    ("log_level", "loud", "log_level"),
    ("log_format", "xml", "log_format"),
    ("trusted_proxies", "anybody", "trusted_proxies"),
    ("trusted_proxies", "192.0.2.0/33", "trusted_proxies"),
    ("public_url", "keys.acme.example", "public_url"),
    ("public_url", "ftp://keys.acme.example", "public_url"),
    ("public_url", "https://[::1", "public_url"),
    ("public_url", "https://keys.acme.example/?a=b", "public_url"),
    ("oidc_client_id", "alone", "oidc_client_id"),
    ("oidc_role", "anything", "oidc_role"),
    ("oidc_issuer", "https://login.acme.example", "oidc_client_id"),
    ("oidc_issuer", "http://login.acme.example", "oidc_issuer"),
    ("oidc_issuer", "login.acme.example", "oidc_issuer"),
    ("oidc_issuer", "https://login.acme.example/?a=b", "oidc_issuer"),
    ("brand", "A b", "brand"),
    ("brand", "sk", "brand"),
    ("key_headers", "X-Api-Key, X Key", "key_headers"),
    ("key_headers", "X-Key:", "key_headers"),
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WARDKEY_" + item.name.upper() for item in fields(Config)):
        monkeypatch.delenv(name, raising=False)


def read(*args: str, **environ: str) -> Config:
    """Return the Config of a command that accepts every setting of `up`."""
    read: list[Config] = []

    @click.command()
    @settings(*SERVING)
    def command(config: Config) -> None:
        read.append(config)

    done = CliRunner().invoke(command, args, env=environ, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return read[0]


def test_unset_settings_have_their_defaults() -> None:
    assert read() == Config()
    assert set(GIVEN) == {item.name for item in fields(Config)} - SECRET == set(SERVING)


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_overrides_a_variable_and_a_variable_the_default(name: str) -> None:
    option, from_option, variable, from_variable = GIVEN[name]
    around = OIDC if name.startswith("oidc") else {}
    environ = {**around, "WARDKEY_" + name.upper(): variable}
    args = (f"--{name.replace('_', '-')}", *([option] if option else []))
    assert getattr(read(**environ), name) == from_variable != getattr(Config(), name)
    assert getattr(read(*args, **around), name) == from_option != getattr(Config(), name)
    assert getattr(read(*args, **environ), name) == from_option


def test_the_master_key_is_accepted_only_as_a_variable_and_never_shown() -> None:
    key = "ab" * 32
    config = read(WARDKEY_MASTER_KEY=key)
    assert config.master_key == key
    assert key not in repr(config)
    assert "--master-key " not in CliRunner().invoke(main, ["up", "--help"]).output


def test_a_worker_reads_the_settings_it_was_started_with() -> None:
    environ = {"WARDKEY_" + name.upper(): given[2] for name, given in GIVEN.items()}
    config = load_config({**environ, "WARDKEY_MASTER_KEY": "ab" * 32})
    assert load_config(config.environment()) == config


@pytest.mark.parametrize(
    ("text", "meant"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("", False)]
)
def test_a_boolean_variable_accepts_the_usual_words(text: str, *, meant: bool) -> None:
    assert load_config({"WARDKEY_BEHIND_PROXY": text}).behind_proxy is meant


@pytest.mark.parametrize(("name", "value", "field"), BAD)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_an_invalid_value_is_refused_and_names_the_setting(
    name: str, value: str, field: str, way: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if way == "variable":
        monkeypatch.setenv("WARDKEY_" + name.upper(), value)
        args = ["up"]
    else:
        args = ["up", f"--{name.replace('_', '-')}={value}"]
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("wardkey: invalid_setting: ")
    assert field in errors.lower().replace("-", "_")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("domains", "", "oidc_domains"),
        ("organization", "", "oidc_organization"),
        ("domains", "acme.example, *.acme.example", "oidc_domains"),
        ("domains", "admin@acme.example", "oidc_domains"),
        ("domains", "localhost", "oidc_domains"),
        ("role", "owner", "oidc_role"),
        ("role", "anything", "oidc_role"),
    ],
)
def test_inconsistent_sign_in_settings_are_refused(name: str, text: str, field: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        load_config({**OIDC, f"WARDKEY_OIDC_{name.upper()}": text})
    assert caught.value.field == field


def test_the_issuer_secret_is_never_shown() -> None:
    config = load_config({**OIDC, "WARDKEY_OIDC_CLIENT_SECRET": "of-the-client"})
    assert config.oidc_client_secret == "of-the-client"
    assert "of-the-client" not in repr(config)


@pytest.mark.parametrize(
    ("environ", "code", "field"),
    [
        ({"WARDKEY_LISTENN": "127.0.0.1:1"}, "unknown_setting", "WARDKEY_LISTENN"),
        ({"WARDKEY_BEHIND_PROXY": "maybe"}, "invalid_setting", "WARDKEY_BEHIND_PROXY"),
        ({"WARDKEY_DATABASE_URL": REMOTE}, "unsafe_database", "database_url"),
        (
            {"WARDKEY_DATABASE_URL": REMOTE.partition("?")[0]},
            "unsafe_database",
            "database_url",
        ),
    ],
)
def test_unknown_and_unsafe_settings_have_their_own_codes(
    environ: dict[str, str], code: str, field: str
) -> None:
    with pytest.raises(WardkeyError) as refused:
        load_config(environ)
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_remote_postgresql_is_accepted_once_its_encryption_is_confirmed() -> None:
    environ = {"WARDKEY_DATABASE_URL": REMOTE, "WARDKEY_DATABASE_ENCRYPTED_BY_OPERATOR": "1"}
    assert load_config(environ).storage_url == REMOTE


def commands(group: click.Group, *path: str) -> dict[tuple[str, ...], click.Command]:
    """Return every command and group below `group` by its path."""
    by_path: dict[tuple[str, ...], click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        by_path[*path, name] = command
        if isinstance(command, click.Group):
            by_path |= commands(command, *path, name)
    return by_path


COMMANDS = commands(main)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_a_help_text(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    done = CliRunner().invoke(main, [*path, "--help"], prog_name="wardkey")
    assert done.exit_code == 0
    assert done.output.startswith("Usage: wardkey " + " ".join(path))
    summary = (command.help or "").split("\n")[0]
    assert summary.endswith(".")
    assert summary.split()[0] in done.output
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.opts[0] in done.output
    if not isinstance(command, click.Group):
        names = {option.name for option in command.params}
        assert set(STORAGE) <= names, "it opens the same deployment as the others"
        assert path == ("up",) or "as_json" in names
    if path == ("up",):
        assert all(f"WARDKEY_{name.upper()}" in done.output for name in SERVING)


def test_the_list_of_commands_is_complete() -> None:
    done = CliRunner().invoke(main, ["--help"])
    assert all(path[0] in done.output for path in COMMANDS)
    assert CliRunner().invoke(main, ["nothing"]).exit_code == 2


def test_clients_get_the_public_name_and_the_broker_ports() -> None:
    beside = Config(
        public_url="https://keys.acme.example/",
        broker="nats://127.0.0.1:4222",
        broker_dir="broker",
        mqtt_listen="0.0.0.0:8883",
        websocket_listen="[::]:8984",
    )
    assert beside.mqtt_url == "mqtt://keys.acme.example:8883"
    assert beside.websocket_url == "wss://keys.acme.example:8984/mqtt"
    elsewhere = Config(broker="tls://broker.acme.example:4222")
    assert elsewhere.mqtt_url == "mqtts://broker.acme.example:8883"
    assert elsewhere.websocket_url == ""
    assert Config(no_messaging=True).mqtt_url == ""
