"""Lower bounds on the time of a step: what no plan under the same costs can beat."""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.core import checks
from trimtab.core.certificate import BoundCertificate, BoundLeaf, GroupPrice, WaveSplit
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.profile import StepProfile
from trimtab.planners.attention_costs import sharing_costs
from trimtab.planners.costs import group_s

_Array = NDArray[np.float64]

_ROUNDING = 1e-9
"""Relative error that sums of doubles may have."""

_FREE = GroupPrice(
    wave_class=0, degree=1, token_s=0.0, work=0.0, big_tokens_s=0.0, big_work_s=0.0
)


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
    F + work / d, so that work is in rank-seconds and is at least the sum over its sequences of
    what each costs at its degree and attention kind, which is at least the cost c at its
    cheapest degree and kind that hold it. (Latencies and worse places only add to it.)

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
    sizes = np.asarray(lengths, dtype=np.float64)
    options = [option for option in profile.options if option.degree in usable]
    least_s = np.full(len(sizes), np.inf)
    for option in options:
        costs = sharing_costs(option, profile=profile)
        holds = sizes <= option.degree * profile.token_cap
        least_s = np.where(holds, np.minimum(least_s, costs.works(sizes)), least_s)
    work_s = float(least_s.sum())
    waves = num_waves_at_least(lengths, wave_tokens=num_ranks * profile.token_cap)
    longest = max(lengths)
    longest_s = min(
        group_s([longest], option.degree, profile=profile, attention=option.attention)
        for option in options
        if longest <= option.degree * profile.token_cap
    )
    area_s = work_s / num_ranks + waves * profile.fixed_s
    return profile.step_fixed_s + max(area_s, longest_s + (waves - 1) * profile.fixed_s)


def num_waves_at_least(lengths: Sequence[int], *, wave_tokens: int) -> int:
    """The fewest waves of `wave_tokens` tokens that could hold `lengths`."""
    by_tokens = -(-sum(lengths) // wave_tokens)
    by_long_ones = sum(2 * length > wave_tokens for length in lengths)
    return max(by_tokens, by_long_ones)


class BoundTerms:
    """A batch and its costs as a certificate needs them, for plans shorter than `step_s`.

    Attributes:
        sizes: The different lengths, longest first, in tokens; shape [S].
        counts: How many sequences of each; shape [S].
        options: Degrees and attention kinds of groups.
        degrees: The degree of each option.
        work: Rank-seconds of a sequence of each size at each option; shape [options, S].
        holds: Whether a group of the option holds the size; shape [options, S].
        fastest_s: Time of a sequence of each size alone at its fastest degree; shape [S].
        step_s: Time of the waves, fixed times included, of the plan that is to be beaten.
        num_waves: Shorter plans have at least so many waves; more than sizes tell, if given.
        longest_wave_s: No wave of a shorter plan is longer, fixed time left out.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        profile: StepProfile,
        num_ranks: int,
        degrees: Sequence[int],
        step_s: float,
        num_waves: int = 1,
    ) -> None:
        sizes, counts = np.unique(np.asarray(lengths, dtype=np.float64), return_counts=True)
        self.sizes: _Array = sizes[::-1]
        self.counts: _Array = counts[::-1].astype(np.float64)
        self.options = tuple(o for o in profile.options if o.degree in set(degrees))
        self.degrees = tuple(option.degree for option in self.options)
        self.num_ranks = num_ranks
        self.token_cap, self.fixed_s = profile.token_cap, profile.fixed_s
        costs = [sharing_costs(option, profile=profile) for option in self.options]
        self.work: _Array = np.stack([cost.works(self.sizes) for cost in costs])
        opening = np.array([[cost.opening_s] for cost in costs])
        ranks = np.array(self.degrees, dtype=np.float64)[:, None]
        self._ranks = ranks
        self._is_over_half = 2 * self.sizes > ranks * self.token_cap
        self.holds = self.sizes <= ranks * self.token_cap
        alone_s = np.where(self.holds, (opening + self.work) / ranks, np.inf)
        self.fastest_s: _Array = alone_s.min(axis=0)
        self.step_s = step_s
        by_size = num_waves_at_least(lengths, wave_tokens=num_ranks * self.token_cap)
        self.num_waves = max(num_waves, by_size)
        self.longest_wave_s = step_s - self.num_waves * self.fixed_s

    def waves_longer_than(self, time_s: float) -> int:
        """At least so many waves take longer, fixed time left out, whatever the plan."""
        if time_s <= 0:
            return self.num_waves
        slow = self.fastest_s > time_s
        wave_tokens = self.num_ranks * self.token_cap
        by_tokens = -(-int(self.sizes[slow] @ self.counts[slow]) // wave_tokens)
        by_long_ones = int(self.counts[slow & (2 * self.sizes > wave_tokens)].sum())
        return max(by_tokens, by_long_ones)

    def count_range(self, time_s: float, splits: Sequence[WaveSplit]) -> tuple[float, float]:
        """How many waves may take longer than `time_s` in plans that keep `splits`."""
        least, most = self.waves_longer_than(time_s), math.inf
        for split in splits:
            if split.at_least is not None and split.longer_than_s >= time_s:
                least = max(least, split.at_least)
            if split.at_most is not None and split.longer_than_s <= time_s:
                most = min(most, split.at_most)
        return float(least), max(float(least), most)

    def leaf_bound_s(self, leaf: BoundLeaf) -> float:
        """What the prices of one leaf prove; see `certified_bound_s` for the argument."""
        worth_s = np.full(len(self.sizes), np.inf)
        excess_s = 0.0
        credit_s = np.cumsum(leaf.wave_prices_s)
        prices = {
            (price.wave_class, price.degree, price.attention): price
            for price in leaf.group_prices
        }
        for k, (low_s, high_s) in enumerate(itertools.pairwise(leaf.edges_s)):
            paid = [
                prices.get((k, option.degree, option.attention), _FREE)
                for option in self.options
            ]
            token_s = _column(price.token_s for price in paid)
            work_price = _column(price.work for price in paid)
            big_tokens_s = _column(price.big_tokens_s for price in paid)
            big_work_s = _column(price.big_work_s for price in paid)
            most_work = self._ranks * high_s
            pays_s = token_s * self.sizes + work_price * self.work
            pays_s += big_tokens_s * self._is_over_half + big_work_s * (
                2 * self.work > most_work
            )
            may = self.holds & (self.work <= most_work)
            worth_s = np.minimum(worth_s, np.where(may, pays_s, np.inf).min(axis=0))
            rank_s = token_s * self.token_cap + (big_tokens_s + big_work_s) / self._ranks
            for time_s in (low_s, high_s):
                wave_worth_s = self.num_ranks * float((rank_s + work_price * time_s).max())
                excess_s = max(excess_s, wave_worth_s - time_s - self.fixed_s + credit_s[k])
        if not np.isfinite(worth_s).all():
            return 0.0
        bound_s = float(worth_s @ self.counts)
        for edge_s, price_s in zip(leaf.edges_s, leaf.wave_prices_s, strict=False):
            least, most = self.count_range(edge_s, leaf.splits)
            if price_s < 0 and math.isinf(most):
                return 0.0
            bound_s += price_s * (least if price_s >= 0 else most)
        return bound_s - excess_s * self._most_waves()

    def _most_waves(self) -> float:
        """A plan shorter than `step_s` has at most so many waves."""
        by_time = self.step_s / self.fixed_s if self.fixed_s else math.inf
        return min(by_time, float(self.counts.sum()))


def _column(values: Iterable[float]) -> _Array:
    return np.array([*values])[:, None]


def certified_bound_s(
    certificate: BoundCertificate,
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    degrees: Sequence[int] | None = None,
    num_waves: int = 1,
) -> float:
    """What a certificate proves: no step plan for `lengths` is shorter. In seconds.

    Only plans shorter than `certificate.shorter_than_s` = U are spoken of, so the bound is at
    most U. In such a plan no wave is longer than U - W F without its fixed time F, where W is
    the fewest waves (`num_waves_at_least`). Take the plans that keep the splits of one leaf.
    Let wave w take T_w + F and be in class k, e_k < T_w <= e_(k+1); prices are not negative.

    1. A sequence s of a group of degree d pays  p(s) = token * s + work * c(s), with c its
       rank-seconds at d and the group's attention kind, which has prices of its own; and
       `big_tokens` if s is over half of d * token_cap, `big_work` if c(s) is over half of
       d e_(k+1). Let v(s) be the least it could pay: over all classes, degrees and kinds where
       it fits, s <= d token_cap and c(s) <= d e_(k+1).
    2. A group holds at most d token_cap tokens and d T_w work, and at most one sequence over
       half of each. So its sequences pay at most d (token * token_cap + work * T_w) +
       big_tokens + big_work, and those of a wave of N ranks at most
       N max_d [token * token_cap + work * T_w + (big_tokens + big_work) / d] =: g_k(T_w).
    3. Wave prices m_j are given for each wave longer than e_j, so wave w gets M_k = m_0 + ... +
       m_k. Let D be the largest excess of g_k(T) over T + F - M_k. As g_k is convex in T, it is
       enough to look at both ends of every class. So
       sum v(s) <= sum_w g(T_w) <= sum_w (T_w + F) - sum_w M_k(w) + D (number of waves).
    4. sum_w M_k(w) = sum_j m_j Y_j with Y_j the number of waves longer than e_j, a whole
       number that the batch and the splits keep in a range (`BoundTerms.count_range`):
       sum_w (T_w + F) >= sum v(s) + sum_j m_j (least Y_j if m_j >= 0, else most Y_j)
       - D (number of waves).

    That is weak linear-programming duality, and holds for any prices. Leaves come in pairs
    of cases (at most n, at least n + 1), and each plan is in one of them, so the bound is the
    least over the leaves, plus `step_fixed_s`; never less than `area_bound_s`. Where it is
    known otherwise that shorter plans have at least `num_waves` waves, W is at least that.

    Raises:
        InputError: The leaves leave plans out, or a leaf's classes do not reach far enough.
    """
    usable = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=degrees)
    check_lengths(lengths, profile=profile, degrees=usable)
    terms = BoundTerms(
        lengths, profile=profile, num_ranks=num_ranks, degrees=usable,
        step_s=certificate.shorter_than_s, num_waves=num_waves,
    )  # fmt: skip
    _check_leaves(certificate, longest_wave_s=terms.longest_wave_s)
    proven_s = min(terms.leaf_bound_s(leaf) for leaf in certificate.leaves)
    area_s = area_bound_s(lengths, profile=profile, num_ranks=num_ranks, degrees=usable)
    bound_s = profile.step_fixed_s + min(proven_s, certificate.shorter_than_s)
    return max(area_s, bound_s * (1 - _ROUNDING))


def _check_leaves(certificate: BoundCertificate, *, longest_wave_s: float) -> None:
    for leaf in certificate.leaves:
        edges_s = leaf.edges_s
        if len(edges_s) != len(leaf.wave_prices_s) + 1 or sorted(set(edges_s)) != [*edges_s]:
            raise InputError(
                "certificate.edges_s: expected one more than wave prices, ascending"
            )
        if edges_s[0] > 0 or edges_s[-1] < longest_wave_s * (1 - _ROUNDING):
            raise InputError(
                f"certificate.edges_s: expected classes from 0 to {longest_wave_s:g} s, got "
                f"{edges_s[0]:g} to {edges_s[-1]:g}"
            )
        if any(
            min(price.token_s, price.work, price.big_tokens_s, price.big_work_s) < 0
            for price in leaf.group_prices
        ):
            raise InputError("certificate.group_prices: expected none below 0")
    if not _is_complete([leaf.splits for leaf in certificate.leaves]):
        raise InputError(
            "certificate.leaves: expected every case of every split, one is missing"
        )


def _is_complete(cases: Sequence[tuple[WaveSplit, ...]]) -> bool:
    """Whether every plan keeps all splits of some case: a tree of pairs has no missing leaf."""
    if not cases:
        return False
    if any(not splits for splits in cases):
        return True
    first = cases[0][0]
    few = [splits[1:] for splits in cases if splits[0].at_most is not None]
    many = [splits[1:] for splits in cases if splits[0].at_least is not None]
    is_pair = all(
        splits[0].longer_than_s == first.longer_than_s
        and (splits[0].at_most is None) != (splits[0].at_least is None)
        for splits in cases
    )
    limits = {splits[0].at_most for splits in cases} | {
        None if splits[0].at_least is None else splits[0].at_least - 1 for splits in cases
    }
    return is_pair and len(limits - {None}) == 1 and _is_complete(few) and _is_complete(many)
