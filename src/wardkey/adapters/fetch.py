"""Fetches JSON from a URL that a tenant or the operator gave, within limits on time and size.

Prevents server-side request forgery: only public addresses unless others are allowed, connections
only to the checked address, no redirects, no proxy.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from wardkey.adapters.strict_json import read_object
from wardkey.domain.errors import KeySetUnavailable

LONGEST_S = 5.0
MAX_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 32 * 1024
_MAX_ADDRESSES = 4
_MAX_URL_LENGTH = 2_048
_MAX_PORT = 65_535
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_MAX_AGE = re.compile(r'(?:^|[\s,])max-age="?([0-9]{1,9})"?(?=$|[\s,])', re.IGNORECASE)
_NOT_CACHED = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?=$|[\s,=])", re.IGNORECASE)

# One sentence for unknown and private names, or a tenant could probe the internal network's DNS.
_UNREACHABLE = (
    "{host} has no public address; check the name and its DNS records. Only the operator can allow "
    "addresses that are not public."
)
# Addresses that are not on the public Internet (IANA's special-purpose registries), multicast, and
# the public address of Azure's instance metadata.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
# All other IPv6 is loopback, link-local, unique local, multicast, mapped or translated IPv4, or
# unassigned.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

_PORTS = {"https": 443, "http": 80}
_FORM = "application/x-www-form-urlencoded"
_STATUSES = frozenset({http.client.OK})
# An OAuth 2.0 token endpoint's errors are JSON too.
_FORM_STATUSES = frozenset({http.client.OK, http.client.BAD_REQUEST, http.client.UNAUTHORIZED})

Resolve = Callable[[str, int], list[str]]


class _Url(NamedTuple):
    """A parsed URL; `target` is its path and query."""

    scheme: str
    host: str
    port: int
    target: str


class Fetched(NamedTuple):
    """A JSON object, and its `max-age` in seconds, if the server sent one."""

    document: dict[str, Any]
    max_age_s: int | None


def system_addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses from this machine's resolver; raises `OSError`."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_public(address: str) -> bool:
    """Return whether an address is on the public Internet; False for malformed text."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in _GLOBAL_UNICAST or ip.scope_id is not None
    ):
        return False
    return not any(ip.version == net.version and ip in net for net in _NOT_PUBLIC)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A client for such URLs; it blocks, so call it in a thread.

    `private_allowed` permits private addresses and plain HTTP.
    """

    private_allowed: bool = False
    resolve: Resolve = system_addresses
    tls: ssl.SSLContext | None = None
    longest_s: float = LONGEST_S

    def get(self, url: str, authorization: str = "") -> Fetched:
        """Return the JSON object at `url`; raises `KeySetUnavailable` with the reason."""
        return self._fetch(url, authorization, None)

    def post(self, url: str, form: Mapping[str, str], authorization: str = "") -> dict[str, Any]:
        """Post a form and return the JSON response, also of an error (RFC 6749 §5.2).

        Raises `KeySetUnavailable` with the reason.
        """
        return self._fetch(url, authorization, urlencode(form).encode()).document

    def _fetch(self, url: str, authorization: str, body: bytes | None) -> Fetched:
        parts = self._parse(url)
        request = _request(parts, authorization, body)
        statuses = _STATUSES if body is None else _FORM_STATUSES
        host = parts.host
        deadline = time.monotonic() + self.longest_s
        try:
            with _connect(self._addresses(parts, deadline), parts.port, deadline) as plain:
                if parts.scheme == "https":
                    tls = self.tls or ssl.create_default_context()
                    plain.settimeout(_time_left(deadline))
                    with tls.wrap_socket(plain, server_hostname=host) as connection:
                        return _exchange(connection, request, statuses, deadline)
                return _exchange(plain, request, statuses, deadline)
        except TimeoutError:
            raise KeySetUnavailable(
                f"{host} did not answer within {self.longest_s:g} seconds."
            ) from None
        except ssl.SSLError as error:
            raise KeySetUnavailable(
                f"{host} has no certificate that this machine trusts, or no TLS: "
                f"{error.reason or 'the connection ended'}."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise KeySetUnavailable(
                f"{host} can't be reached, or does not speak HTTP ({type(error).__name__})."
            ) from None
        except ValueError as error:
            raise KeySetUnavailable(f"The response of {host} can't be read: {error}") from None

    def _parse(self, url: str) -> _Url:
        """Parse a URL; the text is checked first, because urlsplit drops tabs and line breaks."""
        invalid = KeySetUnavailable(
            "The URL can't be fetched: it must begin with https:// and contain no user name, "
            "fragment, backslash or white space."
        )
        if (
            len(url) > _MAX_URL_LENGTH
            or not re.fullmatch(r"[!-~]+", url)
            or re.search(r"[\\#]", url)
        ):
            raise invalid
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise invalid from None
        schemes = ("https", "http") if self.private_allowed else ("https",)
        host = parts.hostname or ""
        if parts.scheme not in schemes or "@" in parts.netloc or not _HOST.fullmatch(host):
            raise invalid
        port = _PORTS[parts.scheme] if port is None else port
        if not 1 <= port <= _MAX_PORT:
            raise invalid
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Url(parts.scheme, host, port, target)

    def _addresses(self, url: _Url, deadline: float) -> list[str]:
        """Return the addresses to try, all of them checked."""
        host = url.host
        addresses: list[str] = []

        def resolve() -> None:
            try:
                addresses.extend(self.resolve(host, url.port))
            except (OSError, UnicodeError):
                addresses.clear()

        # The system's resolver has no timeout; an abandoned thread may end later.
        thread = threading.Thread(target=resolve, name="wardkey-resolve", daemon=True)
        thread.start()
        thread.join(_time_left(deadline))
        if thread.is_alive():
            raise TimeoutError
        if not addresses:
            raise KeySetUnavailable(_UNREACHABLE.format(host=host))
        if not self.private_allowed and not all(is_public(address) for address in addresses):
            raise KeySetUnavailable(_UNREACHABLE.format(host=host))
        return addresses[:_MAX_ADDRESSES]


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers; each gets an equal share of the time left."""
    for index, address in enumerate(addresses):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_time_left(deadline) / (len(addresses) - index))
            connection.connect((address, port))
        except OSError:
            connection.close()
            if index == len(addresses) - 1:
                raise
        else:
            return connection
    raise TimeoutError


class _BoundedReader(io.RawIOBase):
    """Reads from a connection, until a deadline and up to a size."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline
        self._bytes_left = _MAX_HEAD_BYTES + MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's WriteableBuffer
        self._connection.settimeout(_time_left(self._deadline))
        count = self._connection.recv_into(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise ValueError(f"It is larger than {MAX_BYTES // 1024} KiB.")
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Stand in for the socket from which http.client reads a response."""
        return io.BufferedReader(self)


def _request(url: _Url, authorization: str, body: bytes | None) -> bytes:
    host = f"[{url.host}]" if ":" in url.host else url.host
    if url.port != _PORTS[url.scheme]:
        host = f"{host}:{url.port}"
    head = (
        f"{'GET' if body is None else 'POST'} {url.target} HTTP/1.1\r\nHost: {host}\r\n"
        "Accept: application/json\r\nAccept-Encoding: identity\r\nUser-Agent: wardkey\r\n"
        "Connection: close\r\n"
    )
    if authorization:
        head += f"Authorization: {authorization}\r\n"
    if body is not None:
        head += f"Content-Type: {_FORM}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


def _exchange(
    connection: socket.socket, request: bytes, statuses: frozenset[int], deadline: float
) -> Fetched:
    connection.settimeout(_time_left(deadline))
    connection.sendall(request)
    method = request.partition(b" ")[0].decode()
    reader: Any = _BoundedReader(connection, deadline)
    response = http.client.HTTPResponse(reader, method=method)
    response.begin()
    if response.status not in statuses:
        raise ValueError(f"It answered {response.status}; redirects are not followed.")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("It is compressed, although that was not requested.")
    body = response.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise ValueError(f"It is larger than {MAX_BYTES // 1024} KiB.")
    if response.length:
        raise ValueError("It was cut off.")
    return Fetched(read_object(body), _max_age(response.getheader("Cache-Control", "")))


def _max_age(header: str) -> int | None:
    if _NOT_CACHED.search(header):
        return 0
    match = _MAX_AGE.search(header)
    return int(match[1]) if match else None


def _time_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
