"""The command line: `wardkey up` and the operator's commands."""

from __future__ import annotations

import click

from wardkey import __version__
from wardkey.cli.terminal import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wardkey")
def main() -> None:
    """Run Wardkey: API keys whose revocations are in effect when the call returns."""
