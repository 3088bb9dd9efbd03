from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.adapters.issuer import INSIDE, Issuer, issuing, sending
from wardkey.adapters import fetch as fetching
from wardkey.adapters.fetch import MAX_BYTES, Fetch, is_public
from wardkey.domain.errors import KeySetUnavailable


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as made:
        yield made


def refusal(url: str, fetch: Fetch = INSIDE) -> str:
    with pytest.raises(KeySetUnavailable) as refused:
        fetch.get(url)
    assert refused.value.detail.endswith(".")
    return refused.value.detail


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1
    172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1
    203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 :: ::1
    ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 64:ff9b:1::1 100::1 fc00::1
    fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2001::1 2001:db8::1 2002:7f00:1:: 3fff::1
    2130706433 0x7f.1 localhost""".split(),  # noqa: SIM905 - a list is easier to read so
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)
    fetch = Fetch(resolve=lambda _host, _port: ["93.184.215.14", address])
    assert "not public" in refusal("https://issuer.example/", fetch)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111"])
def test_an_internet_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/",
        "ftp://issuer.example/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user@issuer.example/",
        "https://issuer.example\\@127.0.0.1/",
        "https://issuer.example/#x",
        "https://issuer.example/\r\nHost: inside",
        "https://issuer .example/",
        "https://issuer.example:0/",
        "https://issuer.example:99999/",
        "https://issuer.example:x/",
        "https://ïssuer.example/",
        "https://issuer.example/" + "x" * 2_048,
    ],
)
def test_a_malformed_url_is_never_requested(url: str) -> None:
    def never(host: str, _port: int) -> list[str]:
        raise AssertionError(host)

    assert "The URL can't be fetched" in refusal(url, Fetch(resolve=never))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f.1"])
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    detail = refusal(f"https://{host}:1/", Fetch())
    assert "not public" in detail or "no address" in detail


def test_the_request_goes_to_the_address_that_was_checked(issuer: Issuer) -> None:
    issuer.puts("/keys", {"keys": []})
    requested = []

    def rebinding(host: str, _port: int) -> list[str]:
        requested.append(host)
        return ["127.0.0.1"] if len(requested) == 1 else ["127.0.0.2"]

    fetch = Fetch(private_allowed=True, resolve=rebinding)
    # Only the test's resolver knows the name, so a second look-up would fail.
    url = f"http://issuer.invalid:{issuer.port}/keys"
    assert fetch.get(url).document == {"keys": []}
    assert requested == ["issuer.invalid"]
    assert issuer.headers[-1]["Host"] == f"issuer.invalid:{issuer.port}"


def test_a_dead_address_does_not_prevent_trying_the_next(issuer: Issuer) -> None:
    issuer.puts("/next", {})
    fetch = Fetch(private_allowed=True, resolve=lambda _host, _port: ["127.0.0.9", "127.0.0.1"])
    assert fetch.get(f"http://issuer.invalid:{issuer.port}/next").document == {}


def test_proxies_from_the_environment_are_ignored(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert INSIDE.get(issuer.puts("/direct", {"a": 1})).document == {"a": 1}


def test_a_redirect_to_the_metadata_service_is_not_followed(issuer: Issuer) -> None:
    inside = issuer.puts("/inside", {"secret": 1})
    for target in (inside, "http://169.254.169.254/latest/meta-data/"):
        for status in (301, 302, 303, 307, 308):
            url = issuer.puts("/moved", {}, status=status, Location=target)
            assert f"answered {status}" in refusal(url)
    assert "/inside" not in issuer.asked


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"x" * (MAX_BYTES + 1), {}, "larger than 256 KiB"),
        (
            gzip.compress(b'{"a": "%s"}' % (b"x" * 5_000_000)),
            {"Content_Encoding": "gzip"},
            "compr",
        ),
        (b"{", {"Content_Length": "9"}, "cut off"),
        (b"[1]", {}, "not a JSON object"),
        (b'{"a": 1, "a": 2}', {}, "a name twice"),
        (b'{"a": "\xff"}', {}, "not UTF-8"),
        (b'{"a": NaN}', {}, "NaN"),
        (b'{"a": "\\ud800"}', {}, "surrogate"),
        (b'{"a": ' + b"9" * 5_000 + b"}", {}, "digits"),
        (b'{"a": ' + b"[" * 100_000, {}, "levels"),
        (b'{"a": ' + b"[" * 16 + b"]" * 16 + b"}", {}, "levels"),
        (b"", {}, "not JSON"),
        (b"{} {}", {}, "not JSON"),
        (b"zz\r\n{}", {"Transfer_Encoding": "chunked"}, "does not speak HTTP"),
    ],
)
def test_anything_but_a_plain_json_object_is_refused(
    issuer: Issuer, body: bytes, headers: dict[str, str], reason: str
) -> None:
    issuer.answers["/odd"] = sending(body, headers=headers)
    assert reason in refusal(issuer.url + "/odd")


def test_brackets_inside_strings_do_not_count_as_nesting(issuer: Issuer) -> None:
    document = {"a": "[{" * 50, 'b"': ['\\"[[[', "]"] * 20}
    assert INSIDE.get(issuer.puts("/texts", document)).document == document


def test_an_endless_body_is_cut_off_at_the_size_limit(issuer: Issuer) -> None:
    sent = 0

    def endless(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b" " * 65_536)
            sent += 65_536

    issuer.answers["/endless"] = endless
    assert "larger than 256 KiB" in refusal(issuer.url + "/endless")
    assert sent < 64 * 1024 * 1024


def test_endless_headers_are_cut_off(issuer: Issuer) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X: y\r\n" * 1_000)

    issuer.answers["/headers"] = endless
    assert refusal(issuer.url + "/headers")


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_slow_drip_ends_at_the_time_limit(issuer: Issuer, part: str) -> None:
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b""))
        while not over.wait(0.05):
            request.wfile.write(b" " if part == "body" else b"X: y\r\n")

    issuer.answers["/drip"] = drip
    began = time.monotonic()
    fetch = Fetch(private_allowed=True, longest_s=0.5)
    assert "did not answer within 0.5 seconds" in refusal(issuer.url + "/drip", fetch)
    assert time.monotonic() - began < 5
    over.set()


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fetch = Fetch(private_allowed=True, longest_s=0.3)
        for scheme in ("http", "https"):
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/"
            assert "did not answer" in refusal(url, fetch)


def test_a_hanging_resolver_times_out() -> None:
    over = threading.Event()

    def hanging(_host: str, _port: int) -> list[str]:
        over.wait(20)
        return ["127.0.0.1"]

    fetch = Fetch(private_allowed=True, resolve=hanging, longest_s=0.3)
    assert "did not answer" in refusal("http://issuer.invalid/", fetch)
    over.set()


def test_a_name_without_an_address_is_reported() -> None:
    def unknown(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    assert "has no public address" in refusal("https://issuer.invalid/", Fetch(resolve=unknown))


def test_a_refused_connection_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "can't be reached" in refusal(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ("max-age=300", 300),
        ("public, max-age=21600, must-revalidate", 21_600),
        ("Max-Age=5", 5),
        ("no-store", 0),
        ("no-cache, max-age=60", 0),
        ("s-maxage=60", None),
        ("", None),
        ("max-age=-1", None),
    ],
)
def test_the_lifetime_is_read_from_cache_control(
    issuer: Issuer, header: str, age: int | None
) -> None:
    assert INSIDE.get(issuer.puts("/aged", {}, Cache_Control=header)).max_age_s == age


def test_the_query_is_part_of_the_request(issuer: Issuer) -> None:
    issuer.puts("/q?p=policy", {"a": 1})
    assert INSIDE.get(issuer.url + "/q?p=policy").document == {"a": 1}
    assert issuer.headers[-1]["Accept-Encoding"] == "identity"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a certificate for issuer.invalid and 127.0.0.1, and its authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer.invalid")])
    names = [x509.DNSName("issuer.invalid"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


def test_tls_is_verified_against_the_host_name_and_the_system_authorities(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    seen: list[str | None] = []
    serving.sni_callback = lambda _line, name, _context: seen.append(name)
    fetch = Fetch(private_allowed=True, resolve=lambda _host, _port: ["127.0.0.1"])
    with issuing(serving) as issuer:
        issuer.puts("/keys", {"keys": []})
        good, other = (
            f"https://{host}:{issuer.port}/keys" for host in ("issuer.invalid", "other.invalid")
        )
        assert "no certificate that this machine trusts" in refusal(good, fetch)
        # OpenSSL reads the system's authorities from here.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch.get(good).document == {"keys": []}
        assert "no certificate" in refusal(other, fetch)
        assert "no certificate" in refusal(f"https://127.0.0.2:{issuer.port}/keys", fetch)
        assert fetch.get(f"{issuer.url}/keys").document == {"keys": []}
    assert seen[:3] == ["issuer.invalid", "issuer.invalid", "other.invalid"]


def test_the_limits_match_the_documentation() -> None:
    assert (Fetch().longest_s, fetching.MAX_BYTES) == (5.0, 262_144)
    assert not Fetch().private_allowed
