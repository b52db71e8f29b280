"""Attention of packed documents shared by a ring of ranks that pass key-value blocks on.

Every document is cut into 2 G chunks, of which rank i of G holds chunks i and 2 G - 1 - i
(zig-zag), so that all ranks see equally much of the causal square. Block j, the chunks of rank
j, reaches every rank in G - 1 hops; while it is attended to, the next one arrives. Backward the
blocks go round again, and their gradients follow one hop behind, home in G hops.

Dimensions: t tokens of this rank, n tokens of the rank whose block it holds, H query heads, K
key-value heads, D elements of a head, G ranks; 2nKD is a block's keys and values.

Sources: ring attention, arXiv:2310.01889; DistFlashAttn, arXiv:2310.03294; striped and zig-zag
cuts, arXiv:2311.09431 and arXiv:2407.21783, section 3.3.2.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from trimtab.launch.runtime.block_attention import attend_block, block_gradients, merge_block
from trimtab.launch.runtime.clock import StepClock


@dataclass(frozen=True, slots=True, kw_only=True)
class ZigZag:
    """Which tokens of a group's documents each of its ranks holds."""

    place: int
    """This rank's number in the group."""
    chunks: tuple[tuple[int, ...], ...]
    """Tokens of the 2 G chunks of every document, in the order of the document."""

    @property
    def degree(self) -> int:
        return len(self.chunks[0]) // 2

    def sizes(self, rank: int) -> list[tuple[int, int]]:
        """Tokens of the first and the second chunk of a rank, by document."""
        return [(sizes[rank], sizes[len(sizes) - 1 - rank]) for sizes in self.chunks]

    def num_tokens(self, rank: int) -> int:
        """How many a rank computes: at least one, which is padding where it has none."""
        return max(1, sum(map(sum, self.sizes(rank))))

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Document, begin and end of what this rank holds, in the order it is packed."""
        for document, sizes in enumerate(self.chunks):
            starts = [0, *itertools.accumulate(sizes)]
            for chunk in (self.place, len(sizes) - 1 - self.place):
                yield document, starts[chunk], starts[chunk + 1]


def zigzag(lengths: tuple[int, ...], *, degree: int, place: int) -> ZigZag:
    """Cut documents so that the ranks' token counts differ by one at most.

    What a document's tokens leave over when cut by 2 G goes to the ranks in turn, from document
    to document, one token a chunk. So no rank holds more than ceil(tokens / G).

    Args:
        lengths: Tokens of every document.
        degree: Ranks of the group.
        place: This rank's number in it.
    """
    chunks = []
    turn = 0
    for length in lengths:
        even, rest = divmod(length, 2 * degree)
        sizes = [even] * (2 * degree)
        for extra in range(rest):
            rank = (turn + extra) % degree
            sizes[rank if extra < degree else 2 * degree - 1 - rank] += 1
        turn = (turn + rest) % degree
        chunks.append(tuple(sizes))
    return ZigZag(place=place, chunks=tuple(chunks))


def ring_attend(
    query_tHD: torch.Tensor,
    key_tKD: torch.Tensor,
    value_tKD: torch.Tensor,
    *,
    cut: ZigZag,
    group: dist.ProcessGroup,
    clock: StepClock,
) -> torch.Tensor:
    """Causal attention within each document; padding comes out as zero. Collective.

    Args:
        query_tHD: Of this rank's tokens, packed as `ZigZag.pieces` says.
        key_tKD: The keys.
        value_tKD: The values.
        cut: Who holds what.
        group: The ranks of the ring, in its order.
        clock: Counts what is waited for as communication.
    """
    return _ring(query_tHD, key_tKD, value_tKD, cut, _Ring(cut, group, clock))


class _Ring:
    """Sends to the next rank what it receives from the one before."""

    def __init__(self, cut: ZigZag, group: dist.ProcessGroup, clock: StepClock) -> None:
        self._cut, self._group, self._clock = cut, group, clock
        self._next = (cut.place + 1) % cut.degree
        self._last = (cut.place - 1) % cut.degree

    def holder(self, hop: int) -> int:
        """Whose block this rank has after so many hops."""
        return (self._cut.place - hop) % self._cut.degree

    def start(
        self, block_2nKD: torch.Tensor, *, arriving: int
    ) -> tuple[torch.Tensor, list[dist.Work]]:
        """Begin to send a block, and to receive that of rank `arriving`."""
        shape = (2, self._cut.num_tokens(arriving), *block_2nKD.shape[2:])
        received = block_2nKD.new_empty(shape)
        with self._clock.part("attention communication"):
            works = dist.batch_isend_irecv([
                dist.P2POp(dist.isend, block_2nKD, group=self._group, group_peer=self._next),
                dist.P2POp(dist.irecv, received, group=self._group, group_peer=self._last),
            ])  # fmt: skip
        return received, works

    def wait(self, works: list[dist.Work]) -> None:
        with self._clock.part("attention communication"):
            for work in works:
                work.wait()


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_tHD: torch.Tensor,
        key_tKD: torch.Tensor,
        value_tKD: torch.Tensor,
        cut: ZigZag,
        ring: _Ring,
    ) -> torch.Tensor:
        own_2tKD = torch.stack((key_tKD, value_tKD))
        out_tHD = torch.zeros_like(query_tHD, dtype=torch.float32)
        lse_tH = torch.full(query_tHD.shape[:2], -torch.inf, device=query_tHD.device)
        for block_2nKD, hop in _passing(own_2tKD, cut, ring):
            for mine, theirs, causal in _meetings(cut, ring.holder(hop)):
                key, value = block_2nKD[:, theirs]
                out, lse = attend_block(query_tHD[mine], key, value, causal=causal)
                if hop == 0:
                    out_tHD[mine], lse_tH[mine] = out.float(), lse
                else:
                    merge_block(out_tHD[mine], lse_tH[mine], with_sHD=out, lse=lse)
        merged_tHD = out_tHD.to(query_tHD.dtype)
        ctx.save_for_backward(query_tHD, own_2tKD, merged_tHD, lse_tH)
        ctx.cut, ctx.ring = cut, ring
        return merged_tHD

    @staticmethod
    def backward(ctx: Any, grad_tHD: torch.Tensor) -> Any:
        query_tHD, own_2tKD, out_tHD, lse_tH = ctx.saved_tensors
        cut, ring = ctx.cut, ctx.ring
        dquery_tHD = torch.zeros_like(query_tHD, dtype=torch.float32)
        before, works = None, []
        for block_2nKD, hop in _passing(own_2tKD, cut, ring):
            dblock_2nKD = torch.zeros_like(block_2nKD, dtype=torch.float32)
            for mine, theirs, causal in _meetings(cut, ring.holder(hop)):
                key, value = block_2nKD[:, theirs]
                dquery, dkey, dvalue = block_gradients(
                    grad_tHD[mine], query_tHD[mine], key, value,
                    out_sHD=out_tHD[mine], lse_sH=lse_tH[mine], causal=causal,
                )  # fmt: skip
                dquery_tHD[mine] += dquery
                dblock_2nKD[0, theirs] += dkey
                dblock_2nKD[1, theirs] += dvalue
            if before is not None:
                ring.wait(works)
                dblock_2nKD += before
            before, works = ring.start(dblock_2nKD, arriving=ring.holder(hop + 1))
        ring.wait(works)
        assert before is not None
        dkey_tKD, dvalue_tKD = before.to(own_2tKD.dtype)
        return dquery_tHD.to(query_tHD.dtype), dkey_tKD, dvalue_tKD, None, None


_ring: Callable[..., torch.Tensor] = _RingAttention.apply


def _passing(
    own_2tKD: torch.Tensor, cut: ZigZag, ring: _Ring
) -> Iterator[tuple[torch.Tensor, int]]:
    """The blocks of all ranks, this one's first, with the hops they took to get here.

    While the caller uses one, it is sent on and the next arrives.
    """
    block_2nKD = own_2tKD
    for hop in range(cut.degree):
        if hop + 1 == cut.degree:
            yield block_2nKD, hop
            return
        arriving, works = ring.start(block_2nKD, arriving=ring.holder(hop + 1))
        yield block_2nKD, hop
        ring.wait(works)
        block_2nKD = arriving


def _meetings(cut: ZigZag, holder: int) -> Iterator[tuple[slice, slice, bool]]:
    """Which of this rank's queries see which tokens of a rank's block, and whether causally.

    A rank's later chunk comes after, and its earlier one before, those of every rank with a
    higher number. So both chunks see the first one of a lower rank's block, and only the second
    chunk sees a higher rank's, all of it.
    """
    my_start = their_start = 0
    for (first, second), (their_first, their_second) in zip(
        cut.sizes(cut.place), cut.sizes(holder), strict=True
    ):
        mine = slice(my_start, my_start + first + second)
        theirs = slice(their_start, their_start + their_first + their_second)
        my_start, their_start = mine.stop, theirs.stop
        if holder < cut.place:
            theirs = slice(theirs.start, theirs.start + their_first)
        elif holder > cut.place:
            mine = slice(mine.start + first, mine.stop)
        if mine.stop > mine.start and theirs.stop > theirs.start:
            yield mine, theirs, holder == cut.place
