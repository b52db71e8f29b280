"""Lower bounds on the step of a pipeline with unequal micro-batches."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trimtab.core.certificate import BoundCertificate
from trimtab.core.profile import GroupOption, StepProfile
from trimtab.planners.attention_costs import sharing_costs
from trimtab.planners.costs import group_s
from trimtab.planners.pipelines.pipeline_program import DivisibleProgram, DivisibleWork
from trimtab.planners.pipelines.stages import FORWARD_FRACTION, StageCosts
from trimtab.planners.steps.bounds import (
    BoundTerms,
    area_bound_s,
    certified_bound_s,
    num_waves_at_least,
)
from trimtab.planners.steps.program import solve_bound

_ROUNDING = 1 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedPipelineBound:
    """A bound of a pipeline's step, without the fixed time of a step, and why it holds."""

    waves_s: float
    certificate: BoundCertificate
    """Of the sum of all micro-batches' times, under `StageCosts.wave_profile`."""
    num_waves: int
    """Shorter plans have at least so many micro-batches."""


class PipelineBound:
    """No plan has a shorter timeline under 1F1B, whatever its packing and order.

    Let stage s take t_ms of micro-batch m, forward and backward together.

    1. Busy. The micro-batches are waves over the N ranks of stage s under the coefficients of
       that stage alone (`StageCosts.stage_profile`), and a stage does one thing at a time. So
       the sum over m of t_ms is at least any bound of `bounds` for a step with one stage, with
       the most tokens that a wave may hold as the token cap.
    2. Fill and drain. Before stage s does anything, some micro-batch has gone forward through
       every earlier stage; after it has done everything, some micro-batch still goes backward
       through them. Each micro-batch takes an earlier stage r at least f_r, its fixed time and
       the fastest time of the shortest sequence (a longer one takes longer, with either kind
       of attention). Chunks (vpp) are entered one at a time, so of these a share 1 / vpp.
       Hence step >= sum over m of t_ms + sum over r < s of f_r / vpp.
    3. Longest. The micro-batch with the longest sequence passes all stages, forward and
       backward, one after the other, each at least as long as the sequence alone takes it; for
       one degree and attention kind, as a group keeps both.
    4. Memory, with vpp = 1. From the start of its forward pass at stage 0 to the end of its
       backward pass there, a micro-batch of k_m tokens passes all stages, which takes at least
       F + w k_m / N seconds with F its fixed time and w the least rank-seconds of a token, one
       of the shortest sequence; and the ranks of stage 0 hold its tokens, N limit of them at
       once. With k tokens in W micro-batches, the sum of k_m^2 being least where all are alike,
       step >= (F k / N + w (k / N)^2 / W) / limit.
    5. Timeline. Whatever the packing, the W micro-batches have some times T_m over all stages,
       of which stage s takes at least its smaller share; the sum of all T_m is bounded as in 1
       with all layers. What 1F1B takes of such times at best is a linear program
       (`pipeline_program`). Holding fewer micro-batches for want of memory only delays it.

    Groups are taken to lie as well as they can, and latencies, which only delay them, count in
    the times of single sequences alone.

    1 with 2 and 5 grow with W and 4 shrinks: plans shorter than a given time have at least as
    many micro-batches as bring 4 below it, and the bound is that of the best W. With vpp > 1
    their number is a multiple of pp.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        costs: StageCosts,
        num_ranks: int,
        degrees: Sequence[int],
    ) -> None:
        self._lengths, self._num_ranks, self._degrees = lengths, num_ranks, degrees
        self._costs = costs
        self._options = [o for o in costs.profile.options if o.degree in set(degrees)]
        stages = range(costs.stages.pp)
        self._multiple = costs.stages.pp if costs.stages.vpp > 1 else 1
        fewest = num_waves_at_least(lengths, wave_tokens=num_ranks * costs.wave_cap)
        self._fewest = -(-fewest // self._multiple) * self._multiple
        self._more_than_sizes = self._fewest - fewest
        self._profiles = [costs.stage_profile(s, token_cap=costs.wave_cap) for s in stages]
        self._fills_s = self._fills()
        busy = [self._busy_s(self._profiles[s], degrees) for s in stages]
        sums = [alone + wait for alone, wait in zip(busy, self._fills_s, strict=True)]
        self._stage = max(stages, key=sums.__getitem__)
        """That 1 and 2 are taken of."""
        self._path_s = self._longest_path_s()
        self._work_s = self._busy_s(costs.wave_profile, degrees)
        """Times of the fewest micro-batches over all stages."""
        self._held = self._held_terms()
        quick_s = (self._quick_s(count, busy[self._stage]) for count in self._counts())
        self.waves_s = self._least(quick_s) * _ROUNDING

    @property
    def fill_s(self) -> float:
        """Of the stage that the bound speaks of."""
        return self._fills_s[self._stage]

    def uniform_s(self, degree: int) -> float:
        """A bound for plans with one degree."""
        return self._busy_s(self._profiles[self._stage], [degree]) + self.fill_s

    def certified(
        self,
        step_s: float,
        wave_times_s: Sequence[float],
        *,
        is_over: Callable[[], bool],
        is_late: Callable[[], bool],
    ) -> CertifiedPipelineBound:
        """The bound by linear programs; at most `step_s`.

        Args:
            step_s: Timeline of a plan that is to be beaten.
            wave_times_s: What its waves take over all stages, fixed time left out.
            is_over: Whether to go on from 1 to 5 with what is proven.
            is_late: Whether to stop with what is proven.
        """
        costs, shares = self._costs, self._least_shares()
        profile, num_waves = costs.wave_profile, self._num_waves(step_s)
        beaten_s = min(
            (step_s - fill_s) / share
            for fill_s, share in zip(self._fills_s, shares, strict=True)
        )
        terms = BoundTerms(
            self._lengths, profile=profile, num_ranks=self._num_ranks, degrees=self._degrees,
            step_s=beaten_s, num_waves=num_waves,
        )  # fmt: skip
        certificate = solve_bound(terms, wave_times_s, is_over=is_over)
        total_s = certified_bound_s(
            certificate, self._lengths, profile=profile, num_ranks=self._num_ranks,
            degrees=self._degrees, num_waves=num_waves,
        )  # fmt: skip
        proven_s = self._timeline_s(step_s, total_s, num_waves=num_waves, is_over=is_late)
        return CertifiedPipelineBound(
            waves_s=min(step_s, max(self.waves_s, proven_s * _ROUNDING)),
            certificate=certificate,
            num_waves=num_waves,
        )

    def _timeline_s(
        self, step_s: float, total_s: float, *, num_waves: int, is_over: Callable[[], bool]
    ) -> float:
        """The least over all numbers of micro-batches of what 1 to 5 say of them.

        Best first: what is said of the number with the least bound is made sharper, by 5 with
        the longest sequence anywhere, then at each position.
        """
        heap: list[tuple[float, int, float, DivisibleProgram | None]] = [
            (bound_s, count, sum_s, None)
            for bound_s, count, sum_s in self._by_count(step_s, total_s, num_waves=num_waves)
        ]
        heapq.heapify(heap)
        finished: set[int] = set()
        while not is_over() and heap[0][0] < step_s and heap[0][1] not in finished:
            bound_s, count, sum_s, program = heap[0]
            if program is None:
                program = DivisibleProgram(self._work_of(sum_s), num_micro_batches=count)
                sharper_s = program.bound_s
            else:
                sharper_s = program.with_longest_s(is_over=is_over)
                finished.add(count)
            heapq.heapreplace(heap, (max(bound_s, sharper_s), count, sum_s, program))
        return min(step_s, heap[0][0])

    def _by_count(
        self, step_s: float, total_s: float, *, num_waves: int
    ) -> Iterator[tuple[float, int, float]]:
        """What 1 to 4 say of each number of micro-batches, that, and the sum of their times."""
        shares, fixed_s = self._least_shares(), self._costs.profile.fixed_s
        for count in range(num_waves, len(self._lengths) + 1, self._multiple):
            sum_s = max(total_s, self._work_s + fixed_s * (count - self._fewest))
            busy_s = max(
                share * sum_s + fill_s
                for share, fill_s in zip(shares, self._fills_s, strict=True)
            )
            yield max(busy_s, self._path_s, self._held_s(count)), count, sum_s
            if busy_s >= step_s:
                return

    def _work_of(self, total_s: float) -> DivisibleWork:
        return DivisibleWork(
            shares=self._least_shares(),
            forward_fraction=FORWARD_FRACTION,
            vpp=self._costs.stages.vpp,
            total_s=total_s,
            least_s=self._alone_s(min(self._lengths)),
            longest_s=self._alone_s(max(self._lengths)),
        )

    @staticmethod
    def _least(bounds_s: Iterator[tuple[float, float]]) -> float:
        """The least first value, as far as the second, which grows, is below it."""
        least_s = math.inf
        for bound_s, growing_s in bounds_s:
            least_s = min(least_s, bound_s)
            if growing_s >= least_s:
                break
        return least_s

    def _least_shares(self) -> tuple[float, ...]:
        """Of a wave's time over all stages, each stage takes at least so much."""
        pairs = zip(self._costs.layer_shares, self._costs.linear_shares, strict=True)
        return tuple(map(min, pairs))

    def _counts(self) -> range:
        return range(self._fewest, len(self._lengths) + 1, self._multiple)

    def _num_waves(self, step_s: float) -> int:
        """Plans shorter than `step_s` have at least so many micro-batches."""
        counts = self._counts()
        return next((n for n in counts if self._held_s(n) < step_s), counts[-1])

    def _quick_s(self, count: int, busy_s: float) -> tuple[float, float]:
        """What 1 to 4 say of so many micro-batches; and 1 alone, which grows with them."""
        more = count - self._fewest
        growing_s = busy_s + self.fill_s + more * self._profiles[self._stage].fixed_s
        return max(growing_s, self._path_s, self._held_s(count)), growing_s

    def _held_s(self, count: int) -> float:
        """What the tokens that stage 0 holds allow `count` micro-batches."""
        fixed_s, growing_s = self._held
        return fixed_s + growing_s / count

    def _held_terms(self) -> tuple[float, float]:
        """4, in a term for all W and one that W divides.

        Rank-seconds of a token grow with the length of its sequence: where a ring hides its
        transfer behind attention, it never hides more than the attention takes.
        """
        costs, profile = self._costs, self._costs.profile
        if costs.stages.vpp > 1:
            return 0.0, 0.0
        shortest = min(self._lengths)
        token_work = min(
            sharing_costs(option, profile=profile).work(shortest) / shortest
            for option in self._options
        )
        tokens = sum(self._lengths) / self._num_ranks
        limit = costs.limits[0]
        return profile.fixed_s * tokens / limit, token_work * tokens**2 / limit

    def _busy_s(self, profile: StepProfile, degrees: Sequence[int]) -> float:
        """The area bound with as many micro-batches as the schedule needs."""
        area_s = area_bound_s(
            self._lengths, profile=profile, num_ranks=self._num_ranks, degrees=degrees
        )
        return area_s + self._more_than_sizes * profile.fixed_s

    def _alone_s(self, length: int) -> float:
        """The fastest time of a sequence over all stages, fixed time included."""
        profile = self._costs.wave_profile
        return min(
            _option_s(length, option, profile=profile)
            for option in self._options
            if length <= option.degree * profile.token_cap
        )

    def _fills(self) -> list[float]:
        """What every stage waits at least, by stage."""
        shortest = min(self._lengths)
        fills_s = [0.0]
        for profile in self._profiles[:-1]:
            alone_s = min(_option_s(shortest, o, profile=profile) for o in self._options)
            fills_s.append(fills_s[-1] + alone_s / self._costs.stages.vpp)
        return fills_s

    def _longest_path_s(self) -> float:
        longest = max(self._lengths)
        return min(
            sum(_option_s(longest, option, profile=profile) for profile in self._profiles)
            for option in self._options
            if longest <= option.degree * self._costs.wave_cap
        )


def _option_s(length: int, option: GroupOption, *, profile: StepProfile) -> float:
    """Time of a sequence alone in a group."""
    return group_s([length], option.degree, profile=profile, attention=option.attention)
