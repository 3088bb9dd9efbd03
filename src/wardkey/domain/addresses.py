"""Allowed client addresses (CIDR) and allowed browser origins."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

MOST_NETWORKS = 100
_LONGEST = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")
_MAPPED_BITS = 96
_IPV6 = 6
# A site with many subscribers typically gets a /48 (RFC 6177).
_SITE_BITS, _SITE_WEIGHT = 80, 4
_OCTETS = {str(number): number for number in range(256)}
_CIDR = re.compile(r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?")
_WITH_PORT = re.compile(
    r"\[(?P<bracketed>[0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?"
    r"|(?P<ipv4>[0-9.]+)(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)"
)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<wild>\*\.)?(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
# Origins of apps and extensions, such as capacitor://localhost; not http and https.
_APP_ORIGIN = re.compile(r"(?!https?://)[a-z][a-z0-9+.-]*://[A-Za-z0-9._~-]*(?::[0-9]{1,5})?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_HOST = 253
_LAST_PORT = 65_535
_LONGEST_ORIGIN = len("https://") + _LONGEST_HOST + len(":65535")
_DEFAULT_PORTS = {"https": 443, "http": 80}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Network:
    """A block of addresses as integers: `version` 4 or 6, the first address and the mask."""

    version: int
    first: int
    mask: int
    text: str

    def __str__(self) -> str:
        """Return the canonical CIDR text."""
        return self.text


def parse_networks(items: Iterable[str]) -> tuple[Network, ...]:
    """Parse at most 100 IPv4 and IPv6 addresses and CIDR blocks (RFC 4632, RFC 4291 §2.3).

    A block of IPv4-mapped IPv6 addresses becomes the IPv4 block. Raises `ValueError` with a
    sentence that names the invalid item.
    """
    texts = tuple(items)
    if len(texts) > MOST_NETWORKS:
        raise ValueError(f"There are {len(texts)} networks; send at most {MOST_NETWORKS}.")
    return tuple(_parse_network(text) for text in texts)


def _parse_network(item: str) -> Network:
    text = item.strip()
    if "%" in text:
        raise ValueError(
            f"{_quote(item)} has a zone, which is valid on one machine only; leave it out."
        )
    unreadable = ValueError(
        f"{_quote(item)} is not an IPv4 or IPv6 address or CIDR block; write it as 203.0.113.0/24 "
        "or 2001:db8::/32."
    )
    if not _CIDR.fullmatch(text):
        raise unreadable
    address, _, bits = text.partition("/")
    try:
        network = ipaddress.ip_network(text, strict=False)
        exact = ipaddress.ip_address(address)
    except ValueError:
        raise unreadable from None
    if bits and exact != network.network_address:
        raise ValueError(
            f"{_quote(item)} has bits beyond its mask; write {network}, or {exact} for that one "
            "address."
        )
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return Network(
        network.version, int(network.network_address), int(network.netmask), str(network)
    )


def contains(networks: Sequence[Network], address: str) -> bool:
    """Return whether `address` is in one of `networks`; an invalid address is in none.

    An IPv4 address in IPv6 form (`::ffff:192.0.2.1`, RFC 4291 §2.5.5.2) counts as IPv4; one with
    a zone (`fe80::1%eth0`) is invalid.
    """
    if len(address) > _LONGEST:
        return False
    version, number = _parse_address(address)
    for network in networks:
        if network.version == version and number & network.mask == network.first:
            return True
    return False


@lru_cache(maxsize=8192)
def bare_address(text: str) -> str:
    """Return an address in canonical form, without port, brackets, quotes and white space.

    Proxies write `203.0.113.7:17085`, `[2001:db8::1]:443` and `"[2001:db8::1]"` (RFC 7239 §6); an
    IPv4-mapped IPv6 address becomes IPv4. A text that is not an address is returned as it is.
    """
    match = _WITH_PORT.fullmatch(text.strip().strip('"').strip())
    if match is None:
        return text
    address = match["bracketed"] or match["ipv4"] or match["bare"]
    version, number = _parse_address(address)
    if version == 0:
        return text
    return str(ipaddress.IPv6Address(number) if version == _IPV6 else ipaddress.IPv4Address(number))


def network_of(address: str) -> str:
    """Return the network of one subscriber: an IPv6 address's /64, or the IPv4 address itself.

    Texts that are not addresses are returned as they are.
    """
    version, number = _parse_address(address)
    if version == _IPV6:
        return str(ipaddress.IPv6Network((number >> 64 << 64, 64)))
    return address if version == 0 else str(ipaddress.IPv4Address(number))


def blocks_of(address: str) -> tuple[tuple[str, int], ...]:
    """Return the blocks for which attempts from an address are counted, each with its weight.

    A weight of 4 means a limit four times as high. An IPv4 address is one block, also in IPv6
    form; an IPv6 address counts for its /64 and its /48. All invalid texts share one block.
    """
    text = address.partition("%")[0]
    version, number = _parse_address(text) if len(text) <= _LONGEST else (0, 0)
    if version == 0:
        return (("unknown", 1),)
    if version != _IPV6:
        return ((str(ipaddress.IPv4Address(number)), 1),)
    site = ipaddress.IPv6Network((number >> _SITE_BITS << _SITE_BITS, 128 - _SITE_BITS))
    return ((network_of(text), 1), (str(site), _SITE_WEIGHT))


# API callers return, and a cached address takes a fifth of the time of parsing it again.
@lru_cache(maxsize=8192)
def _parse_address(address: str) -> tuple[int, int]:
    """Return version and number, or version 0 for a text that is not an address."""
    if ":" not in address:
        try:
            a, b, c, d = address.split(".", 4)
            return 4, _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
        except (KeyError, ValueError):
            return 0, 0
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return 0, 0
    if parsed.scope_id is not None:
        return 0, 0
    mapped = parsed.ipv4_mapped
    return (6, int(parsed)) if mapped is None else (4, int(mapped))


def parse_origin(text: str) -> str:
    """Return `scheme://host[:port]` in canonical form (RFC 6454 §6.2); raises `ValueError`.

    http is accepted only for localhost, 127.0.0.1 and [::1]. One leading `*.` matches subdomains
    at any depth, but not the domain itself. Origins with other schemes, which apps and browser
    extensions send, are kept as they are.
    """
    item = text.strip()
    if _APP_ORIGIN.fullmatch(item) and len(item) <= _LONGEST_ORIGIN:
        return item
    if not item.isascii():
        raise ValueError(
            f"{_quote(text)} has letters beyond ASCII; write the host as browsers do, with xn--."
        )
    match = _ORIGIN.fullmatch(item.lower())
    if match is None:
        raise ValueError(
            f"{_quote(text)} is not an origin; write scheme, host and, if needed, port, with "
            "nothing after them, such as https://app.example.com."
        )
    scheme, wild, host = match["scheme"], match["wild"] or "", _clean_host(match["host"])
    if host is None:
        raise ValueError(
            f"{_quote(text)} has a host that no browser would send; write it as browsers do."
        )
    if wild and ("." not in host or _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2])):
        raise ValueError(
            f"{_quote(text)} is too wide; put *. before a domain, such as https://*.example.com."
        )
    if scheme == "http" and (wild or host not in _LOOPBACK):
        raise ValueError(
            f"{_quote(text)} is plain http, which is accepted for http://localhost, "
            "http://127.0.0.1 and http://[::1] only; use https."
        )
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if not 1 <= port <= _LAST_PORT:
        raise ValueError(f"{_quote(text)} has a port that does not exist; use one from 1 to 65535.")
    shown_port = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{wild}{host}{shown_port}"


def _clean_host(host: str) -> str | None:
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        # Browsers read 1.2.3 or 0x7f.1 as an IPv4 address and rewrite it (WHATWG URL, §3.5).
        if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    return host if len(host) <= _LONGEST_HOST else None


def origin_allowed(allowed: Sequence[str], origin: str) -> bool:
    """Return whether a browser's Origin header matches one of `allowed`, which are canonical.

    An opaque origin (`null`) and a header that contains a wildcard never match.
    """
    if "*" in origin or len(origin) > _LONGEST_ORIGIN:
        return False
    if origin in allowed:
        return True
    canonical = _canonical_origin(origin)
    scheme, _, host = canonical.partition("://")
    for item in allowed:
        item_scheme, wild, domain = item.partition("://*.")
        if item == canonical or (wild and item_scheme == scheme and host.endswith(f".{domain}")):
            return True
    return False


@lru_cache(maxsize=1024)
def _canonical_origin(header: str) -> str:
    try:
        return parse_origin(header)
    except ValueError:
        return ""


def _quote(text: str) -> str:
    """Return the start of a caller's text, quoted and escaped for an error message."""
    return f"“{text[:64].encode('unicode_escape').decode('ascii')}”"
