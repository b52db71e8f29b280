"""What a choice costs: a sequence group under a profile, and a step of a layout on a device.

A step's time is the datasheet's (`counts.py`) times fitted constants (`core.rates`), added up
so that every part has a name. Nothing is looked up: a layout nobody has measured is priced
alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.core.cluster import ClusterSpec, Precision
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.rates import Rates
from trimtab.core.units import memory_text
from trimtab.planners.counts import Real, StepCounts, step_counts
from trimtab.planners.memory import stage_memories, worst_stages
from trimtab.planners.placement import Machine, machine
from trimtab.planners.timeline import PipelineWork

_EXCHANGE_EFFICIENCY = 0.3
"""Share of the NVLink rate that an all-to-all reaches: FlexSP's 96.5 x 7/8 of 300 GB/s."""
_NIC_EFFICIENCY = 0.7
"""Share of the NIC line rate: FlexSP's 4.87 x 7/8 of 6.25 GB/s."""
_LAUNCH_POWER = 4
"""Kernels are launched while others run: the longer of both counts, joined smoothly."""
_GATHER_POWER = 3
"""The same of weights that are gathered while a layer computes; both slow down somewhat."""
_FAR_EFFICIENCY = 0.9
"""Share of the NICs' rate that an all-reduce of large messages reaches, by nccl-tests."""
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


def price(counts: StepCounts, rates: Rates) -> dict[str, Real]:
    """The parts of a step in seconds, by name; they add up to the step.

    One micro-batch takes a stage its layers, and the last stage the output matrix too. The
    slowest stage works for every micro-batch; what the others wait while the pipeline fills and
    drains follows from the schedule (`trimtab.planners.timeline.fill`), a stage on average:

        m max(stage) + (sum(stage) - max(stage)) / vpp

    with one-forward-one-backward, and less with schedules that fill it with weight gradients.

    Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2, for equal stages.

    Args:
        counts: Of one layout, or of many, stacked.
        rates: The constants.
    """
    layer = layer_parts(counts, rates)
    busy = sum(layer.values())
    gather_s = rates.gather_factor * counts.weights_s
    output_s = head_s(counts, rates)
    is_last = counts.last_layers * busy + output_s >= counts.most_layers * busy
    layers = np.where(is_last, counts.last_layers, counts.most_layers)
    stage: dict[str, Real] = {name: layers * part for name, part in layer.items()}
    stage["dp communication"] = _excess(layers * busy, gather_s, _GATHER_POWER)
    stage["output matrix"] = np.where(is_last, output_s, 0.0)
    slowest_s = sum(stage.values())
    micro = counts.num_micro_batches
    parts: dict[str, Real] = {name: micro * part for name, part in stage.items()}
    others_s = (
        counts.num_layers * busy + output_s + counts.num_stages * stage["dp communication"]
    )
    stage_s = (others_s - slowest_s) / np.maximum(1, counts.num_stages - 1)
    weight_s = layers * layer["matrix products"] / counts.passes
    fill_s = np.maximum(
        0.0,
        counts.fill_stages * stage_s
        - counts.fill_forwards * stage_s / counts.passes
        - counts.fill_weights * weight_s,
    )
    messages = (micro + (counts.num_stages - 1) / counts.num_chunks) * counts.pp_messages
    exchange_s = (
        rates.dp_factor * counts.gradients_s + rates.dp_latency_s * counts.group_doublings
    )
    hidden_s = rates.dp_hidden * 2 / 3 * slowest_s
    parts |= {
        "pipeline bubble": fill_s,
        "pp communication": messages * (rates.pp_factor * counts.pp_s + rates.pp_latency_s),
        "optimizer": rates.elementwise_factor * counts.optimizer_s,
        "every step": rates.step_s,
    }
    parts["dp communication"] = parts["dp communication"] + beyond(exchange_s, hidden_s)
    doublings = np.log2(np.maximum(1.0, counts.num_ranks / 8))
    parts["waiting for the slowest"] = rates.scale_slowdown * doublings * sum(parts.values())
    return parts


def pipeline_work(
    counts: StepCounts, rates: Rates, stage_layers: Sequence[int]
) -> PipelineWork:
    """Seconds of a micro-batch in every stage, for the timeline of one layout."""
    layer = {name: float(part) for name, part in layer_parts(counts, rates).items()}
    passes = float(counts.passes)
    forward_s = sum(layer.values()) / passes
    weight_s = layer["matrix products"] / passes
    backward_s = (passes - 1) * forward_s - weight_s
    output_s = float(head_s(counts, rates)) / 3
    outputs = [0.0] * (len(stage_layers) - 1) + [output_s]

    def of_stages(layer_s: float) -> tuple[float, ...]:
        return tuple(
            layers * layer_s + extra
            for layers, extra in zip(stage_layers, outputs, strict=True)
        )

    return PipelineWork(
        forward_s=of_stages(forward_s),
        backward_s=of_stages(backward_s),
        weight_s=of_stages(weight_s),
    )


def step_s(counts: StepCounts, rates: Rates) -> Real:
    """The time of a step: the sum of `price`."""
    return sum(price(counts, rates).values())


def head_s(counts: StepCounts, rates: Rates) -> Real:
    """The output matrix and the loss for a micro-batch, forward and backward."""
    products_s = 3 * counts.output_s / rates.matmul_efficiency
    return products_s + rates.elementwise_factor * counts.logits_s


def layer_parts(counts: StepCounts, rates: Rates) -> dict[str, Real]:
    """What a layer takes for a micro-batch, forward, backward and recompute."""
    matmul = np.where(counts.is_fp8, rates.fp8_efficiency, rates.matmul_efficiency)
    matmul = np.where(counts.is_fp4, rates.fp4_efficiency, matmul)
    experts = 1 + counts.is_expert * (rates.expert_factor - 1)
    fused, unfused = rates.attention_efficiency, rates.unfused_attention_efficiency
    attention = np.where(counts.is_fused, fused, unfused)
    unaligned = 1 + counts.is_unaligned * (rates.unaligned_factor - 1)
    parts = {
        "matrix products": counts.passes
        * (
            (counts.matmul_s + rates.idle_factor * counts.idle_s) * experts / matmul
            + rates.traffic_factor * counts.traffic_s
        ),
        "attention": counts.attention_passes
        * (
            counts.attention_s * unaligned / attention
            + rates.elementwise_factor * counts.scores_s
        ),
        "norms and activations": counts.passes
        * rates.elementwise_factor
        * counts.elementwise_s,
    }
    parts |= {
        "tp communication": counts.tp_operations
        * (
            rates.tp_factor * counts.tp_s
            + counts.tp_far_s / _FAR_EFFICIENCY
            + rates.tp_latency_s * counts.tp_doublings
        ),
        "cp communication": 3 * rates.cp_factor * counts.cp_s + counts.exchange_s,
        "ep communication": counts.passes * rates.ep_factor * counts.ep_s,
    }
    on_device_s = sum(parts.values())
    kernels = 1 + counts.is_expert * (rates.expert_launch_factor - 1)
    launch_s = rates.launch_s * kernels * counts.passes
    return parts | {"kernel launches": _excess(on_device_s, launch_s, _LAUNCH_POWER)}


def _excess(busy_s: Real, other_s: Real, power: int) -> Real:
    """What another work adds that runs beside `busy_s`: the longer of the two counts.

    Where they are alike it is a little more: (busy^p + other^p)^(1/p) - busy.
    """
    return np.maximum(0.0, (busy_s**power + other_s**power) ** (1 / power) - busy_s)


def beyond(exchange_s: Real, hidden_s: Real) -> Real:
    """What of an exchange is not hidden: max(0, difference), smooth within a tenth of it.

    A step of which nothing is exchanged has nothing exposed.
    """
    width = 0.1 * exchange_s
    difference = exchange_s - hidden_s
    return (difference + np.sqrt(difference * difference + width * width)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step asks of each of the dp * cp ranks; every micro-batch is alike."""

    num_micro_batches: int
    """Or waves."""
    squares: float
    """Sum of squared lengths over the step, divided by dp * cp."""
    degree_tokens: tuple[tuple[int, float], ...]
    """Tokens over the step, divided by dp * cp, by the degree of their sequence groups."""

    @property
    def tokens(self) -> float:
        return sum(tokens for _, tokens in self.degree_tokens)


def work_counts(
    model: ModelSpec, layout: Layout, used: Machine, *, precision: Precision, work: StepWork
) -> StepCounts:
    """`step_counts` at the datasheet's peak, with what sequence groups exchange.

    Raises:
        InputError: The device's peak is unknown.
    """
    micro = work.num_micro_batches
    moved = alltoall_bytes_per_token(model, layout, precision=precision) / model.num_layers
    exchanged_s = sum(
        moved * tokens / alltoall_bytes_per_s(layout, used, degree)
        for degree, tokens in work.degree_tokens
        if degree > layout.cp
    )
    return step_counts(
        model,
        layout,
        used,
        precision=precision,
        peak_flop_per_s=known_peak(used, precision=precision),
        num_micro_batches=micro,
        tokens=work.tokens / micro,
        squares=work.squares / micro,
        exchanged_s=exchanged_s / micro,
    )


def alltoall_bytes_per_token(
    model: ModelSpec, layout: Layout, *, precision: Precision
) -> float:
    """What Ulysses moves per token: queries, keys, values and outputs, there and back.

    Source: Jacobs et al. (2023), DeepSpeed-Ulysses, arXiv:2309.14509.
    """
    elements = model.attention_elements / layout.tp
    passes = 3 if layout.recompute == "full" else 2
    element_bytes = 4 if precision in ("fp32", "tf32") else 2
    return passes * -(-model.num_layers // layout.pp) * element_bytes * elements


def alltoall_bytes_per_s(layout: Layout, used: Machine, degree: int) -> float:
    """Bytes of one rank over the time its share, (degree - 1) / degree of them, takes."""
    link = used.exchange_link(degree, stride=layout.tp)
    inside = degree * layout.tp <= used.gpus_per_node
    efficiency = _EXCHANGE_EFFICIENCY if inside else _NIC_EFFICIENCY
    return efficiency * link.bytes_per_s * degree / (degree - 1)


def analytic_profile(
    model: ModelSpec,
    cluster: ClusterSpec,
    layout: Layout,
    *,
    precision: Precision,
    rates: Rates | None = None,
) -> StepProfile:
    """The step coefficients of one of the dp * cp ranks, from datasheets and rates.

    Degrees are those over which Ulysses can split the heads of a tp rank and that divide
    dp * cp. The token cap is what memory has room for with fused attention (no scores kept)
    once model states and workspace are in. A pipeline's bubble is not in the coefficients.

    Raises:
        InputError: The device's peak is unknown, or the cluster is too small.
        InfeasibleError: Model states leave no room for a single token.
    """
    used = machine(cluster, layout.num_ranks, precision=precision)
    token_cap = memory_token_cap(model, layout, used, precision=precision)
    rates = rates or Rates()

    def wave(tokens: float, squares: float) -> dict[str, float]:
        work = StepWork(num_micro_batches=1, squares=squares, degree_tokens=((1, tokens),))
        counts = work_counts(model, layout, used, precision=precision, work=work)
        return {name: float(part) for name, part in price(counts, rates).items()}

    empty, filled, quadratic = wave(0.0, 0.0), wave(token_cap, 0.0), wave(token_cap, 1e6)
    linear_s = sum(filled[name] - empty[name] for name in _LINEAR_PARTS) / token_cap
    return StepProfile(
        name=f"{model.name} on {used.gpu.name}, {layout}",
        num_gpus=layout.group_ranks,
        gpus_per_node=max(1, used.gpus_per_node // layout.tp),
        quadratic_s=(quadratic["attention"] - filled["attention"]) / 1e6,
        linear_s=linear_s,
        fixed_s=sum(empty[name] for name in _LINEAR_PARTS) + filled["kernel launches"],
        alltoall_bytes_per_token=alltoall_bytes_per_token(model, layout, precision=precision),
        bandwidths=tuple(
            DegreeBandwidth(
                degree=degree, bytes_per_s=alltoall_bytes_per_s(layout, used, degree)
            )
            for degree in group_degrees(model, layout)
            if degree > 1
        ),
        token_cap=token_cap,
        step_fixed_s=filled["dp communication"] + filled["optimizer"] + filled["every step"],
        evidence="analytic",
        source="datasheet peaks and links times the constants of trimtab.core.rates",
    )


_LINEAR_PARTS = (
    "matrix products",
    "attention",
    "norms and activations",
    "output matrix",
    "tp communication",
    "ep communication",
    "pp communication",
)
"""Parts that grow with the tokens of a wave."""


def group_degrees(model: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """Group degrees of a layout: divisors of dp * cp that split the heads of a tp rank."""
    heads = model.num_heads // layout.tp
    ranks = layout.group_ranks
    return tuple(d for d in range(1, min(heads, ranks) + 1) if heads % d == ranks % d == 0)


def memory_token_cap(
    model: ModelSpec, layout: Layout, used: Machine, *, precision: Precision
) -> int:
    """Tokens of a wave one rank has room for; every stage keeps within 92 % of its memory.

    Raises:
        InfeasibleError: There is no room for one token.
    """
    capacity = used.gpu.memory_bytes
    empty, filled = (
        stage_memories(
            model, layout, precision=precision, tokens=tokens, squares=0.0,
            num_micro_batches=layout.pp, capacity_bytes=capacity,
            stages=worst_stages(model, layout),
        )
        for tokens in (0.0, 1e6)
    )  # fmt: skip
    caps = []
    for none, million in zip(empty, filled, strict=True):
        room = _FULL_FRACTION * capacity - none.total_bytes
        if room <= 0:
            raise InfeasibleError(
                f"memory: {layout} needs {memory_text(none.total_bytes)} per GPU for weights, "
                f"gradients and optimizer, the {used.gpu.name} has "
                f"{memory_text(capacity)}, of which {_FULL_FRACTION:.0%} may be filled: short "
                f"by {memory_text(-room)}; use more ranks or a higher tp or pp"
            )
        caps.append(1e6 * room / (million.total_bytes - none.total_bytes))
    return max(1, int(min(caps)))
