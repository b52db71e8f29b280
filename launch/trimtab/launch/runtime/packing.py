"""One rank's share of a sequence group: documents packed into a stream, and cut evenly."""

import numpy as np
import torch
import torch.distributed as dist

from trimtab.core.plan import SequenceGroup
from trimtab.launch.runtime.batches import SequenceSet
from trimtab.launch.runtime.documents import Int64Array
from trimtab.launch.runtime.engine_megatron import GroupShare, device


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
    each. The stream is padded to a multiple of the degree with tokens whose loss does not
    count, and rank i of the group takes the i-th equal part.

    Args:
        group: The ranks and the sequences, as indices into `batch`.
        communicator: The group's, None for a degree of 1.
        rank: This rank, one of `group.ranks`.
        sequences: Where the ids are.
        batch: Indices into `sequences`.
    """
    ids = [sequences.ids(int(batch[index])) for index in group.sequences]
    lengths = tuple(len(document) - 1 for document in ids)
    padding = -sum(lengths) % group.degree
    pad = np.zeros(padding, dtype=np.int64)
    inputs = np.concatenate([*(document[:-1] for document in ids), pad])
    labels = np.concatenate([*(document[1:] for document in ids), pad])
    positions = np.concatenate([*(np.arange(length) for length in lengths), pad])
    counts = np.concatenate([np.ones(sum(lengths)), pad])
    per_rank = len(inputs) // group.degree
    place = group.ranks.index(rank)
    mine = slice(place * per_rank, (place + 1) * per_rank)
    return GroupShare(
        ids_t=_tensor(inputs[mine]),
        labels_t=_tensor(labels[mine]),
        positions_t=_tensor(positions[mine]),
        counts_t=_tensor(counts[mine].astype(np.float32)),
        num_tokens=int(counts[mine].sum()),
        document_lengths=lengths,
        group=communicator,
        degree=group.degree,
    )


def _tensor(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device(), non_blocking=True)
