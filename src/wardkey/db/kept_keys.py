"""Master keys that a rotation replaced, kept beside the one in use for older backups."""

from __future__ import annotations

import re
from pathlib import Path

from wardkey.db.atomic_files import make_private, put_in_place, sync_folder
from wardkey.db.vault import MasterKey
from wardkey.domain.errors import InvalidMasterKey, UnwritableFile


def kept_file(file: Path, version: int) -> Path:
    """Return where the master key number `version` is kept; `file` holds the one in use."""
    return file.with_name(f"{file.name}.{version}")


def kept_files(file: Path) -> dict[int, Path]:
    """Return the kept master keys' files by version, oldest first."""
    named = re.compile(re.escape(file.name) + r"\.([1-9][0-9]{0,8})")
    found = ((named.fullmatch(path.name), path) for path in file.parent.glob(f"{file.name}.*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def keep_key(file: Path, version: int, key: MasterKey) -> Path:
    """Keep a master key beside the one in use, through to the disk; return its file.

    Raises `UnwritableFile` where another key is kept under that version.
    """
    path = kept_file(file, version)
    if path.exists():
        if path.read_text("utf-8", "replace").strip() == key.text:
            return path
        raise UnwritableFile(
            f"{path} holds another master key; move it away, then rotate again. Nothing was "
            "changed."
        )
    made = path.with_name(path.name + ".next")
    made.unlink(missing_ok=True)
    make_private(made)
    made.write_text(key.text + "\n")
    put_in_place(made, path)
    return path


def read_key(path: Path) -> MasterKey:
    """Return the master key in a file; raises `InvalidMasterKey`."""
    try:
        return MasterKey.parse(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidMasterKey(f"{path} cannot be read as a master key: {reason}.") from None
    except InvalidMasterKey:
        raise InvalidMasterKey(f"{path} holds no master key: 64 hexadecimal digits.") from None


def forget_key(path: Path) -> None:
    """Remove a kept master key for good, through to the disk."""
    path.unlink()
    sync_folder(path.parent)
