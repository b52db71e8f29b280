"""What the stages of a layout cost wherever they are placed, and the step that comes of it.

Each stage is priced by the GPUs, links and NICs of its own pool, with the same counts and
constants as on one island (`counts.py`, `costs.py`); the pipeline is followed operation by
operation with the messages that every boundary sends (`uneven_pipeline.py`); then each stage
reduces its gradients over its own NICs, or over the link its replicas are spread across.

    step = (max over stages of (its last backward pass + its exchange + its optimizer)
            + what every step takes) * waiting
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.core.cluster import NodeSpec
from trimtab.core.plan import Layout, StageMemory
from trimtab.core.rates import StackRates
from trimtab.planners.costs import (
    StepWork,
    beyond,
    head_s,
    layer_parts,
    pipeline_work,
    work_counts,
)
from trimtab.planners.counts import HOST_BYTES_PER_S, OFFLOADED_BYTES, OPTIMIZER_BYTES
from trimtab.planners.islands.pools import Host, Network, Way
from trimtab.planners.islands.uneven_pipeline import Boundary, stage_ends
from trimtab.planners.memory import stage_memories, stage_parameters, state_bytes
from trimtab.planners.shapes import Job

_RING_CHUNKS = 8
"""Chunks that a ring has on their way at once while it passes a far link: the latency is paid
for a few of them, not for every rank. An assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCosts:
    """Seconds of one micro-batch in one pool."""

    forward_s: float
    """Of a layer."""
    backward_s: float
    head_forward_s: float
    """Of the output matrix and the loss, on the last stage."""
    head_backward_s: float
    parts: Mapping[str, float]
    """Of a layer, forward and backward, by name."""
    send_s: float
    """To the next stage in the same pool, the time of an empty message included."""
    exchange_s: float
    """Gradients and weights, for each parameter of a rank, where all replicas are here."""
    optimizer_s: float
    """For each parameter of a rank."""
    is_measured: bool
    """Whether exchange and optimizer are in the other times, which were measured with them."""

    @property
    def layer_s(self) -> float:
        return self.forward_s + self.backward_s

    @property
    def head_s(self) -> float:
        return self.head_forward_s + self.head_backward_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStep:
    """A step of a layout whose stages have layers and places."""

    step_s: float
    stage_layers: tuple[int, ...]
    hosts: tuple[Host, ...]
    busiest_stage: int
    slowest_stage_s: float
    """What a micro-batch takes that stage, forward and backward."""
    ending_stage: int
    """The stage that ends the step."""
    pipeline_s: float
    """Until it has done its last backward pass."""
    exchange_s: float
    """Of its gradients, beyond what its last backward pass hides."""
    optimizer_s: float
    crossing_s: float
    """What a micro-batch's messages between islands take, there and back."""


class LayoutCosts:
    """The costs of one layout in every pool, computed once for all its placements."""

    def __init__(
        self,
        job: Job,
        network: Network,
        layout: Layout,
        *,
        work: StepWork,
        stacks: Sequence[StackRates],
    ) -> None:
        """`stacks` has the rates of every pool; `layout.stage_layers` is not looked at."""
        self.job, self.network, self.work, self.stacks = job, network, work, stacks
        self.layout = dataclasses.replace(layout, stage_layers=())
        self.num_micro_batches = work.num_micro_batches
        self.tokens = work.tokens / work.num_micro_batches
        states = state_bytes(job.precision)
        self.state_bytes = states.gradients + states.weights
        element_bytes = 4 if states.weights == 4 else 2
        self.message_bytes = element_bytes * self.tokens * job.model.hidden * layout.cp
        """Of a micro-batch between two stages, all tp x cp ranks of a replica together."""
        self.pools = [self._pool(pool) for pool in range(len(network.pools))]
        self._memory: dict[tuple[int, int, int], StageMemory] = {}
        self._parameters: dict[tuple[int, int | tuple[int, ...]], float] = {}

    def _pool(self, pool: int) -> PoolCosts:
        layout, job, node = self.layout, self.job, self.network.pools[pool]
        rates = self.stacks[pool].rates
        used = self.network.machine(pool, num_ranks=layout.num_ranks)
        counts = work_counts(job.model, layout, used, precision=job.precision, work=self.work)
        work = pipeline_work(counts, rates, (1, 1))
        forward = work.forward_s[0]
        backward = work.backward_s[0] + work.weight_s[0]
        head_forward = work.forward_s[1] - forward
        head_backward = work.backward_s[1] + work.weight_s[1] - backward
        parts = {name: float(part) for name, part in layer_parts(counts, rates).items()}
        if node.measured_flop_per_s is not None:
            layer_s, head = self._measured_s(node.measured_flop_per_s)
            scale = layer_s / sum(parts.values())
            parts = {name: scale * part for name, part in parts.items()}
            forward, backward = layer_s / 3, 2 * layer_s / 3
            head_forward, head_backward = head / 3, 2 * head / 3
        else:
            rounding = 1e-12 * (forward + backward)  # the head's time is a difference of sums
            head = float(head_s(counts, rates))
            assert math.isclose(head_forward + head_backward, head, abs_tol=rounding)
        ranks = layout.group_ranks
        link = used.ring_link(ranks, stride=layout.tp) if ranks > 1 else node.intra_node
        exchange = (ranks - 1) / ranks * self.state_bytes / link.bytes_per_s
        return PoolCosts(
            forward_s=forward,
            backward_s=backward,
            head_forward_s=head_forward,
            head_backward_s=head_backward,
            parts=parts,
            send_s=float(counts.pp_s) + rates.pp_latency_s,
            exchange_s=rates.dp_factor * exchange,
            optimizer_s=rates.elementwise_factor * self._optimizer_s(node),
            is_measured=node.measured_flop_per_s is not None,
        )

    def _measured_s(self, flop_per_s: float) -> tuple[float, float]:
        """A layer and the output matrix for a micro-batch, at measured FLOP/s of a GPU."""
        model, job = self.job.model, self.job
        micro_flops = job.model_flops / self.num_micro_batches / self.layout.group_ranks
        rank_flops = micro_flops / self.layout.tp
        head = 6 * model.vocab * model.hidden * self.tokens / self.layout.tp
        return (rank_flops - head) / model.num_layers / flop_per_s, head / flop_per_s

    def _optimizer_s(self, node: NodeSpec) -> float:
        share = self.layout.group_ranks if self.layout.zero >= 1 else 1
        if self.layout.offload == "optimizer":
            return OFFLOADED_BYTES / share / HOST_BYTES_PER_S
        return OPTIMIZER_BYTES / share / node.gpu.memory_bytes_per_s

    def parameters(self, stage_layers: Sequence[int], stage: int) -> float:
        """What a rank of a stage holds before ZeRO."""
        model = self.job.model
        alike = model.moe is None or not model.num_dense_layers
        key = stage, stage_layers[stage] if alike else tuple(stage_layers)
        if key not in self._parameters:
            placed = dataclasses.replace(self.layout, stage_layers=tuple(stage_layers))
            self._parameters[key] = sum(stage_parameters(model, placed, stage=stage))
        return self._parameters[key]

    def boundaries(self, hosts: Sequence[Host]) -> list[Boundary]:
        """What lies between the stages; what several of them use is shared evenly."""
        load: Counter[Way] = Counter()
        crossings = []
        for near, far in itertools.pairwise(hosts):
            pairs = Counter(zip(near.replica_pools, far.replica_pools, strict=True))
            crossings.append(pairs)
            for (source, target), count in pairs.items():
                for way in self.network.ways(source, target):
                    load[way] += count
                for way in self.network.ways(target, source):
                    load[way] += count
        return [self._boundary(pairs, load) for pairs in crossings]

    def _boundary(self, pairs: Counter[tuple[int, int]], load: Counter[Way]) -> Boundary:
        times = {
            way: [self._send_s(*(pair if way else pair[::-1]), load=load) for pair in pairs]
            for way in (True, False)
        }
        forward, backward = max(times[True]), max(times[False])
        return Boundary(
            forward_s=forward[0],
            forward_latency_s=forward[1],
            backward_s=backward[0],
            backward_latency_s=backward[1],
        )

    def _send_s(self, source: int, target: int, *, load: Counter[Way]) -> tuple[float, float]:
        """How long a message of one replica holds the wire when all send, and its latency.

        The timeline itself tells what the pipeline hides of it, so that no constant does.
        """
        if source == target:
            return self.pools[source].send_s, 0.0
        latency = self.network.latency_s(source, target)
        ways, links = self.network.ways(source, target), self.network.links
        if not ways:
            rank_bytes = self.message_bytes / (self.layout.tp * self.layout.cp)
            return rank_bytes / self.network.nic_bytes_per_s((source, target)), latency
        slowest_s = max(load[way] / links[way].bytes_per_s for way in ways)
        return slowest_s * self.message_bytes, latency

    def alone_s(self, source: int, target: int, *, count: int) -> tuple[float, float]:
        """The same of `count` replicas if nothing else used their way."""
        load = Counter(dict.fromkeys(self.network.ways(source, target), count))
        return self._send_s(source, target, load=load)

    def affine_parameters(self, stage: int) -> tuple[float, float]:
        """Parameters of a rank of a stage: without layers, and for each of them, at least."""
        model, pp = self.job.model, self.layout.pp
        if model.moe is not None and model.num_dense_layers:
            return 0.0, 0.0  # its layers are not alike
        if pp == 1:
            return self.parameters((model.num_layers,), 0), 0.0
        even = [1] * pp
        even[(stage + 1) % pp] = model.num_layers - pp + 1
        one = self.parameters(even, stage)
        even[stage], even[(stage + 1) % pp] = 2, model.num_layers - pp
        if min(even) < 1:
            return one, 0.0
        each = self.parameters(even, stage) - one
        return one - each, each

    def tail_rates(self, pools: Sequence[int]) -> tuple[float, float, float]:
        """The tail of a stage in these pools if no other one is spread.

        Returns:
            Exchange for each parameter, exchange besides, optimizer for each parameter.
        """
        costs = [self.pools[pool] for pool in pools]
        if len(pools) == 1 and costs[0].is_measured:
            return 0.0, 0.0, 0.0
        update = max(cost.optimizer_s for cost in costs)
        if self.layout.group_ranks == 1:
            return 0.0, 0.0, update
        alone = self._ring_load(pools, 1.0) if len(pools) > 1 else {}
        each = max(cost.exchange_s for cost in costs)
        return max([each, *self._ring_s(pools, alone)]), self._latency_s(pools), update

    def exchanges_s(self, hosts: Sequence[Host], parameters: Sequence[float]) -> list[float]:
        """Of every stage's gradients and weights, all stages at once."""
        if self.layout.group_ranks == 1:
            return [0.0] * len(hosts)
        load: dict[Way, float] = defaultdict(float)
        for host, number in zip(hosts, parameters, strict=True):
            if host.is_spread:
                for way, num_bytes in self._ring_load(host.pools, number).items():
                    load[way] += num_bytes
        times = []
        for host, number in zip(hosts, parameters, strict=True):
            own = [number * self.pools[pool].exchange_s for pool in host.pools]
            if host.is_spread:
                own += self._ring_s(host.pools, load)
            times.append(max(own) + self._latency_s(host.pools))
        return times

    def _ring_load(self, pools: Sequence[int], parameters: float) -> dict[Way, float]:
        """Bytes over every link that the tp rings of a stage spread over pools send."""
        ranks = self.layout.group_ranks
        num_bytes = (ranks - 1) / ranks * self.state_bytes * parameters * self.layout.tp
        ways = Counter(self.network.ring_ways(pools))
        return {way: count * num_bytes for way, count in ways.items()}

    def _ring_s(self, pools: Sequence[int], load: Mapping[Way, float]) -> list[float]:
        """Of every link: at least as long as its rate takes, whatever an island's NICs do."""
        factor = max(1.0, *(self.stacks[pool].rates.dp_factor for pool in pools))
        links = self.network.links
        return [
            factor * load[way] / links[way].bytes_per_s
            for way in (self.network.ring_ways(pools) if len(pools) > 1 else ())
        ]

    def _latency_s(self, pools: Sequence[int]) -> float:
        """Of an exchange; its chunks pass every link between islands twice."""
        ranks = self.layout.group_ranks
        latency = max(self.stacks[pool].rates.dp_latency_s for pool in pools)
        ways = self.network.ring_ways(pools) if len(pools) > 1 else ()
        far_s = sum(self.network.links[way].latency_s for way in ways)
        return latency * math.log2(ranks) + 2 * far_s * _RING_CHUNKS

    def stage_s(
        self, stage_layers: Sequence[int], hosts: Sequence[Host]
    ) -> tuple[list[float], list[float]]:
        """Forward and backward seconds of a micro-batch by stage, its slowest pool's."""
        last = len(hosts) - 1
        forward, backward = [], []
        for stage, (layers, host) in enumerate(zip(stage_layers, hosts, strict=True)):
            costs = [self.pools[pool] for pool in host.pools]
            is_last = stage == last
            forward.append(
                max(layers * cost.forward_s + is_last * cost.head_forward_s for cost in costs)
            )
            backward.append(
                max(layers * cost.backward_s + is_last * cost.head_backward_s for cost in costs)
            )
        return forward, backward

    def step(self, stage_layers: Sequence[int], hosts: Sequence[Host]) -> PlacedStep:
        """The step with these layers in these places."""
        forward, backward = self.stage_s(stage_layers, hosts)
        boundaries = self.boundaries(hosts)
        ends = stage_ends(
            forward, backward, boundaries, num_micro_batches=self.num_micro_batches
        )
        parameters = [self.parameters(stage_layers, stage) for stage in range(len(hosts))]
        exchanges = self.exchanges_s(hosts, parameters)
        tails = []
        for stage, host in enumerate(hosts):
            rates = [self.stacks[pool].rates for pool in host.pools]
            costs = [self.pools[pool] for pool in host.pools]
            hidden = min(rate.dp_hidden for rate in rates) * backward[stage]
            exposed = float(beyond(exchanges[stage], hidden))
            optimizer = max(cost.optimizer_s for cost in costs) * parameters[stage]
            if all(cost.is_measured for cost in costs) and not host.is_spread:
                exposed = optimizer = 0.0
            tails.append((exposed, optimizer))
        totals = [end + sum(tail) for end, tail in zip(ends, tails, strict=True)]
        ender = max(range(len(hosts)), key=totals.__getitem__)
        busy = [sum(both) for both in zip(forward, backward, strict=True)]
        return PlacedStep(
            step_s=self.with_waiting_s(totals[ender]),
            stage_layers=tuple(stage_layers),
            hosts=tuple(hosts),
            busiest_stage=max(range(len(hosts)), key=busy.__getitem__),
            slowest_stage_s=max(busy),
            ending_stage=ender,
            pipeline_s=ends[ender],
            exchange_s=tails[ender][0],
            optimizer_s=tails[ender][1],
            crossing_s=sum(
                boundary.there_and_back_s
                for boundary, (near, far) in zip(
                    boundaries, itertools.pairwise(hosts), strict=True
                )
                if near != far
            ),
        )

    def with_waiting_s(self, busy_s: float) -> float:
        """The step, with what every one takes, and waiting for the slowest of many ranks."""
        rates = [stack.rates for stack in self.stacks]
        doublings = math.log2(max(1.0, self.layout.num_ranks / 8))
        slowdown = 1 + max(rate.scale_slowdown for rate in rates) * doublings
        return (busy_s + max(rate.step_s for rate in rates)) * slowdown

    def memory(self, stage: int, layers: int, *, pool: int) -> StageMemory:
        """Of a stage with so many layers in a pool; the others share the rest evenly."""
        key = stage, layers, pool
        if key not in self._memory:
            layout, model = self.layout, self.job.model
            rest, others = model.num_layers - layers, layout.pp - 1
            even = [rest // others + (index < rest % others) for index in range(others)]
            placed = dataclasses.replace(
                layout, stage_layers=(*even[:stage], layers, *even[stage:]) if others else ()
            )
            (self._memory[key],) = stage_memories(
                model, placed, precision=self.job.precision, tokens=self.tokens,
                squares=self.work.squares / self.num_micro_batches
                if self.job.batch.is_uniform else 0.0,
                num_micro_batches=self.num_micro_batches,
                capacity_bytes=self.network.pools[pool].gpu.memory_bytes,
                stages=[stage], rates=self.stacks[pool].memory,
            )  # fmt: skip
        return self._memory[key]

    def most_layers(self, stage: int, *, pool: int, full_fraction: float) -> int:
        """How many layers of a stage a pool's GPUs hold when so much of them may be filled."""
        most = self.job.model.num_layers - self.layout.pp + 1
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            memory = self.memory(stage, middle, pool=pool)
            if memory.total_bytes <= full_fraction * memory.capacity_bytes:
                low = middle
            else:
                high = middle - 1
        return low
