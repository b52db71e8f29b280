from trimtab.core.batch import BatchProfile
from trimtab.planners.shapes import BatchSums


def test_a_batch_is_summed_between_lengths() -> None:
    sums = BatchSums(BatchProfile(lengths=(30, 10, 20, 20)))
    assert sums.tokens_between(0, 10) == 10
    assert sums.tokens_between(10, 20) == 40
    assert sums.tokens_between(20, 99) == 30
    assert (sums.squares, sums.longest, sums.is_uniform) == (1800.0, 30, False)


def test_equal_lengths_are_uniform() -> None:
    assert BatchSums(BatchProfile(lengths=(7, 7))).is_uniform
