"""Lower bounds on the time of a step: what no plan under the same costs can beat."""

from collections.abc import Sequence

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.profile import StepProfile
from trimtab.planners.costs import group_s, token_s


def usable_degrees(
    *, profile: StepProfile, num_ranks: int, degrees: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The profile's degrees that fit `num_ranks` and are among `degrees`, ascending.

    Raises:
        InputError: No degree is left.
    """
    checks.whole_number("num_ranks", num_ranks)
    wanted = set(profile.degrees if degrees is None else degrees)
    usable = tuple(d for d in profile.degrees if d in wanted and d <= num_ranks)
    if not usable:
        raise InputError(
            f"degrees: expected one or more of {list(profile.degrees)} of at most "
            f"{num_ranks} ranks, got {sorted(wanted)}"
        )
    return usable


def check_lengths(
    lengths: Sequence[int], *, profile: StepProfile, degrees: Sequence[int]
) -> None:
    """Raise unless every sequence is at least one token and fits a group of some degree.

    Raises:
        InputError: The batch is empty, or a length is no whole number >= 1.
        InfeasibleError: A sequence is longer than the widest group can hold.
    """
    if len(lengths) == 0:
        raise InputError("lengths: expected at least one sequence, the batch is empty")
    for index, length in enumerate(lengths):
        checks.whole_number(f"lengths[{index}]", length)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    capacity = max(degrees) * profile.token_cap
    if lengths[longest] > capacity:
        raise InfeasibleError(
            f"lengths[{longest}]: a sequence of {lengths[longest]} tokens fits in no group: "
            f"the largest degree, {max(degrees)}, holds {max(degrees)} x {profile.token_cap} "
            f"= {capacity} tokens; use more ranks, a higher token_cap, or drop the sequence"
        )


def area_bound_s(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    degrees: Sequence[int] | None = None,
) -> float:
    """A time that no step plan for `lengths` can be shorter than.

    Let a plan have W waves of times T_w, and let F be `fixed_s`. Write a group's time as
    F + work / d, so that work is in rank-seconds and is the sum over its sequences of what each
    costs at degree d, which is at least its cost c at its cheapest degree that holds it.

    1. Area. Every group of wave w has work <= d (T_w - F), and the groups' ranks are disjoint,
       so the work of the wave is at most N (T_w - F). Summed over waves, the sum of all c is
       at most N (sum T_w - W F), hence  sum T_w >= sum c / N + W F.
    2. Waves. A wave holds at most N * token_cap tokens, so W >= ceil(tokens / (N token_cap)).
       Two sequences that are each longer than half of that never share a wave, so W is also at
       least the number of those.
    3. Longest. The wave with the longest sequence takes at least F + work / d at its fastest
       degree that holds it, and every other wave at least F: sum T_w >= that time + (W - 1) F.

    The bound is the larger of 1 and 3 with W from 2, plus `step_fixed_s`, paid by all.

    Raises:
        InputError: The batch or the set of degrees is empty, or a length is not >= 1.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    usable = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=degrees)
    check_lengths(lengths, profile=profile, degrees=usable)
    slopes = [(d * profile.token_cap, token_s(d, profile=profile)) for d in usable]
    work_s = sum(
        profile.quadratic_s * s * s + s * min(slope for room, slope in slopes if s <= room)
        for s in lengths
    )
    waves = num_waves_at_least(lengths, wave_tokens=num_ranks * profile.token_cap)
    longest = max(lengths)
    longest_s = min(
        group_s([longest], d, profile=profile)
        for d in usable
        if longest <= d * profile.token_cap
    )
    area_s = work_s / num_ranks + waves * profile.fixed_s
    return profile.step_fixed_s + max(area_s, longest_s + (waves - 1) * profile.fixed_s)


def num_waves_at_least(lengths: Sequence[int], *, wave_tokens: int) -> int:
    """The fewest waves of `wave_tokens` tokens that could hold `lengths`."""
    by_tokens = -(-sum(lengths) // wave_tokens)
    by_long_ones = sum(2 * length > wave_tokens for length in lengths)
    return max(by_tokens, by_long_ones)
