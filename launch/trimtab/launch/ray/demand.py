"""What one node of a job must have for Ray to start its ranks there."""

from collections.abc import Mapping

from trimtab.core.job import Request

CPU = "CPU"
GPU = "GPU"


def node_demand(request: Request) -> Mapping[str, float]:
    """The resources of one bundle: every rank takes one GPU, custom resource or CPU."""
    return {resource_of(request): float(request.ranks_per_node)}


def resource_of(request: Request) -> str:
    """Of which resource a rank takes one."""
    if request.job.ray.resource is not None:
        return request.job.ray.resource
    return GPU if request.job.needs_gpus else CPU


def fits(demand: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    """Whether all that is asked for is there."""
    return all(resources.get(name, 0.0) >= amount for name, amount in demand.items())
