"""What must hold before the server listens: nothing in the clear, a certificate that can serve."""

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
    """Refuse to carry keys over a network in the clear; raises `UnsafeListen`, `UnsafeBroker`."""
    names = ["listen"]
    if config.messaging and not config.broker:
        names += ["mqtt_listen", "websocket_listen"]
    for name in names:
        text = getattr(config, name)
        host = text.rpartition(":")[0].strip("[]")
        loopback = host == "localhost" or is_loopback(host)
        if not (loopback or config.tls_cert or config.behind_proxy):
            raise UnsafeListen(
                f"{text} is beyond loopback, where keys would travel in the clear. Give "
                "--tls-cert and --tls-key, or --behind-proxy if a proxy in front ends TLS.",
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
                    f"{url} is beyond loopback, where passwords would travel in the clear; use "
                    "tls:// and mqtts://.",
                    field=name,
                )


def check_tls(config: Config) -> None:
    """Load the certificate and its key as the server will; raises `InvalidSetting`."""
    if config.broker_ca:
        try:
            ssl.create_default_context(cafile=config.broker_ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting(
                f"The file {config.broker_ca} cannot be taken as certificates: {error.strerror}.",
                field="broker_ca",
            ) from None
    cert, key = config.tls_cert, config.tls_key
    if not cert and not key:
        return
    if not cert or not key:
        raise InvalidSetting(
            "TLS needs both --tls-cert and --tls-key.", field="tls_key" if cert else "tls_cert"
        )
    for field_name, name in (("tls_cert", cert), ("tls_key", key)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise InvalidSetting(
                f"The TLS file {name} cannot be read: {error.strerror}.", field=field_name
            ) from None

    def passphrase() -> str:
        raise InvalidSetting(
            f"The TLS key {key} has a passphrase, which a server cannot type; give one without, "
            "readable by its user alone.",
            field="tls_key",
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_verify_locations(cert)
    except ssl.SSLError:
        raise InvalidSetting(
            f"The TLS file {cert} holds no certificate in PEM form; give the server's certificate, "
            "followed by those that it was signed with.",
            field="tls_cert",
        ) from None
    try:
        context.load_cert_chain(cert, key, passphrase)
    except ssl.SSLError as error:
        raise _tls_fault(cert, key, error.reason) from None


def _tls_fault(cert: str, key: str, reason: str | None) -> InvalidSetting:
    # The last of these is what a key of another kind (RSA, EC) than the certificate's gets.
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return InvalidSetting(
            f"The TLS key {key} does not belong to the certificate {cert}; give the key that its "
            "certificate was asked for with.",
            field="tls_key",
        )
    if reason and reason.startswith(("EE_", "CA_")):
        return InvalidSetting(
            f"OpenSSL does not take the certificate {cert} ({reason}); get one with a stronger "
            "key or signature.",
            field="tls_cert",
        )
    return InvalidSetting(
        f"The TLS file {key} holds no private key in PEM form; give the certificate's own.",
        field="tls_key",
    )


@dataclass(frozen=True, slots=True)
class TlsCopy:
    """The certificate and its key in one file of the data folder, which is replaced as a whole.

    Every process of the server reads this copy, so that none meets half of a renewal. `given`
    names the files that the operator renews; `config` names the copy instead.
    """

    given: Config
    config: Config

    @classmethod
    def of(cls, config: Config) -> Self:
        """Make the copy, where there is a certificate; raises `InvalidSetting`."""
        if not config.tls_cert:
            return cls(config, config)
        path = str(config.data_dir.absolute() / "tls.pem")
        copy = cls(config, replace(config, tls_cert=path, tls_key=path))
        copy.renew()
        return copy

    def renew(self) -> bool:
        """Copy the given files again; return whether they differ. Raises `InvalidSetting`.

        Files that cannot serve leave the copy as it is.
        """
        if not self.given.tls_cert:
            return False
        check_tls(self.given)
        pair = [Path(name).read_bytes() for name in (self.given.tls_cert, self.given.tls_key)]
        path = Path(self.config.tls_cert)
        text = b"\n".join(pair)
        if path.exists() and path.read_bytes() == text:
            return False
        made = path.with_name(path.name + ".next")
        made.unlink(missing_ok=True)
        make_private(made)
        made.write_bytes(text)
        # Once more, since they may have been replaced after the first look.
        check_tls(replace(self.given, tls_cert=str(made), tls_key=str(made)))
        put_in_place(made, path)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the copy, which only a running server needs."""
        if self.given.tls_cert:
            Path(self.config.tls_cert).unlink(missing_ok=True)
