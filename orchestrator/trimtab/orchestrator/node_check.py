"""What agents found on the nodes against what the job assumes; pure, before any rank starts."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.events import Alert, AnyEvent, NodeFound, NodeLost
from trimtab.core.job import JobSpec, Request
from trimtab.core.units import counted
from trimtab.launch.api import AllocatedNode
from trimtab.launch.wire import AgentHello

_NO_REPORT = "its agent did not report"


def unusable(
    request: Request, nodes: Sequence[AllocatedNode], found: Mapping[str, AgentHello]
) -> dict[str, str]:
    """Nodes that cannot run their ranks, with the reason."""
    reasons = {node.name: _fault(request, found.get(node.name)) for node in nodes}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def raise_if_all(
    request: Request, nodes: Sequence[AllocatedNode], bad: Mapping[str, str]
) -> None:
    """Tell apart a sick node and a job that fits no node here.

    Raises:
        InputError: Every node has reported, and none is as the job assumes.
        JobFailedError: No node can be used.
    """
    if len(bad) < len(nodes):
        return
    name, reason = next(iter(bad.items()))
    message = f"node {name}: {reason}"
    if any(reason == _NO_REPORT for reason in bad.values()):
        log = "controller.log" if request.scheduler == "local" else "agents.log"
        raise JobFailedError(f"no node can be used: {message}; see logs/{log}")
    raise InputError(f"{request.job.name}: {message}; so on every node of the job")


def events(
    request: Request,
    nodes: Sequence[AllocatedNode],
    found: Mapping[str, AgentHello],
    *,
    unusable: Mapping[str, str],
) -> list[AnyEvent]:
    """What was found, and what a person should know about it."""
    now_s = time.time()
    told: list[AnyEvent] = []
    for node in nodes:
        hello = found.get(node.name)
        if hello is not None:
            told.append(_node_found(node, hello, now_s=now_s))
            told += [_warning(line, now_s=now_s) for line in _doubts(request, node, hello)]
        if node.name in unusable:
            told.append(NodeLost(time_s=now_s, node=node.name, reason=unusable[node.name]))
    return told


def _fault(request: Request, hello: AgentHello | None) -> str | None:
    if hello is None:
        return _NO_REPORT
    if request.job.needs_gpus and hello.num_gpus < request.ranks_per_node:
        found = counted(hello.num_gpus, "GPU")
        return f"expected {request.ranks_per_node} GPUs for its ranks, found {found}"
    if hello.missing_packages and isinstance(request.job, JobSpec):
        missing = " and ".join(hello.missing_packages)
        return f"its Python, {request.argv[0]}, has no package {missing}"
    return None


def _doubts(request: Request, node: AllocatedNode, hello: AgentHello) -> list[str]:
    """Assumptions that do not hold but do not stop the job."""
    doubts = []
    ours = importlib.metadata.version("trimtab")
    if hello.version != ours:
        doubts.append(f"it has Trimtab {hello.version}, the controller {ours}")
    if isinstance(request.job, JobSpec):
        doubts += _gpu_doubts(request.job, hello)
    if not request.job.needs_gpus and hello.num_cores < request.ranks_per_node:
        doubts.append(
            f"{counted(request.ranks_per_node, 'rank')} share "
            f"{counted(hello.num_cores, 'core')}"
        )
    if not hello.sees_run_dir:
        doubts.append("it does not see the run directory: its logs are sent over")
    return [f"node {node.name}: {doubt}" for doubt in doubts]


def _gpu_doubts(job: JobSpec, hello: AgentHello) -> list[str]:
    if not job.needs_gpus or not hello.gpu:
        return []
    if any(_model_of(name) in hello.gpu.upper() for name in job.cluster.gpu_names):
        return []
    described = ", ".join(job.cluster.gpu_names)
    return [f"it has {hello.gpu}, the cluster file describes {described}"]


def _model_of(name: str) -> str:
    """The part of a datasheet's name that a driver's name repeats: `H100` of `H100 SXM`."""
    return name.upper().removeprefix("NVIDIA ").split()[0].split("-")[0]


def _node_found(node: AllocatedNode, hello: AgentHello, *, now_s: float) -> NodeFound:
    return NodeFound(
        time_s=now_s,
        node=node.name,
        host=hello.host,
        address=node.address,
        num_cores=hello.num_cores,
        num_gpus=hello.num_gpus,
        gpu=hello.gpu,
        interfaces=hello.interfaces,
    )


def _warning(message: str, *, now_s: float) -> Alert:
    return Alert(time_s=now_s, severity="warning", message=message)
