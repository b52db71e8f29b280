"""A plan over several islands as a `JobPlan`: forecast by parts, and where every rank is."""

import dataclasses
import itertools
from collections.abc import Sequence

from trimtab.core.communicators import (
    CommunicatorSettings,
    RankNetwork,
    node_network,
    settings_of,
)
from trimtab.core.plan import (
    Forecast,
    ForecastLayout,
    IslandBaseline,
    IslandsPlan,
    JobPlan,
    Layout,
    Placement,
    StageIslands,
    StageMemory,
    TimePart,
)
from trimtab.core.units import duration_text
from trimtab.planners.islands.island_layouts import IslandJob
from trimtab.planners.islands.island_plan import IslandPlan, Placed
from trimtab.planners.islands.uneven_pipeline import Boundary, stage_ends
from trimtab.planners.memory import stage_memories
from trimtab.planners.search import quantities

_NUM_ALTERNATIVES = 5
_AT_ONCE = Boundary(
    forward_s=0.0, forward_latency_s=0.0, backward_s=0.0, backward_latency_s=0.0
)


def job_plan(islands: IslandJob, plan: IslandPlan) -> JobPlan:
    """The plan as everyone else reads it."""
    best = plan.best
    layout = placed_layout(best)
    place = rank_placement(islands, best)
    stages = tuple(_stages(islands, best))
    forecast = placed_forecast(islands, best)
    return JobPlan(
        layout=layout,
        placement=place,
        forecast=forecast,
        alternatives=tuple(
            ForecastLayout(
                layout=placed_layout(other), forecast=placed_forecast(islands, other)
            )
            for other in plan.others[:_NUM_ALTERNATIVES]
        ),
        rejected=(),
        reason=_reason(islands, plan),
        islands=IslandsPlan(
            stages=stages,
            lower_bound_s=plan.bound_s,
            num_layouts=plan.num_layouts,
            baselines=tuple(_baselines(islands, plan)),
        ),
        communicators=tuple(group_settings(layout, rank_networks(islands, place))),
    )


def placed_layout(placed: Placed) -> Layout:
    """The layout with the layers of its stages."""
    return dataclasses.replace(placed.layout, stage_layers=placed.step.stage_layers)


def placed_forecast(islands: IslandJob, placed: Placed) -> Forecast:
    """The forecast of a placed layout; its parts are those of the stage that ends the step."""
    step, job = placed.step, islands.job
    layout = placed_layout(placed)
    used = sorted({pool for host in step.hosts for pool in host.pools})
    stacks = [islands.stacks[pool] for pool in used]
    slowest = max(stacks, key=lambda stack: stack.high_log)
    low_s, high_s = slowest.interval(step.step_s)
    parts = _parts(placed)
    bubble_s = sum(part.seconds for part in parts if part.name == "pipeline bubble")
    outside = (
        stack.outside(quantities(job.model, layout, longest=job.batch.longest))
        for stack in stacks
    )
    return Forecast(
        step_s=step.step_s,
        parts=parts,
        num_tokens=job.batch.num_tokens,
        model_flops=job.model_flops,
        memory=_memory(islands, placed),
        precision=job.precision,
        peak_flop_per_s=_mean_peak(islands, placed),
        num_ranks=layout.num_ranks,
        bubble_fraction=bubble_s / step.step_s,
        evidence=" and ".join(dict.fromkeys(stack.name for stack in stacks)),
        recomputed_flops=0.0
        if layout.recompute != "full"
        else (job.model_flops - 6 * job.model.vocab * job.model.hidden * job.batch.num_tokens)
        / 3,
        low_s=low_s,
        high_s=high_s,
        outside=next((reason for reason in outside if reason is not None), None),
    )


def _parts(placed: Placed) -> tuple[TimePart, ...]:
    costs, step = placed.costs, placed.step
    stage, micro = step.ending_stage, costs.num_micro_batches
    forward, backward = costs.stage_s(step.stage_layers, step.hosts)
    pools = [costs.pools[pool] for pool in step.hosts[stage].pools]
    slowest = max(pools, key=lambda pool: pool.layer_s)
    parts = {
        name: micro * step.stage_layers[stage] * seconds
        for name, seconds in slowest.parts.items()
    }
    busy_s = micro * (forward[stage] + backward[stage])
    parts["output matrix"] = max(0.0, busy_s - sum(parts.values()))
    unsent = stage_ends(
        forward,
        backward,
        [_AT_ONCE] * (len(forward) - 1),
        num_micro_batches=micro,
    )[stage]
    parts["pipeline bubble"] = max(0.0, unsent - busy_s)
    parts["pp communication"] = max(0.0, step.pipeline_s - unsent)
    parts["dp communication"] = step.exchange_s
    parts["optimizer"] = step.optimizer_s
    parts["every step"] = max(stack.rates.step_s for stack in costs.stacks)
    parts["waiting for the slowest"] = max(0.0, step.step_s - sum(parts.values()))
    return tuple(TimePart(name=name, seconds=seconds) for name, seconds in parts.items())


def _mean_peak(islands: IslandJob, placed: Placed) -> float | None:
    """Of the GPUs in use, on average."""
    ranks = placed.layout.tp * placed.layout.cp
    total = 0.0
    for host in placed.step.hosts:
        for pool, count in zip(host.pools, host.replicas, strict=True):
            peak = islands.network.pools[pool].gpu.peak_flop_per_s(islands.job.precision)
            if peak is None:
                return None
            total += count * ranks * peak
    return total / placed.layout.num_ranks


def _memory(islands: IslandJob, placed: Placed) -> tuple[StageMemory, ...]:
    costs, layout = placed.costs, placed_layout(placed)
    found: list[StageMemory] = []
    for stage, host in enumerate(placed.step.hosts):
        least = min(host.pools, key=lambda pool: islands.network.pools[pool].gpu.memory_bytes)
        uniform = islands.job.batch.is_uniform
        found += stage_memories(
            islands.job.model,
            layout,
            precision=islands.job.precision,
            tokens=costs.tokens,
            squares=costs.work.squares / costs.num_micro_batches if uniform else 0.0,
            num_micro_batches=costs.num_micro_batches,
            capacity_bytes=islands.network.pools[least].gpu.memory_bytes,
            stages=[stage],
            rates=islands.stacks[least].memory,
        )
    return tuple(found)


def rank_placement(islands: IslandJob, placed: Placed) -> Placement:
    """Node and GPU of every rank: replicas take the GPUs of their pools in turn."""
    layout, network = placed.layout, islands.network
    ranks = layout.tp * layout.cp
    taken = [0] * len(network.pools)
    nodes: list[str] = []
    gpus: list[int] = []
    for host in placed.step.hosts:
        for pool in host.replica_pools:
            node = network.pools[pool]
            per_node = max(1, node.gpus_per_node // ranks)
            whole_nodes = -(-ranks // node.gpus_per_node)
            first_node, slot = divmod(taken[pool], per_node)
            for rank in range(ranks):
                ahead, gpu = divmod(slot * ranks + rank, node.gpus_per_node)
                nodes.append(f"{node.name}-{first_node * whole_nodes + ahead}")
                gpus.append(gpu)
            taken[pool] += 1
    return Placement(
        rank_nodes=tuple(nodes),
        stage_layers=placed.step.stage_layers,
        rank_gpus=tuple(gpus),
    )


def rank_networks(islands: IslandJob, place: Placement) -> tuple[RankNetwork, ...]:
    """The network of every run of ranks on one kind of node."""
    kinds = {
        f"{node.name}-{index}": node
        for node in islands.network.pools
        for index in range(node.count)
    }
    networks = []
    first = 0
    for node, run in itertools.groupby(kinds[name] for name in place.rank_nodes):
        count = len(list(run))
        networks.append(node_network(node, first_rank=first, num_ranks=count))
        first += count
    return tuple(networks)


def group_settings(
    layout: Layout, networks: Sequence[RankNetwork]
) -> list[CommunicatorSettings]:
    """Of every group with more than one rank; the tp, cp and dp groups of a stage are alike."""
    tp, cp, dp, pp = layout.tp, layout.cp, layout.dp, layout.pp
    stage_ranks = tp * cp * dp
    found = []
    for stage in range(pp):
        first = stage * stage_ranks
        for name, size, stride in (("tp", tp, 1), ("cp", cp, tp)):
            for replica in range(dp if size > 1 else 0):
                start = first + replica * tp * cp
                ranks = tuple(start + index * stride for index in range(size))
                group = f"{name} of replica {replica}, stage {stage}"
                found.append(settings_of(ranks, networks, group=group))
        if dp * cp > 1:
            ranks = tuple(range(first, first + stage_ranks, tp))
            found.append(settings_of(ranks, networks, group=f"dp of stage {stage}"))
    for replica in range(dp if pp > 1 else 0):
        start = replica * tp * cp
        ranks = tuple(start + stage * stage_ranks for stage in range(pp))
        found.append(settings_of(ranks, networks, group=f"pp of replica {replica}"))
    return found


def _stages(islands: IslandJob, placed: Placed) -> list[StageIslands]:
    step, layout = placed.step, placed.layout
    forward, backward = placed.costs.stage_s(step.stage_layers, step.hosts)
    pools = islands.network.pools
    return [
        StageIslands(
            stage=stage,
            num_layers=step.stage_layers[stage],
            islands=tuple(dict.fromkeys(pools[pool].island for pool in host.pools)),
            num_ranks=layout.num_ranks // layout.pp,
            micro_batch_s=forward[stage] + backward[stage],
        )
        for stage, host in enumerate(step.hosts)
    ]


def _baselines(islands: IslandJob, plan: IslandPlan) -> list[IslandBaseline]:
    rules = {"Megatron's order, even stages": plan.megatron, "Holmes's rule": plan.holmes}
    return [
        IslandBaseline(
            name=name,
            layout=placed_layout(placed),
            step_s=placed.step.step_s,
            is_tight=any(
                memory.total_bytes > plan.full_fraction * memory.capacity_bytes
                for memory in _memory(islands, placed)
            ),
        )
        for name, placed in rules.items()
        if placed is not None
    ]


def _reason(islands: IslandJob, plan: IslandPlan) -> str:
    """What was chosen, how good it can be said to be, and what was left out."""
    step = plan.best.step
    text = (
        f"shortest forecast step of {plan.num_layouts} layouts, "
        f"{duration_text(step.step_s)}, at most {step.step_s / plan.bound_s - 1:.1%} above the "
        f"best possible"
    )
    spread = any(host.is_spread for host in step.hosts)
    crossing = any(near != far for near, far in itertools.pairwise(step.hosts))
    if spread:
        text += "; gradients are exchanged across islands"
    elif crossing:
        text += "; only the pipeline crosses islands"
    used = {pool for host in step.hosts for pool in host.pools}
    left = [node.name for pool, node in enumerate(islands.network.pools) if pool not in used]
    if left:
        text += f"; {', '.join(left)} left out, with which it would be slower"
    num_idle = islands.job.used.num_ranks - plan.best.layout.num_ranks
    if num_idle and not left:
        text += f"; {num_idle} GPUs stay idle"
    if plan.full_fraction == 1.0:
        text += "; memory is tight"
    return text
