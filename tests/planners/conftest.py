"""Inputs that several planner tests share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trimtab.core.cluster import (
    ClusterSpec,
    GpuSpec,
    IslandLink,
    Link,
    NicSpec,
    NodeSpec,
    PeakRate,
)
from trimtab.core.model import ModelSpec
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.staged import Channel, DegreeCost, Route, StagedLayout, StageReplica
from trimtab.planners.calibration import profile_from_document

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def flexsp_7b() -> StepProfile:
    """GPT 7B on 64 A100, as FlexSP published it."""
    text = (DATA / "profiles" / "flexsp_7b_a100.json").read_text()
    return profile_from_document(json.loads(text))


@pytest.fixture(scope="session")
def real_batch() -> Callable[[str, int], list[int]]:
    """Batch `number` of 512 lengths of a data set, prepared as in FlexSP's experiments.

    Lengths are padded up to a multiple of 128; those over 191,872 tokens are dropped.
    """

    def load(dataset: str, number: int) -> list[int]:
        lines = (DATA / "seqlen" / f"{dataset}.txt").read_text().split()
        lengths = [-(-int(line) // 128) * 128 for line in lines if int(line) <= 191_872]
        return lengths[512 * number : 512 * (number + 1)]

    return load


@pytest.fixture(scope="session")
def small_profile() -> StepProfile:
    """Round numbers: 100 tokens a rank, degrees 1, 2 and 4."""
    return StepProfile(
        name="round",
        num_gpus=4,
        gpus_per_node=4,
        quadratic_s=0.01,
        linear_s=0.1,
        fixed_s=5.0,
        alltoall_bytes_per_token=1.0,
        bandwidths=(
            DegreeBandwidth(degree=2, bytes_per_s=20.0),
            DegreeBandwidth(degree=4, bytes_per_s=10.0),
        ),
        token_cap=100,
        step_fixed_s=2.0,
    )


@pytest.fixture(scope="session")
def gpt3() -> ModelSpec:
    """GPT-3 175B, arXiv:2005.14165, table 2.1."""
    return _gpt(num_layers=96, hidden=12_288, num_heads=96)


@pytest.fixture(scope="session")
def gpt() -> Callable[..., ModelSpec]:
    """Makes GPT models: `gpt(num_layers=..., hidden=..., num_heads=...)`."""
    return _gpt


@pytest.fixture(scope="session")
def a100s() -> Callable[..., ClusterSpec]:
    """Makes clusters of nodes of 8 A100-80GB: `a100s(num_nodes=..., peak=..., ...)`."""
    return _a100s


def _gpt(*, num_layers: int, hidden: int, num_heads: int, seq: int = 2048) -> ModelSpec:
    return ModelSpec(
        name="gpt",
        num_layers=num_layers,
        hidden=hidden,
        ffn_hidden=4 * hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden // num_heads,
        vocab=51_200,
        max_seq_tokens=seq,
        positions="learned",
        tied_embeddings=True,
        biases=True,
    )


def _a100s(
    *, num_nodes: int = 1, memory_bytes: int = 80 * 2**30, peak: float | None = 312e12
) -> ClusterSpec:
    nodes = _node("a", count=num_nodes, memory_bytes=memory_bytes, peak=peak)
    return ClusterSpec(name="a100", nodes=(nodes,))


@pytest.fixture(scope="session")
def two_islands() -> ClusterSpec:
    """Two islands of two nodes each, joined at 25 GB/s."""
    return ClusterSpec(
        name="two islands",
        nodes=(_node("a", count=2), _node("b", count=2, island="b")),
        links=(IslandLink(islands=("a", "b"), link=Link(bytes_per_s=25e9, latency_s=5e-5)),),
    )


def _node(
    name: str,
    *,
    count: int,
    island: str = "a",
    memory_bytes: int = 80 * 2**30,
    peak: float | None = 312e12,
) -> NodeSpec:
    peaks = () if peak is None else (PeakRate(precision="bf16", flop_per_s=peak),)
    return NodeSpec(
        name=name,
        count=count,
        gpu=GpuSpec(
            name="A100", memory_bytes=memory_bytes, memory_bytes_per_s=2.0e12, peaks=peaks
        ),
        gpus_per_node=8,
        intra_node=Link(bytes_per_s=300e9, latency_s=3e-6),
        nics=(NicSpec(kind="infiniband", count=8, bytes_per_s=25e9, latency_s=5e-6),),
        island=island,
    )


@pytest.fixture(scope="session")
def staged_case() -> Callable[..., StagedLayout]:
    """A small staged layout in round numbers, all of it to be varied.

    Replicas are (stage, ranks, speed): a token takes 1 / speed rank-seconds, and twice a
    hundredth of its square. A rank holds 100 tokens; messages of a byte a token.
    """

    def build(
        replicas: Sequence[tuple[int, int, float]] = ((0, 2, 1.0), (1, 2, 1.0)),
        *,
        token_cap: int = 100,
        fixed_s: float = 3.0,
        bytes_per_s: float = 1000.0,
        closing_s: float = 0.0,
        skip_fractions: tuple[float, ...] = (),
        skip_tolerance: float = 0.01,
    ) -> StagedLayout:
        num_stages = 1 + max(stage for stage, _, _ in replicas)
        pairs = [
            (u, v)
            for u, (stage, _, _) in enumerate(replicas)
            for v, (other, _, _) in enumerate(replicas)
            if stage != other and (abs(stage - other) == 1 or skip_fractions)
        ]
        return StagedLayout(
            stage_layers=(4,) * num_stages,
            replicas=tuple(
                StageReplica(
                    name=f"r{v}", stage=stage, node=f"n{v}", num_nodes=1, num_ranks=ranks,
                    quadratic_s=0.02 / speed,
                    degree_costs=tuple(
                        DegreeCost(degree=d, token_s=(1 + 0.1 * (d > 1)) / speed)
                        for d in (1, 2, 4)
                        if d <= ranks
                    ),
                    fixed_s=fixed_s, token_cap=token_cap,
                )
                for v, (stage, ranks, speed) in enumerate(replicas)
            ),
            channels=tuple(
                Channel(name=f"{u} -> {v}", bytes_per_s=bytes_per_s) for u, v in pairs
            ),
            routes=tuple(
                Route(
                    source=u, target=v, channel=at, latency_s=0.5, rank_bytes_per_s=bytes_per_s
                )
                for at, (u, v) in enumerate(pairs)
            ),
            token_bytes=1.0,
            closing_s=(closing_s,) * num_stages,
            forward_fraction=1 / 3,
            skip_fractions=skip_fractions,
            skip_tolerance=skip_tolerance,
        )  # fmt: skip

    return build
