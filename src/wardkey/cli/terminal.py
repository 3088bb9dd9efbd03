"""The command line's edge: commands found late, settings as options, failures as exit codes."""

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

# Loaded when asked for, so that `wardkey --help` stays quick: name -> (module, help).
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the server; the first start makes the deployment."),
    "reload": ("reload", "Have the running server read a renewed certificate."),
    "doctor": ("doctor", "Say what is wrong with a deployment and how to mend it."),
    "backup": ("backup", "Write an encrypted copy of the database, while servers run."),
    "restore": ("backup", "Put a backup in the database's place, without reviving any key."),
    "master-key": ("master_key", "Rotate the master key; list and remove old ones."),
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


class Subgroup(click.Group):
    """A group of commands whose list shows the first sentence of each as a whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would cut a sentence off where the line ends."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=1_000))
                    for name in self.list_commands(ctx)
                    if (command := self.get_command(ctx, name)) is not None
                ]
            )


def print_error(failure: errors.WardkeyError) -> None:
    """Print a failure's code and sentence on stderr, and the input where that does not name it."""
    field = failure.field or ""
    named = field.replace("-", "_") in failure.detail.lower().replace("-", "_")
    at = "" if named else f" (at {field})"
    click.echo(f"wardkey: {failure.code}: {failure.detail}{at}", err=True)


def exit_code(failure: errors.WardkeyError) -> int:
    """Return the exit code of a failure's family."""
    return next(code for family, code in EXIT_CODES if isinstance(failure, family))


def print_output(value: Any, *, as_json: bool, text: str, err: bool = False) -> None:  # noqa: ANN401 - JSON
    """Print data on stdout: as JSON for programs, or as `text` for people; on stderr if `err`."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text, err=err)


def say_table(
    value: Any,  # noqa: ANN401 - JSON values
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print a list in columns, below their names on a terminal; `empty` where it has no rows."""
    shown = [[name.upper() for name in names], *rows] if sys.stdout.isatty() else [*rows]
    widths = [max(len(row[at]) for row in [names, *rows]) for at in range(len(names))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]
    print_output(value, as_json=as_json, text="\n".join(lines) if rows else empty)


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
    from wardkey.config import SETTINGS, Config

    default = next(item.default for item in fields(Config) if item.name == name)
    help_text = SETTINGS[name].help
    flag = f"--{name.replace('_', '-')}"
    shown = f"  [{'WARDKEY_' + name.upper()}"
    shown += f"; default {default}]" if default not in ("", False) else "]"
    if default is False:
        return click.option(flag, name, is_flag=True, default=None, help=help_text + shown)
    # Numbers are read with the variables', so that a bad one is refused in the same words.
    metavar = "INTEGER" if isinstance(default, int) else "TEXT"
    return click.option(flag, name, metavar=metavar, help=help_text + shown)
