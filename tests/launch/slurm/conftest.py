from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.job import DataSource, DataSpec, JobSpec, ScriptSpec, TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.slurm.scheduler import SlurmScheduler


@pytest.fixture
def scheduler() -> SlurmScheduler:
    python = ("/opt/venv/bin/python", "-P", "-m")
    return SlurmScheduler(
        rank_argv=(*python, "trimtab.orchestrator.rank"),
        keeper_argv=(*python, "trimtab.orchestrator.keeper"),
    )


@pytest.fixture
def gpu_job() -> JobSpec:
    """Eight ranks, one on each H100 of a node of eight."""
    node = NodeSpec(
        name="dgx",
        count=4,
        gpu=GpuSpec(name="H100", memory_bytes=80 * 2**30, memory_bytes_per_s=3.3e12),
        gpus_per_node=8,
        intra_node=Link(bytes_per_s=4.5e11, latency_s=1e-6),
        nics=(NicSpec(kind="infiniband", count=8, bytes_per_s=5e10, latency_s=1e-6),),
        island="pod",
    )
    model = ModelSpec(
        name="tiny",
        num_layers=2,
        hidden=32,
        ffn_hidden=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        vocab=259,
        max_seq_tokens=128,
    )
    return JobSpec(
        name="pretrain",
        model=model,
        cluster=ClusterSpec(name="pod", nodes=(node,)),
        num_ranks=8,
        data=DataSpec(sources=(DataSource(path="stdlib:"),), max_seq_tokens=128),
        training=TrainingSpec(num_steps=6, global_batch_seqs=8, precision="bf16"),
    )


@pytest.fixture
def cpu_job(gpu_job: JobSpec) -> JobSpec:
    """Four ranks on the cores of one machine."""
    node = replace(
        gpu_job.cluster.nodes[0],
        name="laptop",
        count=1,
        gpu=replace(gpu_job.cluster.nodes[0].gpu, name="CPU process"),
        gpus_per_node=16,
    )
    cluster = ClusterSpec(name="laptop", nodes=(node,))
    return replace(gpu_job, name="demo", cluster=cluster, num_ranks=4)


@pytest.fixture
def script_job() -> Callable[..., ScriptSpec]:
    """`script_job(name=..., partition=...)`: four ranks of a script on two nodes."""

    def make(*, name: str = "mine", num_ranks: int = 4, **options: object) -> ScriptSpec:
        return ScriptSpec(
            name=name,
            argv=("python", "my train.py", "--lr", "$(touch bad)"),
            folder="/home/kim/code",
            num_ranks=num_ranks,
            num_nodes=2,
            slurm=SlurmOptions(**options),  # type: ignore[arg-type]  # as each test needs
        )

    return make


@pytest.fixture
def golden() -> Callable[[str], str]:
    """`golden("demo")`: the script that is expected, byte for byte."""
    return lambda name: (Path(__file__).parent / "golden" / f"{name}.sbatch").read_text()
