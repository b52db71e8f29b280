"""Which rank this process is, how it meets the others, and what device it has."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch re-exports it

from trimtab.core.job import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """Which rank this process is, and where the others are found."""

    rank: int
    world_size: int
    local_rank: int
    rendezvous: str
    """Where the ranks meet: the `file://` URL of a file that all of them can reach."""


def join(context: RankContext) -> None:
    """Meet the other ranks: the default process group, gloo on CPUs and NCCL on GPUs."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(context.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=FileStore(url2pathname(urlsplit(context.rendezvous).path), context.world_size),
        rank=context.rank,
        world_size=context.world_size,
    )


def device_peak(job: JobSpec, context: RankContext) -> tuple[str, float | None, str]:
    """Name of this rank's device, its datasheet peak, and where that comes from."""
    if not torch.cuda.is_available():
        return "cpu", None, "the device is a CPU, which has no datasheet peak"
    name = torch.cuda.get_device_name(context.local_rank)
    gpu, precision = job.cluster.nodes[0].gpu, job.training.precision
    if not is_same_device(name, gpu.name):
        return name, None, f"the cluster file describes {gpu.name}, but the device is {name}"
    peak = gpu.peak_flop_per_s(precision)
    if peak is None:
        return name, None, f"the cluster file gives {gpu.name} no {precision} peak"
    return name, peak, f"{gpu.name} dense {precision}, from cluster {job.cluster.name!r}"


def is_same_device(found: str, described: str) -> bool:
    """Whether a driver's name (`NVIDIA H100 80GB HBM3`) and a datasheet's share their model."""
    models = [
        set(re.findall(r"[A-Z]{1,3}\d{2,4}", name.upper())) for name in (found, described)
    ]
    return bool(models[0] & models[1])
