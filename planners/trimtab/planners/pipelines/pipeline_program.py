"""How short a pipeline's step could be if work could be split among micro-batches at will.

For W micro-batches that enter in their order, the timeline is a linear program: variables are
the time T_m of every micro-batch over all stages, the end of every forward and backward pass,
and the step; a pass ends no earlier than the one before it on its stage, and the one it gets
its input from, plus its own share of T_m. The times add up to at least the work of the batch,
and none is shorter than the shortest wave. Every plan with W micro-batches has such times, so
the program's optimum is a bound. One of them holds the longest sequence: where the optimum has
none that long, each position is tried for it, and the least counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pulp

from trimtab.planners.pipelines.ordering import unit_timeline

_TOLERANCE = 1 - 1e-6
"""The solver's constraints hold to 1e-7 of a mean micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivisibleWork:
    """What is known of the micro-batches of any plan."""

    shares: tuple[float, ...]
    """Least share of a micro-batch's time in each stage; shape (pp,)."""
    forward_fraction: float
    vpp: int
    total_s: float
    """Times of all micro-batches together, at least."""
    least_s: float
    """No micro-batch is shorter."""
    longest_s: float
    """One micro-batch is at least as long."""


class DivisibleProgram:
    """The program for one number of micro-batches."""

    def __init__(self, work: DivisibleWork, *, num_micro_batches: int) -> None:
        self._work = work
        self._unit_s = work.total_s / num_micro_batches
        self._highs, self._times = _solver(work, num_micro_batches, unit_s=self._unit_s)
        self._highs.run()
        step, times = _optimum(self._highs, self._times)
        self.bound_s = step * self._unit_s * _TOLERANCE
        """For all plans with so many micro-batches, wherever the longest sequence is."""
        self._has_longest = max(times) * self._unit_s >= work.longest_s

    def with_longest_s(self, *, is_over: Callable[[], bool]) -> float:
        """The bound with the longest sequence somewhere; `bound_s` in want of time."""
        if self._has_longest:
            return self.bound_s
        work, unit_s = self._work, self._unit_s
        longest, least = work.longest_s / unit_s, work.least_s / unit_s
        step = math.inf
        for column in self._times:
            if is_over():
                return self.bound_s
            self._highs.changeColBounds(column, longest, math.inf)
            self._highs.run()
            step = min(step, _optimum(self._highs, self._times)[0])
            self._highs.changeColBounds(column, least, math.inf)
        return max(self.bound_s, step * unit_s * _TOLERANCE)


def _optimum(highs: "pulp.highspy.Highs", times: Sequence[int]) -> tuple[float, list[float]]:
    """The step, and the times of the micro-batches; a step of 0 where it was not solved."""
    values = highs.getSolution().col_value
    if highs.modelStatusToString(highs.getModelStatus()) != "Optimal":
        return 0.0, [math.inf]
    return highs.getInfo().objective_function_value, [values[column] for column in times]


def _solver(
    work: DivisibleWork, num: int, *, unit_s: float
) -> tuple["pulp.highspy.Highs", list[int]]:
    """The program in units of `unit_s`, and the columns of the micro-batches' times."""
    pp = len(work.shares)
    model = pulp.LpProblem("pipeline", pulp.LpMinimize)
    step = model.add_variable("step", 0)
    times = [model.add_variable(f"time_{m}", work.least_s / unit_s) for m in range(num)]
    model.setObjective(pulp.LpAffineExpression({step: 1.0}))
    _at_least(model, dict.fromkeys(times, 1.0), work.total_s / unit_s)
    ends: dict[tuple[str, int, int], pulp.LpVariable] = {}
    before: list[pulp.LpVariable | None] = [None] * pp
    last = pp * work.vpp - 1
    for kind, rank, micro, stage in unit_timeline(pp, work.vpp, num):
        end = model.add_variable(f"{kind}_{micro}_{stage}", 0)
        part = work.forward_fraction if kind == "F" else 1 - work.forward_fraction
        share = part * work.shares[rank] / work.vpp
        source = ("F", micro, stage - 1) if kind == "F" else ("B", micro, stage + 1)
        if kind == "B" and stage == last:
            source = ("F", micro, stage)
        inputs = [before[rank], ends.get(source)]
        for earlier in {id(each): each for each in inputs if each is not None}.values():
            _at_least(model, {end: 1.0, earlier: -1.0, times[micro]: -share}, 0.0)
        if all(each is None for each in inputs):
            _at_least(model, {end: 1.0, times[micro]: -share}, 0.0)
        ends[kind, micro, stage] = before[rank] = end
    for end in before:
        assert end is not None
        _at_least(model, {step: 1.0, end: -1.0}, 0.0)
    solver = pulp.HiGHS(msg=False)
    solver.createAndConfigureSolver(model)
    solver.buildSolverModel(model)
    return model.solverModel, [time.index for time in times]


def _at_least(model: pulp.LpProblem, row: dict[pulp.LpVariable, float], limit: float) -> None:
    model.addConstraint(
        pulp.LpConstraint(pulp.LpAffineExpression(row), pulp.LpConstraintGE, None, limit)
    )
