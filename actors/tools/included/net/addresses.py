"""Which addresses a request on a model's behalf may go to: public ones, by IANA's registries of special addresses.

The lists are written out here, since what Python's `ipaddress` calls global differs from release to release. IPv6 has
several ways to carry an IPv4 address; each is taken apart, and what is inside is judged too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .....runtime.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV4 = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a provider's customers",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved for protocols",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "reserved for name service",
    "192.52.193.0/24": "reserved for relays",
    "192.88.99.0/24": "reserved for relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "reserved for name service",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
# Within 2000::/3, the only part of IPv6 that is public at all.
_IPV6 = {
    "2001::/23": "reserved for protocols",
    "2001:db8::/32": "documentation",
    "3fff::/20": "documentation",
    "2620:4f:8000::/48": "reserved for name service",
}
_REFUSED_4 = [(ipaddress.IPv4Network(network), why) for network, why in _IPV4.items()]
_REFUSED_6 = [(ipaddress.IPv6Network(network), why) for network, why in _IPV6.items()]
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def why_refused(address: Address, allowed: Iterable[Network] = ()) -> str:
    """What is wrong with an address, or "" where a request may go there. `allowed` networks are excepted."""
    inner = carried_ipv4(address)
    if any(one in network for network in allowed for one in (address, inner) if one and one.version == network.version):
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return next((why for network, why in _REFUSED_4 if address in network), "")
    if address.scope_id is not None:
        return "link-local"
    if inner is not None:
        return why_refused(inner)
    if address not in _PUBLIC_6:
        return "not public"
    return next((why for network, why in _REFUSED_6 if address in network), "")


def carried_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that traffic to an IPv6 address ends at: mapped, compatible, 6to4, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _6TO4:
        return address.sixtofour
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


def networks(written: Iterable[str]) -> tuple[Network, ...]:
    """Networks as options write them: `127.0.0.0/8`, `::1`. Raises ConfigError."""
    found: list[Network] = []
    for text in written:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"'{text}' is no network: {error}", hint="write one as 192.168.1.0/24") from error
    return tuple(found)
