import itertools
from collections.abc import Callable
from dataclasses import replace

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
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.planners.staged.staged_apart import apart_drafts
from trimtab.planners.staged.staged_costs import Serving, StagedCosts
from trimtab.planners.staged.staged_layouts import choose_layout, megatron_assignment
from trimtab.planners.staged.staged_program import StageOption, assign_nodes

LENGTHS = [4_000, 3_000, 2_000, *[500] * 40]
MODEL = ModelSpec(
    name="small", num_layers=12, hidden=1024, ffn_hidden=4096, num_heads=16, num_kv_heads=16,
    head_dim=64, vocab=1_000, max_seq_tokens=8192,
)  # fmt: skip


def _node(
    name: str, *, tflop_per_s: float, gbit_per_s: float, memory_gib: int = 40
) -> NodeSpec:
    return NodeSpec(
        name=name,
        count=2,
        gpu=GpuSpec(
            name="gpu", memory_bytes=memory_gib * 2**30, memory_bytes_per_s=2e12,
            peaks=(PeakRate(precision="bf16", flop_per_s=tflop_per_s * 1e12),),
        ),
        gpus_per_node=4,
        intra_node=Link(bytes_per_s=300e9, latency_s=3e-6),
        nics=(
            NicSpec(
                kind="infiniband", count=1, bytes_per_s=gbit_per_s / 8 * 1e9, latency_s=5e-6
            ),
        ),
        island=name,
    )  # fmt: skip


def _cluster(*nodes: NodeSpec, gb_per_s: float = 25.0) -> ClusterSpec:
    links = tuple(
        IslandLink(
            islands=(a.name, b.name), link=Link(bytes_per_s=gb_per_s * 1e9, latency_s=1e-4)
        )
        for a, b in itertools.combinations(nodes, 2)
    )
    return ClusterSpec(name="mixed", nodes=nodes, links=links)


FAST, SLOW = (
    _node("fast", tflop_per_s=900, gbit_per_s=400),
    _node("slow", tflop_per_s=300, gbit_per_s=25),
)


def _costs(cluster: ClusterSpec, layout: Layout | None = None) -> StagedCosts:
    return StagedCosts(MODEL, cluster, layout or Layout(pp=2), precision="bf16")


def _ticks() -> Callable[[], float]:
    return itertools.count(0.0, 1e-3).__next__


def test_all_to_all_is_priced_at_the_replicas_own_nics() -> None:
    costs = _costs(_cluster(FAST, replace(SLOW, gpu=FAST.gpu)))
    assert costs.token_s(0, 2, degree=4) == costs.token_s(1, 2, degree=4)  # inside a node
    over_nics = [
        costs.token_s(kind, 2, degree=8) - costs.layers[kind].linear_s for kind in (0, 1)
    ]
    assert over_nics[1] == pytest.approx(16 * over_nics[0])  # 400 against 25 Gbit/s


def test_degrees_divide_a_node_or_take_whole_ones() -> None:
    assert _costs(_cluster(FAST, SLOW)).degrees(0, 2) == (1, 2, 4, 8)


def test_a_stage_over_two_islands_pays_for_their_link() -> None:
    costs = _costs(_cluster(FAST, SLOW))
    here = Serving(stage=0, kind=0, num_nodes=1)
    there = Serving(stage=0, kind=1, num_nodes=1)
    alone = [costs.closing_s([one], (6, 6)) for one in (here, there)]
    both = costs.closing_s([here, there], (6, 6))
    narrow = _costs(_cluster(FAST, SLOW, gb_per_s=2.5)).closing_s([here, there], (6, 6))
    assert both > max(alone)
    assert narrow - max(alone) > 5 * (both - max(alone))


def test_layers_without_memory_are_refused() -> None:
    tight = _node("tight", tflop_per_s=300, gbit_per_s=100, memory_gib=1)
    costs = _costs(_cluster(tight, SLOW))
    with pytest.raises(InfeasibleError, match="before any micro-batch"):
        costs.token_cap(Serving(stage=0, kind=0, num_nodes=1), (11, 1))


def test_more_stages_than_nodes_are_refused() -> None:
    with pytest.raises(InputError, match="5 stages need as many nodes"):
        _costs(_cluster(FAST, SLOW), Layout(pp=5))


def test_nodes_that_only_hold_up_the_step_are_left_out() -> None:
    staged = choose_layout(_costs(_cluster(FAST, SLOW)), [LENGTHS])
    assert {replica.node for replica in staged.replicas} == {"fast"}


def test_the_faster_island_gets_more_layers() -> None:
    less_slow = _node("slow", tflop_per_s=600, gbit_per_s=400)
    batch = [2_000] * 300
    staged = choose_layout(_costs(_cluster(FAST, less_slow)), [batch])
    layers = {replica.node: staged.stage_layers[replica.stage] for replica in staged.replicas}
    assert sum(staged.stage_layers) == 12
    assert layers["fast"] > layers["slow"]


def test_the_jobs_own_layers_are_kept() -> None:
    costs = _costs(_cluster(FAST, SLOW), Layout(pp=2, stage_layers=(5, 7)))
    assert choose_layout(costs, [LENGTHS]).stage_layers == (5, 7)


def test_megatrons_order_cuts_the_nodes_evenly() -> None:
    assignment = megatron_assignment(_costs(_cluster(FAST, SLOW)))
    assert assignment.servings == (
        Serving(stage=0, kind=0, num_nodes=2),
        Serving(stage=1, kind=1, num_nodes=2),
    )


def test_nodes_are_assigned_as_well_as_can_be() -> None:
    # three stages, two kinds of 2 and 3 nodes; layers by stage and choice, all tried out
    choices = [(a, b) for a in range(3) for b in range(4) if a + b]
    layers = {
        (stage, choice): (3 + stage) * choice[0] + 2 * choice[1] + (choice == (1, 1))
        for stage in range(3)
        for choice in choices
    }
    best = max(
        sum(layers[stage, choice] for stage, choice in enumerate(chosen))
        for chosen in itertools.product(choices, repeat=3)
        if sum(c[0] for c in chosen) <= 2 and sum(c[1] for c in chosen) <= 3
    )
    options = [
        StageOption(stage=stage, num_nodes=choice, most_layers=most)
        for (stage, choice), most in layers.items()
    ]
    found, chosen = assign_nodes(options, num_nodes=(2, 3))
    assert found == best
    assert [option.stage for option in chosen] == [0, 1, 2]
    assert assign_nodes(options, num_nodes=(1, 1)) == (0, ())


def test_plans_made_apart_have_every_sequence_once() -> None:
    staged = choose_layout(_costs(_cluster(FAST, SLOW)), [LENGTHS])
    drafts = apart_drafts(LENGTHS, staged, clock=_ticks())
    assert drafts
    for draft in drafts:
        placed = sorted(index for members in draft.sequences for index in members)
        assert placed == list(range(len(LENGTHS)))
