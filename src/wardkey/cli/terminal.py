"""Command-line plumbing: lazy commands, settings as options, errors as exit codes, output."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import click

from wardkey.domain import errors

# Imported on use, to keep `wardkey --help` fast: name -> (module, help).
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the server; the first start creates the deployment."),
    "reload": ("reload", "Make the running server read a renewed certificate."),
    "doctor": ("doctor", "Check a deployment and show how to fix each problem."),
    "backup": ("backup", "Write an encrypted copy of the database while servers run."),
    "restore": ("backup", "Replace the database with a backup, without reviving any key."),
    "master-key": ("master_key", "Rotate the master key; list and remove old keys."),
    "org": ("organizations", "Create, list, suspend, resume and delete organizations."),
    "setup-link": ("organizations", "Create a one-time link that sets a person's password."),
    "service-key": ("service_keys", "Create, list and revoke keys that can only verify."),
    "hook": ("hooks", "Create, list and revoke tokens for your own brokers."),
    "broker": ("broker", "Print settings for a broker that runs elsewhere."),
    "audit": ("audit", "Verify and export audit chains, and print their signed heads."),
}

EXIT_CODES: tuple[tuple[type[errors.WardkeyError], int], ...] = (
    (errors.NotConfirmed, 1),  # as click does for Ctrl-C
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
    """The commands of `COMMANDS`; an error prints its code and detail and sets the exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order of `COMMANDS`."""
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
        """Run the command; an error is printed on stderr and sets the exit code."""
        try:
            return super().main(*args, **kwargs)
        except errors.WardkeyError as error:
            print_error(error)
            sys.exit(exit_code(error))
        except OSError as error:
            # Without a file name it is a bug, and the traceback is useful.
            if error.filename is None:
                raise
            unusable = errors.UnusableFile(f"{error.filename}: {error.strerror}.")
            print_error(unusable)
            sys.exit(exit_code(unusable))


class Subgroup(click.Group):
    """A command group whose list shows the full first sentence of each command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would truncate the sentences at the line's end."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=1_000))
                    for name in self.list_commands(ctx)
                    if (command := self.get_command(ctx, name)) is not None
                ]
            )


def print_error(error: errors.WardkeyError) -> None:
    """Print an error's code and detail on stderr, and its field unless the detail names it."""
    field = error.field or ""
    is_named = field.replace("-", "_") in error.detail.lower().replace("-", "_")
    suffix = "" if is_named else f" (at {field})"
    click.echo(f"wardkey: {error.code}: {error.detail}{suffix}", err=True)


def exit_code(error: errors.WardkeyError) -> int:
    """Return the exit code of an error's family."""
    return next(code for family, code in EXIT_CODES if isinstance(error, family))


def print_output(value: Any, *, as_json: bool, text: str, err: bool = False) -> None:  # noqa: ANN401 - JSON
    """Print `value` as JSON, or `text`, on stdout; on stderr if `err`."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text, err=err)


def print_table(
    value: Any,  # noqa: ANN401 - JSON values
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print rows in columns, with a header on a terminal; print `empty` if there are no rows."""
    table = [[name.upper() for name in names], *rows] if sys.stdout.isatty() else [*rows]
    widths = [max(len(row[column]) for row in [names, *rows]) for column in range(len(names))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    print_output(value, as_json=as_json, text="\n".join(lines) if rows else empty)


def confirm(question: str, expected: str) -> None:
    """Ask on stderr; raises `NotConfirmed` unless the user types `expected`."""
    try:
        typed = click.prompt(question, err=True)
    except click.Abort:
        click.echo(err=True)
        typed = ""
    if typed != expected:
        raise errors.NotConfirmed(
            f"Nothing was changed: type {expected} to confirm, or pass --yes in a script."
        )


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

STORAGE = (
    "data_dir",
    "database_url",
    "database_encrypted_by_operator",
    "master_key_file",
    "master_key_command",
    "brand",
)


def settings(*names: str) -> Callable[[F], F]:
    """Return a decorator that adds options for settings and passes the validated `config`."""

    def decorate(function: F) -> F:
        def wrapper(**options: Any) -> Any:  # noqa: ANN401 - the command's own options
            from wardkey.config import load_config

            flags = {name: options.pop(name) for name in names}
            return function(config=load_config(os.environ, flags), **options)

        wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
        wrapper.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        command: Any = wrapper
        for name in reversed(names):
            command = _option(name)(command)
        result: F = command
        return result

    return decorate


def _option(name: str) -> Callable[[Any], Any]:
    from wardkey.config import SETTINGS, Config

    default = next(item.default for item in fields(Config) if item.name == name)
    help_text = SETTINGS[name].help
    flag = f"--{name.replace('_', '-')}"
    suffix = f"  [{'WARDKEY_' + name.upper()}"
    suffix += f"; default {default}]" if default not in ("", False) else "]"
    if default is False:
        return click.option(flag, name, is_flag=True, default=None, help=help_text + suffix)
    # Numbers are parsed with the variables, so a bad one gets the same error either way.
    metavar = "INTEGER" if isinstance(default, int) else "TEXT"
    return click.option(flag, name, metavar=metavar, help=help_text + suffix)
