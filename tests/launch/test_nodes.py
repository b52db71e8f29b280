"""How many machines the ranks share."""

from dataclasses import replace

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.errors import InputError
from trimtab.core.job import DataSource, DataSpec, JobSpec, ScriptSpec, TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.launch.nodes import num_nodes


def job(*nodes: tuple[int, int], num_ranks: int, given: int | None = None) -> JobSpec:
    """A job on nodes given as (how many, GPUs of each)."""
    specs = tuple(
        NodeSpec(
            name=f"kind{index}",
            count=count,
            gpu=GpuSpec(name="H100", memory_bytes=2**36, memory_bytes_per_s=1e12),
            gpus_per_node=gpus,
            intra_node=Link(bytes_per_s=1e11, latency_s=1e-6),
            nics=(NicSpec(kind="roce", count=1, bytes_per_s=1e10, latency_s=1e-6),),
            island="one",
        )
        for index, (count, gpus) in enumerate(nodes)
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
        name="small",
        model=model,
        cluster=ClusterSpec(name="c", nodes=specs),
        num_ranks=num_ranks,
        num_nodes=given,
        data=DataSpec(sources=(DataSource(path="stdlib:"),), max_seq_tokens=128),
        training=TrainingSpec(num_steps=1, global_batch_seqs=8),
    )


@pytest.mark.parametrize(
    ("nodes", "num_ranks", "expected"),
    [
        (((4, 8),), 8, 1),
        (((4, 8),), 3, 1),
        (((4, 8),), 32, 4),
        (((4, 8),), 9, 3),
        (((4, 8),), 10, 2),
        (((1, 16),), 4, 1),
        (((1, 8), (4, 4)), 8, 1),
        (((1, 8), (4, 4)), 16, 4),
        (((1, 8), (4, 4)), 12, 3),
    ],
)
def test_as_few_nodes_as_share_the_ranks_evenly(
    nodes: tuple[tuple[int, int], ...], num_ranks: int, expected: int
) -> None:
    assert num_nodes(job(*nodes, num_ranks=num_ranks)) == expected


def test_the_jobs_own_number_stands() -> None:
    assert num_nodes(job((1, 8), num_ranks=8, given=4)) == 4


def test_ranks_that_no_number_of_nodes_shares_are_refused() -> None:
    with pytest.raises(InputError, match=r"^num_ranks: no number of nodes of the cluster 'c'"):
        num_nodes(job((4, 8), num_ranks=31))


def test_a_script_runs_on_one_node_unless_it_says_otherwise() -> None:
    script = ScriptSpec(name="s", argv=("true",), folder="/", num_ranks=4)
    assert num_nodes(script) == 1
    assert num_nodes(replace(script, num_nodes=2)) == 2
