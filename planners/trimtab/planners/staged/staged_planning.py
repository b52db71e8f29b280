"""The step of a staged layout: the program's answer made whole, and improved by simulation.

The program (`staged_program`) says what share of each bucket of lengths takes which path, and
proves a bound. Sequences are dealt to paths by those shares, packed into micro-batches of a few
sizes, ordered, and simulated; the best of these plans, and of the plans that choose groups and
paths one after the other (`staged_apart`), is then improved by small changes.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError
from trimtab.core.staged import StagedLayout, StagedMethod, StagedPlan
from trimtab.core.units import counted, duration_text
from trimtab.planners.staged import staged_program
from trimtab.planners.staged.staged_bounds import check_lengths, priced_bound_s
from trimtab.planners.staged.staged_check import checked_step_s
from trimtab.planners.staged.staged_kernels import Times
from trimtab.planners.staged.staged_packing import Changes, Packer, orders
from trimtab.planners.staged.staged_schedule import Draft, Tables, micro_batches, simulate
from trimtab.planners.steps import packing

_FIRST_PARTS = (2.0,)
"""For the first plan: a micro-batch takes a rank's tokens over the stages and this."""
_MORE_PARTS = (2.5, 1.6, 2.0, 3.2, 1.3, 4.0, 1.0, 6.0, 9.0)
_LAYOUT_PARTS = (2.5, 1.6)
_FIRST_BUILDS, _FIRST_TRIALS = 3, 20
_MORE_BUILDS, _MORE_TRIALS = 20, 200

_PARTS_UNTIL = 0.4
"""Part of the time limit for building plans, before the best is improved."""

_GOOD_GAP = 0.001
_SEED = 20_261_127
_MOST_IDLE_TRIALS = 4_000


def plan_staged_step(
    lengths: Sequence[int],
    *,
    staged: StagedLayout,
    clock: Callable[[], float],
    time_limit_s: float = 1.0,
    apart: Sequence[Draft] = (),
) -> StagedPlan:
    """Choose micro-batches, their degrees and their stage paths so that the step is short.

    Args:
        lengths: Tokens of every sequence, in the order of the batch.
        staged: The layout.
        clock: A monotonic clock in seconds.
        time_limit_s: When to stop improving, in seconds after kernels are compiled; 0 returns
            the first plan.
        apart: Plans to be no worse than (`staged_apart.apart_drafts`).

    Raises:
        InputError: The batch is empty, or a length is not >= 1.
        InfeasibleError: A sequence fits nowhere, or the skip fractions cannot be met.
    """
    checks.not_negative("time_limit_s", time_limit_s)
    tables = Tables(staged)
    check_lengths(lengths, tables)
    warm_up(tables)
    started_s = clock()
    planning = _Planning(lengths, tables, started_s=started_s, clock=clock)
    planning.begin()
    first = planning.plan()
    planning.compare(apart)
    if time_limit_s:
        planning.improve(lambda part: clock() - started_s < part * time_limit_s)
    best = planning.plan()
    assert math.isclose(
        checked_step_s(best.micro_batches, lengths, staged=staged), best.step_s, rel_tol=1e-6
    )
    return replace(best, first_plan_s=first.solve_s, first_step_s=first.step_s)


def quick_step_s(lengths: Sequence[int], *, staged: StagedLayout) -> float:
    """The step of a plan good enough to compare layouts by; equal input gives an equal step.

    Raises:
        InputError: The batch is empty, or a length is not >= 1.
        InfeasibleError: A sequence fits nowhere, or the skip fractions cannot be met.
    """
    tables = Tables(staged)
    check_lengths(lengths, tables)
    planning = _Planning(lengths, tables, started_s=0.0, clock=float)
    planning.begin()
    planning.build(_LAYOUT_PARTS)
    return planning.plan().step_s


def warm_up(tables: Tables) -> None:
    """Have kernels compiled, or read from numba's cache, and the solver loaded."""
    degree = np.array([tables.degrees[0]])
    path = np.array([[tables.staged.of_stage(s)[0] for s in range(tables.staged.num_stages)]])
    one = Draft(
        degree=degree, path=path, tokens=np.ones(1), squares=np.ones(1), sequences=[[0]]
    )
    simulate(one, tables)
    packing.warm_up()
    staged_program.solve([1, 1], tables)


class _Planning:
    """One batch on its way from the program's answer to a good plan."""

    def __init__(
        self,
        lengths: Sequence[int],
        tables: Tables,
        *,
        started_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._lengths, self._tables = lengths, tables
        self._started_s, self._clock = started_s, clock
        self._solution = staged_program.solve(lengths, tables)
        bound_s = priced_bound_s(self._solution.prices, lengths, staged=tables.staged)
        self._bound_s = bound_s
        self._packer = Packer(lengths, tables, solution=self._solution)
        self._best: tuple[float, Draft, Times] | None = None
        self._found: StagedMethod = "first"

    def begin(self) -> None:
        """Build the first plan.

        Raises:
            InfeasibleError: No plan was found.
        """
        for part in _FIRST_PARTS:
            self._build(
                part, builds=_FIRST_BUILDS, trials=_FIRST_TRIALS, most_orders=2, found="first"
            )
        for part in _MORE_PARTS if self._best is None else ():
            self._build(
                part, builds=_FIRST_BUILDS, trials=_FIRST_TRIALS, most_orders=2, found="first"
            )
        if self._best is None:
            raise InfeasibleError(
                "lengths: no plan was found whose micro-batches fit the stages' memory; use "
                "more nodes, stages or tp, or drop the longest sequences"
            )

    def compare(self, apart: Sequence[Draft]) -> None:
        """Take the best of the plans made apart, where it is better."""
        for draft in apart:
            self._try(draft, found="apart")

    def build(self, parts: Sequence[float]) -> None:
        """Build plans of these sizes with care."""
        for part in parts:
            self._build(
                part, builds=_MORE_BUILDS, trials=_MORE_TRIALS, most_orders=3, found="search"
            )

    def improve(self, is_before: Callable[[float], bool]) -> None:
        """Build plans, then change the best of them, until the limit."""
        for part in _MORE_PARTS:
            if not is_before(_PARTS_UNTIL):
                break
            self.build([part])
        assert self._best is not None
        numbers = random.Random(_SEED)  # noqa: S311  # no secret hangs on it
        changes = Changes(self._lengths, self._tables, numbers=numbers)
        idle = 0
        while idle < _MOST_IDLE_TRIALS and is_before(1.0) and not self._is_good():
            before_s, draft, _ = self._best
            changed = changes.changed(draft)
            if changed is not None:
                self._try(changed, found="search", or_equal=True)
            idle = 0 if self._best[0] < before_s else idle + 1

    def plan(self) -> StagedPlan:
        """The best so far as a value."""
        assert self._best is not None
        step_s, draft, times = self._best
        bound_s = min(self._bound_s, step_s)
        visits = micro_batches(draft, times)
        solve_s = self._clock() - self._started_s
        return StagedPlan(
            micro_batches=visits,
            step_s=step_s,
            lower_bound_s=bound_s,
            prices=self._solution.prices,
            method=self._found,
            reason=f"{counted(len(visits), 'micro-batch')[:-1]}es of degrees "
            f"{sorted({one.degree for one in visits})}; {duration_text(step_s)}, at most "
            f"{step_s / bound_s - 1:.1%} above the best possible",
            solve_s=solve_s,
            first_plan_s=solve_s,
            first_step_s=step_s,
        )

    def _build(
        self, part: float, *, builds: int, trials: int, most_orders: int, found: StagedMethod
    ) -> None:
        """Pack, and simulate in a few orders."""
        stages = self._tables.staged.num_stages
        draft, wave_of = self._packer.draft(1 / (stages * part), builds=builds, trials=trials)
        for order in islice(orders(draft, wave_of, self._tables), most_orders):
            self._try(draft.ordered(order), found=found)

    def _try(self, draft: Draft, *, found: StagedMethod, or_equal: bool = False) -> None:
        """Simulate a plan and keep it if it is the best."""
        step_s, times = simulate(draft, self._tables)
        best_s = float("inf") if self._best is None else self._best[0]
        if step_s < best_s or (or_equal and step_s == best_s):
            self._best = (step_s, draft, times)
            self._found = found

    def _is_good(self) -> bool:
        assert self._best is not None
        return self._best[0] <= self._bound_s * (1 + _GOOD_GAP)
