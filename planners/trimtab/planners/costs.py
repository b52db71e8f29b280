"""What a sequence group costs."""

from collections.abc import Sequence

from trimtab.core.profile import StepProfile


def token_s(degree: int, *, profile: StepProfile) -> float:
    """Rank-seconds per token at `degree` besides the quadratic term: linear and all-to-all."""
    if degree == 1:
        return profile.linear_s
    return profile.linear_s + profile.alltoall_bytes_per_token / profile.bytes_per_s(degree)


def group_s(lengths: Sequence[int], degree: int, *, profile: StepProfile) -> float:
    """Time of one group of `degree` ranks in a wave, the fixed time of the wave included.

        fixed_s + [quadratic_s sum(s^2) + (linear_s + alltoall_bytes_per_token / v_d) sum(s)]/d

    where the all-to-all term is absent for d = 1. Whether the group holds the tokens is not
    checked here.

    Args:
        lengths: Tokens of the sequences of the group; none gives `fixed_s`.
        degree: Ranks of the group, one of `profile.degrees`.
        profile: The coefficients.

    Raises:
        InfeasibleError: The profile has no such degree.

    Source: FlexSP, arXiv:2412.01523, section 4.
    """
    squares = sum(length * length for length in lengths)
    work_s = profile.quadratic_s * squares + token_s(degree, profile=profile) * sum(lengths)
    return profile.fixed_s + work_s / degree
