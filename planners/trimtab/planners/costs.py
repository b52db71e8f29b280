"""What a choice costs: a sequence group under a profile, and a step of a layout on a device.

The analytic rates are datasheet peaks times the efficiencies below. Each was set once so that
the 7B coefficients FlexSP measured on A100-40GB come out (arXiv:2412.01523: 0.184 ms per token,
5.13e-6 ms per token^2, 96.5 GB/s at 8 ranks, 4.87 GB/s at 64); nothing else was fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.cluster import ClusterSpec, Link, Precision
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, TimePart
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.units import memory_text
from trimtab.planners.collectives import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    reduce_scatter_s,
    send_s,
)
from trimtab.planners.memory import (
    StateBytes,
    stage_memories,
    stage_parameters,
    state_bytes,
    worst_stages,
)
from trimtab.planners.placement import Machine, machine, stage_layers

_MATMUL_EFFICIENCY = 0.65
"""Share of the peak that the matrix products reach: 6 x 6.6e9 / 312e12 s against 0.184 ms."""
_ATTENTION_EFFICIENCY = 0.5
"""The same for fused causal attention: 6 x 32 x 4096 / 312e12 s against 5.13e-9 s."""
_EXCHANGE_EFFICIENCY = 0.3
"""Share of the NVLink rate that an all-to-all reaches: 96.5 x 7/8 of 300 GB/s."""
_NIC_EFFICIENCY = 0.7
"""Share of the NIC line rate: 4.87 x 7/8 of 6.25 GB/s."""
_RING_EFFICIENCY = 0.75
"""Share of the NVLink rate that a ring of large messages reaches; an assumption."""
_LAYER_OVERHEAD_S = 100e-6
"""Launching the kernels of a layer, forward and backward; an assumption."""
_FULL_FRACTION = 0.92
"""Share of the memory a plan may fill (`StageMemory.verdict`)."""


def token_s(degree: int, *, profile: StepProfile) -> float:
    """Rank-seconds per token at `degree` besides the quadratic term: linear and all-to-all."""
    if degree == 1:
        return profile.linear_s
    return profile.linear_s + profile.alltoall_bytes_per_token / profile.bytes_per_s(degree)


def group_s(lengths: Sequence[int], degree: int, *, profile: StepProfile) -> float:
    """Time of one group of `degree` ranks in a wave, the fixed time of the wave included.

        fixed_s + [quadratic_s sum(s^2) + (linear_s + alltoall_bytes_per_token / v_d) sum(s)]/d

    where the all-to-all term is absent for d = 1. Whether the group holds the tokens is not
    checked here.

    Args:
        lengths: Tokens of the sequences of the group; none gives `fixed_s`.
        degree: Ranks of the group, one of `profile.degrees`.
        profile: The coefficients.

    Raises:
        InfeasibleError: The profile has no such degree.

    Source: FlexSP, arXiv:2412.01523, section 4.
    """
    squares = sum(length * length for length in lengths)
    work_s = profile.quadratic_s * squares + token_s(degree, profile=profile) * sum(lengths)
    return profile.fixed_s + work_s / degree


def known_peak(used: Machine, *, precision: Precision) -> float:
    """The dense peak of the slowest GPU, in FLOP/s.

    Raises:
        InputError: The datasheet has none, so that only measurements can tell.
    """
    peak = used.gpu.peak_flop_per_s(precision)
    if peak is None:
        raise InputError(
            f"gpu.peak_tflop_per_s: the device {used.gpu.name!r} has no {precision} peak, so "
            "its times cannot be computed; run `trimtab calibrate` and give the job the "
            "profile it writes"
        )
    return peak


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step asks of each of the dp * cp ranks; every micro-batch is alike."""

    num_micro_batches: int
    """Or waves."""
    squares: float
    """Sum of squared lengths over the step, divided by dp * cp."""
    degree_tokens: tuple[tuple[int, float], ...]
    """Tokens over the step, divided by dp * cp, by the degree of their groups."""

    @property
    def tokens(self) -> float:
        return sum(tokens for _, tokens in self.degree_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutCosts:
    """A layout on a machine, at datasheet rates times the efficiencies of this module.

    Times are of the slowest pipeline stage: the one with most layers, or the last one with the
    output matrix.
    """

    model: ModelSpec
    layout: Layout
    used: Machine
    precision: Precision

    @property
    def states(self) -> StateBytes:
        return state_bytes(self.precision)

    @property
    def element_bytes(self) -> int:
        return 4 if self.states.weights == 4 else 2

    @property
    def num_layers(self) -> int:
        """Layers of the largest stage."""
        return -(-self.model.num_layers // self.layout.pp)

    @property
    def peak_flop_per_s(self) -> float:
        return known_peak(self.used, precision=self.precision)

    @property
    def token_s(self) -> float:
        """Rank-seconds of matrix products per token, forward, backward and recompute."""
        model, layout = self.model, self.layout
        per_layer = model.attention_parameters_per_layer + model.active_mlp_parameters_per_layer
        layers = stage_layers(model.num_layers, layout.pp)
        last = layers[-1] * per_layer + model.vocab * model.hidden
        parameters = max(max(layers) * per_layer, last)
        flops = 6 * parameters / layout.tp * (4 / 3 if layout.recompute == "full" else 1)
        return flops / (_MATMUL_EFFICIENCY * self.peak_flop_per_s)

    @property
    def square_s(self) -> float:
        """Rank-seconds of causal attention per squared token; recompute repeats the forward."""
        model, layout = self.model, self.layout
        flops = 6 * self.num_layers * model.num_heads * model.head_dim / layout.tp
        flops *= 1 if layout.recompute == "none" else 4 / 3
        return flops / (_ATTENTION_EFFICIENCY * self.peak_flop_per_s)

    @property
    def alltoall_bytes_per_token(self) -> float:
        """What Ulysses moves per token: queries, keys, values and outputs, there and back.

        Source: Jacobs et al. (2023), DeepSpeed-Ulysses, arXiv:2309.14509.
        """
        model = self.model
        elements = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim / self.layout.tp
        return self._passes * self.num_layers * self.element_bytes * elements

    def alltoall_bytes_per_s(self, degree: int) -> float:
        """Bytes of one rank over the time its share, (degree - 1) / degree of them, takes."""
        link = self.used.exchange_link(degree, stride=self.layout.tp)
        efficiency = _EXCHANGE_EFFICIENCY if self._inside(degree) else _NIC_EFFICIENCY
        return efficiency * link.bytes_per_s * degree / (degree - 1)

    def tensor_s(self, tokens: float) -> float:
        """Two all-reduces a layer and pass (with sequence parallelism, as two halves each).

        Source: Narayanan et al. (2021), arXiv:2104.04473, section 3.2.
        """
        layout = self.layout
        num_bytes = tokens * self.model.hidden * self.element_bytes
        once_s = all_reduce_s(num_bytes, layout.tp, link=self._ring(layout.tp, stride=1))
        return 2 * self._passes * self.num_layers * once_s

    def expert_s(self, tokens: float) -> float:
        """Tokens to their experts and back, every layer and pass."""
        layout, moe = self.layout, self.model.moe
        if moe is None or layout.ep == 1:
            return 0.0
        num_bytes = tokens * moe.experts_per_token * self.model.hidden * self.element_bytes
        link = self._derated(self.used.exchange_link(layout.ep, stride=layout.tp), layout.ep)
        once_s = all_to_all_s(num_bytes / layout.tp, layout.ep, link=link)
        return 2 * self._passes * self.num_layers * once_s

    def pipeline_s(self, tokens: float) -> float:
        """Sending activations on and gradients back, once for each chunk of the stage."""
        layout = self.layout
        if layout.pp == 1:
            return 0.0
        num_bytes = tokens * self.model.hidden * self.element_bytes / layout.tp
        link = self._ring(layout.pp, stride=layout.tp * layout.group_ranks)
        return 2 * layout.vpp * send_s(num_bytes, link=link)

    def gather_s(self, num_micro_batches: int) -> float:
        """Weights from the ranks that keep a share: once a step, in ZeRO-3 twice a micro-batch.

        Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 7.
        """
        if self.layout.zero == 0:
            return 0.0
        times = 2 * num_micro_batches if self.layout.zero == 3 else 1
        num_bytes = self.states.weights * self._parameters
        return times * all_gather_s(num_bytes, self.layout.group_ranks, link=self._data_link)

    def reduction_s(self, num_micro_batches: int) -> float:
        """Gradients: one reduce-scatter (ZeRO 0: all-reduce); ZeRO 2 and 3: every micro-batch.

        Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 7.
        """
        num_bytes = self.states.gradients * self._parameters
        ranks, link = self.layout.group_ranks, self._data_link
        if self.layout.zero == 0:
            return all_reduce_s(num_bytes, ranks, link=link)
        times = num_micro_batches if self.layout.zero >= 2 else 1
        return times * reduce_scatter_s(num_bytes, ranks, link=link)

    @property
    def optimizer_s(self) -> float:
        """AdamW reads gradients and states and writes states and weights: memory-bound."""
        states = self.states
        moved = states.gradients + 2 * states.optimizer + states.weights
        share = self.layout.group_ranks if self.layout.zero >= 1 else 1
        return moved * self._parameters / share / self.used.gpu.memory_bytes_per_s

    @property
    def _passes(self) -> int:
        """Forward and backward, and forward again with full recompute."""
        return 3 if self.layout.recompute == "full" else 2

    @property
    def _parameters(self) -> float:
        """Parameters of the first stage's rank; dense ones and experts alike."""
        return sum(stage_parameters(self.model, self.layout, stage=0))

    @property
    def _data_link(self) -> Link:
        return self._ring(self.layout.group_ranks, stride=self.layout.tp)

    def _inside(self, degree: int) -> bool:
        return degree * self.layout.tp <= self.used.gpus_per_node

    def _ring(self, degree: int, *, stride: int) -> Link:
        link = self.used.ring_link(degree, stride=stride)
        inside = degree * stride <= self.used.gpus_per_node
        efficiency = _RING_EFFICIENCY if inside else _NIC_EFFICIENCY
        return Link(bytes_per_s=efficiency * link.bytes_per_s, latency_s=link.latency_s)

    def _derated(self, link: Link, degree: int) -> Link:
        efficiency = _EXCHANGE_EFFICIENCY if self._inside(degree) else _NIC_EFFICIENCY
        return Link(bytes_per_s=efficiency * link.bytes_per_s, latency_s=link.latency_s)


def step_parts(costs: LayoutCosts, *, work: StepWork) -> tuple[TimePart, ...]:
    """The time of a step, as named parts that add up to it.

    All communication is exposed but for the gradient reduction, which overlaps with the
    backward pass of the last micro-batch (two thirds of its time). The bubble is
    (pp - 1) / (micro-batches * vpp) of the time a stage works.

    Raises:
        InputError: The device's peak is unknown.

    Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2, for the bubble.
    """
    micro, layout = work.num_micro_batches, costs.layout
    tokens = work.tokens / micro
    exchanged_s = sum(
        amount / costs.alltoall_bytes_per_s(degree)
        for degree, amount in work.degree_tokens
        if degree > 1
    )
    working = {
        "compute": costs.token_s * work.tokens,
        "attention": costs.square_s * work.squares,
        "kernel launches": micro * costs.num_layers * _LAYER_OVERHEAD_S,
        "tp communication": micro * costs.tensor_s(tokens),
        "cp communication": costs.alltoall_bytes_per_token * exchanged_s,
        "ep communication": micro * costs.expert_s(tokens),
    }
    stage_s = sum(working.values())
    hidden_s = 2 / 3 * stage_s / micro
    exposed_s = max(0.0, costs.reduction_s(micro) - hidden_s)
    parts = working | {
        "pp communication": micro * costs.pipeline_s(tokens),
        "pipeline bubble": (layout.pp - 1) / (micro * layout.vpp) * stage_s,
        "dp communication": costs.gather_s(micro) + exposed_s,
        "optimizer": costs.optimizer_s,
    }
    return tuple(TimePart(name=name, seconds=seconds) for name, seconds in parts.items())


def analytic_profile(
    model: ModelSpec, cluster: ClusterSpec, layout: Layout, *, precision: Precision
) -> StepProfile:
    """The step coefficients of one of the dp * cp ranks, from datasheets.

    Degrees are those over which Ulysses can split the heads of a tp rank and that divide
    dp * cp. The token cap is what memory has room for with fused attention (no scores kept)
    once model states and workspace are in. A pipeline's bubble is not in the coefficients.

    Raises:
        InputError: The device's peak is unknown, or the cluster is too small.
        InfeasibleError: Model states leave no room for a single token.
    """
    used = machine(cluster, layout.num_ranks, precision=precision)
    costs = LayoutCosts(model=model, layout=layout, used=used, precision=precision)
    latency_s = costs.tensor_s(0.0) + costs.expert_s(0.0) + costs.pipeline_s(0.0)
    moved_s = costs.tensor_s(1.0) + costs.expert_s(1.0) + costs.pipeline_s(1.0) - latency_s
    return StepProfile(
        name=f"{model.name} on {used.gpu.name}, {layout}",
        num_gpus=layout.group_ranks,
        gpus_per_node=max(1, used.gpus_per_node // layout.tp),
        quadratic_s=costs.square_s,
        linear_s=costs.token_s + moved_s,
        fixed_s=costs.num_layers * _LAYER_OVERHEAD_S + latency_s,
        alltoall_bytes_per_token=costs.alltoall_bytes_per_token,
        bandwidths=tuple(
            DegreeBandwidth(degree=degree, bytes_per_s=costs.alltoall_bytes_per_s(degree))
            for degree in group_degrees(model, layout)
            if degree > 1
        ),
        token_cap=memory_token_cap(costs),
        step_fixed_s=costs.gather_s(1) + costs.reduction_s(1) + costs.optimizer_s,
        evidence="analytic",
        source="datasheet peaks and links times the efficiencies of trimtab.planners.costs",
    )


def group_degrees(model: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """Group degrees of a layout: divisors of dp * cp that split the heads of a tp rank."""
    heads = model.num_heads // layout.tp
    ranks = layout.group_ranks
    return tuple(d for d in range(1, min(heads, ranks) + 1) if heads % d == ranks % d == 0)


def memory_token_cap(costs: LayoutCosts) -> int:
    """Tokens of a wave one rank has room for; every stage keeps within 92 % of its memory.

    Raises:
        InfeasibleError: There is no room for one token.
    """
    layout, capacity = costs.layout, costs.used.gpu.memory_bytes
    empty, filled = (
        stage_memories(
            costs.model, layout, precision=costs.precision, tokens=tokens, squares=0.0,
            num_micro_batches=layout.pp, capacity_bytes=capacity,
            stages=worst_stages(costs.model, layout.pp),
        )
        for tokens in (0.0, 1e6)
    )  # fmt: skip
    caps = []
    for none, million in zip(empty, filled, strict=True):
        room = _FULL_FRACTION * capacity - none.total_bytes
        if room <= 0:
            raise InfeasibleError(
                f"memory: {layout} needs {memory_text(none.total_bytes)} per GPU for weights, "
                f"gradients and optimizer, the {costs.used.gpu.name} has "
                f"{memory_text(capacity)}, of which {_FULL_FRACTION:.0%} may be filled: short "
                f"by {memory_text(-room)}; use more ranks or a higher tp or pp"
            )
        caps.append(1e6 * room / (million.total_bytes - none.total_bytes))
    return max(1, int(min(caps)))
