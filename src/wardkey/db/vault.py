"""The master key, the keys derived from it, and sealing (authenticated encryption)."""

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
    """Return the nonce and AES-256-GCM ciphertext of `plain`; `bound` is the associated data."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes = b"") -> bytes:
    """Return the plaintext of `sealed`; raises `WrongMasterKey` if it can't be decrypted."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
    except (InvalidTag, ValueError):
        raise WrongMasterKey from None


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The deployment's root secret, 32 bytes; never stored in a database or a backup."""

    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> MasterKey:
        """Return the key from 64 hexadecimal digits; raises `InvalidMasterKey`."""
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            raise InvalidMasterKey from None
        if len(raw) != 32:  # noqa: PLR2004 - 256 bits
            raise InvalidMasterKey
        return cls(raw)

    @classmethod
    def generate(cls) -> MasterKey:
        """Return a new key from the operating system's random generator."""
        return cls(os.urandom(32))

    @property
    def text(self) -> str:
        """The hexadecimal form, as the 0600 file stores it."""
        return self.raw.hex()

    @property
    def tag(self) -> bytes:
        """A tag that a database stores to recognize its key; it reveals nothing about the key."""
        return derive(self.raw, "tag")

    @property
    def database_key(self) -> bytes:
        """The raw SQLCipher key of the database files."""
        return derive(self.raw, "database")


@dataclass(frozen=True, slots=True)
class Vault:
    """The derived keys in use: the current version's, and those of earlier master keys."""

    master: MasterKey = field(repr=False)
    version: int
    peppers: Mapping[int, bytes] = field(repr=False)
    audit_keys: Mapping[int, bytes] = field(repr=False)
    # The root of all broker keys, which encrypt the stored messages and sessions.
    broker_root: bytes = field(repr=False)

    @classmethod
    def first(cls, master: MasterKey) -> Vault:
        """Return the vault of a database with no earlier master key."""
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
        """Return the vault of `master`, key number `version`, and of the keys before it."""
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
        """Return, in constant time, whether `digest` is the digest of `text` under `version`."""
        return hmac.compare_digest(self.digest(text, version), digest)

    def key_for(self, purpose: str, salt: bytes | None = None) -> bytes:
        """Return a key derived for one purpose, such as cursors or stored responses."""
        return derive(self.master.raw, purpose, salt)
