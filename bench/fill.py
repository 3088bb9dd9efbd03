"""Fills deployments with any number of keys, whose secrets are derived from numbers."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from sqlalchemy import Table

from wardkey.actions.operations.first_start import first_start
from wardkey.config import load_config
from wardkey.db.engine import connect_sqlite
from wardkey.db.schema import keys, secrets
from wardkey.deployment import open_deployment
from wardkey.domain.principal import operator
from wardkey.domain.secret import ALPHABET, KID_LENGTH

_STATE = "bench.json"
_BATCH = 50_000
_DIGITS = bytes(ALPHABET[n % 62].encode()[0] for n in range(256))
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_HEAD = "sk_live_"
_NOW = 1_790_000_000_000


@dataclass(frozen=True, slots=True)
class Filled:
    """A deployment with `count` keys; `caller` is the secret that sends the verifications."""

    data_dir: Path
    count: int
    caller: str
    seconds: float

    def sample(self, most: int) -> list[str]:
        """Return up to `most` distinct secrets, evenly spread and shuffled."""
        texts = [text_of(n, self.count) for n in range(0, self.count, -(-self.count // most))]
        random.Random(1).shuffle(texts)
        return texts


def text_of(number: int, count: int) -> str:
    """Return secret `number` of `count`; kids are in the order of numbers, so rows are appended."""
    drawn = blake2b(b"%d of %d" % (number, count), digest_size=40).digest()
    step = 62**KID_LENGTH // count
    value, kid = number * step + int.from_bytes(drawn[32:], "big") % step, ""
    for _ in range(KID_LENGTH // 2):
        value, low = divmod(value, 62**2)
        kid = _PAIRS[low] + kid
    body = f"{_HEAD}{kid}_{drawn[:32].translate(_DIGITS).decode()}"
    upper, low = divmod(crc32(body.encode()), 62**2)
    high, middle = divmod(upper, 62**2)
    return f"{body}{_PAIRS[high]}{_PAIRS[middle]}{_PAIRS[low]}"


def get_deployment(folder: Path, count: int) -> Filled:
    """Return the deployment with `count` keys in `folder`; create it if it is missing."""
    data_dir = folder / f"keys-{count}"
    state = data_dir / _STATE
    if state.exists():
        saved = json.loads(state.read_text())
        return Filled(data_dir, count, saved["caller"], saved["seconds"])
    began = time.perf_counter()
    with open_deployment(load_config({}, {"data_dir": data_dir})) as runner:
        first = runner.write(first_start, operator(), "Acme", "owner@acme.example")
        assert first is not None, f"{data_dir} is only half filled; remove it"
        vault, org_id = runner.database.vault, first.organization.id
    raw = connect_sqlite(data_dir / "wardkey.db", vault.master.database_key)
    # No journal: after a crash the deployment is created again.
    raw.execute("PRAGMA journal_mode = OFF").fetchall()
    raw.execute("PRAGMA synchronous = OFF")
    raw.execute("PRAGMA foreign_keys = OFF")
    for begin in range(0, count, _BATCH):
        numbers = range(begin, min(begin + _BATCH, count))
        texts = [text_of(n, count) for n in numbers]
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(_insert(keys, _KEY), _key_rows(numbers, org_id))
        raw.executemany(
            _insert(secrets, _SECRET),
            (
                (t[8:20], _id(n), org_id, "live", f"{t[:12]}…", vault.digest(t), vault.version,
                 0, _NOW, "operator")
                for n, t in zip(numbers, texts, strict=True)
            ),
        )  # fmt: skip
        raw.execute("COMMIT")
    raw.execute("PRAGMA journal_mode = WAL").fetchall()
    raw.close()
    seconds = time.perf_counter() - began
    caller = first.issued.secret.text
    state.touch(mode=0o600)
    state.write_text(json.dumps({"caller": caller, "seconds": seconds}))
    return Filled(data_dir, count, caller, seconds)


_KEY = (
    "id", "org_id", "environment", "type", "name", "live_name", "description", "permissions",
    "allowed_addresses", "allowed_origins", "allow_native", "metadata", "created_at",
    "created_by", "updated_at", "rotated_at",
)  # fmt: skip
_SECRET = (
    "kid", "key_id", "org_id", "environment", "prefix", "digest", "pepper_version", "imported",
    "created_at", "created_by",
)  # fmt: skip


def _insert(table: Table, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})"


def _id(number: int) -> str:
    return f"key_{number:022d}"


def _key_rows(numbers: range, org_id: str) -> Iterator[tuple[object, ...]]:
    for n in numbers:
        name = f"live-bench-{n:08d}"
        yield (
            _id(n), org_id, "live", "secret", name, name, "", '["invoices:read"]', "[]", "[]", 0,
            "{}", _NOW, "operator", _NOW, _NOW,
        )  # fmt: skip
