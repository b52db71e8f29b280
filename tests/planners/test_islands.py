"""Placement over islands: against brute force, against rules, and what it refuses."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from trimtab.core.batch import BatchProfile
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
from trimtab.core.plan import JobPlan, Layout
from trimtab.core.rates import DEFAULT_STACK
from trimtab.planners.islands.island_layouts import IslandJob, island_job, quick_bound_s
from trimtab.planners.islands.island_plan import IslandPlan, place_layout, plan_islands
from trimtab.planners.islands.island_program import solve_placement
from trimtab.planners.islands.island_search import Placer
from trimtab.planners.islands.pools import Host, Network
from trimtab.planners.layouts import is_mixed, plan_job

ModelMaker = Callable[..., ModelSpec]
GIB = 2**30
PLAIN = {"tp": 1, "cp": 1}
"""Fewer layouts to look at."""


def node(
    name: str,
    *,
    count: int = 1,
    gpus: int = 4,
    peak: float = 312e12,
    nic: float = 25e9,
    memory: int = 80 * GIB,
    measured: float | None = None,
) -> NodeSpec:
    return NodeSpec(
        name=name,
        count=count,
        gpu=GpuSpec(
            name=f"gpu {peak:g}",
            memory_bytes=memory,
            memory_bytes_per_s=2e12,
            peaks=(PeakRate(precision="bf16", flop_per_s=peak),),
        ),
        gpus_per_node=gpus,
        intra_node=Link(bytes_per_s=300e9, latency_s=3e-6),
        nics=(NicSpec(kind="infiniband", count=1, bytes_per_s=nic, latency_s=5e-6),),
        island=name,
        measured_flop_per_s=measured,
    )


def joined(*nodes: NodeSpec, bytes_per_s: float = 3e9, latency_s: float = 5e-5) -> ClusterSpec:
    links = tuple(
        IslandLink(
            islands=(one.island, other.island),
            link=Link(bytes_per_s=bytes_per_s, latency_s=latency_s),
        )
        for one, other in itertools.combinations(nodes, 2)
    )
    return ClusterSpec(name="mixed", nodes=nodes, links=links)


def job(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    batch: int = 32,
    pinned: dict[str, int] | None = None,
    num_ranks: int | None = None,
) -> IslandJob:
    return island_job(
        model,
        cluster,
        num_ranks=num_ranks or cluster.num_gpus,
        batch=BatchProfile(lengths=(2048,) * batch),
        precision="bf16",
        stacks=dict.fromkeys(cluster.gpu_names, DEFAULT_STACK),
        pinned=pinned or {},
    )


def step_s(plan: IslandPlan) -> float:
    return plan.best.step.step_s


def every_step(islands: IslandJob, layout: Layout) -> list[float]:
    """The steps of all placements of whole stages in one pool each, and of all layers."""
    costs = islands.costs(layout)
    assert not isinstance(costs, str)
    room, pools = islands.room(layout), range(len(islands.network.pools))
    placer = Placer(costs, room, full_fraction=0.92)  # type: ignore[arg-type]  # the batch divides
    num_layers, steps = islands.job.model.num_layers, []
    for where in itertools.product(pools, repeat=layout.pp):
        if any(where.count(pool) * layout.dp > room[pool] for pool in pools):
            continue
        hosts = [Host(pools=(pool,), replicas=(layout.dp,)) for pool in where]
        for layers in itertools.product(range(1, num_layers), repeat=layout.pp):
            step = placer.fixed(layers, hosts) if sum(layers) == num_layers else None
            steps += [] if step is None else [step.step_s]
    return steps


@pytest.mark.parametrize("bytes_per_s", [0.5e9, 50e9])
@pytest.mark.parametrize("peaks", [(312e12, 312e12), (989e12, 312e12)])
def test_the_plan_of_a_layout_is_the_best_of_all(
    gpt: ModelMaker, peaks: tuple[float, float], bytes_per_s: float
) -> None:
    model = gpt(num_layers=8, hidden=2048, num_heads=16)
    cluster = joined(
        node("a", peak=peaks[0]),
        node("b", peak=peaks[1], nic=3e9, count=2),
        bytes_per_s=bytes_per_s,
    )
    layout = Layout(pp=3, dp=4, micro_batch_seqs=1)
    islands = job(model, cluster)
    plan = place_layout(islands, layout)
    best = min(every_step(islands, layout))
    assert step_s(plan) <= best * 1.0101  # as short, or steadier and within a hundredth
    assert plan.bound_s <= best * (1 + 1e-9)


def test_the_program_bounds_every_placement_tightly(gpt: ModelMaker) -> None:
    model = gpt(num_layers=8, hidden=2048, num_heads=16)
    islands = job(model, joined(node("a"), node("b", peak=150e12)))
    layout = Layout(pp=2, dp=4, micro_batch_seqs=1)
    costs, room = islands.costs(layout), islands.room(layout)
    solved = solve_placement(
        costs, room, [[7, 7]] * 2, whole=True, time_limit_s=10.0  # type: ignore[arg-type]
    )  # fmt: skip
    best = min(every_step(islands, layout))
    assert quick_bound_s(costs, room) <= solved.bound_s <= best  # type: ignore[arg-type]
    assert best <= 1.06 * solved.bound_s


def test_only_the_pipeline_crosses_a_slow_link(gpt: ModelMaker) -> None:
    model = gpt(num_layers=12, hidden=4096, num_heads=32)
    cluster = joined(node("a"), node("b"), bytes_per_s=0.3e9)
    slow = plan_islands(job(model, cluster, pinned=PLAIN))
    assert not any(host.is_spread for host in slow.best.step.hosts)


def test_replicas_are_spread_over_islands_where_the_link_is_fast(gpt: ModelMaker) -> None:
    model = gpt(num_layers=12, hidden=2048, num_heads=16)
    fast_nics = node("a", nic=400e9), node("b", nic=400e9)
    cluster = joined(*fast_nics, bytes_per_s=400e9, latency_s=1e-6)
    fast = plan_islands(job(model, cluster, batch=16, pinned=PLAIN))
    assert all(host.is_spread for host in fast.best.step.hosts)


def test_a_slow_island_is_left_out(gpt: ModelMaker) -> None:
    model = gpt(num_layers=12, hidden=2048, num_heads=16)
    cluster = joined(node("fast", count=2), node("slow", peak=5e12), bytes_per_s=0.1e9)
    plan = plan_islands(job(model, cluster, pinned=PLAIN))
    assert {pool for host in plan.best.step.hosts for pool in host.pools} == {0}


def test_new_gpus_get_more_layers_than_old_ones(gpt: ModelMaker) -> None:
    model = gpt(num_layers=24, hidden=4096, num_heads=32)
    cluster = joined(node("new", peak=989e12), node("old"), bytes_per_s=100e9)
    plan = place_layout(job(model, cluster), Layout(pp=2, dp=4))
    layers = {
        host.pools[0]: number
        for host, number in zip(plan.best.step.hosts, plan.best.step.stage_layers, strict=True)
    }
    assert layers[0] > 1.8 * layers[1]


def test_a_measured_speed_wins_over_the_datasheet(gpt: ModelMaker) -> None:
    model = gpt(num_layers=24, hidden=4096, num_heads=32)
    cluster = joined(node("a", measured=100e12), node("b", measured=200e12))
    plan = place_layout(job(model, cluster), Layout(pp=2, dp=4))
    by_pool = {
        host.pools[0]: number
        for host, number in zip(plan.best.step.hosts, plan.best.step.stage_layers, strict=True)
    }
    assert by_pool[1] > 1.7 * by_pool[0]


def test_small_memory_limits_the_layers_of_a_stage(gpt: ModelMaker) -> None:
    model = gpt(num_layers=24, hidden=4096, num_heads=32)
    roomy = joined(node("a"), node("b"))
    small = joined(node("a"), node("b", memory=24 * GIB))
    layout = Layout(pp=2, dp=4)
    even = place_layout(job(model, roomy), layout).best.step
    uneven = place_layout(job(model, small), layout).best.step

    def layers(step: object) -> dict[int, int]:
        pairs = zip(step.hosts, step.stage_layers, strict=True)  # type: ignore[attr-defined]
        return {host.pools[0]: number for host, number in pairs}

    assert layers(uneven)[1] < layers(even)[1]


def test_ours_is_never_worse_than_the_rules(gpt: ModelMaker) -> None:
    model = gpt(num_layers=16, hidden=2048, num_heads=16)
    for bytes_per_s in (0.2e9, 20e9):
        cluster = joined(
            node("a", peak=989e12), node("b", count=2, nic=2e9), bytes_per_s=bytes_per_s
        )
        plan = plan_islands(job(model, cluster, pinned=PLAIN))
        for rule in (plan.megatron, plan.holmes):
            assert rule is None or step_s(plan) <= rule.step.step_s
        assert plan.bound_s <= step_s(plan)


def planned(model: ModelSpec, cluster: ClusterSpec, **pins: int) -> JobPlan:
    return plan_job(
        model,
        cluster,
        num_ranks=cluster.num_gpus,
        batch=BatchProfile(lengths=(2048,) * 32),
        precision="bf16",
        fixed=pins,
        stacks=dict.fromkeys(cluster.gpu_names, DEFAULT_STACK),
    )


def test_a_job_plan_says_where_every_rank_is(gpt: ModelMaker) -> None:
    model = gpt(num_layers=12, hidden=2048, num_heads=16)
    plan = planned(model, joined(node("a"), node("b")), pp=2, dp=4)
    assert plan.islands is not None
    places = set(zip(plan.placement.rank_nodes, plan.placement.rank_gpus, strict=True))
    assert places == {(name, gpu) for name in ("a-0", "b-0") for gpu in range(4)}
    for stage in plan.islands.stages:
        first = stage.stage * 4
        nodes = plan.placement.rank_nodes[first : first + 4]
        assert set(nodes) == {f"{stage.islands[0]}-0"}
    assert sum(plan.placement.stage_layers) == 12
    assert sum(part.seconds for part in plan.forecast.parts) == pytest.approx(
        plan.forecast.step_s
    )
    transports = {each.group.split(" ")[0]: each.transport for each in plan.communicators}
    assert transports == {"dp": "IB", "pp": "Socket"}


def test_one_kind_of_node_is_planned_as_ever(gpt: ModelMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=16)
    plain = ClusterSpec(name="plain", nodes=(node("a", count=2),))
    twice = ClusterSpec(
        name="plain",
        nodes=(node("a"), dataclasses.replace(node("b"), island="a")),
    )
    assert not is_mixed(plain)
    assert not is_mixed(twice)
    assert planned(model, plain).islands is None


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"pp": 9}, "layout.pp: 9 stages are more than the model's 8 layers"),
        ({"pp": 8, "tp": 2}, "need more than the 8 GPUs of 'mixed'; use fewer stages"),
        ({"tp": 3}, "layout.tp: 3 does not divide num_heads = 16"),
        ({"tp": 8}, "layout.tp: 8 ranks do not fill a node of any island evenly"),
        ({"vpp": 2}, "only the schedule 1f1b with vpp 1"),
        ({"zero": 3}, "layout.zero: over the islands of 'mixed' expected 0 or 1, got 3"),
        ({"dp": 5, "pp": 1}, "layout: no layout of up to num_ranks = 8"),
    ],
)
def test_degrees_that_cannot_be_placed_are_refused(
    gpt: ModelMaker, pins: dict[str, int], message: str
) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=16)
    with pytest.raises(InputError) as caught:
        planned(model, joined(node("a"), node("b")), **pins)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_too_large_for_all_stages_says_what_is_short(gpt: ModelMaker) -> None:
    model = gpt(num_layers=96, hidden=12_288, num_heads=96)
    with pytest.raises(InfeasibleError, match=r"memory: gpt needs .* short by .*; use"):
        planned(model, joined(node("a", memory=8 * GIB), node("b", memory=8 * GIB)))


def test_a_degree_that_no_island_has_room_for_is_refused(gpt: ModelMaker) -> None:
    model = gpt(num_layers=8, hidden=1024, num_heads=16)
    cluster = joined(node("a", gpus=4), node("b", gpus=3))
    with pytest.raises(InputError, match="needs room for pp x dp = 3 groups of tp x cp = 2"):
        place_layout(job(model, cluster, num_ranks=6, batch=30), Layout(tp=2, pp=1, dp=3))


def test_replicas_stay_in_nodes_or_fill_them() -> None:
    network = Network(ClusterSpec(name="c", nodes=(node("a", count=3, gpus=8),)))
    assert network.capacity(0, tp=2, ranks=2) == 12
    assert network.capacity(0, tp=2, ranks=6) == 3
    assert network.capacity(0, tp=8, ranks=16) == 1
    assert network.capacity(0, tp=3, ranks=3) == 0
