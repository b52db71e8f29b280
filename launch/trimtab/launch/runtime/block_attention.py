"""Attention of some queries to one block of keys, so that blocks can be put together later.

Each block gives its output and the logarithm of its softmax's denominator (`lse`); outputs of
several blocks are merged by these (online softmax). The backward pass of a block is exact given
the merged output and `lse`. PyTorch's fused kernels do both, without keeping scores.

Dimensions: s queries, u keys, H query heads, K key-value heads, D elements of a head.

Sources: Milakov & Gimelshein (2018), arXiv:1805.02867; FlashAttention-2, arXiv:2307.08691.
"""

from typing import Any

import torch

_ATEN = torch.ops.aten


def attend_block(
    query_sHD: torch.Tensor, key_uKD: torch.Tensor, value_uKD: torch.Tensor, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `(s, H, D)` and fp32 lse `(s, H)` of attention to one block.

    Args:
        query_sHD: The queries.
        key_uKD: The keys of the block; H is a multiple of K.
        value_uKD: Its values.
        causal: Whether query i sees keys 0 to i only; then s = u.
    """
    out, lse, _ = _forward(*_batched(query_sHD, key_uKD, value_uKD), causal=causal)
    num_queries = query_sHD.size(0)
    return out[0].transpose(0, 1), lse[0, :, :num_queries].transpose(0, 1).float()


def block_gradients(
    grad_sHD: torch.Tensor,
    query_sHD: torch.Tensor,
    key_uKD: torch.Tensor,
    value_uKD: torch.Tensor,
    *,
    out_sHD: torch.Tensor,
    lse_sH: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the block's queries, keys and values.

    Args:
        grad_sHD: Gradient of the merged output.
        query_sHD: As in `attend_block`, and so are the next two and `causal`.
        key_uKD: The keys.
        value_uKD: The values.
        out_sHD: The output merged over all blocks.
        lse_sH: The lse merged over all blocks, in fp32.
        causal: Whether query i sees keys 0 to i only.
    """
    query, key, value = _batched(query_sHD, key_uKD, value_uKD)
    grad, out = (x.transpose(0, 1)[None] for x in (grad_sHD, out_sHD))
    lse = lse_sH.transpose(0, 1)[None]
    found = _backward(grad, query, key, value, out, lse, causal=causal)
    dquery, dkey, dvalue = (x[0].transpose(0, 1) for x in found)
    copies = query_sHD.size(1) // key_uKD.size(1)
    if copies > 1:
        dkey, dvalue = (x.unflatten(1, (-1, copies)).sum(dim=2) for x in (dkey, dvalue))
    return dquery, dkey, dvalue


def merge_block(
    out_sHD: torch.Tensor, lse_sH: torch.Tensor, *, with_sHD: torch.Tensor, lse: torch.Tensor
) -> None:
    """Put a block's output into the fp32 output and lse of the blocks before it, in place."""
    merged_sH = torch.logaddexp(lse_sH, lse)
    out_sHD.mul_((lse_sH - merged_sH).exp()[..., None])
    out_sHD.add_(with_sHD * (lse - merged_sH).exp()[..., None])
    lse_sH.copy_(merged_sH)


def _batched(
    query_sHD: torch.Tensor, key_uKD: torch.Tensor, value_uKD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `(1, H, tokens, D)`, key-value heads copied for their query heads."""
    copies = query_sHD.size(1) // key_uKD.size(1)
    if copies > 1:
        key_uKD, value_uKD = (x.repeat_interleave(copies, dim=1) for x in (key_uKD, value_uKD))
    query, key, value = (x.transpose(0, 1)[None] for x in (query_sHD, key_uKD, value_uKD))
    return query, key, value


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    """Output, lse, and what else the kernel's backward pass asks for."""
    if not query.is_cuda:
        out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal
        )
        return out, lse, ()
    if query.dtype == torch.float32:
        out, lse, *rest = _ATEN._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal
        )
        return out, lse, tuple(rest)
    out, lse, *rest = _ATEN._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False
    )
    return out, lse, tuple(rest)


def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not query.is_cuda:
        found = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal
        )
        return found[0], found[1], found[2]
    unused = torch.zeros((), dtype=torch.int64, device=query.device)  # of dropout, which is off
    if query.dtype == torch.float32:
        padded = torch.nn.functional.pad(lse, (0, -lse.size(-1) % 32))  # the kernel's alignment
        found = _ATEN._scaled_dot_product_efficient_attention_backward(
            grad, query, key, value, None, out, padded.contiguous(), unused, unused, 0.0,
            [True, True, True, False], causal,
        )  # fmt: skip
        return found[0], found[1], found[2]
    found = _ATEN._scaled_dot_product_flash_attention_backward(
        grad, query, key, value, out, lse.contiguous(), None, None, query.size(2), key.size(2),
        0.0, causal, unused, unused,
    )  # fmt: skip
    return found[0], found[1], found[2]
