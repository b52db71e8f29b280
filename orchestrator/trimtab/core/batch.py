"""The sequence lengths of a batch, in tokens."""

from dataclasses import dataclass

from trimtab.core import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProfile:
    """One global batch: the length of every sequence, in the order of the data."""

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        checks.not_empty("lengths", self.lengths)
        for index, length in enumerate(self.lengths):
            checks.whole_number(f"lengths[{index}]", length)

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)
