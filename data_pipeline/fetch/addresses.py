"""Which network addresses may be connected to: public ones.

A list of addresses from the web is written by strangers. An address that leads into one's own
network (a metadata service, a router, a database) must not be fetched, under whatever name.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedAddress(OSError):
    """A host leads to an address that is not public."""


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, also when it wraps an IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return all(item.is_global and not item.is_multicast for item in (address, *_wrapped(address)))


def _wrapped(address: _Address) -> list[_Address]:
    """IPv4 addresses that an IPv6 address stands for (mapped, 6to4, Teredo, NAT64)."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[_Address | None] = [address.ipv4_mapped, address.sixtofour]
    found += address.teredo or ()
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [item for item in found if item is not None]


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that was just resolved; the last look before connecting.

    What is looked at is what is connected to, so answers that change in between do not matter.

    Raises:
        RefusedAddress: the address is not public.
    """
    family, kind, protocol, _, place = info
    if not is_public(place[0]):
        raise RefusedAddress(f"{place[0]} is not a public address")
    return socket.socket(family, kind, protocol)
