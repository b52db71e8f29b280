from dataclasses import replace
from typing import Any

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec, Precision
from trimtab.core.errors import InputError
from trimtab.core.job import DataSource, DataSpec, JobSpec, TrainingSpec
from trimtab.core.model import ModelSpec, MoeSpec
from trimtab.core.plan import Layout
from trimtab.core.units import GIB
from trimtab.launch.limits import check_runnable


def job(precision: Precision = "fp32") -> JobSpec:
    node = NodeSpec(
        name="here",
        count=1,
        gpus_per_node=2,
        island="here",
        gpu=GpuSpec(name="cpu", memory_bytes=GIB, memory_bytes_per_s=1e9),
        intra_node=Link(bytes_per_s=1e9, latency_s=1e-6),
        nics=(NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=1e-6),),
    )
    model = ModelSpec(
        name="tiny",
        num_layers=1,
        hidden=32,
        ffn_hidden=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        vocab=259,
        max_seq_tokens=64,
    )
    return JobSpec(
        name="tiny",
        model=model,
        cluster=ClusterSpec(name="here", nodes=(node,)),
        num_ranks=2,
        data=DataSpec(sources=(DataSource(path="/documents"),), max_seq_tokens=64),
        training=TrainingSpec(num_steps=1, global_batch_seqs=1, precision=precision),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_data_parallel_jobs_run(precision: Precision) -> None:
    check_runnable(job(precision), layout=Layout(dp=2))


@pytest.mark.parametrize("name", ["tp", "pp", "cp", "ep", "vpp"])
def test_other_degrees_are_refused_with_what_to_set(name: str) -> None:
    changed: dict[str, Any] = {name: 2}
    with pytest.raises(InputError, match=rf"layout.{name}: .* got 2; set layout.{name}=1"):
        check_runnable(job(), layout=replace(Layout(), **changed))


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_other_zero_stages_are_refused(zero: int) -> None:
    with pytest.raises(InputError, match=rf"layout.zero: .* got {zero}"):
        check_runnable(job(), layout=Layout(dp=2, zero=zero))


def test_a_precision_the_worker_cannot_compute_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"training.precision: .*fp32 or bf16, got 'fp8'"):
        check_runnable(job("fp8"), layout=Layout(dp=2))


def test_a_mixture_of_experts_is_refused_before_any_rank_starts() -> None:
    experts = MoeSpec(num_experts=4, experts_per_token=1, expert_ffn_hidden=64)
    moe = replace(job(), model=replace(job().model, moe=experts))
    with pytest.raises(InputError, match=r"model.moe: .*dense models only"):
        check_runnable(moe, layout=Layout(dp=2))


def test_a_model_to_plan_with_is_refused_with_what_is_not_computed() -> None:
    latent = replace(job(), model=replace(job().model, planned_only="it has latent attention"))
    with pytest.raises(InputError, match=r"model: .*cannot train it, because it has latent"):
        check_runnable(latent, layout=Layout(dp=2))
