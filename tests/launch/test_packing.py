from typing import Any

import numpy as np
import pytest

from trimtab.core.plan import SequenceGroup
from trimtab.launch.runtime.engine_megatron import GroupShare
from trimtab.launch.runtime.packing import pack_share

BATCH = np.array([0, 1, 2])


class Numbers:
    """Sequence i has ids 100 i, 100 i + 1, ..."""

    def ids(self, index: int) -> Any:
        return 100 * index + np.arange((3, 5, 2)[index] + 1)


def share(*ranks: int, rank: int, sequences: tuple[int, ...]) -> GroupShare:
    group = SequenceGroup(ranks=ranks, sequences=sequences)
    numbers: Any = Numbers()
    return pack_share(group, None, rank=rank, sequences=numbers, batch=BATCH)


def test_documents_follow_one_another_in_the_order_of_the_group() -> None:
    whole = share(0, rank=0, sequences=(2, 0))
    assert whole.ids_t.tolist() == [200, 201, 0, 1, 2]
    assert whole.labels_t.tolist() == [201, 202, 1, 2, 3]
    assert whole.positions_t.tolist() == [0, 1, 0, 1, 2]
    assert whole.counts_t.tolist() == [1.0] * 5
    assert whole.document_lengths == (2, 3)


def test_ranks_share_the_stream_evenly_and_padding_does_not_count() -> None:
    parts = [share(4, 6, 7, rank=rank, sequences=(1, 2)) for rank in (4, 6, 7)]
    assert [part.ids_t.tolist() for part in parts] == [
        [100, 101, 102],
        [103, 104, 200],
        [201, 0, 0],
    ]
    assert [part.counts_t.tolist() for part in parts] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert [part.num_tokens for part in parts] == [3, 3, 1]
    assert {part.document_lengths for part in parts} == {(5, 2)}


def test_a_rank_outside_the_group_has_no_share() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        share(0, 1, rank=2, sequences=(0,))
