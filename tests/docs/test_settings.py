from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from wardkey.config import SETTINGS, Config

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def row(name: str, default: object) -> str:
    setting = SETTINGS[name]
    option = "" if setting.secret else f"`--{name.replace('_', '-')}`"
    shown = "" if default in {"", False} else f"`{default}`"
    text = setting.help
    if setting.bounds is not None:
        least, most = setting.bounds
        text += f" From {least:,} to {most:,}."
    return f"| `WARDKEY_{name.upper()}` | {option} | {shown} | {text} |"


def test_the_page_lists_every_setting_as_it_is_declared() -> None:
    expected = [row(item.name, item.default) for item in fields(Config)]
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `WARDKEY_")]
    assert lines == expected, "docs/settings.md should have these rows:\n" + "\n".join(expected)
