"""The attention core: packed documents, shared by the ranks of a sequence group.

A ring is `ring_attention`'s. With Ulysses, a group's documents are packed one after the other
into one stream of `T` tokens, padded to a multiple of the degree, of which each rank holds a
contiguous `t = T / degree`. Everything but attention works on single tokens and needs no more.
For attention an all-to-all trades tokens for heads: each rank gets all `T` tokens of
`H / degree` heads, attends within each document, and a second all-to-all trades back.

Dimensions: t tokens of a rank, T tokens of the group, H query heads, K key-value heads,
D elements of a head, G ranks of the group.

Source: DeepSpeed-Ulysses, arXiv:2309.14509.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everyone knows

from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.megatron import MegatronModule, PackedSeqParams
from trimtab.launch.runtime.ring_attention import ZigZag, ring_attend


@dataclass
class GroupPacking(PackedSeqParams):  # type: ignore[misc]  # megatron-core is untyped
    """One rank's share of a packed group; Megatron hands it on to the attention core."""

    qkv_format: str = "thd"
    document_lengths: tuple[int, ...] = ()
    """Tokens of each document of the group, in packed order, padding not included."""
    group: dist.ProcessGroup | None = None
    """None: this rank holds the whole group."""
    degree: int = 1
    cut: ZigZag | None = None
    """How a ring shares the documents; None: equal parts of the stream, and Ulysses."""
    cos_tD: torch.Tensor | None = None
    """Rotary cosines of this rank's tokens; None: the model has no rotary positions."""
    sin_tD: torch.Tensor | None = None
    clock: StepClock | None = None


class GroupedAttention(MegatronModule):  # type: ignore[misc]
    """Megatron's core-attention seam, filled with packed attention of either kind."""

    def __init__(self, config: Any, layer_number: int, **_others: Any) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number

    def forward(
        self,
        query_tHD: torch.Tensor,
        key_tKD: torch.Tensor,
        value_tKD: torch.Tensor,
        _attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: GroupPacking,
        **_others: Any,
    ) -> torch.Tensor:
        """Attend within each document; returns `(t, H * D)`."""
        packing = packed_seq_params
        if packing.cos_tD is not None and packing.sin_tD is not None:
            query_tHD = rotate(query_tHD, packing.cos_tD, packing.sin_tD)
            key_tKD = rotate(key_tKD, packing.cos_tD, packing.sin_tD)
        if packing.group is None:
            out_tHD = attend_documents(query_tHD, key_tKD, value_tKD, packing.document_lengths)
        elif packing.cut is not None:
            assert packing.clock is not None
            out_tHD = ring_attend(
                query_tHD, key_tKD, value_tKD,
                cut=packing.cut, group=packing.group, clock=packing.clock,
            )  # fmt: skip
        else:
            out_tHD = _attend_shared(query_tHD, key_tKD, value_tKD, packing)
        return out_tHD.reshape(out_tHD.size(0), -1)


def rotary_tables(
    positions_t: torch.Tensor, *, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `(t, D)` of rotary positions, in fp32.

    Source: Su et al. (2021), RoFormer, arXiv:2104.09864, in the half-rotated order that
    Megatron and Hugging Face's Llama use.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_t.device)
    angles_t_half = positions_t.float()[:, None] * theta ** (-exponents / head_dim)
    angles_tD = torch.cat((angles_t_half, angles_t_half), dim=-1)
    return angles_tD.cos(), angles_tD.sin()


def rotate(x_tHD: torch.Tensor, cos_tD: torch.Tensor, sin_tD: torch.Tensor) -> torch.Tensor:
    """Turn each pair of elements of every head by its token's angle."""
    first, second = x_tHD.chunk(2, dim=-1)
    turned_tHD = torch.cat((-second, first), dim=-1)
    cos_t1D = cos_tD[:, None].to(x_tHD.dtype)
    sin_t1D = sin_tD[:, None].to(x_tHD.dtype)
    return x_tHD * cos_t1D + turned_tHD * sin_t1D


def attend_documents(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    lengths: tuple[int, ...],
) -> torch.Tensor:
    """Causal attention of each document to itself; tokens past the last come out as zero."""
    padding = query_THD.size(0) - sum(lengths)
    pieces = [
        _attend_document(q, k, v)
        for q, k, v in zip(
            *(x.split([*lengths, padding])[:-1] for x in (query_THD, key_TKD, value_TKD)),
            strict=True,
        )
    ]
    pieces.append(query_THD.new_zeros(padding, *query_THD.shape[1:]))
    return torch.cat(pieces)


def _attend_document(
    query_sHD: torch.Tensor,
    key_sKD: torch.Tensor,
    value_sKD: torch.Tensor,
) -> torch.Tensor:
    query, key, value = (x.transpose(0, 1)[None] for x in (query_sHD, key_sKD, value_sKD))
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.size(1) != key.size(1)
    )
    return out[0].transpose(0, 1)


def _attend_shared(
    query_tHD: torch.Tensor,
    key_tKD: torch.Tensor,
    value_tKD: torch.Tensor,
    packing: GroupPacking,
) -> torch.Tensor:
    degree = packing.degree
    copies = degree // math.gcd(degree, key_tKD.size(1))
    key, value = (x.repeat_interleave(copies, dim=1) for x in (key_tKD, value_tKD))
    heads = query_tHD.size(1) // degree
    key_heads = key.size(1) // degree
    # One all-to-all for the three: a rank's query, key and value heads side by side.
    joint_tGHD = torch.cat(
        [x.unflatten(1, (degree, -1)) for x in (query_tHD, key, value)], dim=2
    )
    joint_THD = _tokens_to_heads(joint_tGHD, packing.group, packing.clock)
    q, k, v = joint_THD.split((heads, key_heads, key_heads), dim=1)
    out_THD = attend_documents(q, k, v, packing.document_lengths)
    out_tGHD = _heads_to_tokens(out_THD, packing.group, packing.clock)
    return out_tGHD.flatten(1, 2)


class _TokensToHeads(torch.autograd.Function):
    """`(t, G, h, D)` on each rank to `(T, h, D)`: all tokens of this rank's heads."""

    @staticmethod
    def forward(ctx: Any, x_tGhD: torch.Tensor, group: Any, clock: StepClock) -> torch.Tensor:
        ctx.group, ctx.clock = group, clock
        return _gather_tokens(x_tGhD, group, clock)

    @staticmethod
    def backward(ctx: Any, grad_ThD: torch.Tensor) -> Any:
        return _scatter_tokens(grad_ThD, ctx.group, ctx.clock), None, None


class _HeadsToTokens(torch.autograd.Function):
    """The inverse of `_TokensToHeads`."""

    @staticmethod
    def forward(ctx: Any, x_ThD: torch.Tensor, group: Any, clock: StepClock) -> torch.Tensor:
        ctx.group, ctx.clock = group, clock
        return _scatter_tokens(x_ThD, group, clock)

    @staticmethod
    def backward(ctx: Any, grad_tGhD: torch.Tensor) -> Any:
        return _gather_tokens(grad_tGhD, ctx.group, ctx.clock), None, None


_tokens_to_heads: Callable[..., torch.Tensor] = _TokensToHeads.apply
_heads_to_tokens: Callable[..., torch.Tensor] = _HeadsToTokens.apply


def _gather_tokens(x_tGhD: torch.Tensor, group: Any, clock: StepClock) -> torch.Tensor:
    sent_GthD = x_tGhD.transpose(0, 1).contiguous()
    return _all_to_all(sent_GthD, group, clock).flatten(0, 1)


def _scatter_tokens(x_ThD: torch.Tensor, group: Any, clock: StepClock) -> torch.Tensor:
    sent_GthD = x_ThD.contiguous().unflatten(0, (group.size(), -1))
    return _all_to_all(sent_GthD, group, clock).transpose(0, 1).contiguous()


def _all_to_all(sent: torch.Tensor, group: Any, clock: StepClock) -> torch.Tensor:
    received = torch.empty_like(sent)
    with clock.part("attention communication"):
        dist.all_to_all_single(received, sent, group=group)
    return received
