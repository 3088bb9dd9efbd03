"""Checks before the server listens: no plain-text connections, and a usable certificate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from wardkey.config import Config, is_loopback
from wardkey.db.atomic_files import make_private, put_in_place
from wardkey.domain.errors import InvalidSetting, UnsafeBroker, UnsafeListen


def check_listening(config: Config) -> None:
    """Reject settings that would send secrets in plain text over a network.

    Raises `UnsafeListen`, `UnsafeBroker`.
    """
    names = ["listen"]
    if config.messaging and not config.broker:
        names += ["mqtt_listen", "websocket_listen"]
    for name in names:
        listen = getattr(config, name)
        host = listen.rpartition(":")[0].strip("[]")
        loopback = host == "localhost" or is_loopback(host)
        if not (loopback or config.tls_cert or config.behind_proxy):
            raise UnsafeListen(
                f"{listen} isn't a loopback address, so keys would be sent in plain text; set "
                "--tls-cert and --tls-key, or --behind-proxy if a proxy terminates TLS.",
                field=name,
            )
    _check_broker_is_safe(config)


def _check_broker_is_safe(config: Config) -> None:
    if not config.messaging:
        return
    for name, urls in (("broker", config.brokers), ("broker_mqtt", config.mqtt_brokers)):
        for url in urls:
            parts = urlsplit(url)
            local = parts.hostname == "localhost" or is_loopback(parts.hostname or "")
            if not local and parts.scheme not in ("tls", "mqtts"):
                raise UnsafeBroker(
                    f"{url} isn't a loopback address, so passwords would be sent in plain text; "
                    "use tls:// and mqtts://.",
                    field=name,
                )


def check_tls(config: Config) -> None:
    """Load the certificate and its key as the server will; raises `InvalidSetting`."""
    if config.broker_ca:
        try:
            ssl.create_default_context(cafile=config.broker_ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting(
                f"The file {config.broker_ca} can't be loaded as certificates: {error.strerror}.",
                field="broker_ca",
            ) from None
    cert, key = config.tls_cert, config.tls_key
    if not cert and not key:
        return
    if not cert or not key:
        raise InvalidSetting(
            "TLS needs both a certificate and its key; set --tls-cert and --tls-key.",
            field="tls_key" if cert else "tls_cert",
        )
    for field_name, name in (("tls_cert", cert), ("tls_key", key)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise InvalidSetting(
                f"The TLS file {name} can't be read: {error.strerror}.", field=field_name
            ) from None

    def passphrase() -> str:
        raise InvalidSetting(
            f"The TLS key {key} has a passphrase, which the server can't enter; use a key without "
            "one, in a file that only the server's user can read.",
            field="tls_key",
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_verify_locations(cert)
    except ssl.SSLError:
        raise InvalidSetting(
            f"The TLS file {cert} contains no PEM certificate; use the server's certificate, "
            "followed by its intermediate certificates.",
            field="tls_cert",
        ) from None
    try:
        context.load_cert_chain(cert, key, passphrase)
    except ssl.SSLError as error:
        raise _tls_fault(cert, key, error.reason) from None


def _tls_fault(cert: str, key: str, reason: str | None) -> InvalidSetting:
    # OpenSSL returns the last one if key and certificate have different types, such as RSA and EC.
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return InvalidSetting(
            f"The TLS key {key} doesn't match the certificate {cert}; use the key with which the "
            "certificate was requested.",
            field="tls_key",
        )
    if reason and reason.startswith(("EE_", "CA_")):
        return InvalidSetting(
            f"OpenSSL rejects the certificate {cert} ({reason}); use one with a stronger key or "
            "signature.",
            field="tls_cert",
        )
    return InvalidSetting(
        f"The TLS file {key} contains no PEM private key; use the key of the certificate.",
        field="tls_key",
    )


@dataclass(frozen=True, slots=True)
class TlsCopy:
    """A copy of the certificate and its key in one file of the data folder, replaced atomically.

    Every process of the server reads the copy, so none sees a half-finished renewal. `original`
    has the paths of the files that the operator renews; `config` has the path of the copy.
    """

    original: Config
    config: Config

    @classmethod
    def of(cls, config: Config) -> Self:
        """Create the copy if a certificate is configured; raises `InvalidSetting`."""
        if not config.tls_cert:
            return cls(config, config)
        path = str(config.data_dir.absolute() / "tls.pem")
        copy = cls(config, replace(config, tls_cert=path, tls_key=path))
        copy.renew()
        return copy

    def renew(self) -> bool:
        """Update the copy; return whether the files have changed.

        Raises `InvalidSetting` for unusable files, and leaves the copy unchanged.
        """
        if not self.original.tls_cert:
            return False
        check_tls(self.original)
        pair = [Path(name).read_bytes() for name in (self.original.tls_cert, self.original.tls_key)]
        path = Path(self.config.tls_cert)
        content = b"\n".join(pair)
        if path.exists() and path.read_bytes() == content:
            return False
        new_copy = path.with_name(path.name + ".next")
        new_copy.unlink(missing_ok=True)
        make_private(new_copy)
        new_copy.write_bytes(content)
        # Checked again, because the files may have been replaced after the first check.
        check_tls(replace(self.original, tls_cert=str(new_copy), tls_key=str(new_copy)))
        put_in_place(new_copy, path)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the copy, which only a running server needs."""
        if self.original.tls_cert:
            Path(self.config.tls_cert).unlink(missing_ok=True)
