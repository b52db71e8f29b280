"""What an agent finds on its node."""

import importlib.metadata
import os
import socket
from typing import Final

import psutil  # type: ignore[import-untyped]  # it has no types

from trimtab.launch import wire
from trimtab.launch.processes import usable_cores

_NO_GPU: Final = (0, "")


def node_facts(*, node: str, sees_run_dir: bool) -> wire.AgentHello:
    """The agent's first message: the node as it is, whatever the cluster file says."""
    num_gpus, gpu = _gpus()
    return wire.AgentHello(
        node=node,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=importlib.metadata.version("trimtab"),
        num_cores=usable_cores(),
        num_gpus=num_gpus,
        gpu=gpu,
        interfaces=_interfaces(),
        sees_run_dir=sees_run_dir,
    )


def _interfaces() -> tuple[str, ...]:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return tuple(
        f"{name} {address.address}"
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if name in up and address.family in (socket.AF_INET, socket.AF_INET6)
    )


def _gpus() -> tuple[int, str]:
    """Number and name of the GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return _NO_GPU
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, or a driver of another version: no GPU to us
        return _NO_GPU
    count = pynvml.nvmlDeviceGetCount()
    if not count:
        return _NO_GPU
    name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    return (count if visible is None else len(visible.split(","))), name
