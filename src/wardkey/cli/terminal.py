"""The command line's edge: commands found late, settings as options, failures as exit codes."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from wardkey.domain import errors

# Loaded when asked for, so that `wardkey --help` stays quick: name -> (module, help).
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the server; the first start makes the deployment."),
    "doctor": ("doctor", "Say what is wrong with a deployment and how to mend it."),
    "backup": ("backup", "Write an encrypted copy of the database, while servers run."),
    "restore": ("backup", "Put a backup in the database's place, without reviving any key."),
    "master-key": ("master_key", "Rotate the master key."),
    "org": ("organizations", "Create, list, suspend, resume and delete organizations."),
    "setup-link": ("organizations", "Make a one-time link that sets a person's password."),
    "service-key": ("service_keys", "Create, list and revoke keys that only verify."),
    "hook": ("hooks", "Create, list and revoke tokens for brokers of your own."),
    "broker": ("broker", "Print the settings of a broker's nodes that run elsewhere."),
    "audit": ("audit", "Verify audit chains and export their ends."),
}

EXIT_CODES: tuple[tuple[type[errors.WardkeyError], int], ...] = (
    (errors.NotConfirmed, 1),  # as click ends what Ctrl-C aborts
    (errors.Invalid, 2),
    (errors.Unauthenticated, 4),
    (errors.NotFound, 5),
    (errors.Forbidden, 6),
    (errors.Conflict, 6),
    (errors.RateLimited, 7),
    (errors.Unavailable, 8),
)

F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """The commands of `COMMANDS`; a failure prints its code and sentence and sets the exit."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"wardkey.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run; failures leave with their exit code, their sentence on stderr."""
        try:
            return super().main(*args, **kwargs)
        except errors.WardkeyError as failure:
            print_error(failure)
            sys.exit(exit_code(failure))
        except OSError as error:
            # Without a file it is a fault of ours, and its traceback is of use.
            if error.filename is None:
                raise
            unusable = errors.UnusableFile(f"{error.filename}: {error.strerror}.")
            print_error(unusable)
            sys.exit(exit_code(unusable))


def print_error(failure: errors.WardkeyError) -> None:
    """Print a failure's code and sentence on stderr, and which input is at fault."""
    at = f" (at {failure.field})" if failure.field else ""
    click.echo(f"wardkey: {failure.code}: {failure.detail}{at}", err=True)


def exit_code(failure: errors.WardkeyError) -> int:
    """Return the exit code of a failure's family."""
    return next(code for family, code in EXIT_CODES if isinstance(failure, family))


def print_output(value: Any, *, as_json: bool, text: str) -> None:  # noqa: ANN401 - JSON values
    """Print data on stdout: as JSON for programs, or as `text` for people."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def confirm(question: str, wanted: str) -> None:
    """Ask on stderr; raises `NotConfirmed` unless `wanted` is typed in answer."""
    try:
        typed = click.prompt(question, err=True)
    except click.Abort:
        click.echo(err=True)
        typed = ""
    if typed != wanted:
        raise errors.NotConfirmed(
            f"Nothing was changed: type {wanted} in answer, or give --yes where nobody can type."
        )


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_SETTINGS_HELP = {
    "data_dir": "Folder of the database and the master key.",
    "database_url": "postgresql://… for more than one machine, or sqlite:///path.",
    "database_encrypted_by_operator": "Confirm that a PostgreSQL elsewhere is encrypted at rest.",
    "listen": "Address and port to listen on.",
    "tls_cert": "Certificate chain (PEM).",
    "tls_key": "Private key (PEM).",
    "behind_proxy": "A proxy in front ends TLS and names the client's address.",
    "trusted_proxies": "Proxies whose X-Forwarded-For counts (CIDR, comma-separated).",
    "workers": "Worker processes.",
    "directory_memory": "MiB of memory for known keys, in each worker.",
    "max_staleness": "Seconds to go on judging without PostgreSQL; 0 refuses at once.",
    "keep_alive": "Seconds after which an idle HTTP connection is closed.",
    "log_level": "Least level of log records: debug, info, warning or error.",
    "log_format": "Format of log records on stderr: text, or json for one object a line.",
    "access_log": "Log each HTTP request: method, path, status, time and client.",
    "no_messaging": "Leave MQTT out: no broker is started.",
    "mqtt_listen": "Address and port for MQTT.",
    "websocket_listen": "Address and port for MQTT over WebSocket, at /mqtt.",
    "broker": "tls://… of a broker that runs elsewhere with this deployment's operator; its nodes "
    "separated by commas.",
    "broker_mqtt": "mqtts://… where that broker takes MQTT, if not at port 8883 (1883 for nats://).",
    "broker_ca": "Who signed that broker's certificates (PEM), if not a public authority.",
    "broker_dir": "Folder of a broker on this machine; without room there nothing is published.",
    "broker_sync_always": "Write each stored message to the disk before it is acknowledged.",
    "nats_server": "The nats-server to run, if not the installed one.",
    "private_issuers": "Let auth providers be at private addresses and without TLS.",
    "oidc_issuer": "https://… of the OIDC issuer by which people may sign in to the dashboard.",
    "oidc_client_id": "What that issuer calls this deployment; the secret that goes "
    "with it, if any, is in WARDKEY_OIDC_CLIENT_SECRET.",
    "oidc_name": "What the button says after “Sign in with”, if not the issuer's host.",
    "oidc_domains": "Domains whose addresses may sign in and join (comma-separated); without them "
    "only people with a place already may.",
    "oidc_organization": "The organization that they join (its id, or its slug, which an owner "
    "can change).",
    "oidc_role": "As what they join: viewer, member or admin.",
    "public_url": "Where people reach this deployment.",
    "brand": "Text before every key of this deployment, such as acme.",
    "key_headers": "Further headers that may carry a key (comma-separated).",
    "master_key_file": "Where the master key lies, if not in the data folder.",
    "master_key_command": "A command that prints the master key.",
    "organization": "Name of the first organization (first start only).",
    "owner": "E-mail address of its owner (first start only).",
}
SERVING = tuple(_SETTINGS_HELP)
STORAGE = (
    "data_dir",
    "database_url",
    "database_encrypted_by_operator",
    "master_key_file",
    "master_key_command",
    "brand",
)


def settings(*names: str) -> Callable[[F], F]:
    """Return a decorator that adds options for settings and passes the checked `config`."""

    def decorate(function: F) -> F:
        def wrapper(**options: Any) -> Any:  # noqa: ANN401 - the command's own options
            from wardkey.config import load_config

            chosen = {name: options.pop(name) for name in names}
            return function(config=load_config(os.environ, chosen), **options)

        wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
        wrapper.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        command: Any = wrapper
        for name in reversed(names):
            command = _option(name)(command)
        result: F = command
        return result

    return decorate


def _option(name: str) -> Callable[[Any], Any]:
    from wardkey.config import Config

    default = next(item.default for item in fields(Config) if item.name == name)
    flag = f"--{name.replace('_', '-')}"
    shown = f"  [{'WARDKEY_' + name.upper()}"
    shown += f"; default {default}]" if default not in ("", False) else "]"
    if default is False:
        return click.option(
            flag, name, is_flag=True, default=None, help=_SETTINGS_HELP[name] + shown
        )
    # Numbers are read with the variables', so that a bad one is refused in the same words.
    metavar = "INTEGER" if isinstance(default, int) else "TEXT"
    return click.option(flag, name, metavar=metavar, help=_SETTINGS_HELP[name] + shown)
