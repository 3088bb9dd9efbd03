"""Replaced master keys, kept beside the current one for the backups of their time."""

from __future__ import annotations

import re
from pathlib import Path

from wardkey.db.atomic_files import make_private, put_in_place, sync_folder
from wardkey.db.vault import MasterKey
from wardkey.domain.errors import InvalidMasterKey, UnwritableFile


def kept_file(file: Path, version: int) -> Path:
    """Return the file of the kept master key `version`; `file` contains the current one."""
    return file.with_name(f"{file.name}.{version}")


def kept_files(file: Path) -> dict[int, Path]:
    """Return the files of kept master keys by version, oldest first."""
    pattern = re.compile(re.escape(file.name) + r"\.([1-9][0-9]{0,8})")
    matches = ((pattern.fullmatch(path.name), path) for path in file.parent.glob(f"{file.name}.*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def keep_key(file: Path, version: int, key: MasterKey) -> Path:
    """Write a master key beside the current one and sync it to disk; return its file.

    Raises `UnwritableFile` if the file of that version contains another key.
    """
    path = kept_file(file, version)
    if path.exists():
        if path.read_text("utf-8", "replace").strip() == key.text:
            return path
        raise UnwritableFile(
            f"{path} contains another master key; move it away, then rotate again. Nothing was "
            "changed."
        )
    temporary = path.with_name(path.name + ".next")
    temporary.unlink(missing_ok=True)
    make_private(temporary)
    temporary.write_text(key.text + "\n")
    put_in_place(temporary, path)
    return path


def read_key(path: Path) -> MasterKey:
    """Return the master key in a file; raises `InvalidMasterKey`."""
    try:
        return MasterKey.parse(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidMasterKey(f"{path} can't be read as a master key: {reason}.") from None
    except InvalidMasterKey:
        raise InvalidMasterKey(
            f"{path} doesn't contain a master key, which has 64 hexadecimal digits."
        ) from None


def forget_key(path: Path) -> None:
    """Delete a kept master key and sync the folder to disk."""
    path.unlink()
    sync_folder(path.parent)
