"""Names to addresses, and which of them may be dialled.

A deny list of our own: `ipaddress.is_global` calls a NAT64 address of 10.0.0.1 global, and knows
nothing of a cloud's metadata. Outside 2000::/3 no IPv6 address is public, so all of it is denied.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

Resolve = Callable[[str], Awaitable[list[str]]]

MOST_LOOKUPS = 32

DENIED = {
    ip_network(network): why
    for network, why in {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (carrier-grade NAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata",  # Azure's, the one that looks public
        "169.254.0.0/16": "link-local",  # and metadata
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "reserved",
        "192.52.193.0/24": "reserved",
        "192.88.99.0/24": "reserved",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "reserved",
        "198.18.0.0/15": "benchmark",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "255.255.255.255/32": "broadcast",
        "240.0.0.0/4": "reserved",
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::/3": "reserved",  # IPv4-compatible and -translated, local NAT64 64:ff9b:1::/48
        "2001::/23": "reserved",  # Teredo, benchmark, ORCHID
        "2001:db8::/32": "documentation",
        "2620:4f:8000::/48": "reserved",
        "3ffe::/16": "reserved",
        "3fff::/20": "documentation",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "private",
        "ff00::/8": "multicast",
        "4000::/2": "reserved",
        "8000::/1": "reserved",
    }.items()
}
"""The first that holds an address says why it is refused."""

WRAPPED = {
    IPv6Network("::ffff:0:0/96"): 0,  # IPv4-mapped
    IPv6Network("64:ff9b::/96"): 0,  # NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}
"""Prefixes that carry an IPv4 address, and how many bits stand behind it."""

ISATAP = {0x00005EFE, 0x02005EFE}


@lru_cache(maxsize=4096)
def refusal(text: str) -> str | None:
    """What kind of address it is that nobody outside may be sent to; None when it is public."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        bits = int(address)
        for network, shift in WRAPPED.items():
            if address in network:
                return refusal(str(IPv4Address(bits >> shift & 0xFFFFFFFF)))
        if bits >> 32 & 0xFFFFFFFF in ISATAP and (inner := refusal(_last(bits))):
            return inner
    return next((why for network, why in DENIED.items() if address in network), None)


def _last(bits: int) -> str:
    return str(IPv4Address(bits & 0xFFFFFFFF))


@lru_cache(maxsize=4096)
def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class Targets:
    """What the operator allows: `host`, `host:port`, `*.example.com`, an address, or a network."""

    def __init__(self, targets: Iterable[str]) -> None:
        self.names: set[tuple[str, str]] = set()
        self.networks = []
        for target in targets:
            host, port = _split(target)
            try:
                self.networks.append((ip_network(host), port))
            except ValueError:
                self.names.add((host.lower().rstrip("."), port))

    def have_name(self, host: str, port: int) -> bool:
        name = host.lower().rstrip(".")
        labels = name.split(".")
        patterns = {"*." + ".".join(labels[n:]) for n in range(1, len(labels))} | {name}
        return any((p, number) in self.names for p in patterns for number in ("", str(port)))

    def have_address(self, text: str, port: int) -> bool:
        address = ip_address(text)
        return any(address in network and at in ("", str(port)) for network, at in self.networks)


def _split(target: str) -> tuple[str, str]:
    if target.count(":") > 1 and not target.startswith("["):
        return target, ""
    found = re.fullmatch(r"\[?([^\[\]]*?)\]?(?::(\d+))?", target)
    return (found[1], found[2] or "") if found else (target, "")


class Lookups:
    """Names to addresses, in daemon threads: a name server that hangs stops nobody else's names."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(MOST_LOOKUPS)

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a name, or OSError."""
        await self.free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def look() -> None:
            found = _addresses(host)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._give, answer, found)

        threading.Thread(target=look, name="guard lookup", daemon=True).start()
        return await answer

    def _give(self, answer: asyncio.Future[list[str]], found: list[str] | OSError) -> None:
        self.free.release()
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)


def _addresses(host: str) -> list[str] | OSError:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("the name can't be encoded")
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
