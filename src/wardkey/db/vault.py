"""The master key, what is derived from it, and the sealing of other people's secrets."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardkey.domain.errors import InvalidMasterKey, WrongMasterKey

_NONCE = 12


def derive(key: bytes, purpose: str, salt: bytes | None = None) -> bytes:
    """Return 32 bytes for `purpose` from `key` (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), 32, salt, b"wardkey/1/" + purpose.encode()).derive(key)


def seal(key: bytes, plain: bytes, bound: bytes = b"") -> bytes:
    """Return nonce and AES-256-GCM ciphertext of `plain`; `bound` must be given to open it."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes = b"") -> bytes:
    """Return what `seal` was given; raises `WrongMasterKey` if it does not open."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
    except (InvalidTag, ValueError):
        raise WrongMasterKey from None


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The deployment's one root secret, 32 bytes, which never enters a database or a backup."""

    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> MasterKey:
        """Read 64 hexadecimal digits; raises `InvalidMasterKey`."""
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            raise InvalidMasterKey from None
        if len(raw) != 32:  # noqa: PLR2004 - 256 bits
            raise InvalidMasterKey
        return cls(raw)

    @classmethod
    def generate(cls) -> MasterKey:
        """Return a new one from the operating system's generator."""
        return cls(os.urandom(32))

    @property
    def text(self) -> str:
        """The form that the 0600 file holds."""
        return self.raw.hex()

    @property
    def tag(self) -> bytes:
        """What a database keeps to know the fitting key by; it tells nothing about the key."""
        return derive(self.raw, "tag")

    @property
    def database_key(self) -> bytes:
        """The raw SQLCipher key of the database files."""
        return derive(self.raw, "database")


@dataclass(frozen=True, slots=True)
class Vault:
    """The keys in use: the current version's, and those of earlier master keys by version."""

    master: MasterKey = field(repr=False)
    version: int
    peppers: Mapping[int, bytes] = field(repr=False)
    audit_keys: Mapping[int, bytes] = field(repr=False)
    # Of every key of the broker, under which it keeps messages and sessions.
    broker_root: bytes = field(repr=False)

    @classmethod
    def first(cls, master: MasterKey) -> Vault:
        """Return the vault of a database that knew no other master key."""
        return cls.of(master, 1, {}, {})

    @classmethod
    def of(
        cls,
        master: MasterKey,
        version: int,
        old_peppers: Mapping[int, bytes],
        old_audit_keys: Mapping[int, bytes],
        broker_root: bytes | None = None,
    ) -> Vault:
        """Return the vault of `master` as key number `version` beside the keys of older ones."""
        return cls(
            master,
            version,
            {**old_peppers, version: derive(master.raw, "pepper")},
            {**old_audit_keys, version: derive(master.raw, "audit")},
            broker_root or derive(master.raw, "broker"),
        )

    def digest(self, text: str, version: int | None = None) -> bytes:
        """Return the keyed BLAKE2b of a secret's text, 32 bytes, under a pepper version."""
        pepper = self.peppers[self.version if version is None else version]
        return blake2b(text.encode(), key=pepper, digest_size=32).digest()

    def matches(self, text: str, digest: bytes, version: int) -> bool:
        """Tell, in constant time, whether `digest` is that of `text` under `version`."""
        return hmac.compare_digest(self.digest(text, version), digest)

    def key_for(self, purpose: str, salt: bytes | None = None) -> bytes:
        """Return a key derived for one purpose, such as cursors or sealed answers."""
        return derive(self.master.raw, purpose, salt)
