"""What an agent finds on its node."""

import importlib.metadata
import importlib.util
import itertools
import os
import socket
from pathlib import Path
from typing import Final

from trimtab.launch import wire
from trimtab.launch.interfaces import own_addresses
from trimtab.launch.processes import usable_cores

RANK_PACKAGES: Final = ("torch", "megatron")
"""What our own ranks import and the base install has not."""

DRIVER_FOLDER: Final = Path("/proc/driver/nvidia/gpus")
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
    """Number and name of the GPUs this process may use.

    CUDA takes the devices that CUDA_VISIBLE_DEVICES lists up to the first that is not there.
    """
    count, name = _gpus_by_nvml() or _gpus_by_driver(DRIVER_FOLDER)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not count:
        return count, name
    listed = [entry.strip() for entry in visible.split(",")]
    usable = list(itertools.takewhile(lambda entry: entry not in ("", "-1"), listed))
    return (len(usable), name) if usable else _NO_GPU


def _gpus_by_nvml() -> tuple[int, str] | None:
    """What NVIDIA's library says; None: it is not installed, or finds no driver it knows."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    count = pynvml.nvmlDeviceGetCount()
    if not count:
        return _NO_GPU
    return count, str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))


def _gpus_by_driver(folder: Path) -> tuple[int, str]:
    """What the driver itself lists: a folder for each GPU, with a file that names its model."""
    try:
        found = sorted(folder.glob("*/information"))
        lines = found[0].read_text().splitlines() if found else []
    except OSError:
        return _NO_GPU
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return len(found), (models or [""])[0]
