"""Asking a URL that a tenant or the operator gave: bounded time and size, strict JSON answers.

Against server-side request forgery: only public addresses unless they are allowed, the address that
was checked is the one that is connected to, no redirect is followed, no proxy is asked.
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
MOST_BYTES = 256 * 1024
_MOST_HEAD_BYTES = 32 * 1024
_MOST_ADDRESSES = 4
_LONGEST_URL = 2_048
_LAST_PORT = 65_535
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_MAX_AGE = re.compile(r'(?:^|[\s,])max-age="?([0-9]{1,9})"?(?=$|[\s,])', re.IGNORECASE)
_NEVER_KEPT = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?=$|[\s,=])", re.IGNORECASE)

# One sentence for both, or a tenant could ask the server's DNS for names of the inner network.
_UNREACHABLE = (
    "{host} has no public address; check the name, and DNS. Only the operator can allow addresses "
    "that are not public."
)
# Addresses that are nobody's on the public Internet (IANA's special-purpose registries), multicast,
# and the one public address at which Azure serves its machines their own settings.
_REFUSED = tuple(
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
# All else of IPv6 is loopback, link-local, unique local, multicast, mapped or translated IPv4, or
# not given to anybody.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

_PORTS = {"https": 443, "http": 80}
_FORM = "application/x-www-form-urlencoded"
_TAKEN = frozenset({http.client.OK})
# A refusal of an OAuth 2.0 token endpoint is JSON too.
_TAKEN_OF_FORMS = frozenset({http.client.OK, http.client.BAD_REQUEST, http.client.UNAUTHORIZED})

Resolve = Callable[[str, int], list[str]]


class _Place(NamedTuple):
    """A URL taken apart; `target` is its path and query."""

    scheme: str
    host: str
    port: int
    target: str


class Fetched(NamedTuple):
    """A JSON object, and for how many seconds its server says that it stays true, if it does."""

    document: dict[str, Any]
    max_age_s: int | None


def system_addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host as this machine's resolver tells them; raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Tell whether an address is one of the public Internet; one that cannot be read is not."""
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(read, ipaddress.IPv6Address) and (
        read not in _GLOBAL_UNICAST or read.scope_id is not None
    ):
        return False
    return not any(read.version == net.version and read in net for net in _REFUSED)


@dataclass(frozen=True, slots=True)
class Fetch:
    """How such URLs are asked; called in a thread, for it waits.

    `private_allowed` is the deployment's word that private addresses and plain HTTP are fine.
    """

    private_allowed: bool = False
    resolve: Resolve = system_addresses
    tls: ssl.SSLContext | None = None
    longest_s: float = LONGEST_S

    def get(self, url: str, authorization: str = "") -> Fetched:
        """Return the JSON object at `url`; raises `KeySetUnavailable` with what is wrong."""
        return self._sent(url, authorization, None)

    def post(self, url: str, form: Mapping[str, str], authorization: str = "") -> dict[str, Any]:
        """Return the JSON object that answers a form, also where it is a refusal (RFC 6749 §5.2).

        Raises `KeySetUnavailable` with what is wrong.
        """
        return self._sent(url, authorization, urlencode(form).encode()).document

    def _sent(self, url: str, authorization: str, body: bytes | None) -> Fetched:
        place = self._parts(url)
        request = _request(place, authorization, body)
        taken = _TAKEN if body is None else _TAKEN_OF_FORMS
        host = place.host
        until = time.monotonic() + self.longest_s
        try:
            with _connected(self._addresses(place, until), place.port, until) as plain:
                if place.scheme == "https":
                    tls = self.tls or ssl.create_default_context()
                    plain.settimeout(_left(until))
                    with tls.wrap_socket(plain, server_hostname=host) as line:
                        return _asked(line, request, taken, until)
                return _asked(plain, request, taken, until)
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
                f"{host} cannot be reached, or does not speak HTTP ({type(error).__name__})."
            ) from None
        except ValueError as error:
            raise KeySetUnavailable(f"What {host} sent cannot be read: {error}") from None

    def _parts(self, url: str) -> _Place:
        """Take a URL apart; the text is checked first, for urlsplit drops tabs and line breaks."""
        fault = KeySetUnavailable(
            "The URL is none that is fetched: it begins with https:// and has no user name, "
            "fragment, backslash or white space."
        )
        if len(url) > _LONGEST_URL or not re.fullmatch(r"[!-~]+", url) or re.search(r"[\\#]", url):
            raise fault
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise fault from None
        schemes = ("https", "http") if self.private_allowed else ("https",)
        host = parts.hostname or ""
        if parts.scheme not in schemes or "@" in parts.netloc or not _HOST.fullmatch(host):
            raise fault
        port = _PORTS[parts.scheme] if port is None else port
        if not 1 <= port <= _LAST_PORT:
            raise fault
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Place(parts.scheme, host, port, target)

    def _addresses(self, place: _Place, until: float) -> list[str]:
        """Return the addresses to try, all of them checked."""
        host = place.host
        found: list[str] = []

        def look_up() -> None:
            try:
                found.extend(self.resolve(host, place.port))
            except (OSError, UnicodeError):
                found.clear()

        # The system's resolver knows no time limit; a thread that is not waited for may end late.
        thread = threading.Thread(target=look_up, name="wardkey-resolve", daemon=True)
        thread.start()
        thread.join(_left(until))
        if thread.is_alive():
            raise TimeoutError
        if not found:
            raise KeySetUnavailable(_UNREACHABLE.format(host=host))
        if not self.private_allowed and not all(is_public(address) for address in found):
            raise KeySetUnavailable(_UNREACHABLE.format(host=host))
        return found[:_MOST_ADDRESSES]


def _connected(addresses: list[str], port: int, until: float) -> socket.socket:
    """Return a connection to the first address that answers, each given its part of the time."""
    for place, address in enumerate(addresses):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        line = socket.socket(family, socket.SOCK_STREAM)
        try:
            line.settimeout(_left(until) / (len(addresses) - place))
            line.connect((address, port))
        except OSError:
            line.close()
            if place == len(addresses) - 1:
                raise
        else:
            return line
    raise TimeoutError


class _Bounded(io.RawIOBase):
    """What comes over a connection, until a time and up to a size."""

    def __init__(self, line: socket.socket, until: float) -> None:
        self._line, self._until = line, until
        self._bytes_left = _MOST_HEAD_BYTES + MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's WriteableBuffer
        self._line.settimeout(_left(self._until))
        got = self._line.recv_into(buffer)
        self._bytes_left -= got
        if self._bytes_left < 0:
            raise ValueError(f"It is larger than {MOST_BYTES // 1024} KiB.")
        return got

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Stand in for the socket that http.client reads an answer from."""
        return io.BufferedReader(self)


def _request(place: _Place, authorization: str, body: bytes | None) -> bytes:
    shown = f"[{place.host}]" if ":" in place.host else place.host
    if place.port != _PORTS[place.scheme]:
        shown = f"{shown}:{place.port}"
    head = (
        f"{'GET' if body is None else 'POST'} {place.target} HTTP/1.1\r\nHost: {shown}\r\n"
        "Accept: application/json\r\nAccept-Encoding: identity\r\nUser-Agent: wardkey\r\n"
        "Connection: close\r\n"
    )
    if authorization:
        head += f"Authorization: {authorization}\r\n"
    if body is not None:
        head += f"Content-Type: {_FORM}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


def _asked(line: socket.socket, request: bytes, taken: frozenset[int], until: float) -> Fetched:
    line.settimeout(_left(until))
    line.sendall(request)
    method = request.partition(b" ")[0].decode()
    answer = http.client.HTTPResponse(_Bounded(line, until), method=method)  # type: ignore[arg-type]
    answer.begin()
    if answer.status not in taken:
        raise ValueError(f"It answered {answer.status}, and redirects are not followed.")
    if answer.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("It is compressed, which was not asked for.")
    body = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ValueError(f"It is larger than {MOST_BYTES // 1024} KiB.")
    if answer.length:
        raise ValueError("It was cut off.")
    return Fetched(read_object(body), _max_age(answer.getheader("Cache-Control", "")))


def _max_age(header: str) -> int | None:
    if _NEVER_KEPT.search(header):
        return 0
    found = _MAX_AGE.search(header)
    return int(found[1]) if found else None


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
