"""What core values refuse, and what they derive."""

from collections.abc import Callable
from typing import Any

import pytest

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec, GpuSpec, IslandLink, Link, NicSpec, NodeSpec
from trimtab.core.errors import InfeasibleError, InputError, unknown_name_message
from trimtab.core.job import (
    CheckpointSpec,
    DataSource,
    DataSpec,
    JobHandle,
    JobSpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec, Positions
from trimtab.core.plan import Layout, SequenceGroup, StageMemory, StagePath, StepPlan, Wave
from trimtab.core.profile import DegreeBandwidth, StepProfile

GPU = GpuSpec(name="gpu", memory_bytes=2**30, memory_bytes_per_s=1e12)
LINK = Link(bytes_per_s=1e9, latency_s=0.0)
SLOW = NicSpec(kind="ethernet", count=1, bytes_per_s=1e9, latency_s=1e-5)
FAST = NicSpec(kind="infiniband", count=4, bytes_per_s=1e10, latency_s=1e-6)


def _node(name: str, **changes: Any) -> NodeSpec:
    return NodeSpec(
        **{
            "name": name,
            "count": 2,
            "gpu": GPU,
            "gpus_per_node": 8,
            "intra_node": LINK,
            "nics": (SLOW, FAST),
            "island": name,
            **changes,
        }
    )


def _model(*, positions: Positions) -> ModelSpec:
    return ModelSpec(
        name="m",
        num_layers=1,
        hidden=8,
        ffn_hidden=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab=8,
        max_seq_tokens=1_024,
        positions=positions,
    )


def _job(
    *,
    model: ModelSpec | None = None,
    max_seq_tokens: int = 1_024,
    held_out_fraction: float = 0.1,
    evaluate_every_steps: int = 0,
) -> JobSpec:
    return JobSpec(
        name="job",
        model=model or _model(positions="rope"),
        cluster=ClusterSpec(name="c", nodes=(_node("a"),)),
        num_ranks=1,
        data=DataSpec(
            sources=(DataSource(path="x"),),
            max_seq_tokens=max_seq_tokens,
            held_out_fraction=held_out_fraction,
        ),
        training=TrainingSpec(
            num_steps=1, global_batch_seqs=1, evaluate_every_steps=evaluate_every_steps
        ),
    )


def test_a_cluster_counts_gpus_and_islands() -> None:
    cluster = ClusterSpec(name="c", nodes=(_node("b"), _node("a", island="b", count=1)))
    assert (cluster.num_gpus, cluster.islands) == (24, ("b",))
    assert cluster.gpu_names == ("gpu",)


def test_a_gpu_gets_its_share_of_the_fastest_nics() -> None:
    assert _node("a").nic_link_per_gpu == Link(bytes_per_s=5e9, latency_s=1e-6)


def _step_plan(step_s: float, lower_bound_s: float) -> StepPlan:
    groups = (
        SequenceGroup(ranks=(0, 1), sequences=(0,)),
        SequenceGroup(ranks=(2,), sequences=(1,)),
    )
    return StepPlan(
        waves=(Wave(groups=groups),),
        paths=(StagePath(stages=(0,)),),
        step_s=step_s,
        lower_bound_s=lower_bound_s,
        method="heuristic",
        solve_s=0.0,
        reason="",
    )


def test_the_gap_is_relative_to_the_bound() -> None:
    plan = _step_plan(1.1, 1.0)
    assert plan.gap_fraction == pytest.approx(0.1)
    assert plan.degrees == (1, 2)


@pytest.mark.parametrize(("used", "verdict"), [(92, "fits"), (93, "tight"), (101, "oom")])
def test_memory_is_tight_above_92_percent(used: int, verdict: str) -> None:
    stage = StageMemory(
        stage=0,
        weights_bytes=used,
        gradients_bytes=0,
        optimizer_bytes=0,
        activations_bytes=0,
        workspace_bytes=0,
        capacity_bytes=100,
    )
    assert stage.verdict == verdict


def test_a_profile_knows_degree_one_without_a_bandwidth() -> None:
    profile = StepProfile(
        name="p",
        num_gpus=8,
        gpus_per_node=8,
        quadratic_s=0.0,
        linear_s=1e-6,
        fixed_s=0.0,
        alltoall_bytes_per_token=1.0,
        bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=5.0),),
        token_cap=10,
    )
    assert profile.degrees == (1, 2)
    assert profile.bytes_per_s(1) == float("inf")
    with pytest.raises(InfeasibleError, match=r"degree 4 is not in the profile 'p'"):
        profile.bytes_per_s(4)


def test_a_handle_reads_back() -> None:
    handle = JobHandle(scheduler="local", job_id="20261120-161500-demo")
    assert JobHandle.parse(str(handle)) == handle


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BatchProfile(lengths=()), "lengths: expected at least one entry"),
        (lambda: BatchProfile(lengths=(3, 0)), "lengths[1]: expected a whole number >= 1"),
        (lambda: Layout(zero=4), "layout.zero: expected 0 to 3, got 4"),
        (
            lambda: JobHandle.parse("demo"),
            "expected the form local://ID, slurm://ID or ray://ID, got 'demo'",
        ),
        (lambda: JobHandle.parse("slurn://1"), "unknown value 'slurn'"),
        (lambda: JobHandle.parse("local://../x"), "is not a job id"),
        (
            lambda: CheckpointSpec(address="/shared/ckpt"),
            "checkpoint.address: expected an fsspec address such as s3://bucket/folder",
        ),
        (
            lambda: CheckpointSpec(address="file://shared/ckpt"),
            "checkpoint.address: expected an absolute path after file://",
        ),
        (lambda: DataSource(path="x", weight=-1.0), "weight: expected a finite number > 0"),
        (lambda: DataSource(path="x", format="json"), "did you mean 'jsonl'?"),  # type: ignore[arg-type]
        (lambda: TrainingSpec(num_steps=0, global_batch_seqs=1), "training.num_steps"),
        (
            lambda: TrainingSpec(num_steps=1, global_batch_seqs=1, beta1=1.0),
            "training.beta1: expected a number >= 0 and < 1, got 1.0",
        ),
        (
            lambda: _job(model=_model(positions="learned"), max_seq_tokens=2_048),
            "the model 'm' has learned positions for 1024 tokens, got 2048",
        ),
        (
            lambda: _job(evaluate_every_steps=5, held_out_fraction=0.0),
            "data.held_out_fraction: evaluation needs held-out documents, got 0",
        ),
        (lambda: Wave(groups=(SequenceGroup(ranks=(0,), sequences=(0,)),) * 2), "disjoint"),
        (lambda: Link(bytes_per_s=float("nan"), latency_s=0.0), "link.gb_per_s"),
        (lambda: IslandLink(islands=("a", "a"), link=LINK), "expected two different islands"),
        (
            lambda: ClusterSpec(name="c", nodes=(_node("a"), _node("a"))),
            "the name 'a' is used twice",
        ),
        (
            lambda: ClusterSpec(
                name="c",
                nodes=(_node("left"), _node("right")),
                links=(IslandLink(islands=("left", "rigth"), link=LINK),),
            ),
            "did you mean 'right'?",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_clear_line(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"^checkpoint\.address: .*password") as caught:
        CheckpointSpec(address="ftp://me:hunter2@host/folder")
    assert "hunter2" not in str(caught.value)
    assert CheckpointSpec(address="sftp://me@host:22/a:b@c").keep == 2


def test_rotary_positions_have_no_end() -> None:
    assert (
        _job(model=_model(positions="rope"), max_seq_tokens=2_048).data.max_seq_tokens == 2_048
    )


def test_an_unknown_name_far_from_all_lists_them() -> None:
    message = unknown_name_message("key", "zzz", ["b", "a"])
    assert message == "unknown key 'zzz'; expected one of a, b"
