"""What a pipeline over uneven machines costs: from a cluster, a model and who serves what.

Every stage replica is priced by its own nodes: their GPUs' speed, the all-to-all of a group at
their own NICs' rate, the memory that its layers leave. `costs.price` gives the parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimtab.core.cluster import ClusterSpec, Link, NodeSpec, Precision
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.rates import Rates
from trimtab.core.staged import Channel, DegreeCost, Route, StagedLayout, StageReplica
from trimtab.core.units import memory_text
from trimtab.planners.costs import StepWork, price, work_counts
from trimtab.planners.exchanges import alltoall_bytes_per_s, alltoall_bytes_per_token
from trimtab.planners.memory import stage_memories, stage_parameters, state_bytes
from trimtab.planners.placement import Machine, machine

_LAYER_PARTS = (
    "matrix products",
    "attention",
    "norms and activations",
    "tp communication",
    "ep communication",
)
"""Parts of a step that every layer has as much of."""

_FULL_FRACTION = 0.92
"""Share of the memory a plan may fill (`StageMemory.verdict`)."""

_OPTIMIZER_BYTES = 30
"""AdamW in mixed precision reads and writes this for each parameter it holds (`counts.py`)."""

_MANY_TOKENS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Nodes of one `NodeSpec` (an index into the cluster's) that serve a stage together."""

    stage: int
    kind: int
    num_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Rank-seconds of one layer on one kind of node, forward and backward."""

    quadratic_s: float
    linear_s: float
    """Without all-to-all."""
    fixed_s: float
    output_s: float
    """A token's output matrix and loss, once."""


class StagedCosts:
    """Prices servings of one cluster by one model; what it has priced once it keeps."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        layout: Layout,
        *,
        precision: Precision,
        rates: Rates | None = None,
    ) -> None:
        """Take what is common to all servings.

        Args:
        model: The model.
        cluster: The machines.
        layout: Only `tp`, `pp`, `recompute`, `zero` and the like are looked at.
        precision: Of the matrix products.
        rates: What device and software reach of the datasheet; None: the usual.

        Raises:
            InputError: A peak is unknown, there are more stages than nodes, or tp does not
                divide a node.
        """
        self.model, self.cluster, self.layout = model, cluster, layout
        self.precision, self._rates = precision, rates or Rates()
        check_cluster(cluster, layout)
        self.layers = [self._layer_cost(node) for node in cluster.nodes]
        self.token_bytes = float(model.hidden * (4 if precision in ("fp32", "tf32") else 2))
        passes = 4 if layout.recompute == "full" else 3
        self.forward_fraction = 1 / passes

    def num_ranks(self, kind: int, num_nodes: int) -> int:
        """Ranks, of tp GPUs each, of so many nodes of a kind."""
        return num_nodes * (self.cluster.nodes[kind].gpus_per_node // self.layout.tp)

    def degrees(self, kind: int, num_nodes: int) -> tuple[int, ...]:
        """Divisors of the heads that divide a node's ranks or take whole nodes."""
        heads = self.model.num_heads // self.layout.tp
        inside = self.num_ranks(kind, 1)
        return tuple(
            d
            for d in range(1, min(heads, self.num_ranks(kind, num_nodes)) + 1)
            if heads % d == 0 and (inside % d == 0 or d % inside == 0)
        )

    def token_s(self, kind: int, num_nodes: int, *, degree: int) -> float:
        """Rank-seconds a token and layer at a degree, all-to-all included."""
        layer = self.layers[kind]
        if degree == 1:
            return layer.linear_s
        used = self._machine(kind, num_nodes)
        whole = replace(self.layout, pp=1, dp=1, cp=1, stage_layers=())
        moved = alltoall_bytes_per_token(self.model, whole, precision=self.precision)
        speed = alltoall_bytes_per_s(self.layout, used, degree)
        return layer.linear_s + moved / self.model.num_layers / speed

    def replica(self, serving: Serving, stage_layers: Sequence[int]) -> StageReplica:
        """One serving priced.

        Raises:
            InfeasibleError: Its layers leave no memory for one token.
        """
        stage, kind = serving.stage, serving.kind
        node, layer = self.cluster.nodes[kind], self.layers[kind]
        num_layers = stage_layers[stage]
        output_s = layer.output_s if stage == len(stage_layers) - 1 else 0.0
        return StageReplica(
            name=f"{node.name} x{serving.num_nodes}, stage {stage}",
            stage=stage,
            node=node.name,
            num_nodes=serving.num_nodes,
            num_ranks=self.num_ranks(kind, serving.num_nodes),
            quadratic_s=num_layers * layer.quadratic_s,
            degree_costs=tuple(
                DegreeCost(
                    degree=d,
                    token_s=num_layers * self.token_s(kind, serving.num_nodes, degree=d)
                    + output_s,
                )
                for d in self.degrees(kind, serving.num_nodes)
            ),
            fixed_s=num_layers * layer.fixed_s,
            token_cap=self.token_cap(serving, stage_layers),
        )

    def token_cap(self, serving: Serving, stage_layers: Sequence[int]) -> int:
        """Tokens of activations a rank has room for, within 92 % of its memory.

        Raises:
            InfeasibleError: There is no room for one token.
        """
        node = self.cluster.nodes[serving.kind]
        ranks = self.num_ranks(serving.kind, serving.num_nodes)
        alone = replace(
            self.layout, pp=len(stage_layers), dp=ranks, cp=1, stage_layers=tuple(stage_layers)
        )
        empty, filled = (
            stage_memories(
                self._of_layers(stage_layers), alone, precision=self.precision, tokens=tokens,
                squares=0.0, num_micro_batches=1, capacity_bytes=node.gpu.memory_bytes,
                stages=[serving.stage],
            )[0].total_bytes
            for tokens in (0.0, 1e6)
        )  # fmt: skip
        room = _FULL_FRACTION * node.gpu.memory_bytes - empty
        cap = 1e6 * room / (filled - empty)
        if cap < 1:
            raise InfeasibleError(
                f"memory: {stage_layers[serving.stage]} layers of stage {serving.stage} on "
                f"{ranks} ranks of {node.name!r} need {memory_text(empty)} a GPU before any "
                f"micro-batch, of which it has {memory_text(node.gpu.memory_bytes)}; use more "
                "stages, a higher tp, or nodes with more memory"
            )
        return int(cap)

    def closing_s(self, servings: Sequence[Serving], stage_layers: Sequence[int]) -> float:
        """Gradient reduction and optimizer of one stage, nothing of it hidden.

        Gradients are reduced and scattered, and weights gathered, around each replica's own
        ranks; where there are several replicas, their sums are exchanged in a ring through the
        slowest link between them. Then the slowest replica updates its share.

        Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 7, for the ring's bytes.
        """
        states, tp = state_bytes(self.precision), self.layout.tp
        stage = servings[0].stage
        dense = replace(self.layout, pp=len(stage_layers), stage_layers=tuple(stage_layers))
        parameters = sum(stage_parameters(self._of_layers(stage_layers), dense, stage=stage))
        rates = self._rates
        slowest_s = 0.0
        for serving in servings:
            ranks = self.num_ranks(serving.kind, serving.num_nodes)
            used = self._machine(serving.kind, serving.num_nodes)
            moved = (ranks - 1) / ranks * parameters * (states.gradients + states.weights)
            ring_s = moved / used.ring_link(ranks, stride=tp).bytes_per_s
            update_s = _OPTIMIZER_BYTES * parameters / ranks / used.gpu.memory_bytes_per_s
            slowest_s = max(
                slowest_s,
                rates.dp_factor * ring_s
                + rates.dp_latency_s * math.log2(ranks)
                + rates.elementwise_factor * update_s,
            )
        kinds = [serving.kind for serving in servings]
        if len(kinds) == 1:
            return slowest_s + rates.step_s
        joined = min(
            self.channel_bytes_per_s(a, b, serving.num_nodes)
            for serving in servings
            for a, b in ((serving.kind, other) for other in kinds if other != serving.kind)
        )
        across = 2 * (len(kinds) - 1) / len(kinds) * states.gradients * parameters * tp
        exchange_s = rates.dp_factor * across / joined
        return slowest_s + exchange_s + rates.dp_latency_s * len(kinds) + rates.step_s

    def channel_bytes_per_s(self, kind: int, other: int, num_nodes: int) -> float:
        """What `num_nodes` nodes of one kind send to another with: the link, or their NICs."""
        nodes = self.cluster.nodes
        way = way_between(self.cluster, nodes[kind].island, nodes[other].island)
        if way is not None:
            return way[1].bytes_per_s
        nic = nodes[kind].fastest_nic
        return num_nodes * nic.count * nic.bytes_per_s

    def layout_of(
        self,
        servings: Sequence[Serving],
        stage_layers: Sequence[int],
        *,
        skip_fractions: Sequence[float] = (),
        skip_tolerance: float = 0.01,
    ) -> StagedLayout:
        """The staged layout of an assignment of nodes and layers to stages.

        Raises:
            InfeasibleError: A stage's layers do not fit its nodes.
        """
        ordered = sorted(servings, key=lambda one: (one.stage, one.kind))
        stages = range(len(stage_layers))
        channels, routes = self._routes(ordered, skips=any(skip_fractions))
        return StagedLayout(
            stage_layers=tuple(stage_layers),
            replicas=tuple(self.replica(serving, stage_layers) for serving in ordered),
            channels=channels,
            routes=routes,
            token_bytes=self.token_bytes,
            closing_s=tuple(
                self.closing_s([one for one in ordered if one.stage == stage], stage_layers)
                for stage in stages
            ),
            forward_fraction=self.forward_fraction,
            skip_fractions=tuple(skip_fractions) if any(skip_fractions) else (),
            skip_tolerance=skip_tolerance,
        )

    def _routes(
        self, servings: Sequence[Serving], *, skips: bool
    ) -> tuple[tuple[Channel, ...], tuple[Route, ...]]:
        """Both directions between replicas of stages that may follow each other."""
        nodes = self.cluster.nodes
        channels: dict[str, Channel] = {}
        routes = []
        for u, source in enumerate(servings):
            for v, target in enumerate(servings):
                distance = abs(source.stage - target.stage)
                if distance == 0 or (distance > 1 and not skips):
                    continue
                here, there = nodes[source.kind], nodes[target.kind]
                nic = _common_nic(here, there)
                way = way_between(self.cluster, here.island, there.island)
                name = f"NICs of {here.name}, stage {source.stage}" if way is None else way[0]
                channel = Channel(
                    name=name,
                    bytes_per_s=self.channel_bytes_per_s(
                        source.kind, target.kind, source.num_nodes
                    ),
                )
                channels.setdefault(name, channel)
                routes.append(
                    Route(
                        source=u,
                        target=v,
                        channel=list(channels).index(name),
                        latency_s=nic[1] if way is None else way[1].latency_s,
                        rank_bytes_per_s=nic[0],
                    )
                )
        return tuple(channels.values()), tuple(routes)

    def _of_layers(self, stage_layers: Sequence[int]) -> ModelSpec:
        """The model with as many layers as the stages have, where not all are placed yet."""
        return replace(self.model, num_layers=sum(stage_layers))

    def _machine(self, kind: int, num_nodes: int) -> Machine:
        node = replace(self.cluster.nodes[kind], count=num_nodes)
        alone = ClusterSpec(name=node.name, nodes=(node,))
        ranks = self.num_ranks(kind, num_nodes) * self.layout.tp
        return machine(alone, ranks, precision=self.precision)

    def _layer_cost(self, node: NodeSpec) -> LayerCost:
        """Parts of a micro-batch on one rank, over the model's layers."""
        used = machine(
            ClusterSpec(name=node.name, nodes=(replace(node, count=1),)),
            self.layout.tp,
            precision=self.precision,
        )
        single = replace(self.layout, pp=1, dp=1, cp=1, ep=1, vpp=1, stage_layers=())

        def parts(tokens: float, squares: float) -> dict[str, float]:
            work = StepWork(num_micro_batches=1, squares=squares, degree_tokens=((1, tokens),))
            counts = work_counts(self.model, single, used, precision=self.precision, work=work)
            return {name: float(s) for name, s in price(counts, self._rates).items()}

        empty, filled = parts(0.0, 0.0), parts(_MANY_TOKENS, 0.0)
        quadratic = parts(_MANY_TOKENS, 1e6)
        num_layers = self.model.num_layers
        linear_s = sum(filled[name] - empty[name] for name in _LAYER_PARTS)
        fixed_s = sum(empty[name] for name in _LAYER_PARTS) + filled["kernel launches"]
        return LayerCost(
            quadratic_s=(quadratic["attention"] - filled["attention"]) / 1e6 / num_layers,
            linear_s=linear_s / _MANY_TOKENS / num_layers,
            fixed_s=fixed_s / num_layers,
            output_s=(filled["output matrix"] - empty["output matrix"]) / _MANY_TOKENS,
        )


def check_cluster(cluster: ClusterSpec, layout: Layout) -> None:
    """Raise unless the stages can be served.

    Raises:
        InputError: More stages than nodes, or tp that does not divide a node's GPUs.
    """
    num_nodes = sum(node.count for node in cluster.nodes)
    if layout.pp > num_nodes:
        raise InputError(
            f"layout.pp: {layout.pp} stages need as many nodes, the cluster {cluster.name!r} "
            f"has {num_nodes}; set layout.pp={num_nodes} or fewer"
        )
    for node in cluster.nodes:
        if node.gpus_per_node % layout.tp:
            raise InputError(
                f"layout.tp: expected a divisor of the {node.gpus_per_node} GPUs of a node "
                f"{node.name!r}, got {layout.tp}"
            )


def way_between(cluster: ClusterSpec, source: str, target: str) -> tuple[str, Link] | None:
    """What joins one island to another, and its name; None: their nodes' own NICs do.

    Of a way over several links, whose latencies add up, the narrowest is taken for all.
    """
    ways = cluster.route(source, target)
    if not ways:
        return None
    links = {f"{start} -> {end}": cluster.way(start, end) for start, end in ways}
    name = min(links, key=lambda way: links[way].bytes_per_s)
    latency_s = sum(link.latency_s for link in links.values())
    return name, Link(bytes_per_s=links[name].bytes_per_s, latency_s=latency_s)


def _common_nic(here: NodeSpec, there: NodeSpec) -> tuple[float, float]:
    """Bytes per second and latency of one NIC of a kind that both nodes have."""
    pairs = [
        (min(a.bytes_per_s, b.bytes_per_s), max(a.latency_s, b.latency_s))
        for a in here.nics
        for b in there.nics
        if a.kind == b.kind
    ]
    if pairs:
        return max(pairs)
    slow = min((here.fastest_nic, there.fastest_nic), key=lambda nic: nic.bytes_per_s)
    return slow.bytes_per_s, slow.latency_s
