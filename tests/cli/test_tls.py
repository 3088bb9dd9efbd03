from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx2 as httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from tests.support.server import Server
from wardkey.config import load_config
from wardkey.domain.errors import InvalidSetting
from wardkey.preflight import check_tls

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
NOW = datetime.now(UTC)


def write_key(path: Path, key: Key, lock: KeySerializationEncryption | None = None) -> Path:
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption())
    path.write_bytes(text)
    path.chmod(0o600)
    return path


def write_certificate(
    path: Path,
    key: CertificateIssuerPrivateKeyTypes,
    end: datetime = NOW + timedelta(days=90),
    begin: datetime = NOW - timedelta(days=30),
) -> Path:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Create a certificate for this machine and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return write_certificate(tmp_path / "cert.pem", key), write_key(tmp_path / "key.pem", key)


@pytest.mark.parametrize("workers", [1, 2])
def test_with_tls_the_server_prints_its_address_and_serves_https(
    start: Callable[..., Server], pair: tuple[Path, Path], workers: int
) -> None:
    server = start(tls_cert=pair[0], tls_key=pair[1], workers=workers)
    assert server.url.startswith("https://127.0.0.1:")
    assert f"{server.url}/setup/{server.setup_token}" in server.output
    with server.client(server.first_key) as client:
        assert client.get("/v2/keys").status_code == 200
        response = client.post("/v2/keys/verify", json={"key": server.first_key})
        assert response.json()["code"] == "valid"
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https:", "http:") + "/readyz", timeout=5)
    assert server.stop() == 0


def test_unusable_tls_files_are_named_before_anything_is_created(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    good_cert, good_key = pair
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\njunk\n-----END CERTIFICATE-----\n")
    same_kind = write_key(tmp_path / "same.pem", ec.generate_private_key(ec.SECP256R1()))
    other_kind = write_key(tmp_path / "other.pem", rsa.generate_private_key(65537, 2048))
    locked = write_key(
        tmp_path / "locked.pem",
        ec.generate_private_key(ec.SECP256R1()),
        BestAvailableEncryption(b"a passphrase"),
    )
    cut = tmp_path / "cut.pem"
    cut.write_bytes(good_key.read_bytes()[:100])
    missing = tmp_path / "missing.pem"
    for cert, key, field, reason in [
        (junk, good_key, "tls_cert", f"{junk} contains no PEM certificate"),
        (good_key, good_key, "tls_cert", f"{good_key} contains no PEM certificate"),
        (missing, good_key, "tls_cert", f"{missing} can't be read"),
        (tmp_path, good_key, "tls_cert", f"{tmp_path} can't be read"),
        (good_cert, missing, "tls_key", f"{missing} can't be read"),
        (good_cert, cut, "tls_key", f"{cut} contains no PEM private key"),
        (good_cert, good_cert, "tls_key", f"{good_cert} contains no PEM private key"),
        (good_cert, same_kind, "tls_key", f"{same_kind} doesn't match"),
        (good_cert, other_kind, "tls_key", f"{other_kind} doesn't match"),
        (good_cert, locked, "tls_key", f"{locked} has a passphrase"),
    ]:
        with pytest.raises(InvalidSetting) as refused:
            check_tls(load_config({}, {"tls_cert": str(cert), "tls_key": str(key)}))
        assert refused.value.field == field
        assert reason in refused.value.detail
    for half in ("tls_cert", "tls_key"):
        with pytest.raises(InvalidSetting, match="needs both"):
            check_tls(load_config({}, {half: str(good_cert)}))

    server = Server(tmp_path / "data", tls_cert=good_cert, tls_key=same_kind)
    done = server.cli_here("up")
    assert done.exit_code == 2
    assert done.stderr.startswith("wardkey: invalid_setting: ")
    assert len(done.stderr.splitlines()) == 1
    assert not server.data_dir.exists()


def test_a_port_in_use_is_reported_before_anything_is_created(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Server(tmp_path / "data", listen=listen)
        done = server.cli_here("up")
    assert done.exit_code == 2
    assert f"invalid_setting: Cannot listen on {listen}: Address already in use." in done.stderr
    assert not server.data_dir.exists()


def test_mqtt_and_websocket_do_not_share_a_port(start: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(AssertionError, match=f"Cannot listen on {listen}: Address already in use"):
        start(no_messaging=0, mqtt_listen=listen, websocket_listen=listen)


def test_the_command_printed_at_the_first_start_prompts_for_the_key_and_works(
    start: Callable[..., Server],
) -> None:
    server = start()
    (line,) = [text.strip() for text in server.output.splitlines() if "curl" in text]
    assert server.first_key not in line
    clean = {name: value for name, value in os.environ.items() if name not in ("URL", "KEY")}
    done = subprocess.run(
        ["bash", "-c", line],
        input=server.first_key + "\n",
        env=clean,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert '"live-wardkey-bootstrap"' in done.stdout
