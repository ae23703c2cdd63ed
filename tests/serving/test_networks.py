"""Addresses that count as the public internet, and those that do not."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharp_cog.serving.networks import is_public

PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.1.1", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.2.1", "192.31.196.1", "192.52.193.1"),
    *("192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    # Metadata and agents of clouds: most of them, Amazon's DNS, Azure, Oracle, Alibaba, IBM.
    *("169.254.169.254", "169.254.169.253", "169.254.170.2", "168.63.129.16", "192.0.0.192", "100.100.100.200"),
    *("161.26.0.10", "166.9.0.1"),
    *("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe"),
    *("::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b:1::1", "100::1", "100:0:0:1::1"),
    *("2001::1", "2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1"),
    *("2001:db8::1", "2620:4f:8000::1", "3fff::1", "3fff:fff::1", "5f00::1", "fc00::1", "fd00::1", "fe80::1"),
    *("fe80::1", "fec0::1", "feff::1", "ff02::1", "4000::1", "8000::1", "e000::1", "200::1"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "93.184.216.34", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.0.1"),
    *("192.0.1.1", "192.0.3.1", "192.167.0.1", "192.169.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255"),
    *("168.63.129.15", "168.63.129.17"),
    *("2606:4700:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "2001:4860:4860::8888", "2001:db7::1"),
    *("2003::1", "2620:4f:7fff::1", "3ffe:ffff::1", "2600::"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public_up_to_the_edge_of_each_network(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


IPV4 = [ipaddress.IPv4Address(address) for address in PRIVATE + PUBLIC if ":" not in address]


@given(st.ip_addresses(v=4) | st.sampled_from(IPV4))
def test_an_address_inside_another_is_judged_like_it(address: ipaddress.IPv4Address) -> None:
    for prefix in (0xFFFF << 32, 0x64FF9B << 96):  # Mapped, and NAT64.
        assert is_public(ipaddress.IPv6Address(prefix | int(address))) == is_public(address)


@given(st.ip_addresses(v=4), st.integers(0, (1 << 32) - 1))
def test_6to4_and_teredo_are_never_public(address: ipaddress.IPv4Address, other: int) -> None:
    assert not is_public(ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80 | other))
    # Teredo has the client's address inverted in its last bits, and a server's in the middle (RFC 4380).
    assert not is_public(ipaddress.IPv6Address(0x20010000 << 96 | int(address) << 64 | (int(address) ^ 0xFFFFFFFF)))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_no_address_is_public_that_python_knows_to_be_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    is_nat64 = address.version == 6 and int(address) >> 32 == 0x64FF9B << 64
    assert not (is_public(address) and address.is_private and not is_nat64)


def test_the_verdict_does_not_depend_on_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch releases have changed what Python calls private and global."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        for name in ("is_global", "is_private", "is_reserved", "is_multicast", "is_link_local", "is_loopback"):
            monkeypatch.setattr(kind, name, property(lambda address: True))
    assert [is_public(ipaddress.ip_address(address)) for address in PRIVATE] == [False] * len(PRIVATE)
    monkeypatch.undo()
