"""Where people reach the deployment: kept by the server, for commands that print links."""

from __future__ import annotations

import contextlib
from pathlib import Path

from wardkey.config import Config
from wardkey.db.atomic_files import put_in_place
from wardkey.domain.errors import InvalidSetting


def keep_url(config: Config) -> None:
    """Write down where the server that starts now is reached."""
    path = _file(config)
    made = path.with_name(path.name + ".next")
    # A server on a full disk still answers; only the links of later commands would want this.
    with contextlib.suppress(OSError):
        made.write_text(config.url + "\n", "utf-8")
        put_in_place(made, path)


def link_url(config: Config) -> str:
    """Return what a link begins with: `public_url`, else where the newest server was reached.

    Raises `InvalidSetting` where neither is known and the port would be chosen at the start.
    """
    if config.public_url:
        return config.url
    with contextlib.suppress(OSError):
        if kept := _file(config).read_text("utf-8").strip():
            return kept
    if config.port == 0:
        raise InvalidSetting(
            "No server has started here yet, so the link's address is not known; say where people "
            "reach it with --public-url.",
            field="public_url",
        )
    return config.url


def _file(config: Config) -> Path:
    return config.data_dir / "url"
