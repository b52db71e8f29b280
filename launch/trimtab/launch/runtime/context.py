"""Which rank this process is, how it meets the others, and what device it has."""

import datetime
import os
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch re-exports it

from trimtab.core.cluster import ClusterSpec, GpuSpec
from trimtab.core.communicators import RankNetwork
from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import JobSpec

_MEETING_TIMEOUT: Final = datetime.timedelta(minutes=10)
"""How long ranks wait for each other: imports from a busy file system take minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """Which rank this process is, and where the others are found."""

    rank: int
    world_size: int
    local_rank: int
    rendezvous: str
    """Where the ranks meet: `tcp://host:port` of the store that rank 0 holds."""
    store_fd: int | None = None
    """Rank 0: the store's socket, bound and listening already; None: it binds the port."""
    networks: tuple[RankNetwork, ...] = ()
    """Of all ranks; none: each finds its own way."""


def check_device(job: JobSpec, context: RankContext) -> None:
    """See that torch finds the GPU that this rank is to use, whatever the driver has told.

    Raises:
        InputError: The cluster file says GPUs, and torch sees too few.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not job.needs_gpus or found > context.local_rank:
        return
    build = torch.version.cuda or "no CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise InputError(
        f"cluster: node {socket.gethostname()} is to have a GPU for its rank "
        f"{context.local_rank} (counted from 0), but torch {torch.__version__} (built for "
        f"{build}) sees {found} there"
        + ("" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible!r}")
        + "; install a torch build that fits the driver, or name a cluster whose gpu is a cpu"
    )


def join(context: RankContext) -> None:
    """Meet the other ranks: the default process group, gloo on CPUs and NCCL on GPUs.

    Raises:
        JobFailedError: They do not meet, for a reason that another attempt may not have.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(context.local_rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=_store(context),
            rank=context.rank,
            world_size=context.world_size,
        )
    except RuntimeError as error:  # the store's, gloo's or NCCL's
        said = str(error).strip().partition("\n")[0]
        raise JobFailedError(
            f"rank {context.rank} on {socket.gethostname()} does not meet the others at "
            f"{context.rendezvous}: {said}"
        ) from error


def _store(context: RankContext) -> TCPStore:
    address = urlsplit(context.rendezvous)
    assert address.hostname is not None
    assert address.port is not None
    return TCPStore(
        address.hostname,
        address.port,
        context.world_size,
        is_master=context.rank == 0,
        timeout=_MEETING_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=context.store_fd,
    )


def device_peak(job: JobSpec, context: RankContext) -> tuple[str, float | None, str]:
    """Name of this rank's device, its datasheet peak, and where that comes from."""
    if not torch.cuda.is_available():
        return "cpu", None, "the device is a CPU, which has no datasheet peak"
    name = torch.cuda.get_device_name(context.local_rank)
    precision = job.training.precision
    gpu = described_gpu(name, job.cluster)
    if gpu is None:
        names = " and ".join(job.cluster.gpu_names)
        return name, None, f"the cluster file describes {names}, but the device is {name}"
    peak = gpu.peak_flop_per_s(precision)
    if peak is None:
        return name, None, f"the cluster file gives {gpu.name} no {precision} peak"
    return name, peak, f"{gpu.name} dense {precision}, from cluster {job.cluster.name!r}"


def described_gpu(found: str, cluster: ClusterSpec) -> GpuSpec | None:
    """The device of the cluster file that a driver calls `found`, whichever nodes have it."""
    gpus = (node.gpu for node in cluster.nodes)
    return next((gpu for gpu in gpus if is_same_device(found, gpu.name)), None)


def is_same_device(found: str, described: str) -> bool:
    """Whether a driver's name (`NVIDIA H100 80GB HBM3`) and a datasheet's share their model."""
    models = [
        set(re.findall(r"[A-Z]{1,3}\d{2,4}", name.upper())) for name in (found, described)
    ]
    return bool(models[0] & models[1])
