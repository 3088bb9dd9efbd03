"""NKeys and NATS JWTs: Ed25519 keys in base32, and claims signed with them.

Follows github.com/nats-io/nkeys and github.com/nats-io/jwt (version 2 claims).
"""

from __future__ import annotations

import base64
import json
from binascii import crc_hqx
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_SEED = 18 << 3
_CRC_BYTES = 2


class Role(IntEnum):
    """The prefix byte of a public key; in base32 it gives the first letter O, A, U or N."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3
    SERVER = 13 << 3


@dataclass(frozen=True, slots=True)
class NKey:
    """A key pair; `public` is the public key as 56 characters of base32."""

    role: Role
    private: Ed25519PrivateKey = field(repr=False)
    public: str

    @classmethod
    def of(cls, role: Role, raw: bytes) -> NKey:
        """Return the key pair of a raw seed of 32 bytes."""
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(role, private, _text(bytes([role]) + public))

    @property
    def seed(self) -> str:
        """The seed as text, with which nats-py signs; as secret as the private key."""
        raw = self.private.private_bytes_raw()
        return _text(bytes([_SEED | (self.role >> 5), (self.role & 31) << 3]) + raw)

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`."""
        return self.private.sign(data)

    def issue(self, subject: str, name: str, nats: dict[str, Any], **claims: Any) -> str:  # noqa: ANN401 - JSON
        """Return a JWT about `subject`, signed with this key; `claims` adds claims such as exp."""
        body: dict[str, Any] = {
            "iat": claims.pop("iat"),
            "iss": self.public,
            "sub": subject,
            "name": name,
            "nats": {"version": 2, **nats},
            **claims,
        }
        text = json.dumps(body, separators=(",", ":"))
        jti = base64.b32encode(sha256(text.encode()).digest()).decode().rstrip("=")
        text = f'{text[:-1]},"jti":"{jti}"}}'
        signed = f"{_HEAD}.{_base64url(text.encode())}"
        return f"{signed}.{_base64url(self.sign(signed.encode()))}"


def verify_jwt(token: str) -> dict[str, Any]:
    """Return the claims of a JWT signed by its issuer; raises `ValueError` otherwise.

    The caller must check that the issuer is trusted.
    """
    try:
        head, body, signature = token.split(".")
        header = json.loads(_raw(head))
        claims: dict[str, Any] = json.loads(_raw(body))
        key = _public(claims["iss"])
        key.verify(_raw(signature), f"{head}.{body}".encode())
    except (ValueError, KeyError, TypeError, InvalidSignature):
        raise ValueError("The text is not a JWT signed by its issuer.") from None
    if header.get("alg") != _HEADER["alg"]:
        raise ValueError(f"The JWT's alg is not {_HEADER['alg']}.")
    return claims


def _public(text: str) -> Ed25519PublicKey:
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    if crc_hqx(raw[:-_CRC_BYTES], 0).to_bytes(_CRC_BYTES, "little") != raw[-_CRC_BYTES:]:
        raise ValueError(text)
    return Ed25519PublicKey.from_public_bytes(raw[1:-_CRC_BYTES])


def _text(raw: bytes) -> str:
    with_crc = raw + crc_hqx(raw, 0).to_bytes(_CRC_BYTES, "little")
    return base64.b32encode(with_crc).decode().rstrip("=")


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


_HEAD = _base64url(json.dumps(_HEADER, separators=(",", ":")).encode())
