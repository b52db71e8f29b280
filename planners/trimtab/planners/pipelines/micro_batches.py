"""Packings of a batch into the micro-batches of a pipeline: many to choose from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.core.pipeline import MicroBatchTimes
from trimtab.core.plan import PlanMethod, Wave
from trimtab.planners.pipelines.ordering import better_order, first_order
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.pipelines.wave_search import WavePlan, WaveShop
from trimtab.planners.steps.packing import BatchCosts, Packing, balanced_packing
from trimtab.planners.steps.sequences import placed_waves

_TARGETS = 12
"""Target times tried, from a single wave to `_MOST_PER_STAGE` for every stage."""
_MOST_PER_STAGE = 8
_CAP_STEPS = (1.0, 1.5, 2.0, 4.0, 8.0)
"""Sizes of the largest wave tried, in multiples of what all waves could hold alike."""
_BUILDS = 4
"""Plans built as if waves ran one after the other, for each size."""
_BALANCED = 8
"""Numbers of waves for which sequences are balanced over groups of one degree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Waves on their ranks, with the best order found so far."""

    step_s: float
    """Its timeline, without the fixed time of a step."""
    waves: Sequence[Wave]
    times: Sequence[MicroBatchTimes]
    """What each wave takes where its groups lie."""
    order: Sequence[int]
    method: PlanMethod

    def reordered(self, costs: StageCosts, *, trials: int) -> "Candidate":
        """With an order that is no worse, after `trials` changes."""
        order, step_s = better_order(self.times, costs, order=self.order, trials=trials)
        return replace(self, order=order, step_s=step_s)


class MicroBatches:
    """Makes plans of one batch."""

    def __init__(self, lengths: Sequence[int], *, costs: StageCosts, num_ranks: int) -> None:
        self._lengths, self._costs, self._num_ranks = lengths, costs, num_ranks
        pp, vpp = costs.stages.pp, costs.stages.vpp
        self._multiple = pp if vpp > 1 else 1
        """What the number of micro-batches must be a multiple of."""
        self._most = max(2, _MOST_PER_STAGE * pp)

    def of_degrees(self, degrees: Sequence[int]) -> Iterator[WavePlan]:
        """Plans for several target times and sizes of the largest wave."""
        for cap in self._caps(degrees):
            shop = self._shop(degrees, cap=cap)
            yield from shop.built(_BUILDS)
            cheapest = zip(shop.batch.cheapest, shop.batch.counts, strict=True)
            work_s = sum(float(each) * count for each, count in cheapest) / self._num_ranks
            for count in np.geomspace(1, self._most, _TARGETS):
                plan = shop.at_target(float(work_s / count), most=2 * self._most)
                if plan is not None:
                    yield plan

    def _shop(self, degrees: Sequence[int], *, cap: int) -> WaveShop:
        profile = replace(self._costs.profile, token_cap=cap)
        costs = BatchCosts(self._lengths, profile=profile, degrees=degrees)
        return WaveShop(costs, self._costs, num_ranks=self._num_ranks)

    def balanced(self, degree: int) -> Candidate | None:
        """The best packing with one degree, sequences balanced over groups longest first.

        None where their number never is a multiple of the stages although it must be.
        """
        profile = replace(self._costs.profile, token_cap=self._costs.wave_cap)
        costs = BatchCosts(self._lengths, profile=profile, degrees=[degree])
        num_groups = self._num_ranks // degree
        most = max(1, min(self._most, len(self._lengths) // num_groups))
        counts = {round(count) for count in np.geomspace(1, most, _BALANCED)}
        best: Packing | None = None
        best_s = math.inf
        for count in sorted({-(-count // self._multiple) * self._multiple for count in counts}):
            for k in range(len(costs.options)):
                packing = balanced_packing(count, k, costs=costs, num_groups=num_groups)
                if packing is None or len(packing) % self._multiple:
                    continue
                times = [self._costs.times(groups) for groups in packing]
                _, step_s = first_order(times, self._costs)
                if step_s < best_s:
                    best, best_s = packing, step_s
        return None if best is None else self._placed(best, costs=costs, method="uniform")

    def candidate(self, waves: Sequence[Wave], *, method: PlanMethod) -> Candidate:
        """Waves in the best of a few plain orders."""
        times = [self._costs.placed_times(wave, self._lengths) for wave in waves]
        order, step_s = first_order(times, self._costs)
        return Candidate(step_s=step_s, waves=waves, times=times, order=order, method=method)

    def _placed(self, packing: Packing, *, costs: BatchCosts, method: PlanMethod) -> Candidate:
        waves = placed_waves(
            packing, costs=costs, profile=self._costs.profile, num_ranks=self._num_ranks
        )
        return self.candidate(waves, method=method)

    def finished(self, plan: WavePlan, *, method: PlanMethod) -> Candidate:
        """A plan at its exact time, in its own order or a plain one."""
        found = self._placed(plan.packing, costs=plan.batch_costs, method=method)
        own = replace(found, order=plan.order).reordered(self._costs, trials=0)
        return own if own.step_s < found.step_s else found

    def _caps(self, degrees: Sequence[int]) -> list[int]:
        """Tokens a rank may hold of one wave: several values that hold the longest sequence."""
        even_cap, wave_cap = self._costs.even_cap, self._costs.wave_cap
        least = -(-max(self._lengths) // max(degrees))
        wanted = {round(even_cap * factor) for factor in _CAP_STEPS} | {least, wave_cap}
        useful = -(-sum(self._lengths) // self._num_ranks) + max(self._lengths)
        fitting = [cap for cap in wanted if least <= cap <= wave_cap]
        return sorted({min(cap, useful) for cap in fitting})
