"""Memory of the worst rank of every pipeline stage, in bytes.

Model states follow ZeRO (arXiv:1910.02054) with Megatron's mixed precision: 2-byte weights,
4-byte gradients, and 4 + 4 + 4 bytes of master weights and Adam moments, 18 in all; in fp32
4 + 4 + 8. (Megatron-core, dist_optimizer guide: 18 bytes become 6 + 12 / d, and 16 become
8 + 8 / d, with the distributed optimizer over d ranks.)

Activations follow Korthikanti et al. (2022), arXiv:2205.05198, whose 34 s b h + 5 a s^2 b bytes
a layer are counted here term by term, so that grouped-query attention, gated MLPs, experts and
fp32 have their own sums.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.cluster import Precision
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, Recompute, StageMemory
from trimtab.core.rates import MemoryRates
from trimtab.planners.placement import layers_of
from trimtab.planners.timeline import most_held

_USUAL = MemoryRates()
_WORKSPACE_FRACTION = 0.12
"""The workspace is at most this share of the device, so that small devices stay usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per parameter before sharding."""

    weights: int
    gradients: int
    optimizer: int


def state_bytes(precision: Precision) -> StateBytes:
    """Bytes per parameter of Adam training; fp8 keeps 2-byte weights, as bf16."""
    if precision in ("fp32", "tf32"):
        return StateBytes(weights=4, gradients=4, optimizer=8)
    return StateBytes(weights=2, gradients=4, optimizer=12)


def layer_activation_bytes(
    model: ModelSpec,
    *,
    tokens: float,
    squares: float,
    tp: int,
    recompute: Recompute,
    sequence_parallel: bool,
    fused_attention: bool = False,
    element_bytes: int = 2,
) -> float:
    """Activations one rank keeps of one layer for the backward pass.

    With GELU, ffn = 4 hidden and 2-byte elements: s b h (10 + 24 / t + 5 a s / (h t)) without
    recompute, s b h (10 + 24 / t) with selective, 2 s b h with full; sequence parallelism
    divides the 10 and the 2 by t as well.

    Args:
        model: The model.
        tokens: Tokens the rank holds, s b.
        squares: Sum of the squared lengths of the sequences, divided by the ranks that share
            them, s^2 b.
        tp: Tensor-parallel degree, t.
        recompute: `selective` drops the attention scores, `full` all but the layer's input.
        sequence_parallel: Whether norms and dropout are split over the tp ranks.
        fused_attention: Whether no scores are kept, whatever is recomputed.
        element_bytes: Bytes of an activation, 2 or 4.

    Source: arXiv:2205.05198, equations 1 to 4 and 6, table 2.
    """
    split = tp if sequence_parallel else 1
    if recompute == "full":
        return element_bytes * tokens * model.hidden / split
    norms_and_inputs = (4 * element_bytes + 2) * model.hidden / split
    attention = element_bytes * model.attention_elements
    parallel = (attention + element_bytes * _mlp_elements(model)) / tp
    scores = 0.0
    if recompute == "none" and not fused_attention:
        scores = (2 * element_bytes + 1) * model.num_heads * squares / tp
    return tokens * (norms_and_inputs + parallel) + scores


def stage_memories(
    model: ModelSpec,
    layout: Layout,
    *,
    precision: Precision,
    tokens: float,
    squares: float,
    num_micro_batches: int,
    capacity_bytes: int,
    stages: Sequence[int] | None = None,
    rates: MemoryRates = _USUAL,
) -> tuple[StageMemory, ...]:
    """Memory of every stage.

    With one-forward-one-backward scheduling stage i keeps the activations of pp - i
    micro-batches; interleaving (vpp > 1) adds 1 + (pp - 1) / (pp vpp) times as much on the
    first stage. With `dualpipe` a rank holds the weights of two stages.

    Args:
        model: The model.
        layout: The layout.
        precision: Of the matrix products.
        tokens: Tokens of one micro-batch that one rank holds.
        squares: Squared lengths of them, as in `layer_activation_bytes`.
        num_micro_batches: Micro-batches of a step.
        capacity_bytes: Memory of one GPU.
        stages: Which stages to report; None: all.
        rates: What the engine keeps besides.

    Source: arXiv:2205.05198, section 4.2.3; Narayanan et al. (2021), arXiv:2104.04473.
    """
    states = state_bytes(precision)
    if states.weights == 2:
        states = dataclasses.replace(states, gradients=rates.gradient_bytes)
    activations = _stage_activations(
        model, layout, tokens=tokens, squares=squares, num_micro_batches=num_micro_batches,
        element_bytes=4 if states.weights == 4 else 2,
    )  # fmt: skip
    workspace = min(rates.workspace_bytes, _WORKSPACE_FRACTION * capacity_bytes)
    memories = []
    for stage in range(layout.pp) if stages is None else stages:
        dense, expert = stage_parameters(model, layout, stage=stage)
        if layout.schedule == "dualpipe":
            mirrored = stage_parameters(model, layout, stage=layout.pp - 1 - stage)
            dense, expert = dense + mirrored[0], expert + mirrored[1]
        weights, gradients, optimizer = _sharded(dense, expert, layout, states=states)
        memories.append(
            StageMemory(
                stage=stage,
                weights_bytes=round(weights),
                gradients_bytes=round(gradients),
                optimizer_bytes=round(optimizer),
                activations_bytes=round(rates.activation_factor * activations[stage]),
                workspace_bytes=round(workspace),
                capacity_bytes=capacity_bytes,
            )
        )
    return tuple(memories)


def _stage_activations(
    model: ModelSpec,
    layout: Layout,
    *,
    tokens: float,
    squares: float,
    num_micro_batches: int,
    element_bytes: int,
) -> list[float]:
    """Bytes of activations of every stage; full recompute holds one layer's anew at a time."""

    def kept(recompute: Recompute) -> float:
        return layer_activation_bytes(
            model,
            tokens=tokens,
            squares=squares,
            tp=layout.tp,
            recompute=recompute,
            sequence_parallel=layout.sequence_parallel,
            fused_attention=layout.fused_attention,
            element_bytes=element_bytes,
        )

    per_layer = kept(layout.recompute)
    recomputed = kept("selective") if layout.recompute == "full" else 0.0

    def num_held(stage: int) -> float:
        held = most_held(layout.schedule, pp=layout.pp, stage=stage, vpp=layout.vpp)
        return held * min(1.0, num_micro_batches / (layout.pp - stage))

    activations = [
        per_layer * layers * num_held(stage) + recomputed
        for stage, layers in enumerate(layers_of(model, layout))
    ]
    activations[-1] += _output_bytes(model, layout, tokens=tokens)
    return activations


def worst_stages(model: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """Stages of which one needs most memory: the earliest of every kind, and the last.

    Stages are of one kind if they have as many layers, and as many of them without experts.
    Later ones of a kind have no more micro-batches in flight; the first stage has the
    embedding, the last the output matrix.
    """
    earliest: dict[tuple[int, int], int] = {}
    for stage, kind in enumerate(_layer_kinds(model, layout)):
        earliest.setdefault(kind, stage)
    return tuple(sorted({*earliest.values(), layout.pp - 1}))


def _layer_kinds(model: ModelSpec, layout: Layout) -> list[tuple[int, int]]:
    """Of every stage: layers, and those among them without experts, which are the first."""
    layers = layers_of(model, layout)
    starts = [0, *itertools.accumulate(layers)]
    return [
        (num, min(num, max(0, model.num_dense_layers - start)))
        for num, start in zip(layers, starts[:-1], strict=True)
    ]


def stage_parameters(model: ModelSpec, layout: Layout, *, stage: int) -> tuple[float, float]:
    """Parameters one rank of a stage holds before ZeRO: dense ones, and those of experts.

    Norms and the router are on every tp rank. The embedding is on the first stage, the output
    matrix on the last; a tied one is on both.
    """
    layers, without = _layer_kinds(model, layout)[stage]
    split = layers * model.attention_parameters_per_layer + without * model.dense_mlp_parameters
    whole = layers * model.norm_parameters_per_layer
    experts = 0
    if model.moe is not None:
        router = model.hidden * model.moe.num_experts
        whole += (layers - without) * router
        split += (layers - without) * (model.unsplit_expert_parameters - router)
        experts = model.mlp_parameters_per_layer - model.unsplit_expert_parameters
    dense = split / layout.tp + whole
    if stage == 0:
        dense += model.embedding_parameters / layout.tp
    if stage == layout.pp - 1:
        output = model.head_parameters
        if model.tied_embeddings and layout.pp > 1:
            output += model.vocab * model.hidden
        dense += output / layout.tp
    return dense, (layers - without) * experts / (layout.tp * layout.ep)


def _sharded(
    dense: float, expert: float, layout: Layout, *, states: StateBytes
) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer on one rank after ZeRO."""
    ranks = layout.group_ranks
    sharded = dense / ranks + expert / max(1, ranks // layout.ep)
    whole = dense + expert
    return (
        states.weights * (sharded if layout.zero >= 3 else whole),
        states.gradients * (sharded if layout.zero >= 2 else whole),
        0.0
        if layout.offload == "optimizer"
        else states.optimizer * (sharded if layout.zero >= 1 else whole),
    )


def _mlp_elements(model: ModelSpec) -> int:
    """Elements kept of the MLP per token: inputs of the activation and of the last matrix.

    Of the larger kind of layer, where some have experts and some do not.
    """
    kept = 3 if model.gated_mlp else 2
    if model.moe is None:
        return kept * model.ffn_hidden
    dispatched = model.hidden + kept * model.moe.expert_ffn_hidden
    routed = model.moe.experts_per_token * dispatched
    dense = kept * model.ffn_hidden if model.moe.num_dense_layers else 0
    return max(dense, routed + kept * model.moe.shared_ffn_hidden)


def _output_bytes(model: ModelSpec, layout: Layout, *, tokens: float) -> float:
    """The final norm, the output matrix's input and the fp32 logits: 4 s b h / t (1 + v / h).

    Source: arXiv:2205.05198, section 4.3.
    """
    split = layout.tp if layout.sequence_parallel else 1
    return tokens * (4 * model.hidden / split + 4 * model.vocab / layout.tp)
