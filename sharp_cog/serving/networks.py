"""Addresses that are not on the public internet, whatever Python's release thinks of them.

`ipaddress.is_global` follows the registries of its release's day, and has changed with patch releases. The table here
is explicit instead: for IPv4 it lists what is special, for IPv6 only one block is in use on the internet, and the table
lists what is special in it.

Sources: IANA's special-purpose address registries (RFC 6890, RFC 8190),
https://www.iana.org/assignments/iana-ipv4-special-registry and
https://www.iana.org/assignments/iana-ipv6-special-registry, those of multicast and of the IPv6 address space, and the
documents of cloud providers about their metadata services. Networks that the registries call globally reachable
are listed as well, since they serve protocols and have no images.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SPECIAL_IPV4 = {
    "0.0.0.0/8": "this network (RFC 791)",
    "10.0.0.0/8": "private use (RFC 1918)",
    "100.64.0.0/10": "shared address space (RFC 6598), with Alibaba's metadata at 100.100.100.200",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "169.254.0.0/16": "link-local (RFC 3927), with most clouds' metadata at 169.254.169.254",
    "172.16.0.0/12": "private use (RFC 1918)",
    "192.0.0.0/24": "IETF protocol assignments (RFC 6890), with Oracle's metadata at 192.0.0.192",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.31.196.0/24": "AS112 (RFC 7535)",
    "192.52.193.0/24": "AMT (RFC 7450)",
    "192.88.99.0/24": "6to4 relays, deprecated (RFC 7526)",
    "192.168.0.0/16": "private use (RFC 1918)",
    "192.175.48.0/24": "AS112 (RFC 7534)",
    "198.18.0.0/15": "benchmarks (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved (RFC 1112), and the broadcast address",
    # Public addresses by the registries, which reach the provider's own services from inside its network.
    "168.63.129.16/32": "Azure's host: DNS, DHCP, and the agent of a virtual machine",
    "161.26.0.0/16": "IBM Cloud's services",
    "166.8.0.0/14": "IBM Cloud's service endpoints",
}
"""Networks of IPv4 that are not on the public internet, each with its purpose."""

GLOBAL_UNICAST = "2000::/3"
"""The block from which IANA assigns all IPv6 addresses of the internet (RFC 4291, RFC 3587)."""

SPECIAL_IPV6 = {
    "2001::/23": "IETF protocol assignments (RFC 2928), with Teredo, benchmarks, ORCHID and DRIP",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4, deprecated (RFC 7526)",
    "2620:4f:8000::/48": "AS112 (RFC 7534)",
    "3fff::/20": "documentation (RFC 9637)",
}
"""Networks in `GLOBAL_UNICAST` that are not on the public internet.

Outside of the block lie loopback, mapped and translated addresses, discard-only 100::/64, SRv6 5f00::/16, unique local
fc00::/7 (with Amazon's metadata at fd00:ec2::254 and Google's at fd20:ce::254), link-local fe80::/10, site-local
fec0::/10 and multicast ff00::/8.
"""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4 addresses in an IPv6 socket (RFC 4291)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses through which an IPv6-only network reaches the IPv4 internet (RFC 6052)."""
_UNICAST = ipaddress.IPv6Network(GLOBAL_UNICAST)
_IPV4 = tuple(map(ipaddress.IPv4Network, SPECIAL_IPV4))
_IPV6 = tuple(map(ipaddress.IPv6Network, SPECIAL_IPV6))


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet.

    An IPv6 address that stands for an IPv4 address (mapped, NAT64) is judged as that one. 6to4 and Teredo, which also
    contain IPv4 addresses, have no place on today's internet.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _IPV4)
    if address in _MAPPED or address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _UNICAST and not any(address in network for network in _IPV6)
