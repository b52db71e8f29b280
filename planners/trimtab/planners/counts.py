"""What a step asks of each rank, in seconds at the datasheet's rates; nothing here is fitted.

The counts of many layouts can be stacked into one `StepCounts` of arrays, and priced together.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core.cluster import Link, Precision
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.planners.memory import StateBytes, stage_parameters, state_bytes
from trimtab.planners.placement import Machine, layers_of
from trimtab.planners.timeline import fill

Real = float | NDArray[np.float64]

_NARROW: tuple[Precision, ...] = ("fp8", "fp4")
"""Of the layers' matrix products only; attention and the output matrix are computed in bf16."""
_ELEMENTWISE_HIDDEN = 10
"""Hidden-sized tensors a layer reads and writes in norms, dropout and residuals, each way."""
_ELEMENTWISE_INNER = 4
"""The same of its inner tensors: rotary positions, activation function."""
_SCORE_PASSES = 10
"""Product, scale, mask, softmax, dropout and product read and write the scores in turn."""
_TILES = ((128, 256, 1.0), (128, 128, 0.95), (64, 128, 0.8), (64, 64, 0.6))
"""Tiles of matrix products, and how near their arithmetic comes to the largest one's."""
_SHORT_TOKENS = 430
"""At this length fused attention reaches half its rate; see `_attention_flops`."""
_LOGIT_BYTES = 12
"""Logits in 16 bits, in 32 bits, and their gradient's share: bytes of a pass per element."""
OPTIMIZER_BYTES = 30
"""AdamW in mixed precision reads and writes this for each parameter it holds."""

OFFLOADED_BYTES = 38
"""The same where the optimizer is on the host: its own 30, and 32-bit gradients there, 16-bit
weights and their sum's norm back."""
HOST_BYTES_PER_S = 20e9
"""Of a GPU's share of its host's memory, read and written; an assumption: two sockets of
200 GB/s are 50 for each of 8 GPUs, and a PCIe 4 x16 link beside them carries 25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """Of the slowest rank. `_s` are seconds at full datasheet rate, `num_` are counts.

    Per layer and forward pass of one micro-batch: matmul, traffic, elementwise, attention,
    scores. Per operation: tp, cp, ep, pp. Per step: gradients, optimizer.
    """

    num_micro_batches: Real
    num_layers: Real
    """Of all stages."""
    most_layers: Real
    """Of any stage but the last; 0 where there is one stage."""
    last_layers: Real
    """Of the last stage, which has the output matrix too."""
    num_stages: Real
    num_chunks: Real
    """vpp."""
    fill_stages: Real
    """What the pipeline's fill and drain wait for, see `trimtab.planners.timeline.Fill`."""
    fill_forwards: Real
    fill_weights: Real
    num_ranks: Real
    passes: Real
    """Through a layer's matrix products: forward, twice backward, and recompute."""
    attention_passes: Real
    matmul_s: Real
    idle_s: Real
    """While the last wave of a product's tiles fills only a part of the GPU."""
    traffic_s: Real
    elementwise_s: Real
    attention_s: Real
    scores_s: Real
    output_s: Real
    """The output matrix, forward."""
    logits_s: Real
    tp_s: Real
    """Within a node; else 0."""
    tp_far_s: Real
    """Where the tp ranks span nodes; else 0."""
    tp_operations: Real
    """All-reduces of a layer and micro-batch, all passes together."""
    tp_doublings: Real
    cp_s: Real
    exchange_s: Real
    """All-to-all of sequence groups (Ulysses), all passes of a layer and micro-batch."""
    ep_s: Real
    pp_s: Real
    pp_messages: Real
    """Of a stage and micro-batch."""
    gradients_s: Real
    weights_s: Real
    """For each micro-batch. ZeRO-3: gathering weights twice and scattering gradients; ZeRO-2:
    gathering once."""
    group_doublings: Real
    optimizer_s: Real
    is_fp8: Real
    is_fp4: Real
    is_fused: Real
    is_expert: Real
    is_unaligned: Real


def stacked(counts: Sequence[StepCounts]) -> StepCounts:
    """The counts of many layouts as one, each field an array of shape (len(counts),)."""
    return StepCounts(
        **{
            field.name: np.array([getattr(one, field.name) for one in counts], dtype=float)
            for field in dataclasses.fields(StepCounts)
        }
    )


def step_counts(
    model: ModelSpec,
    layout: Layout,
    used: Machine,
    *,
    precision: Precision,
    peak_flop_per_s: float,
    num_micro_batches: float,
    tokens: float,
    squares: float,
    exchanged_s: float = 0.0,
) -> StepCounts:
    """Count a step.

    Args:
        model: The model.
        layout: The layout.
        used: The machine.
        precision: Of the layers' matrix products.
        peak_flop_per_s: At that precision.
        num_micro_batches: Of a step, or waves.
        tokens: Of one micro-batch that one rank holds (after cp).
        squares: Squared lengths of one micro-batch's sequences over the ranks that share them.
        exchanged_s: All-to-all of sequence groups, of a layer and micro-batch.
    """
    wide = used.gpu.peak_flop_per_s("bf16") if precision in _NARROW else None
    half = wide or peak_flop_per_s
    states = state_bytes(precision)
    num_bytes = 4 if states.weights == 4 else 2
    memory = used.gpu.memory_bytes_per_s
    tp, inner = layout.tp, model.ffn_hidden
    if model.moe is not None:
        inner = model.moe.experts_per_token * model.moe.expert_ffn_hidden
        inner += model.moe.shared_ffn_hidden
    mlp_matrices = 3 if model.gated_mlp else 2
    heads = model.num_heads * model.head_dim
    key_values = model.num_kv_heads * model.head_dim
    attention_parameters = model.attention_parameters_per_layer
    active = attention_parameters + model.active_mlp_parameters_per_layer
    resident = attention_parameters + (
        model.unsplit_expert_parameters if model.moe else model.dense_mlp_parameters
    )
    is_full, is_fused = layout.recompute == "full", layout.fused_attention
    score_bytes = 0 if is_fused else _SCORE_PASSES * num_bytes
    again = 1 if is_full or (layout.recompute == "selective" and not is_fused) else 0
    norm_split = tp if layout.sequence_parallel else 1
    moved = 4 * model.hidden + (heads + 2 * key_values + mlp_matrices * inner) / tp
    touched = _ELEMENTWISE_HIDDEN * model.hidden / norm_split
    touched += _ELEMENTWISE_INNER * (heads + key_values + inner) / tp
    gradients_s, weights_s = _data_parallel_s(model, layout, used, states=states)
    matmul_s = 2 * tokens * active / tp / peak_flop_per_s
    tp_s = _all_reduce_s(num_bytes * tokens * model.hidden, tp, used.ring_link(tp, stride=1))
    layers = layers_of(model, layout)
    waits = fill(layout.schedule, pp=layout.pp, vpp=layout.vpp)
    is_near = tp <= used.gpus_per_node
    return StepCounts(
        num_micro_batches=num_micro_batches,
        num_layers=model.num_layers,
        most_layers=max(layers[:-1], default=0),
        last_layers=layers[-1],
        num_stages=layout.pp,
        num_chunks=layout.vpp,
        fill_stages=waits.stages,
        fill_forwards=waits.forwards,
        fill_weights=waits.weights,
        num_ranks=layout.num_ranks,
        passes=3 + is_full,
        attention_passes=3 + again,
        matmul_s=matmul_s,
        idle_s=matmul_s * idle_fraction(model, layout, used, tokens=tokens),
        traffic_s=num_bytes * (tokens * moved + resident / tp) / memory,
        elementwise_s=num_bytes * tokens * touched / memory,
        attention_s=_attention_flops(model, tokens, squares, is_fused) / tp / half,
        scores_s=score_bytes * model.num_heads * squares / tp / memory,
        output_s=2 * tokens * model.hidden * model.vocab / tp / half,
        logits_s=_LOGIT_BYTES * tokens * model.vocab / tp / memory,
        tp_s=tp_s if is_near else 0.0,
        tp_far_s=0.0 if is_near else tp_s,
        tp_operations=0 if tp == 1 else 2 * (2 + is_full),
        tp_doublings=math.log2(tp),
        cp_s=_ring_attention_s(model, layout, used, tokens=tokens, num_bytes=num_bytes),
        exchange_s=exchanged_s,
        ep_s=_dispatch_s(model, layout, used, tokens=tokens, num_bytes=num_bytes),
        pp_s=_stage_message_s(model, layout, used, tokens=tokens, num_bytes=num_bytes),
        pp_messages=0 if layout.pp == 1 else 2 * layout.vpp,
        gradients_s=gradients_s,
        weights_s=weights_s,
        group_doublings=math.log2(layout.group_ranks),
        optimizer_s=_optimizer_s(model, layout, used),
        is_fp8=precision == "fp8",
        is_fp4=precision == "fp4",
        is_fused=is_fused,
        is_expert=model.moe is not None,
        is_unaligned=model.head_dim % 8 != 0,
    )


def _attention_flops(model: ModelSpec, tokens: float, squares: float, is_fused: bool) -> float:
    """Of a layer's scores and values, forward; a fused kernel computes the causal half only.

    Short sequences keep a fused kernel from its full rate, as if each token saw 430 more.

    Source: Dao (2023), FlashAttention-2, arXiv:2307.08691, figure 4, causal, head_dim 128: 97,
    133, 157, 171, 177 and 179 TFLOP/s at 512 to 16,384 tokens are 182 s / (s + 430) within 3 %.
    """
    per_pair = model.score_flops
    return per_pair * ((squares + _SHORT_TOKENS * tokens) / 2 if is_fused else squares)


def idle_fraction(model: ModelSpec, layout: Layout, used: Machine, *, tokens: float) -> float:
    """Time that a layer's products leave multiprocessors idle, over that of the arithmetic.

    A product's output is cut into tiles, and a GPU computes one tile on each multiprocessor at
    a time: the last wave of tiles is as long as any. Products are those of the forward pass and
    the two of the backward pass, which have the same sizes in another order.

    Source: NVIDIA, "Matrix Multiplication Background User's Guide", section on wave
    quantization.
    """
    rows = max(1.0, tokens)
    idle = total = 0.0
    for num, m, n, k in _products(model, layout, tokens=rows):
        for height, width in ((m, n), (m, k), (n, k)):
            idle += num * m * n * k * _idle_of_product(num, height, width, used.gpu.num_sms)
            total += num * m * n * k
    return idle / total


def _products(
    model: ModelSpec, layout: Layout, *, tokens: float
) -> Iterator[tuple[float, float, float, float]]:
    """Products of a layer's forward pass: how many at once, rows, columns, inner length."""
    tp, hidden = layout.tp, model.hidden
    heads = model.num_heads * model.head_dim
    fused = (heads + 2 * model.num_kv_heads * model.head_dim) / tp
    yield 1, tokens, fused, hidden
    yield 1, tokens, hidden, heads / tp
    num, rows, inner = 1.0, tokens, model.ffn_hidden / tp
    if model.moe is not None:
        num = model.moe.num_experts / layout.ep
        rows = max(1.0, tokens * model.moe.experts_per_token / num)
        inner = model.moe.expert_ffn_hidden / tp
    yield num, rows, inner * (2 if model.gated_mlp else 1), hidden
    yield num, rows, hidden, inner


def _idle_of_product(num: float, height: float, width: float, num_sms: int) -> float:
    """Of `num` equal products: time lost over time of the arithmetic, with the best tile."""
    best = math.inf
    for tile_height, tile_width, efficiency in _TILES:
        tiles = num * math.ceil(height / tile_height) * math.ceil(width / tile_width)
        waves = math.ceil(tiles / num_sms)
        computed = waves * num_sms * tile_height * tile_width / efficiency
        best = min(best, computed / (num * height * width))
    return best - 1


def _all_reduce_s(num_bytes: float, ranks: int, link: Link) -> float:
    """Bandwidth term of a ring all-reduce. Source: `trimtab.planners.collectives`."""
    return 2 * (ranks - 1) / ranks * num_bytes / link.bytes_per_s


def _ring_attention_s(
    model: ModelSpec, layout: Layout, used: Machine, *, tokens: float, num_bytes: int
) -> float:
    """Keys and values of a layer once around the cp ranks. Source: arXiv:2310.01889."""
    if layout.cp == 1:
        return 0.0
    link = used.ring_link(layout.cp, stride=layout.tp)
    per_head = model.attention_elements / (model.num_heads + model.num_kv_heads)
    key_values = model.num_kv_heads * per_head / layout.tp
    return (layout.cp - 1) * num_bytes * tokens * key_values / link.bytes_per_s


def _dispatch_s(
    model: ModelSpec, layout: Layout, used: Machine, *, tokens: float, num_bytes: int
) -> float:
    """Tokens of a layer to their experts and back, forward."""
    if layout.ep == 1 or model.moe is None:
        return 0.0
    link = used.exchange_link(layout.ep, stride=layout.tp)
    sent = tokens * model.moe.experts_per_token * model.hidden * num_bytes / layout.tp
    return 2 * (layout.ep - 1) / layout.ep * sent / link.bytes_per_s


def _stage_message_s(
    model: ModelSpec, layout: Layout, used: Machine, *, tokens: float, num_bytes: int
) -> float:
    if layout.pp == 1:
        return 0.0
    link = used.ring_link(layout.pp, stride=layout.tp * layout.group_ranks)
    return num_bytes * tokens * model.hidden / layout.tp / link.bytes_per_s


def _data_parallel_s(
    model: ModelSpec, layout: Layout, used: Machine, *, states: StateBytes
) -> tuple[float, float]:
    """Once a step: gradients reduced, weights gathered; ZeRO 2 and 3: for every micro-batch.

    ZeRO 0 and 1 are alike in what they move: gradients are reduced and scattered, and either
    they or the new weights gathered, counted in the gradients' and the weights' bytes. ZeRO-2
    keeps no whole gradients to add up in, ZeRO-3 no whole weights either.

    Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 7.
    """
    ranks = layout.group_ranks
    if ranks == 1:
        return 0.0, 0.0
    dense, expert = stage_parameters(model, layout, stage=0)
    link = used.ring_link(ranks, stride=layout.tp)
    moved_s = (ranks - 1) / ranks * (dense + expert) / link.bytes_per_s
    if layout.zero >= 2:
        return 0.0, layout.zero * states.weights * moved_s
    return (states.gradients + states.weights) * moved_s, 0.0


def _optimizer_s(model: ModelSpec, layout: Layout, used: Machine) -> float:
    share = layout.group_ranks if layout.zero >= 1 else 1
    parameters = sum(stage_parameters(model, layout, stage=0)) / share
    if layout.offload == "optimizer":
        return OFFLOADED_BYTES * parameters / HOST_BYTES_PER_S
    return OPTIMIZER_BYTES * parameters / used.gpu.memory_bytes_per_s
