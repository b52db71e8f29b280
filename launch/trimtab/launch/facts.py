"""What an agent finds on its node."""

import importlib.metadata
import importlib.util
import os
import socket
from typing import Final

from trimtab.launch import wire
from trimtab.launch.interfaces import own_addresses
from trimtab.launch.processes import usable_cores

RANK_PACKAGES: Final = ("torch", "megatron")
"""What our own ranks import and the base install has not."""

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
        interfaces=tuple(
            f"{name} {address}"
            for name, addresses in sorted(own_addresses().items())
            for address in addresses
        ),
        sees_run_dir=sees_run_dir,
        missing_packages=tuple(
            name for name in RANK_PACKAGES if importlib.util.find_spec(name) is None
        ),
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
