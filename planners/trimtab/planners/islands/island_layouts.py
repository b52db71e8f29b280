"""Which layouts a job has on several islands, and a quick bound on the step of each."""

import dataclasses
import itertools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec, Precision
from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, Offload
from trimtab.core.rates import StackRates
from trimtab.planners.costs import known_peak
from trimtab.planners.islands.island_costs import LayoutCosts
from trimtab.planners.islands.pools import Host, Network
from trimtab.planners.shapes import BatchSums, Job, layout_problem, micro_batches
from trimtab.planners.workloads import Miss, step_work

_SHORTEST_SHARD = 1024
"""cp is not tried where it leaves fewer tokens of a sequence on a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandJob:
    """What a layout over several pools is sought for."""

    job: Job
    """Its machine is the pool with the least memory, `used.num_ranks` the most ranks to use."""
    network: Network
    stacks: tuple[StackRates, ...]
    """Of every pool."""

    def costs(self, layout: Layout) -> LayoutCosts | Miss:
        """The costs of a layout, or why the batch does not admit it."""
        job = dataclasses.replace(
            self.job,
            used=dataclasses.replace(self.job.used, num_ranks=layout.num_ranks),
        )
        work = step_work(job, layout)
        if isinstance(work, Miss):
            return work
        return LayoutCosts(job, self.network, layout, work=work, stacks=self.stacks)

    def room(self, layout: Layout) -> list[int]:
        """How many replicas of a stage each pool holds."""
        pools = range(len(self.network.pools))
        ranks = layout.tp * layout.cp
        return [self.network.capacity(pool, tp=layout.tp, ranks=ranks) for pool in pools]


def island_job(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    num_ranks: int,
    batch: BatchProfile,
    precision: Precision,
    stacks: Mapping[str, StackRates],
    pinned: Mapping[str, int],
    settings: Mapping[str, str] = types.MappingProxyType({}),
    token_cap: int | None = None,
) -> IslandJob:
    """What to seek: up to `num_ranks` ranks of a cluster, `stacks` by the names of its GPUs.

    Raises:
        InputError: The cluster has fewer GPUs, a GPU has no known peak, or a pinned degree or
            setting is none that is planned over several islands.
    """
    network = Network(cluster)
    if num_ranks > cluster.num_gpus:
        raise InputError(
            f"num_ranks: the cluster {cluster.name!r} has {cluster.num_gpus} GPUs, "
            f"got {num_ranks}"
        )
    _check_pins(model, cluster, pinned, settings)
    pools = range(len(network.pools))
    least = min(pools, key=lambda pool: network.pools[pool].gpu.memory_bytes)
    machines = [network.machine(pool, num_ranks=num_ranks) for pool in pools]
    for used in machines:
        known_peak(used, precision=precision)
    by_pool = tuple(stacks[node.gpu.name] for node in network.pools)
    job = Job(
        model=model,
        used=machines[least],
        batch=BatchSums(batch, model),
        model_flops=model.training_flops(batch.lengths),
        precision=precision,
        token_cap=token_cap,
        pinned=pinned,
        settings=settings,
        stack=by_pool[least],
    )
    return IslandJob(job=job, network=network, stacks=by_pool)


def _check_pins(
    model: ModelSpec,
    cluster: ClusterSpec,
    pinned: Mapping[str, int],
    settings: Mapping[str, str],
) -> None:
    """Refuse degrees and settings that no layout over several islands has."""
    for name, value in pinned.items():
        problem = layout_problem(model, name, value)
        if problem is not None:
            raise InputError(f"layout.{name}: {problem}")
    if pinned.get("vpp", 1) > 1 or settings.get("schedule", "1f1b") != "1f1b":
        raise InputError(
            f"layout: over the islands of {cluster.name!r} only the schedule 1f1b with vpp 1 "
            "is planned; leave vpp and schedule out"
        )
    if pinned.get("zero", 1) > 1:
        raise InputError(
            f"layout.zero: over the islands of {cluster.name!r} expected 0 or 1, got "
            f"{pinned['zero']}; 2 and 3 exchange for every micro-batch"
        )
    tp, pp = pinned.get("tp", 1), pinned.get("pp", 1)
    if not any(node.gpus_per_node % tp == 0 for node in cluster.nodes):
        sizes = ", ".join(f"{node.name} {node.gpus_per_node}" for node in cluster.nodes)
        raise InputError(
            f"layout.tp: {tp} ranks do not fill a node of any island evenly ({sizes} GPUs)"
        )
    if pp * tp * pinned.get("dp", 1) * pinned.get("cp", 1) > cluster.num_gpus:
        raise InputError(
            f"layout.pp: the degrees given need more than the {cluster.num_gpus} GPUs of "
            f"{cluster.name!r}; use fewer stages or a lower dp, tp or cp"
        )


def island_layouts(islands: IslandJob) -> Iterator[Layout]:
    """Degrees, micro-batches and recompute that model, pools, batch and pins allow.

    They may use fewer ranks than there are: a slow pool can be better left out.
    """
    job = islands.job
    model, most_ranks = job.model, job.used.num_ranks
    widest = max(node.gpus_per_node for node in islands.network.pools)
    for tp in _values(job, "tp", min(widest, model.num_heads)):
        for cp in _values(job, "cp", _most_cp(job)):
            room = sum(islands.room(Layout(tp=tp, cp=cp)))
            most = min(room, most_ranks // (tp * cp))
            for pp in _values(job, "pp", min(model.num_layers, most)):
                for dp in _values(job, "dp", most // pp):
                    for ep in _values(job, "ep", dp * cp):
                        if dp * cp % ep:
                            continue
                        yield from _settings(job, Layout(
                            tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, sequence_parallel=tp > 1,
                            zero=job.pinned.get("zero", 1),
                        ))  # fmt: skip


def _settings(job: Job, shape: Layout) -> Iterator[Layout]:
    offload = cast(Offload, job.settings.get("offload", "none"))
    for micro_batch in micro_batches(job):
        if job.batch.is_uniform and job.batch.num_sequences % (shape.dp * micro_batch):
            continue
        for recompute in job.recomputes:
            yield dataclasses.replace(
                shape, micro_batch_seqs=micro_batch, recompute=recompute, offload=offload
            )


def _values(job: Job, name: str, most: int) -> list[int]:
    if name in job.pinned:
        return [job.pinned[name]] if job.pinned[name] <= most else []
    return [
        value for value in range(1, most + 1) if layout_problem(job.model, name, value) is None
    ]


def _most_cp(job: Job) -> int:
    return max(1, job.batch.longest // _SHORTEST_SHARD) if job.batch.is_uniform else 1


def quick_bound_s(costs: LayoutCosts, room: Sequence[int]) -> float:
    """No placement of the layout is faster; found without a program.

    Without a pipeline the exact step of the best set of pools. With one, what would be the
    best if messages and exchanges took no time:

    With one-forward-one-backward every stage s waits for the first micro-batch, and where
    m > pp for the last one, too (`island_program`), so that a step takes at least

        sum(t) + (m - 1) backward_s,    and    sum(t) + (m - pp + s) t_s + sum of t after s

    for every stage s. Some weighted mean of each kind has the same number before all t, as
    equal stages meet all of a kind with equality: 1 + (m - 1) / pp times the backward share,
    and (m + pp - 1) / pp. With c the larger number, all t together are at most T / c, and each
    is at most T / m: at best the stages of the fastest pools are full, and hold all layers.
    """
    layout, model = costs.layout, costs.job.model
    if layout.pp == 1:
        return _alone_s(costs, room)
    fastest = sorted(
        (pair for pair in zip(costs.pools, room, strict=True) if pair[1]),
        key=lambda pair: pair[0].layer_s,
    )
    micro = costs.num_micro_batches
    backward = min(
        min(cost.backward_s / cost.layer_s, _share(cost.head_backward_s, cost.head_s))
        for cost, _ in fastest
    )
    turns = 1 + (micro - 1) * backward / layout.pp
    if micro > layout.pp:
        turns = max(turns, (micro + layout.pp - 1) / layout.pp)
    layers_per_s, budget, held, stages = 0.0, 1 / turns, 0, 0
    for cost, number in fastest:
        held += number
        more = min(layout.pp, held // layout.dp) - stages
        taken = min(budget, more / micro)
        layers_per_s += taken / cost.layer_s
        budget, stages = budget - taken, stages + more
    if stages < layout.pp:
        return math.inf
    head = min(cost.head_s / cost.layer_s for cost, _ in fastest)
    return costs.with_waiting_s((model.num_layers + head) / layers_per_s)


def _alone_s(costs: LayoutCosts, room: Sequence[int]) -> float:
    """The step of one stage in the best set of pools that has room for its replicas."""
    usable = [pool for pool, number in enumerate(room) if number]
    dp, num_layers = costs.layout.dp, costs.job.model.num_layers
    best = math.inf
    for size in range(1, min(len(usable), dp) + 1):
        for pools in itertools.combinations(usable, size):
            if sum(room[pool] for pool in pools) >= dp:
                host = Host(pools=pools, replicas=(1,) * size)
                best = min(best, costs.step((num_layers,), (host,)).step_s)
    return best


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
