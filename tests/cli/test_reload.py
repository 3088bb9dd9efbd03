"""SIGHUP replaces the workers one by one: no request fails, and a new certificate is served."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cli.test_tls import write_certificate, write_key
from tests.support.server import Server, wait_until


def test_sighup_replaces_all_workers_and_fails_no_request(start: Callable[..., Server]) -> None:
    server = start(workers=2, no_messaging=0)
    before = set(server.workers())
    failed: list[object] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            try:
                answer = httpx.get(
                    f"{server.url}/v2/keys", headers={"Authorization": f"Bearer {server.first_key}"}
                )
            except httpx.TransportError as error:
                failed.append(error)
            else:
                if answer.status_code != 200:
                    failed.append(answer.text)

    asking = threading.Thread(target=ask)
    asking.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(server.workers()) == 2 and not before & set(server.workers()), 30)
    ends.set()
    asking.join(20)
    assert failed == []
    assert server.stop() == 0


def test_sighup_reads_a_renewed_certificate(start: Callable[..., Server], tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> None:
        fresh = ec.generate_private_key(ec.SECP256R1())
        write_certificate(cert, fresh)
        write_key(key, fresh)

    renew()
    server = start(tls_cert=cert, tls_key=key, workers=2)
    address = "127.0.0.1", urlsplit(server.url).port or 0
    assert ssl.get_server_certificate(address).strip() == cert.read_text().strip()
    before = set(server.workers())
    renew()
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(server.workers()) == 2 and not before & set(server.workers()), 30)
    assert ssl.get_server_certificate(address).strip() == cert.read_text().strip()
