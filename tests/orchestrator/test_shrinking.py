from dataclasses import replace

import pytest

from trimtab.core.cluster import PeakRate
from trimtab.core.job import JobSpec, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.orchestrator.shrinking import smaller_request


@pytest.fixture
def four_nodes(small_job: JobSpec) -> Request:
    (node,) = small_job.cluster.nodes
    gpu = replace(node.gpu, peaks=(PeakRate(precision="fp32", flop_per_s=1e11),))
    cluster = replace(small_job.cluster, nodes=(replace(node, gpu=gpu),))
    job = replace(small_job, cluster=cluster, num_ranks=8, num_nodes=4)
    return Request(
        scheduler="slurm",
        run_dir="/runs/r1",
        argv=("ranks",),
        environment=(),
        num_ranks=8,
        num_nodes=4,
        job=job,
        layout=Layout(dp=8),
        submission="as it was submitted",
    )


def test_fewer_nodes_run_fewer_ranks_and_all_else_stays(four_nodes: Request) -> None:
    small = smaller_request(four_nodes, num_nodes=3)
    assert small is not None
    assert (small.num_nodes, small.num_ranks, small.ranks_per_node) == (3, 6, 2)
    assert small.layout == Layout(dp=6)
    assert isinstance(small.job, JobSpec)
    assert (small.job.num_nodes, small.job.num_ranks) == (3, 6)
    assert isinstance(four_nodes.job, JobSpec)
    assert small.job.training == four_nodes.job.training
    assert (
        replace(
            small,
            job=four_nodes.job,
            layout=four_nodes.layout,
            num_ranks=8,
            num_nodes=4,
        )
        == four_nodes
    )


def test_a_layout_of_the_users_shrinks_with_the_job(four_nodes: Request) -> None:
    assert isinstance(four_nodes.job, JobSpec)
    job = replace(four_nodes.job, layout=Layout(dp=8))
    small = smaller_request(replace(four_nodes, job=job), num_nodes=1)
    assert small is not None
    assert isinstance(small.job, JobSpec)
    assert small.job.layout == Layout(dp=2)


def test_a_model_that_does_not_fit_fewer_ranks_is_not_tried(four_nodes: Request) -> None:
    layout = Layout(tp=4, dp=2)
    assert smaller_request(replace(four_nodes, layout=layout), num_nodes=3) is None


def test_a_sequence_that_no_fewer_ranks_can_hold_is_not_tried(four_nodes: Request) -> None:
    assert isinstance(four_nodes.job, JobSpec)
    job = replace(
        four_nodes.job, step_planning=replace(four_nodes.job.step_planning, token_cap=32)
    )
    request = replace(four_nodes, job=job)
    assert smaller_request(request, num_nodes=4) is not None
    assert smaller_request(request, num_nodes=1) is None


def test_a_script_does_not_shrink(four_nodes: Request) -> None:
    script = ScriptSpec(name="s", argv=("x",), folder="/", num_ranks=8, num_nodes=4)
    request = replace(four_nodes, job=script, layout=None)
    assert smaller_request(request, num_nodes=3) is None
