import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wardkey.domain.addresses import (
    bare_address,
    contains,
    origin_allowed,
    parse_networks,
    parse_origin,
)

addresses = st.ip_addresses().map(str)
blocks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
).map(lambda pair: ipaddress.ip_network(pair, strict=False))


def is_mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


@given(blocks, st.data())
def test_every_address_of_a_block_is_in_it(
    block: ipaddress.IPv4Network | ipaddress.IPv6Network, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, block.num_addresses - 1))
    address = block[place]
    if not is_mapped(address):
        assert contains(parse_networks([str(block)]), str(address))


@given(blocks, addresses)
def test_block_membership_agrees_with_the_standard_library(
    block: ipaddress.IPv4Network | ipaddress.IPv6Network, address: str
) -> None:
    parsed = ipaddress.ip_address(address)
    if is_mapped(parsed) or is_mapped(block.network_address):
        return
    assert contains(parse_networks([str(block)]), address) == (parsed in block)


@given(st.text(max_size=50))
@example("1.2.3.4")
@example("01.2.3.4")
@example("1.2.3.4.5")
@example("\u0661.2.3.4")
@example("1.2.3.4\n")
@example("::")
@example("fe80::1%eth0")
def test_an_unparsable_address_is_in_no_block(text: str) -> None:
    everything = parse_networks(["0.0.0.0/0", "::/0"])
    try:
        readable = not getattr(ipaddress.ip_address(text), "scope_id", None)
    except ValueError:
        readable = False
    assert contains(everything, text) == readable


@given(st.ip_addresses(v=4))
def test_ipv4_in_ipv6_form_counts_as_ipv4(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for form in (f"::ffff:{address}", f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}"):
        assert contains(parse_networks([str(address)]), form)
        assert contains(parse_networks([form]), str(address))
        assert not contains(parse_networks(["::/0"]), form)


def test_mapped_blocks_are_stored_as_the_ipv4_block() -> None:
    (network,) = parse_networks(["::ffff:10.0.0.0/104"])
    assert str(network) == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7/32"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_block_is_stored_in_canonical_form(text: str, canonical: str) -> None:
    (network,) = parse_networks([text])
    assert str(network) == canonical


@given(blocks)
def test_the_canonical_form_reads_back_equal(
    block: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    networks = parse_networks([str(block)])
    assert parse_networks([str(networks[0])]) == networks


@pytest.mark.parametrize(
    ("text", "right"),
    [("10.1.2.3/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32"), ("1.2.3.4/0", "0.0.0.0/0")],
)
def test_bits_beyond_the_mask_are_refused_with_a_suggestion(text: str, right: str) -> None:
    with pytest.raises(ValueError, match="beyond its mask") as fault:
        parse_networks(["192.0.2.1", text])
    assert text in str(fault.value)
    assert right in str(fault.value)


@pytest.mark.parametrize(
    "text",
    ["", " ", "example.com", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8",
     "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255", "1.2.3.4:80", "[::1]", "10.0.0.0/8/8", "\ud800",
     "010.0.0.1", "\u0661.0.0.1"],
)  # fmt: skip
def test_an_invalid_block_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv4 or IPv6 address"):
        parse_networks([text])


def test_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        parse_networks(["fe80::1%eth0"])


def test_at_most_a_hundred_networks_are_accepted() -> None:
    items = [f"10.0.{number}.0/24" for number in range(101)]
    assert len(parse_networks(items[:100])) == 100
    with pytest.raises(ValueError, match="101 networks"):
        parse_networks(iter(items))


def test_an_empty_list_contains_no_address() -> None:
    assert not contains((), "10.0.0.1")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://app.example.com", "https://app.example.com"),
        (" HTTPS://App.Example.COM:443 ", "https://app.example.com"),
        ("https://app.example.com:8443", "https://app.example.com:8443"),
        ("https://app.example.com:08443", "https://app.example.com:8443"),
        ("https://192.0.2.1", "https://192.0.2.1"),
        ("https://[2001:DB8:0::1]:444", "https://[2001:db8::1]:444"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]", "http://[::1]"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_stored_as_browsers_send_it(text: str, canonical: str) -> None:
    assert parse_origin(text) == canonical
    assert parse_origin(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not an origin"),
        ("null", "not an origin"),
        ("app.example.com", "not an origin"),
        ("https://", "not an origin"),
        ("https://app.example.com/", "not an origin"),
        ("https://app.example.com/path", "not an origin"),
        ("https://app.example.com?x=1", "not an origin"),
        ("https://app.example.com#x", "not an origin"),
        ("https://user@app.example.com", "not an origin"),
        ("https://app.example.com:", "not an origin"),
        ("https://app.example.com.", "not an origin"),
        ("https://app\n.example.com", "not an origin"),
        ("https://a..b", "not an origin"),
        ("https://-a.com", "not an origin"),
        ("https://*", "not an origin"),
        ("https://a.*.com", "not an origin"),
        ("https://*.*.com", "not an origin"),
        ("capacitor://*.localhost", "not an origin"),
        ("capacitor://localhost/", "not an origin"),
        ("Capacitor://localhost", "not an origin"),
        ("app://me@host", "not an origin"),
        ("app://" + "x" * 300, "not an origin"),
        ("https://app.example.com:0", "port"),
        ("https://app.example.com:65536", "port"),
        ("https://*.com", "too wide"),
        ("https://*.2.3.4.5", "too wide"),
        ("https://1.2.3", "no browser"),
        ("https://0x7f.1", "no browser"),
        ("https://256.0.0.1", "no browser"),
        ("https://[::g]", "not an origin"),
        ("https://[1::2::3]", "no browser"),
        (f"https://{'a.' * 127}com", "no browser"),
        ("http://app.example.com", "plain http"),
        ("http://*.localhost", "too wide|plain http"),
        ("http://localhost.example.com", "plain http"),
        ("https://b\u00fccher.example", "beyond ASCII"),
        ("https://\u212a.example", "beyond ASCII"),
    ],
)
def test_an_invalid_origin_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_origin(text)


@given(st.text(max_size=60))
@example("https://*.example.com")
def test_no_header_makes_the_check_fail(text: str) -> None:
    assert not origin_allowed(["https://app.example.org", "https://*.example.com"], text)


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com", "HTTPS://APP.EXAMPLE.COM", "https://app.example.com:443",
     "https://a.wild.example", "https://a.b.wild.example"],
)  # fmt: skip
def test_a_listed_origin_is_allowed(origin: str) -> None:
    assert origin_allowed(["https://app.example.com", "https://*.wild.example"], origin)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "https://wild.example", "https://evilwild.example", "https://*.wild.example",
     "http://a.wild.example", "https://a.wild.example:8443", "https://a.wild.example.evil.com",
     "https://evil.com/.wild.example", "https://evil.com:80.wild.example",
     "https://evil.com#.wild.example", "https://evil.com@a.wild.example", "https://.wild.example",
     "https://app.example.com.evil.com", "https://app.example.com/"],
)  # fmt: skip
def test_an_origin_that_only_resembles_a_listed_one_is_refused(origin: str) -> None:
    assert not origin_allowed(["https://app.example.com", "https://*.wild.example"], origin)


def test_a_wildcard_keeps_its_port() -> None:
    allowed = ["https://*.example.com:8443"]
    assert origin_allowed(allowed, "https://a.example.com:8443")
    assert not origin_allowed(allowed, "https://a.example.com")


APP_ORIGINS = st.builds(
    "{}://{}{}".format,
    st.from_regex(r"[a-z][a-z0-9+.-]{0,15}", fullmatch=True).filter(
        lambda scheme: scheme not in ("http", "https")
    ),
    st.from_regex(r"[A-Za-z0-9._~-]{0,40}", fullmatch=True),
    st.sampled_from(["", ":1", ":8080"]),
)


@given(APP_ORIGINS, APP_ORIGINS)
@example("capacitor://localhost", "ionic://localhost")
@example("chrome-extension://abcdefghijklmnopabcdefghijklmnop", "tauri://localhost")
@example("app://Host", "app://host")
@example("file://", "null")
def test_an_app_origin_is_compared_character_by_character(one: str, other: str) -> None:
    assert parse_origin(one) == one
    assert origin_allowed([one, "https://*.example.com"], one)
    assert origin_allowed([one], other) == (one == other)
    assert not origin_allowed(["https://localhost", "https://*.localhost"], one)


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.one_of(st.none(), st.integers(0, 65_535)),
    st.sampled_from(["", '"']),
    st.sampled_from(["", " ", "\t"]),
)
def test_addresses_are_parsed_as_proxies_write_them(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int | None,
    quote: str,
    blank: str,
) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    text = f"[{address}]" if address.version == 6 else str(address)
    forms = [text] if port is None else [f"{text}:{port}"]
    if port is None:
        forms.append(str(address).upper())
    for form in forms:
        assert bare_address(blank + quote + form + quote + blank) == str(mapped or address)


@given(st.text(max_size=80))
def test_a_text_that_is_not_an_address_is_unchanged_and_in_no_network(text: str) -> None:
    everything = parse_networks(["0.0.0.0/0", "::/0"])
    bare = bare_address(text)
    assert bare == text or contains(everything, bare)
    assert bare_address(bare) == bare
