"""Which network interface ranks talk through: the one that holds their node's address."""

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import psutil  # type: ignore[import-untyped]  # it has no types

from trimtab.core.communicators import RankNetwork
from trimtab.core.errors import InputError, JobFailedError

INTERFACE_VARIABLES: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Source: torch.distributed's and NCCL's documentation."""


def interface_environment(node_address: str) -> dict[str, str]:
    """Variables that bind gloo and NCCL to the interface of `node_address`.

    What the user has set stays.

    Raises:
        JobFailedError: No interface of this machine holds the address.
    """
    chosen = interface_of(_resolved(node_address), own_addresses())
    return {name: os.environ.get(name, chosen) for name in INTERFACE_VARIABLES}


def interface_of(address: str, addresses: Mapping[str, Sequence[str]]) -> str:
    """The interface among `addresses` (by interface) that holds `address`.

    The loopback interface holds all of 127.0.0.0/8, whatever it lists: Debian gives a machine's
    own name the address 127.0.1.1.

    Raises:
        JobFailedError: None does.
    """
    for name, held in sorted(addresses.items()):
        if address in held or (_is_loopback(address) and any(map(_is_loopback, held))):
            return name
    there = "; ".join(f"{name} {' '.join(held)}" for name, held in sorted(addresses.items()))
    raise JobFailedError(
        f"node address {address}: no network interface here holds it; there are {there}"
    )


def network_environment(network: RankNetwork) -> dict[str, str]:
    """Variables that bind a rank to the NICs its cluster file names.

    Raises:
        InputError: This machine has no interface of that name.
    """
    there = psutil.net_if_addrs()
    for interface in (network.interface, network.far_interface):
        if interface is not None and interface not in there:
            raise InputError(
                f"nics.interface: the cluster file names {interface!r} on the nodes of "
                f"{network.island!r}, but {socket.gethostname()} has "
                f"{', '.join(sorted(there))}; name one of these, or leave it out"
            )
    return network.environment()


def own_addresses() -> dict[str, list[str]]:
    """IP addresses of this machine's interfaces that are up, by interface."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return {
        name: [
            address.address.partition("%")[0]
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6)
        ]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        raise JobFailedError(f"node address {host}: cannot be resolved: {error}") from error
