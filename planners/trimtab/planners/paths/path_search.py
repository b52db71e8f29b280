"""The search for a short schedule of stage paths: annealing on the exact event simulator.

A round makes a few schedules: a random one, annealed by its longest uncontended path (which
takes a microsecond a move), then a little on the simulator. Every other one is first planned
with a single path for each origin, which all of its micro-batches then take. The best of them
and the best of all rounds are annealed for longer. Every round takes twice the moves of the one
before.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError
from trimtab.core.stage_paths import PathInstance, PathSchedule, StageOrder
from trimtab.planners.compiled import Ints, floats, ints, zero_floats, zero_ints
from trimtab.planners.paths import path_moves as moves
from trimtab.planners.paths import path_search_kernels as kernels
from trimtab.planners.paths.path_simulation import NEVER_S
from trimtab.planners.paths.path_starts import (
    Partitions,
    Paths,
    random_partitions,
    random_paths,
)
from trimtab.planners.paths.path_times import empty_simulation, network_of

_ROUNDS = 7
_STARTS = 4
_DEEPENED = 2
"""Schedules of a round that are annealed for longer, besides the best of all rounds."""

_ROUGH_TRIALS, _SHORT_TRIALS, _LONG_TRIALS = 50_000, 2_000, 6_000
"""In the first round."""
_SEGMENT_SHARE = {True: 20_000, False: 1_000}
"""Moves between two looks at the clock; rough ones, and simulated ones."""

_ROUGH_HEAT, _ROUGH_COLD = 0.08, 0.001
_HEAT, _COLD = 0.008, 0.0015
"""Temperatures, as shares of the step's time."""
_MEAN_WEIGHTS = (0.3, 0.1, 1.0)
"""Of the mean end of the paths, one start after the other."""
_ROUGH_MEAN_WEIGHT = 1.0

_SEED = 23_758


@dataclass(frozen=True, slots=True)
class FoundPaths:
    """A schedule as the kernels keep it."""

    step_s: float
    nodes: tuple[int, ...]
    stage_of: tuple[int, ...]


class PathSearch:
    """Schedules of one instance that get shorter; equal calls give equal schedules."""

    def __init__(
        self,
        instance: PathInstance,
        *,
        fixed: Partitions | None = None,
        first: Partitions | None = None,
        most_in_stage_s: float = math.inf,
    ) -> None:
        """Prepare a search.

        Args:
            instance: What to plan.
            fixed: The arrangement, where no node may change its stage.
            first: An arrangement to start from, where nodes may.
            most_in_stage_s: Largest delay between two nodes of one stage.
        """
        self.instance = instance
        self._fixed = fixed
        self._first = first
        self._most_in_stage_s = most_in_stage_s
        self._generator = random.Random(_SEED)  # noqa: S311 - no secret is drawn
        self._net = network_of(instance)
        self._rules = _rules(instance, is_free=fixed is None, most_in_stage_s=most_in_stage_s)
        self._out = empty_simulation(
            instance, num_paths=instance.num_paths, path_len=instance.path_len
        )
        self._search = _empty_search(instance)
        self._coarse: PathSearch | None = None
        self.best: FoundPaths | None = None
        self.num_found = 0
        """Schedules that were annealed."""

    def start(self) -> FoundPaths:
        """A new schedule by chance, simulated.

        Raises:
            InfeasibleError: There is none, or none was found.
        """
        partitions = self._fixed
        if partitions is None and self.best is None:
            partitions = self._first
        if partitions is None:
            partitions = random_partitions(
                self.instance, self._generator, most_in_stage_s=self._most_in_stage_s
            )
        return self.take(partitions, random_paths(self.instance, partitions, self._generator))

    def take(self, partitions: Partitions, paths: Paths) -> FoundPaths:
        """Simulate a given schedule, which keeps the rules."""
        stage_of = [-1] * self.instance.num_nodes
        for stage, members in enumerate(partitions):
            for node in members:
                stage_of[node] = stage
        nodes = tuple(node for path in paths for node in path)
        found = FoundPaths(NEVER_S, nodes, tuple(stage_of))
        self._load(found)
        step_s = kernels.step_s(self._rules, self._net, self._search, self._out)
        return self._note(FoundPaths(float(step_s), found.nodes, found.stage_of))

    def improve(
        self,
        found: FoundPaths,
        *,
        trials: int,
        is_over: Callable[[], bool],
        is_rough: bool = False,
        mean_weight: float = _MEAN_WEIGHTS[0],
    ) -> FoundPaths:
        """Anneal from `found`; what comes back is never longer, unless it is rough."""
        hot, cold = (_ROUGH_HEAT, _ROUGH_COLD) if is_rough else (_HEAT, _COLD)
        scale_s = min(found.step_s, 1e6)
        segments = -(-trials // _SEGMENT_SHARE[is_rough])
        self._load(found)
        best_s = NEVER_S if is_rough else found.step_s
        for k in range(segments):
            if is_over():
                break
            best_s = kernels.anneal(
                self._rules, self._net, self._search, self._out, best_s, is_rough,
                -(-trials // segments), scale_s * hot * (cold / hot) ** (k / segments),
                scale_s * hot * (cold / hot) ** ((k + 1) / segments), mean_weight,
            )  # fmt: skip
        s = self._search
        nodes = tuple(int(n) for n in s.best_nodes)
        stages = tuple(int(n) for n in s.best_stage_of)
        if not is_rough:
            return self._note(FoundPaths(float(best_s), nodes, stages))
        self._load(FoundPaths(NEVER_S, nodes, stages))
        step_s = kernels.step_s(self._rules, self._net, s, self._out)
        return self._note(FoundPaths(float(step_s), nodes, stages))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Go on until time is over, or all rounds are done."""
        for number in range(_ROUNDS):
            for _ in self._round(1 << number, is_over):
                if is_over():
                    return

    def schedule(self, found: FoundPaths) -> PathSchedule:
        """What was found as a value; origins come in the order of their paths."""
        instance = self.instance
        length = instance.path_len
        paths = tuple(
            found.nodes[a * length : (a + 1) * length] for a in range(instance.num_paths)
        )
        origins = tuple(path[0] for path in paths[:: instance.paths_per_origin])
        others = [
            tuple(node for node, stage in enumerate(found.stage_of) if stage == s)
            for s in range(1, instance.num_stages)
        ]
        return PathSchedule(
            partitions=(origins, *others), paths=paths, release_s=instance.release_s(paths)
        )

    def _round(self, scale: int, is_over: Callable[[], bool]) -> Iterator[None]:
        found = []
        for k in range(_STARTS):
            weight = _MEAN_WEIGHTS[k % len(_MEAN_WEIGHTS)]
            coarse = self._coarse_start(scale, is_over) if k % 2 else None
            is_coarse = coarse is not None
            begun = coarse or self.start()
            yield
            if not is_coarse:
                begun = self.improve(
                    begun, trials=_ROUGH_TRIALS * scale, is_over=is_over, is_rough=True,
                    mean_weight=_ROUGH_MEAN_WEIGHT,
                )  # fmt: skip
                yield
            trials = _SHORT_TRIALS * scale
            found.append(
                self.improve(begun, trials=trials, is_over=is_over, mean_weight=weight)
            )
            yield
        found.sort(key=lambda one: one.step_s)
        assert self.best is not None
        for k, one in enumerate([*found[:_DEEPENED], self.best]):
            self.improve(
                one, trials=_LONG_TRIALS * scale, is_over=is_over,
                mean_weight=_MEAN_WEIGHTS[k % len(_MEAN_WEIGHTS)],
            )  # fmt: skip
            yield

    def _coarse_start(self, scale: int, is_over: Callable[[], bool]) -> FoundPaths | None:
        """A schedule in which all micro-batches of an origin take one path, annealed as such.

        None where that uses stages unequally, or nodes hold too few micro-batches for it.
        """
        instance = self.instance
        paths = instance.paths_per_origin
        visits = instance.partition_sizes[0] * (instance.path_len - 1)
        if (
            paths == 1
            or min(instance.memory) < paths
            or visits % max(1, instance.num_stages - 1)
        ):
            return None
        if self._coarse is None:
            single = dataclasses.replace(
                instance,
                paths_per_origin=1,
                memory=tuple(held // paths for held in instance.memory),
            )
            self._coarse = PathSearch(
                single, fixed=self._fixed, first=self._first,
                most_in_stage_s=self._most_in_stage_s,
            )  # fmt: skip
        try:
            found = self._coarse.start()
        except InfeasibleError:
            return None
        found = self._coarse.improve(
            found, trials=_ROUGH_TRIALS * scale, is_over=is_over, is_rough=True,
            mean_weight=_ROUGH_MEAN_WEIGHT,
        )  # fmt: skip
        schedule = self._coarse.schedule(found)
        return self.take(
            schedule.partitions, tuple(path for path in schedule.paths for _ in range(paths))
        )

    def _note(self, found: FoundPaths) -> FoundPaths:
        self.num_found += 1
        if self.best is None or found.step_s < self.best.step_s:
            self.best = found
        return found

    def _load(self, found: FoundPaths) -> None:
        s = self._search
        _copy(found.nodes, s.nodes, s.best_nodes)
        _copy(found.stage_of, s.stage_of, s.best_stage_of)
        kernels.start(self._rules, self._net, s)
        s.state[0] = self._generator.randrange(1, 2**31 - 1)


def _copy(values: tuple[int, ...], *targets: Ints) -> None:
    for target in targets:
        for i, value in enumerate(values):
            target[i] = value


def _rules(instance: PathInstance, *, is_free: bool, most_in_stage_s: float) -> moves.PathRules:
    net = network_of(instance)
    num_nodes, nodes = instance.num_nodes, range(instance.num_nodes)
    trips = [
        [net.delay_s[i * num_nodes + j] + net.delay_s[j * num_nodes + i] for j in nodes]
        for i in nodes
    ]
    near = [sorted((j for j in nodes if j != i), key=trips[i].__getitem__) for i in nodes]
    places = sum(instance.memory) - sum(instance.memory[node] for node in instance.without)
    smallest = sorted(instance.memory)[: instance.partition_sizes[0]]
    wanted = instance.num_paths * (instance.path_len - 1)
    closing = (
        instance.pair_closing_s(i, j, size)
        for size in instance.partition_sizes
        for i in nodes
        for j in nodes
    )
    return moves.PathRules(
        path_len=instance.path_len,
        paths_per_origin=instance.paths_per_origin,
        max_total_distance=instance.order.max_swap_total_distance,
        max_distance=instance.order.max_swap_distance,
        max_swaps=instance.order.max_swaps,
        max_jump=instance.order.max_stage_jump,
        capacity=ints(instance.memory),
        most_in_stage_s=most_in_stage_s,
        is_free=int(is_free),
        has_room=int(places - sum(smallest) > wanted),
        round_trip_s=floats(trip for row in trips for trip in row),
        near=ints(j for i in nodes for j in [*near[i], i]),
        closing_s=floats(closing if instance.gradient_bytes else ()),
    )


def _empty_search(instance: PathInstance) -> moves.Search:
    num_places, num_nodes = instance.num_paths * instance.path_len, instance.num_nodes
    return moves.Search(
        nodes=zero_ints(num_places),
        stage_of=zero_ints(num_nodes),
        uses=zero_ints(num_nodes),
        path_s=zero_floats(instance.num_paths),
        release_s=zero_floats(instance.num_paths),
        kept_nodes=zero_ints(num_places),
        kept_stage_of=zero_ints(num_nodes),
        kept_uses=zero_ints(num_nodes),
        kept_path_s=zero_floats(instance.num_paths),
        best_nodes=zero_ints(num_places),
        best_stage_of=zero_ints(num_nodes),
        touched=zero_ints(instance.num_paths),
        counters=zero_ints(3),
        state=zero_ints(1),
    )


@functools.cache
def warm_up() -> None:
    """Have every kernel compiled, or read from numba's cache, before a clock runs."""
    instance = PathInstance(
        name="warm-up", partition_sizes=(1, 1), path_len=2, paths_per_origin=1, num_waves=1,
        memory=(1, 1), forward_s=(1.0, 1.0), delay_s=((0.0, 1.0), (1.0, 0.0)),
        order=StageOrder(),
    )  # fmt: skip
    search = PathSearch(instance)
    found = search.start()
    for is_rough in (True, False):
        found = search.improve(found, trials=9, is_over=lambda: False, is_rough=is_rough)
