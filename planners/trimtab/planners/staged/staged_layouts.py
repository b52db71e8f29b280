"""Which nodes serve which stage, and how many layers: solved over sampled batches, then fixed.

A stage's time is a fluid: its nodes' ranks share the batch's work in proportion to their speed,
and the gradient reduction follows. For a time T that gives the most layers of every choice of
nodes; an integer program (`staged_program.assign_nodes`) takes one choice a stage, and the
least T at which all layers find a place is found by bisection. The joint step program then says
whether a layer should move to another stage, and the simulation of a quick plan which is best:
this assignment, the best that has one kind of nodes a stage, or Megatron's.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.staged import StagedLayout
from trimtab.planners.staged import staged_program
from trimtab.planners.staged.staged_bounds import check_lengths
from trimtab.planners.staged.staged_costs import Serving, StagedCosts
from trimtab.planners.staged.staged_planning import quick_step_s
from trimtab.planners.staged.staged_program import StageOption
from trimtab.planners.staged.staged_schedule import Tables

_MOST_CHOICES = 2_000
"""Choices of nodes for a stage; nodes are taken in blocks where there would be more."""
_BISECTIONS = 20
_MOST_MOVES = 8
_MOST_PLANNED_MOVES = 2
"""Layers moved from stage to stage, each after the program's answers; then after plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Nodes and layers of every stage."""

    servings: tuple[Serving, ...]
    stage_layers: tuple[int, ...]


def choose_layout(
    costs: StagedCosts,
    batches: Sequence[Sequence[int]],
    *,
    skip_fractions: Sequence[float] = (),
    skip_tolerance: float = 0.01,
) -> StagedLayout:
    """The staged layout with the shortest quick plans, over all sampled batches.

    Args:
        costs: The cluster, the model and the degrees (`tp`, `pp`, perhaps `stage_layers`).
        batches: Lengths of the sampled batches.
        skip_fractions: Share of the tokens that leaves out each stage.
        skip_tolerance: How far off that may be.

    Raises:
        InfeasibleError: No assignment fits.
    """

    def staged_of(assignment: Assignment) -> StagedLayout:
        return costs.layout_of(
            assignment.servings, assignment.stage_layers, skip_fractions=skip_fractions,
            skip_tolerance=skip_tolerance,
        )  # fmt: skip

    def program_s(assignment: Assignment) -> float:
        """The program's steps, in all; infinite where something does not fit."""
        try:
            tables = Tables(staged_of(assignment))
            for lengths in batches:
                check_lengths(lengths, tables)
            return sum(staged_program.solve(lengths, tables).step_s for lengths in batches)
        except InfeasibleError:
            return math.inf

    def plans_s(assignment: Assignment) -> float:
        """Quick plans, in all; infinite where something does not fit."""
        try:
            staged = staged_of(assignment)
            return sum(quick_step_s(lengths, staged=staged) for lengths in batches)
        except InfeasibleError as error:
            refusals.append(error)
            return math.inf

    refusals: list[InfeasibleError] = []
    candidates = [megatron_assignment(costs)]
    candidates += fluid_assignments(costs, batches, skip_fractions=skip_fractions)
    if not costs.layout.stage_layers:
        candidates = [_moved(one, program_s, most=_MOST_MOVES) for one in candidates]
    values = [plans_s(one) for one in candidates]
    if math.isinf(min(values)):
        raise refusals[-1]
    best = candidates[values.index(min(values))]
    if not costs.layout.stage_layers:
        best = _moved(best, plans_s, most=_MOST_PLANNED_MOVES)
    return staged_of(best)


def _moved(
    assignment: Assignment, value_s: Callable[[Assignment], float], *, most: int
) -> Assignment:
    """The assignment with layers moved from stage to stage, one by one, while that helps."""
    best, best_s = assignment, value_s(assignment)
    for _ in range(most):
        moves = [
            replace(best, stage_layers=layers) for layers in _neighbours(best.stage_layers)
        ]
        values = [value_s(move) for move in moves]
        if not moves or min(values) >= best_s * (1 - 1e-6):
            break
        best_s = min(values)
        best = moves[values.index(best_s)]
    return best


def megatron_assignment(costs: StagedCosts) -> Assignment:
    """Nodes in the file's order, cut evenly, with layers in proportion to the stages' FLOP/s.

    Source: Holmes, arXiv:2312.03549, self-adapting partition, with alpha = 1.
    """
    pp, nodes = costs.layout.pp, costs.cluster.nodes
    order = [kind for kind, node in enumerate(nodes) for _ in range(node.count)]
    cuts = [round(stage * len(order) / pp) for stage in range(pp + 1)]
    servings = []
    speeds = []
    for stage, (start, end) in enumerate(itertools.pairwise(cuts)):
        kinds = order[start:end]
        speeds.append(0.0)
        for kind in sorted(set(kinds)):
            count = kinds.count(kind)
            servings.append(Serving(stage=stage, kind=kind, num_nodes=count))
            ranks = costs.num_ranks(kind, count)
            speeds[-1] += ranks / costs.layers[kind].linear_s
    num_layers = costs.model.num_layers
    if costs.layout.stage_layers:
        layers = list(costs.layout.stage_layers)
    else:
        layers = [max(1, math.floor(s / sum(speeds) * num_layers)) for s in speeds]
        layers[-1] = num_layers - sum(layers[:-1])
    return Assignment(servings=tuple(servings), stage_layers=tuple(layers))


def fluid_assignments(
    costs: StagedCosts, batches: Sequence[Sequence[int]], *, skip_fractions: Sequence[float]
) -> list[Assignment]:
    """The assignment with the least fluid time, and that of one kind of nodes a stage."""
    fluid = _Fluid(costs, batches, skip_fractions=skip_fractions)
    found = [fluid.best(is_pure=is_pure) for is_pure in (False, True)]
    return [assignment for assignment in found if assignment is not None]


class _Fluid:
    """Times of stages in which every rank is always busy."""

    def __init__(
        self,
        costs: StagedCosts,
        batches: Sequence[Sequence[int]],
        *,
        skip_fractions: Sequence[float],
    ) -> None:
        self._costs = costs
        self._pp, self._num_layers = costs.layout.pp, costs.model.num_layers
        self._kept = [1 - f for f in skip_fractions] or [1.0] * self._pp
        self._batches = batches
        self._longest = max(max(lengths) for lengths in batches)
        counts = [node.count for node in costs.cluster.nodes]
        block = 1
        while math.prod(count // block + 1 for count in counts) > _MOST_CHOICES:
            block += 1
        choices = itertools.product(*(range(0, count + 1, block) for count in counts))
        self._choices = [choice for choice in choices if any(choice)]
        self._counts = counts
        self._layer_s = [self._work_s(kind) for kind in range(len(counts))]
        """Rank-seconds of a layer for all batches, and of the output, by kind."""
        self._closing: dict[tuple[int, tuple[int, ...]], tuple[float, float]] = {}
        self._room: dict[tuple[int, tuple[int, ...]], int] = {}

    def best(self, *, is_pure: bool) -> Assignment | None:
        """The one whose slowest stage takes least, by bisection; None: none fits the memory."""
        slowest_s = max(layer + output for layer, output in self._layer_s)
        low_s, high_s = 0.0, 2 * self._num_layers * slowest_s + 1e4
        best = self._assignment(high_s, is_pure=is_pure)
        for _ in range(_BISECTIONS if best else 0):
            middle_s = math.sqrt(max(low_s, 1e-6 * high_s) * high_s)
            found = self._assignment(middle_s, is_pure=is_pure)
            if found is None:
                low_s = middle_s
            else:
                best, high_s = found, middle_s
        return best

    def _assignment(self, time_s: float, *, is_pure: bool) -> Assignment | None:
        """One whose stages all take at most `time_s`, or None; `is_pure`: on one kind each."""
        options = [
            StageOption(stage=stage, num_nodes=choice, most_layers=most)
            for stage in range(self._pp)
            for choice in self._choices
            if not is_pure or sum(map(bool, choice)) == 1
            if (most := self._most_layers(stage, choice, time_s))
        ]
        if {option.stage for option in options} != set(range(self._pp)):
            return None
        num, chosen = staged_program.assign_nodes(options, num_nodes=self._counts)
        if num < self._num_layers:
            return None
        return Assignment(
            servings=tuple(
                Serving(stage=option.stage, kind=kind, num_nodes=nodes)
                for option in chosen
                for kind, nodes in enumerate(option.num_nodes)
                if nodes
            ),
            stage_layers=self._layers(chosen),
        )

    def _layers(self, chosen: Sequence[StageOption]) -> tuple[int, ...]:
        """All layers: what is too many comes off the slowest stage, one by one."""
        fixed = self._costs.layout.stage_layers
        if fixed:
            return fixed
        layers = [option.most_layers for option in chosen]
        while sum(layers) > self._num_layers:
            times = [
                self._time_s(option.stage, option.num_nodes, num) if num > 1 else 0.0
                for option, num in zip(chosen, layers, strict=True)
            ]
            layers[times.index(max(times))] -= 1
        return tuple(layers)

    def _most_layers(self, stage: int, choice: tuple[int, ...], time_s: float) -> int:
        """The most layers by time and memory; 0: not one."""
        fixed = self._costs.layout.stage_layers
        if fixed:
            fits = fixed[stage] <= self._memory_layers(stage, choice)
            in_time = self._time_s(stage, choice, fixed[stage]) <= time_s
            return fixed[stage] if fits and in_time else 0
        low, high = 0, min(self._memory_layers(stage, choice), self._num_layers)
        while low < high:
            middle = (low + high + 1) // 2
            if self._time_s(stage, choice, middle) <= time_s:
                low = middle
            else:
                high = middle - 1
        return low

    def _time_s(self, stage: int, choice: tuple[int, ...], num_layers: int) -> float:
        speed = 0.0
        for kind, nodes in enumerate(choice):
            if nodes:
                layer_s, output_s = self._layer_s[kind]
                work_s = num_layers * layer_s + (output_s if stage == self._pp - 1 else 0.0)
                speed += self._costs.num_ranks(kind, nodes) / work_s
        return self._kept[stage] / speed + self._closing_s(stage, choice, num_layers)

    def _closing_s(self, stage: int, choice: tuple[int, ...], num_layers: int) -> float:
        """Of all batches; grows with the layers along a line."""
        key = (stage, choice)
        if key not in self._closing:
            servings = self._servings(stage, choice)
            ends = [
                self._costs.closing_s(servings, self._alike(stage, num))
                for num in (1, self._num_layers)
            ]
            slope_s = (ends[1] - ends[0]) / max(1, self._num_layers - 1)
            self._closing[key] = (ends[0] - slope_s, slope_s)
        first_s, slope_s = self._closing[key]
        return len(self._batches) * (first_s + slope_s * num_layers)

    def _memory_layers(self, stage: int, choice: tuple[int, ...]) -> int:
        """Most layers at which some replica holds the longest sequence, and all hold one."""
        key = (stage, choice)
        if key not in self._room:
            low, high = 0, self._num_layers
            while low < high:
                middle = (low + high + 1) // 2
                if self._holds(stage, choice, middle):
                    low = middle
                else:
                    high = middle - 1
            self._room[key] = low
        return self._room[key]

    def _holds(self, stage: int, choice: tuple[int, ...], num_layers: int) -> bool:
        most = 0
        for serving in self._servings(stage, choice):
            try:
                cap = self._costs.token_cap(serving, self._alike(stage, num_layers))
            except InfeasibleError:
                return False
            most = max(most, cap * self._costs.degrees(serving.kind, serving.num_nodes)[-1])
        return most >= self._longest

    def _servings(self, stage: int, choice: tuple[int, ...]) -> list[Serving]:
        return [
            Serving(stage=stage, kind=kind, num_nodes=nodes)
            for kind, nodes in enumerate(choice)
            if nodes
        ]

    def _alike(self, stage: int, num_layers: int) -> tuple[int, ...]:
        """Layers of all stages, of which only one stage's are looked at."""
        rest = [1] * self._pp
        rest[stage] = num_layers
        return tuple(rest)

    def _work_s(self, kind: int) -> tuple[float, float]:
        """Rank-seconds of the batches at the least degrees by memory: a layer, the output."""
        costs, count = self._costs, self._counts[kind]
        layer = costs.layers[kind]
        degrees = costs.degrees(kind, count)
        share = max(1, self._num_layers // self._pp)
        try:
            cap = costs.token_cap(
                Serving(stage=0, kind=kind, num_nodes=count), self._alike(0, share)
            )
        except InfeasibleError:
            cap = 1
        layer_s = output_s = 0.0
        token_s = {d: costs.token_s(kind, count, degree=d) for d in degrees}
        for length in itertools.chain.from_iterable(self._batches):
            degree = next((d for d in degrees if length <= d * cap), degrees[-1])
            layer_s += (layer.quadratic_s * length + token_s[degree]) * length
            output_s += layer.output_s * length
        return layer_s, output_s


def _neighbours(stage_layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """One layer moved from a stage to another."""
    neighbours = []
    for source, target in itertools.permutations(range(len(stage_layers)), 2):
        layers = list(stage_layers)
        layers[source] -= 1
        layers[target] += 1
        if layers[source] >= 1:
            neighbours.append(tuple(layers))
    return neighbours


def check_stage_layers(costs: StagedCosts) -> None:
    """Raise unless the layout's own layers, if any, add up to the model's.

    Raises:
        InputError: They do not.
    """
    fixed, num_layers = costs.layout.stage_layers, costs.model.num_layers
    if fixed and sum(fixed) != num_layers:
        raise InputError(
            f"layout.stage_layers: expected {num_layers} layers in all, as "
            f"{costs.model.name!r} has, got {sum(fixed)}"
        )
