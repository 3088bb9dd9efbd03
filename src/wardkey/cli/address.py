"""The deployment's URL, saved by the server for commands that print links."""

from __future__ import annotations

import contextlib
from pathlib import Path

from wardkey.config import Config
from wardkey.db.atomic_files import put_in_place
from wardkey.domain.errors import InvalidSetting


def keep_url(config: Config) -> None:
    """Save the URL of the server that is starting."""
    path = _file(config)
    next_path = path.with_name(path.name + ".next")
    # A server on a full disk still answers requests; only later commands need this file.
    with contextlib.suppress(OSError):
        next_path.write_text(config.url + "\n", "utf-8")
        put_in_place(next_path, path)


def link_url(config: Config) -> str:
    """Return the base URL for links: `public_url`, or else the URL of the last server to start.

    Raises `InvalidSetting` if neither is known and the port is chosen at start-up.
    """
    if config.public_url:
        return config.url
    with contextlib.suppress(OSError):
        if url := _file(config).read_text("utf-8").strip():
            return url
    if config.port == 0:
        raise InvalidSetting(
            "No server has started here yet, so the link's URL is unknown; set it with "
            "--public-url.",
            field="public_url",
        )
    return config.url


def _file(config: Config) -> Path:
    return config.data_dir / "url"
