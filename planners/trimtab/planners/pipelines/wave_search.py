"""Micro-batches of one batch for a pipeline, and better ones on its exact timeline."""

import functools
from collections.abc import Sequence

from trimtab.core.pipeline import Pipeline
from trimtab.core.profile import StepProfile
from trimtab.planners.compiled import Floats, Ints, floats, ints, zero_floats, zero_ints
from trimtab.planners.pipelines import pipeline_kernels, wave_kernels
from trimtab.planners.pipelines.ordering import empty_flow, plain_orders, scratch_of
from trimtab.planners.pipelines.stages import FORWARD_FRACTION, StageCosts
from trimtab.planners.steps import packing
from trimtab.planners.steps.kernels import Waves
from trimtab.planners.steps.packing import (
    BatchCosts,
    PackedWaves,
    Packing,
    PackingSearch,
    empty_filling,
)

_SEED = 48_611
_MOST_REFILLED = 3
"""Waves that `wave_kernels.refill` chooses at most."""


class WaveShop:
    """Makes plans of one batch, at one size of the largest wave.

    While waves are searched for, their time is divided over the stages as their time per token
    is, and groups lie as well as they can; what a plan takes is computed exactly once it is
    finished.
    """

    def __init__(self, batch_costs: BatchCosts, costs: StageCosts, *, num_ranks: int) -> None:
        self.batch_costs, self.costs = batch_costs, costs
        self.search = PackingSearch(batch_costs, num_ranks=num_ranks)
        self.batch = batch_costs.batch(num_ranks)
        self.filled = empty_filling(self.batch)
        self.left = zero_ints(len(batch_costs.sizes))
        self.new = self._waves(_MOST_REFILLED)
        self.shares = wave_kernels.Shares(
            forward=floats(FORWARD_FRACTION * share for share in costs.linear_shares),
            backward=floats((1 - FORWARD_FRACTION) * share for share in costs.linear_shares),
            send_s=costs.send_s_per_token,
        )
        pp, vpp = costs.stages.pp, costs.stages.vpp
        self._multiple = pp if vpp > 1 else 1

    def built(self, number: int) -> "list[WavePlan]":
        """So many plans as if waves ran one after the other."""
        plans = [
            self._whole(plan.waves, plan.num_waves, num_more=self._multiple)
            for plan in self.search.builds(number)
        ]
        return [plan for plan in plans if plan is not None]

    def at_target(self, target_s: float, *, most: int) -> "WavePlan | None":
        """Waves of `target_s`, fixed time left out, and longer where a sequence is.

        None where there are too many, or their number is no multiple of the stages although it
        must be.
        """
        waves = self._waves(most)
        num = wave_kernels.fill_at(
            self.batch, target_s, self.filled, self.left, zero_floats(most), waves
        )
        return self._whole(waves, num, num_more=self._multiple) if num else None

    def _whole(self, waves: Waves, num: int, *, num_more: int) -> "WavePlan | None":
        """A plan of these waves, cut until their number is a multiple."""
        room = num + num_more
        roomy = self._waves(room)
        num_sizes = len(self.batch_costs.sizes)
        roomy.counts[: num * num_sizes] = waves.counts[: num * num_sizes]
        roomy.target_s[:num] = waves.target_s[:num]
        roomy.wave_s[:num] = waves.wave_s[:num]
        tokens = zero_floats(room)
        wave_kernels.tokens_of(self.batch, num, self.filled, self.left, tokens, roomy)
        while num % self._multiple:
            if not wave_kernels.cut_wave(
                self.batch, num, self.filled, self.left, tokens, roomy
            ):
                return None
            num += 1
        return WavePlan(self, roomy, num, tokens)

    def _waves(self, room: int) -> Waves:
        return Waves(
            counts=zero_ints(room * len(self.batch_costs.sizes)),
            target_s=zero_floats(room),
            wave_s=zero_floats(room),
        )


class WavePlan:
    """One plan that gets shorter; the number of its waves stays."""

    def __init__(self, shop: WaveShop, waves: Waves, num: int, tokens: Floats) -> None:
        self._shop, self._waves, self._num = shop, waves, num
        self._flow = empty_flow(num, limits=shop.costs.limits, vpp=shop.costs.stages.vpp)
        wave_kernels.set_all_times(
            self._flow, num, waves, tokens, shop.batch_costs.fixed_s, shop.shares
        )
        self._scratch = scratch_of(self._flow, num)
        self._state = ints([_SEED])
        self._picks, self._new_order = zero_ints(num), zero_ints(num)
        pp = shop.costs.stages.pp
        self._kept = self._flow._replace(
            forward=zero_floats(_MOST_REFILLED * pp),
            backward=zero_floats(_MOST_REFILLED * pp),
            send=zero_floats(_MOST_REFILLED),
            tokens=zero_floats(_MOST_REFILLED),
        )
        self._order: Ints = ints(())
        self.step_s = float("inf")
        """Where `output_layers` is 0, the plan takes no longer if its groups lie well."""
        for order in plain_orders([float(waves.wave_s[m]) for m in range(num)]):
            found = ints(order)
            found_s = pipeline_kernels.step_s(self._flow, found, num, self._scratch)
            if found_s < self.step_s:
                self._order, self.step_s = found, float(found_s)

    def improve_order(self, *, trials: int) -> None:
        """Try to make the step shorter by other orders; it never gets longer."""
        self.step_s = float(
            pipeline_kernels.improve_order(
                self._flow, self._order, self._num, trials, self._state, self._new_order,
                self._scratch,
            )
        )  # fmt: skip

    def improve(self, *, trials: int) -> None:
        """Try to make the step shorter by other waves and orders; it never gets longer."""
        shop = self._shop
        self.step_s = float(
            wave_kernels.improve_waves(
                shop.batch, self._flow, shop.shares, self._order, self._num, trials,
                self._state, shop.filled, shop.left, self._picks, self._new_order, shop.new,
                self._kept, self._waves, self._scratch,
            )
        )  # fmt: skip

    @property
    def num_waves(self) -> int:
        return self._num

    @property
    def batch_costs(self) -> BatchCosts:
        return self._shop.batch_costs

    @property
    def packing(self) -> Packing:
        """Its groups, wave by wave, not in the order of the micro-batches."""
        packed = PackedWaves(self._waves, self._num, fixed_s=self.batch_costs.fixed_s)
        return self._shop.search.groups(packed)

    @property
    def order(self) -> Sequence[int]:
        return [int(m) for m in self._order]


@functools.cache
def warm_up() -> None:
    """Have every kernel compiled, or read from numba's cache, before a clock runs."""
    packing.warm_up()
    profile = StepProfile(
        name="warm-up", num_gpus=2, gpus_per_node=2, quadratic_s=1e-3, linear_s=1.0,
        fixed_s=1.0, alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=9,
    )  # fmt: skip
    batch_costs = BatchCosts([9, 5, 5, 2, 2], profile=profile, degrees=[1])
    for vpp in (1, 2):
        costs = StageCosts(profile, Pipeline(pp=2, vpp=vpp))
        shop = WaveShop(batch_costs, costs, num_ranks=1)
        for plan in [*shop.built(1), shop.at_target(1.0, most=6)]:
            if plan is not None:
                plan.improve(trials=20)
                plan.improve_order(trials=1)
