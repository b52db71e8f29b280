"""One rank's share of a sequence group: documents packed into a stream, and cut evenly."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trimtab.core.plan import SequenceGroup
from trimtab.launch.runtime.batches import SequenceSet
from trimtab.launch.runtime.documents import Int64Array
from trimtab.launch.runtime.engine_megatron import GroupShare, device
from trimtab.launch.runtime.ring_attention import zigzag


def pack_share(
    group: SequenceGroup,
    communicator: dist.ProcessGroup | None,
    *,
    rank: int,
    sequences: SequenceSet,
    batch: Int64Array,
) -> GroupShare:
    """The tokens that `rank` computes of `group`.

    The documents follow one another in the order of `group.sequences`; positions start anew in
    each. With Ulysses the stream is padded to a multiple of the degree with tokens whose loss
    does not count, and rank i of the group takes the i-th equal part. In a ring it takes two
    chunks of every document (`ring_attention`). Either way it has no more tokens than the
    group's over its degree, rounded up.

    Args:
        group: The ranks and the sequences, as indices into `batch`.
        communicator: The group's, None for a degree of 1.
        rank: This rank, one of `group.ranks`.
        sequences: Where the ids are.
        batch: Indices into `sequences`.
    """
    ids = [sequences.ids(int(batch[index])) for index in group.sequences]
    lengths = tuple(len(document) - 1 for document in ids)
    place = group.ranks.index(rank)
    cut = None
    if group.attention == "ring" and group.degree > 1:
        cut = zigzag(lengths, degree=group.degree, place=place)
        pieces = list(cut.pieces())
        num_tokens = cut.num_tokens(place)
    else:
        num_tokens = -(-sum(lengths) // group.degree)
        pieces = list(_pieces(lengths, place * num_tokens, (place + 1) * num_tokens))
    counted = sum(end - begin for _, begin, end in pieces)
    pad = np.zeros(num_tokens - counted, dtype=np.int64)
    return GroupShare(
        ids_t=_joined([ids[at][begin:end] for at, begin, end in pieces], pad),
        labels_t=_joined([ids[at][begin + 1 : end + 1] for at, begin, end in pieces], pad),
        positions_t=_joined([np.arange(begin, end) for _, begin, end in pieces], pad),
        counts_t=_joined([np.ones(counted, dtype=np.float32)], pad.astype(np.float32)),
        num_tokens=counted,
        document_lengths=lengths,
        group=communicator,
        degree=group.degree,
        cut=cut,
    )


def _pieces(lengths: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Document, begin and end in it of what lies between two places of the packed stream."""
    start = 0
    for document, length in enumerate(lengths):
        first, last = max(0, begin - start), min(length, end - start)
        if first < last:
            yield document, first, last
        start += length


def _joined(parts: Sequence[Any], pad: Any) -> torch.Tensor:
    values = np.ascontiguousarray(np.concatenate([*parts, pad]))
    return torch.from_numpy(values).to(device(), non_blocking=True)
