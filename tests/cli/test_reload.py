"""A reload fails no request: a renewed certificate is served, and workers are replaced."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
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


@dataclass
class Pair:
    """Certificate files, renewed in place as by an ACME client."""

    cert: Path
    key: Path

    def renew(self) -> None:
        fresh = ec.generate_private_key(ec.SECP256R1())
        write_certificate(self.cert, fresh)
        write_key(self.key, fresh)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    made.renew()
    return made


def served_certificate(server: Server) -> str:
    """Return the certificate served on a new connection."""
    return ssl.get_server_certificate(("127.0.0.1", urlsplit(server.url).port or 0)).strip()


@contextmanager
def asking(server: Server) -> Iterator[list[object]]:
    """Send requests over one kept and many new connections; yield the list of failures."""
    failed: list[object] = []
    ends = threading.Event()
    # Any certificate is accepted.
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {server.first_key}"}

    def ask() -> None:
        with httpx.Client(verify=blind, headers=headers, timeout=20) as kept:
            while not ends.is_set():
                with httpx.Client(verify=blind, headers=headers, timeout=20) as fresh:
                    for client in (kept, fresh):
                        try:
                            answer = client.get(f"{server.url}/v2/keys")
                        except httpx.TransportError as error:
                            failed.append(error)
                        else:
                            if answer.status_code != 200:
                                failed.append(answer.text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failed
    finally:
        ends.set()
        thread.join(30)


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_serves_a_renewed_certificate_and_fails_no_request(
    start: Callable[..., Server], pair: Pair, workers: int
) -> None:
    server = start(tls_cert=pair.cert, tls_key=pair.key, workers=workers)
    assert served_certificate(server) == pair.cert.read_text().strip()
    with asking(server) as failed:
        pair.renew()
        assert served_certificate(server) != pair.cert.read_text().strip()
        done = server.cli("reload")
        assert done.returncode == 0, done.stderr
        assert served_certificate(server) == pair.cert.read_text().strip()
    assert failed == []
    assert server.stop() == 0
    assert not (server.data_dir / "tls.pem").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mismatched_certificate_is_refused_and_the_old_one_stays(
    start: Callable[..., Server], pair: Pair, workers: int
) -> None:
    server = start(tls_cert=pair.cert, tls_key=pair.key, workers=workers, log_format="json")
    before = pair.cert.read_text().strip()
    write_key(pair.key, ec.generate_private_key(ec.SECP256R1()))
    done = server.cli("reload")
    assert done.returncode == 6
    fault = f"The TLS key {pair.key} doesn't match the certificate {pair.cert}"
    assert f"reload_refused: The server keeps running as before: {fault}" in done.stderr
    assert f'"message": "reload failed: {fault}' in server.output
    assert served_certificate(server) == before
    if workers > 1:
        # A worker started now also serves the old certificate.
        killed = server.kill_one_worker()
        wait_until(lambda: len(set(server.workers()) - {killed}) == workers, 30)
        wait_until(lambda: served_certificate(server) == before)
    pair.renew()
    assert server.cli("reload").returncode == 0
    assert served_certificate(server) == pair.cert.read_text().strip()


def test_reload_reports_that_no_server_is_running(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        done = Server(folder).cli_here("reload")
        assert done.exit_code == 5
        assert f"server_not_running: No server is running on {folder}" in done.stderr
    server = start(no_messaging=1)
    assert server.cli_here("reload").exit_code == 0
    server.kill()
    assert server.cli_here("reload").exit_code == 5


def test_reload_does_not_signal_processes_of_another_container(
    start: Callable[..., Server],
) -> None:
    server = start()
    file = server.data_dir / "server"
    file.write_text(file.read_text().replace("pid:[", "pid:[9"))
    done = server.cli_here("reload")
    assert done.exit_code == 6
    assert "reload_refused: The server runs in another container" in done.stderr


@pytest.mark.parametrize("path", ["/v2/auth", "/v2/keys"])
def test_a_stopping_worker_announces_the_close_of_a_kept_connection(
    start: Callable[..., Server], path: str
) -> None:
    server = start(workers=1)
    assert server.process is not None
    request = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.first_key}\r\n\r\n"
    ).encode()
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 10) as kept:
        answer = http_response(kept, request)
        assert answer.getheader("connection") != "close"
        server.process.send_signal(signal.SIGTERM)
        # Idle between its requests, as a client with a pool is.
        while answer.getheader("connection") != "close":
            time.sleep(0.1)
            answer = http_response(kept, request)
            assert answer.status == 200
        assert kept.recv(1) == b""
    assert server.process.wait(40) == 0


def http_response(connection: socket.socket, request: bytes) -> HTTPResponse:
    """Send the request and read its whole response; raises `BadStatusLine` if there is none."""
    connection.sendall(request)
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer
