"""Which layouts a job has on several islands, and a quick bound on the step of each."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from trimtab.core.plan import Layout, Offload
from trimtab.core.rates import StackRates
from trimtab.planners.island_costs import LayoutCosts
from trimtab.planners.pools import Host, Network
from trimtab.planners.shapes import Job, layout_problem, micro_batches
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
        return [self.network.capacity(pool, ranks=layout.tp * layout.cp) for pool in pools]


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
