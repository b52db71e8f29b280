"""Which network interface ranks talk through: the one that holds their node's address."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import psutil  # type: ignore[import-untyped]  # it has no types

from trimtab.core.errors import JobFailedError

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

    Raises:
        JobFailedError: None does.
    """
    for name, held in sorted(addresses.items()):
        if address in held:
            return name
    there = "; ".join(f"{name} {' '.join(held)}" for name, held in sorted(addresses.items()))
    raise JobFailedError(
        f"node address {address}: no network interface here holds it; there are {there}"
    )


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


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        raise JobFailedError(f"node address {host}: cannot be resolved: {error}") from error
