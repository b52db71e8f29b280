"""What sharing a sequence's attention costs, by degree and kind.

Costs add up over the sequences of a group, so that searches and bounds may put any sequences
together. Ulysses exchanges bytes that grow with the tokens. A ring's transfer hides behind the
attention of the same sequence: hiding it behind that of the other sequences of the group too
would be shorter still, but would not add up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core.profile import GroupOption, StepProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingCosts:
    """Rank-seconds of a sequence of `s` tokens in groups of one degree and kind.

        work(s) = quadratic_s s^2 + token_s s + max(0, exchange_s s - hidden_s s^2)

    and `opening_s` for every group, whatever it holds.
    """

    quadratic_s: float
    token_s: float
    """Of a token: linear work, and what Ulysses exchanges."""
    exchange_s: float = 0.0
    """Of a token: what a ring passes on."""
    hidden_s: float = 0.0
    """Per token^2: how much of the passing the attention itself hides."""
    opening_s: float = 0.0

    def work(self, length: int | float) -> float:
        """Rank-seconds of one sequence of `length` tokens."""
        exposed_s = self.exchange_s - self.hidden_s * length
        per_token_s = self.quadratic_s * length + self.token_s
        return (per_token_s + exposed_s if exposed_s > 0 else per_token_s) * length

    def works(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """`work` of many sequences; shape [n]."""
        exposed_s = np.maximum(0.0, self.exchange_s - self.hidden_s * lengths)
        return (self.quadratic_s * lengths + self.token_s + exposed_s) * lengths

    def group_work(self, lengths: Iterable[int]) -> float:
        """Rank-seconds of a group of sequences, its opening included."""
        return self.opening_s + sum(map(self.work, lengths))


def sharing_costs(
    option: GroupOption, *, profile: StepProfile, bytes_per_s: float | None = None
) -> SharingCosts:
    """The costs of a degree and kind under a profile.

    Args:
        option: The degree and the kind.
        profile: The coefficients.
        bytes_per_s: What a rank sends over, where that is not what the profile says.

    Raises:
        InfeasibleError: The profile has no such degree of this kind.

    Source: `StepProfile` and `RingCosts` state both formulas and where they are from.
    """
    degree = option.degree
    if degree == 1:
        return SharingCosts(quadratic_s=profile.quadratic_s, token_s=profile.linear_s)
    exchange = profile.exchange(degree, option.attention)
    bytes_per_s = bytes_per_s or exchange.bytes_per_s
    opening_s = degree * exchange.latency_s
    if option.attention == "ulysses" or profile.ring is None:
        token_s = profile.linear_s + profile.alltoall_bytes_per_token / bytes_per_s
        return SharingCosts(
            quadratic_s=profile.quadratic_s, token_s=token_s, opening_s=opening_s
        )
    ring = profile.ring
    return SharingCosts(
        quadratic_s=ring.quadratic_s,
        token_s=profile.linear_s,
        exchange_s=(degree - 1) * ring.bytes_per_token / bytes_per_s,
        hidden_s=ring.overlap_fraction * ring.quadratic_s,
        opening_s=opening_s,
    )
