import importlib.metadata
from dataclasses import replace
from typing import Any

import pytest

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.events import Alert, NodeFound, NodeLost
from trimtab.core.job import JobSpec, Request, SchedulerName, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.launch.api import AllocatedNode
from trimtab.launch.wire import AgentHello
from trimtab.orchestrator import node_check

NODES = tuple(
    AllocatedNode(name=name, address=f"10.0.0.{index}", hosts_controller=index == 0)
    for index, name in enumerate(("n0", "n1"))
)


def hello(node: str, **changes: Any) -> AgentHello:
    found = AgentHello(
        node=node,
        host=f"host-of-{node}",
        pid=1,
        version=importlib.metadata.version("trimtab"),
        num_cores=8,
        num_gpus=2,
        gpu="NVIDIA H100 80GB HBM3",
        interfaces=("eth0 10.0.0.1",),
        sees_run_dir=True,
    )
    return replace(found, **changes)


def request(job: JobSpec | ScriptSpec, *, scheduler: SchedulerName = "slurm") -> Request:
    return Request(
        scheduler=scheduler,
        run_dir="/runs/r1",
        argv=("ranks",),
        environment=(),
        num_ranks=4,
        num_nodes=2,
        job=job,
        layout=Layout(dp=4) if isinstance(job, JobSpec) else None,
    )


@pytest.fixture
def cpu_job(small_job: JobSpec) -> Request:
    return request(replace(small_job, num_ranks=4, num_nodes=2))


@pytest.fixture
def gpu_job(small_job: JobSpec) -> Request:
    (node,) = small_job.cluster.nodes
    gpu = replace(node.gpu, name="H100 SXM", memory_bytes=80 * 2**30)
    cluster = replace(small_job.cluster, nodes=(replace(node, gpu=gpu),))
    return request(replace(small_job, cluster=cluster, num_ranks=4, num_nodes=2))


def doubts(job: Request, **changes: Any) -> list[str]:
    found = {"n0": hello("n0"), "n1": hello("n1", **changes)}
    told = node_check.events(job, NODES, found, unusable={})
    return [event.message for event in told if isinstance(event, Alert)]


def test_nodes_that_are_as_assumed_are_found_and_nothing_is_doubted(gpu_job: Request) -> None:
    found = {"n0": hello("n0"), "n1": hello("n1")}
    assert node_check.unusable(gpu_job, NODES, found) == {}
    told = node_check.events(gpu_job, NODES, found, unusable={})
    assert [type(event) for event in told] == [NodeFound, NodeFound]
    second = told[1]
    assert isinstance(second, NodeFound)
    assert (second.node, second.host, second.address) == ("n1", "host-of-n1", "10.0.0.1")
    assert (second.num_cores, second.num_gpus) == (8, 2)


def test_a_node_without_enough_gpus_cannot_be_used(gpu_job: Request) -> None:
    found = {"n0": hello("n0", num_gpus=1), "n1": hello("n1")}
    bad = node_check.unusable(gpu_job, NODES, found)
    assert bad == {"n0": "expected 2 GPUs for its ranks, found 1 GPU"}
    told = node_check.events(gpu_job, NODES, found, unusable=bad)
    assert [event.reason for event in told if isinstance(event, NodeLost)] == list(bad.values())
    node_check.raise_if_all(gpu_job, NODES, bad)


def test_ranks_on_cpus_need_no_gpu(cpu_job: Request) -> None:
    found = {name: hello(name, num_gpus=0, gpu="") for name in ("n0", "n1")}
    assert node_check.unusable(cpu_job, NODES, found) == {}


def test_a_node_whose_agent_is_silent_cannot_be_used(cpu_job: Request) -> None:
    bad = node_check.unusable(cpu_job, NODES, {"n1": hello("n1")})
    assert bad == {"n0": "its agent did not report"}


def test_a_job_that_fits_none_of_its_nodes_is_wrong_input(gpu_job: Request) -> None:
    found = {name: hello(name, num_gpus=0) for name in ("n0", "n1")}
    bad = node_check.unusable(gpu_job, NODES, found)
    with pytest.raises(
        InputError,
        match="small: node n0: expected 2 GPUs for its ranks, found 0 GPUs; so on every node",
    ):
        node_check.raise_if_all(gpu_job, NODES, bad)


@pytest.mark.parametrize(
    ("scheduler", "log"), [("local", "controller.log"), ("slurm", "agents.log")]
)
def test_no_report_from_any_node_is_a_failed_job_and_says_where_to_look(
    cpu_job: Request, scheduler: SchedulerName, log: str
) -> None:
    job = replace(cpu_job, scheduler=scheduler)
    with pytest.raises(
        JobFailedError, match=f"no node can be used: node n0: .*; see logs/{log}"
    ):
        node_check.raise_if_all(job, NODES, node_check.unusable(job, NODES, {}))


def test_another_version_is_doubted(cpu_job: Request) -> None:
    ours = importlib.metadata.version("trimtab")
    assert doubts(cpu_job, version="9.9") == [
        f"node n1: it has Trimtab 9.9, the controller {ours}"
    ]


def test_other_gpus_than_described_are_doubted(gpu_job: Request) -> None:
    assert doubts(gpu_job, gpu="NVIDIA A100-SXM4-80GB") == [
        "node n1: it has NVIDIA A100-SXM4-80GB, the cluster file describes H100 SXM"
    ]


def test_more_ranks_than_cores_are_doubted_on_cpus_alone(
    cpu_job: Request, gpu_job: Request
) -> None:
    assert doubts(cpu_job, num_cores=1) == ["node n1: 2 ranks share 1 core"]
    assert doubts(gpu_job, num_cores=1) == []


def test_a_run_directory_out_of_sight_is_told(cpu_job: Request) -> None:
    assert doubts(cpu_job, sees_run_dir=False) == [
        "node n1: it does not see the run directory: its logs are sent over"
    ]


def test_a_script_that_takes_gpus_needs_them() -> None:
    script = ScriptSpec(
        name="s", argv=("x",), folder="/", num_ranks=4, num_nodes=2, needs_gpus=True
    )
    found = {"n0": hello("n0"), "n1": hello("n1", num_gpus=0)}
    bad = node_check.unusable(request(script), NODES, found)
    assert bad == {"n1": "expected 2 GPUs for its ranks, found 0 GPUs"}
