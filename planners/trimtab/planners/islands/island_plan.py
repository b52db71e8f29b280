"""The layout, places and layers of a job on several islands, with a bound and baselines.

Layouts are looked at in the order of a quick bound, until no further one can be shorter. The
bound of those that might is raised by the linear program and then by the integer one, always
of the layout whose bound is least, until the plan is within a thousandth of it or the programs
are used up; integer solutions are plans, too.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.plan import Layout
from trimtab.core.units import memory_text
from trimtab.planners.islands.island_costs import LayoutCosts, PlacedStep
from trimtab.planners.islands.island_layouts import IslandJob, island_layouts, quick_bound_s
from trimtab.planners.islands.island_program import solve_placement
from trimtab.planners.islands.island_search import Placer
from trimtab.planners.islands.partition import holmes_layers
from trimtab.planners.islands.pools import Host
from trimtab.planners.workloads import Miss

_FULL_FRACTION = 0.92
"""Of a GPU's memory, as `StageMemory.verdict`: more is tight, and taken only where all are."""
_CLOSE = 1e-3
_MOST_FRACTIONS, _MOST_WHOLE = 80, 8
"""Programs that are solved for the bound of one plan."""
_PROGRAM_LIMIT_S = 3.0
_LARGEST_PROGRAM = 400
"""Choices (stages x sets of hosts) of a program that is solved for whole numbers."""

_MEMORY, _FRACTIONS, _WHOLE = 1, 2, 3
"""Levels of a layout's bound; 0 is the quick one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A layout with places, layers and its step."""

    costs: LayoutCosts
    step: PlacedStep

    @property
    def layout(self) -> Layout:
        return self.costs.layout


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandPlan:
    """The plan, what it is certified by, and what simpler rules give."""

    best: Placed
    bound_s: float
    """No layout and no placement of one has a shorter step by the same forecast."""
    others: tuple[Placed, ...]
    """The best of other degrees, best first."""
    megatron: Placed | None
    """The best of Megatron's order and even stages, over all layouts; None: nothing fits."""
    holmes: Placed | None
    """The best of Holmes's rule: islands in turn, layers by speed."""
    num_layouts: int
    full_fraction: float


class _Entry:
    """A layout on its way through the bounds."""

    def __init__(self, costs: LayoutCosts, room: Sequence[int], bound_s: float) -> None:
        self.costs, self.room, self.bound_s = costs, room, bound_s
        self.level = 0
        self.placer: Placer | None = None


def plan_islands(islands: IslandJob) -> IslandPlan:
    """The best placement of the best layout.

    Raises:
        InputError: No layout is possible.
        InfeasibleError: None fits in memory.
    """
    entries, misses = _entries(islands)
    if not entries:
        raise _nothing(islands, misses)
    for full_fraction in (_FULL_FRACTION, 1.0):
        search = _Search(entries, full_fraction=full_fraction)
        search.place_all()
        if search.best is not None:
            search.raise_bounds()
            search.steady()
            return search.result(len(entries))
        for entry in entries:
            entry.placer = None
    raise _too_large(entries)


def place_layout(islands: IslandJob, layout: Layout) -> IslandPlan:
    """The best placement of the degrees of `layout`; its own layers are kept if it has any.

    Raises:
        InputError: The batch does not admit it, or the pools have no room for its ranks.
        InfeasibleError: It fits in no placement.
    """
    costs = islands.costs(layout)
    if isinstance(costs, Miss):
        raise InputError(f"layout: {costs.reason} (at {layout})")
    room = islands.room(layout)
    bound_s = quick_bound_s(costs, room)
    if math.isinf(bound_s):
        ranks = layout.tp * layout.cp
        raise InputError(
            f"layout: {layout} needs room for pp x dp = {layout.pp * layout.dp} groups of "
            f"tp x cp = {ranks} ranks inside nodes or of whole nodes, the cluster has it for "
            f"{sum(room)}; use a tp that divides the GPUs of its nodes, or fewer ranks"
        )
    entry = _Entry(costs, room, bound_s)
    for full_fraction in (_FULL_FRACTION, 1.0):
        search = _Search([entry], full_fraction=full_fraction, layers=layout.stage_layers)
        search.place_all()
        if search.best is not None:
            search.raise_bounds()
            search.steady()
            return search.result(1)
        entry.placer = None
    raise _too_large([entry])


class _Search:
    def __init__(
        self, entries: Sequence[_Entry], *, full_fraction: float, layers: Sequence[int] = ()
    ) -> None:
        self.entries, self.full_fraction, self.layers = entries, full_fraction, layers
        self.best: Placed | None = None
        self.rules: dict[tuple[str, bool], Placed] = {}
        """By name, and whether memory may be tight."""
        self.by_degrees: dict[tuple[int, ...], Placed] = {}

    def place_all(self) -> None:
        """Place every layout whose quick bound is below the best step so far."""
        for entry in sorted(self.entries, key=lambda entry: entry.bound_s):
            placer = self._placer(entry)
            self._take_rules(entry, placer)
            if self.best is None or entry.bound_s < self.best.step.step_s:
                self._take(entry.costs, self._placed(placer))

    def _take_rules(self, entry: _Entry, placer: Placer) -> None:
        """What the rules make of a layout; where memory is tight, only for want of others."""
        roomy = Placer(entry.costs, entry.room, full_fraction=1.0)
        for name, rule in _RULES.items():
            for is_tight, place in ((False, placer), (True, roomy)):
                known = self.rules.get((name, is_tight))
                if known is not None and entry.bound_s >= known.step.step_s:
                    continue
                found = _shorter(known, entry.costs, rule(place))
                if found is not None and found is not known:
                    self.rules[name, is_tight] = found
                    if not is_tight:
                        self._take(entry.costs, found.step)

    def _rule(self, name: str) -> Placed | None:
        return self.rules.get((name, False)) or self.rules.get((name, True))

    def _placed(self, placer: Placer) -> PlacedStep | None:
        if not self.layers:
            known_s = math.inf if self.best is None else self.best.step.step_s
            return placer.best(known_s=known_s)
        steps = [placer.fixed(self.layers, hosts) for hosts in placer.candidates()]
        fitting = [step for step in steps if step is not None]
        return min(fitting, key=lambda step: step.step_s, default=None)

    def _take(self, costs: LayoutCosts, step: PlacedStep | None) -> None:
        if step is None or (self.layers and step.stage_layers != tuple(self.layers)):
            return
        self.best = _shorter(self.best, costs, step)
        layout = costs.layout
        degrees = (layout.tp, layout.pp, layout.dp, layout.cp, layout.ep)
        found = _shorter(self.by_degrees.get(degrees), costs, step)
        assert found is not None
        self.by_degrees[degrees] = found

    def raise_bounds(self) -> None:
        """Solve programs of the layout with the least bound, until the plan is close to it."""
        assert self.best is not None
        order = itertools.count()
        heap = [(entry.bound_s, next(order), entry) for entry in self.entries]
        heapq.heapify(heap)
        left = {_MEMORY: len(heap), _FRACTIONS: _MOST_FRACTIONS, _WHOLE: _MOST_WHOLE}
        while True:
            bound_s, _, entry = heap[0]
            if bound_s >= self.best.step.step_s * (1 - _CLOSE) or entry.level == _WHOLE:
                return
            if not left[entry.level + 1]:
                return
            left[entry.level + 1] -= 1
            self._raise_bound(entry)
            heapq.heapreplace(heap, (entry.bound_s, next(order), entry))

    def _raise_bound(self, entry: _Entry) -> None:
        """One more level of a layout's bound: memory, fractions, whole numbers."""
        placer, pp = self._placer(entry), entry.costs.layout.pp
        pools = range(len(entry.room))
        most = [
            [placer.most_layers(s, Host(pools=(k,), replicas=(1,))) for k in pools]
            for s in range(pp)
        ]
        entry.level += 1
        if entry.level == _MEMORY:
            roomy = [
                max(held for held, n in zip(by, entry.room, strict=True) if n) for by in most
            ]
            if sum(roomy) < entry.costs.job.model.num_layers or min(roomy) < 1:
                entry.bound_s = math.inf
            return
        size = pp * 2 ** len(entry.room)
        if entry.level == _WHOLE and size > _LARGEST_PROGRAM:
            return
        solved = solve_placement(
            entry.costs,
            entry.room,
            most,
            whole=entry.level == _WHOLE,
            time_limit_s=_PROGRAM_LIMIT_S,
        )
        entry.bound_s = max(entry.bound_s, solved.bound_s)
        if solved.hosts and not self.layers:
            step = placer.fixed(solved.stage_layers, solved.hosts)
            self._take(entry.costs, placer.refined(step) if step is not None else None)

    def steady(self) -> None:
        """Exchange the plan for one as short with better balanced stages, if there is one."""
        assert self.best is not None
        if self.layers:
            return
        costs = self.best.costs
        (entry,) = (entry for entry in self.entries if entry.costs is costs)
        rules = [placed.step.step_s for placed in map(self._rule, _RULES) if placed is not None]
        step = self._placer(entry).steadier(self.best.step, most_s=min([math.inf, *rules]))
        self.best = Placed(costs=costs, step=step)

    def _placer(self, entry: _Entry) -> Placer:
        if entry.placer is None:
            entry.placer = Placer(entry.costs, entry.room, full_fraction=self.full_fraction)
        return entry.placer

    def result(self, num_layouts: int) -> IslandPlan:
        assert self.best is not None
        step_s = self.best.step.step_s
        others = sorted(self.by_degrees.values(), key=lambda placed: placed.step.step_s)
        return IslandPlan(
            best=self.best,
            bound_s=min(step_s, *(entry.bound_s for entry in self.entries)),
            others=tuple(placed for placed in others if placed.costs is not self.best.costs),
            megatron=self._rule("megatron"),
            holmes=self._rule("holmes"),
            num_layouts=num_layouts,
            full_fraction=self.full_fraction,
        )


def megatron_step(placer: Placer) -> PlacedStep | None:
    """The step of even stages in Megatron's order of ranks."""
    hosts = placer.in_order()
    return None if hosts is None else placer.even(hosts)


def holmes_step(placer: Placer) -> PlacedStep | None:
    """The step of Holmes's rule: every stage in one pool, pools in turn, layers by speed.

    Of the pools in the file's order each holds as many stages as it has room for; a stage's
    speed is its pool's at a layer. None where a pool would hold no stage.
    """
    dp, pp = placer.layout.dp, placer.layout.pp
    stages = [number // dp for number in placer.room]
    pools = [pool for pool, number in enumerate(stages) for _ in range(number)][:pp]
    if len(pools) < pp:
        return None
    speeds = [1 / placer.costs.pools[pool].layer_s for pool in pools]
    try:
        layers = holmes_layers(speeds, placer.costs.job.model.num_layers)
    except InputError:
        return None
    return placer.fixed(layers, [Host(pools=(pool,), replicas=(dp,)) for pool in pools])


_RULES: dict[str, Callable[[Placer], PlacedStep | None]] = {
    "megatron": megatron_step,
    "holmes": holmes_step,
}


def _shorter(
    known: Placed | None, costs: LayoutCosts, step: PlacedStep | None
) -> Placed | None:
    if step is None or (known is not None and known.step.step_s <= step.step_s):
        return known
    return Placed(costs=costs, step=step)


def _entries(islands: IslandJob) -> tuple[list[_Entry], list[Miss]]:
    entries: list[_Entry] = []
    misses: list[Miss] = []
    for layout in island_layouts(islands):
        costs = islands.costs(layout)
        if isinstance(costs, Miss):
            misses.append(costs)
            continue
        room = islands.room(layout)
        bound_s = quick_bound_s(costs, room)
        if math.isfinite(bound_s):
            entries.append(_Entry(costs, room, bound_s))
    return entries, misses


def _nothing(islands: IslandJob, misses: Sequence[Miss]) -> InputError:
    job = islands.job
    if misses:
        return InputError(f"layout: {misses[0].reason} (at {misses[0].layout})")
    pins = ", ".join(f"{name} {value}" for name, value in job.pinned.items())
    return InputError(
        f"layout: no layout of up to num_ranks = {job.used.num_ranks} on the islands of "
        f"{islands.network.cluster.name!r} has {pins or 'any degrees'}; a tp must divide the "
        "GPUs of a node, and pp x dp groups of tp x cp ranks need room"
    )


def _too_large(entries: Sequence[_Entry]) -> InfeasibleError:
    """Says what the layout needs that comes nearest to fitting."""
    nearest = None
    for entry in entries:
        costs, pp = entry.costs, entry.costs.layout.pp
        layers = -(-costs.job.model.num_layers // pp)
        for pool, number in enumerate(entry.room):
            if not number:
                continue
            memory = costs.memory(
                0, min(layers, costs.job.model.num_layers - pp + 1), pool=pool
            )
            short = memory.total_bytes - memory.capacity_bytes
            if nearest is None or short < nearest[0]:
                nearest = short, memory, costs.layout, pool, costs
    assert nearest is not None
    short, memory, layout, pool, costs = nearest
    gpu = costs.network.pools[pool].gpu.name
    return InfeasibleError(
        f"memory: {costs.job.model.name} needs {memory_text(memory.total_bytes)} per GPU in "
        f"stage 0 at {layout} with {layout.recompute} recompute, the {gpu} has "
        f"{memory_text(memory.capacity_bytes)}: short by {memory_text(max(1, short))}; use "
        "more GPUs or larger ones, or a higher pp or tp"
    )
