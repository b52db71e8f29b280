from dataclasses import replace

from trimtab.core.batch import BatchProfile
from trimtab.core.model import ModelSpec
from trimtab.planners.shapes import BatchSums


def test_a_batch_is_summed_between_lengths(gpt3: ModelSpec) -> None:
    sums = BatchSums(BatchProfile(lengths=(30, 10, 20, 20)), gpt3)
    assert sums.tokens_between(0, 10) == 10
    assert sums.tokens_between(10, 20) == 40
    assert sums.tokens_between(20, 99) == 30
    assert (sums.squares, sums.longest, sums.is_uniform) == (1800.0, 30, False)


def test_a_window_leaves_pairs_out(gpt3: ModelSpec) -> None:
    sums = BatchSums(BatchProfile(lengths=(30, 10)), replace(gpt3, window=10))
    assert (sums.squares, sums.longest_squares) == (600.0, 500.0)


def test_equal_lengths_are_uniform(gpt3: ModelSpec) -> None:
    assert BatchSums(BatchProfile(lengths=(7, 7)), gpt3).is_uniform
