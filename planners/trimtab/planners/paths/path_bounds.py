"""Lower bounds on the step of any schedule of stage paths, whoever serves whichever stage.

Take an origin whose K paths take at least l_1 .. l_K seconds a wave with all else for
themselves. Its forwards and backwards alone, on one machine and in whatever order, end no
sooner than T(l_1 .. l_K) (`chain_kernels`), which grows with every l. So in a step of at most T
seconds an origin has at most k - 1 paths longer than c_k(T), the longest l for which k paths of
l and K - k of its shortest one end in time. Whether paths can be chosen like that, so that no
node takes more than its memory, is a program (`path_program`); the bound is the largest T for
which they cannot. The number of swaps, in-stage delays and every conflict outside the origin
are relaxed, so it holds for each schedule that keeps the rules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core.stage_paths import PathInstance
from trimtab.planners.compiled import Ints, floats, ints, zero_floats, zero_ints
from trimtab.planners.paths.chain_kernels import least_end_s
from trimtab.planners.paths.path_bound_kernels import list_paths
from trimtab.planners.paths.path_program import PathColumn, most_paths
from trimtab.planners.paths.path_starts import Partitions
from trimtab.planners.paths.path_times import NO_LINK_S

_MOST_PATHS = 60_000
"""Paths of all origins in the program; where there are more, it is not asked."""
_MOST_VISITS = 20_000
_CAP_STEPS = 24
_BOUND_STEPS = 8
_WANTED = 1.08
"""Step over bound that is asked for first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathBound:
    """No schedule has a step shorter than `seconds`, by the argument `reason` names."""

    seconds: float
    reason: str


class OriginTimes:
    """How soon the paths of one origin can be done."""

    def __init__(self, instance: PathInstance, origin: int) -> None:
        self._forward_s = instance.forward_s[origin]
        self._backward_s = self._forward_s * instance.backward_factor
        self._gaps = (instance.origin_forward_gap_s, instance.gap_s)
        self._num_waves = instance.num_waves
        self._num_paths = instance.paths_per_origin
        depth = 2 * self._num_waves * self._num_paths + 1
        self._scratch = (
            zero_ints(self._num_paths * depth), zero_floats(self._num_paths * depth),
            zero_floats(depth), zero_ints(depth),
        )  # fmt: skip

    def end_s(self, wave_s: tuple[float, ...], *, stop_s: float = math.inf) -> float:
        """Least end of paths whose waves take these times; at most `stop_s`.

        The longest gets the first release, which is best for it and so for the bound.
        """
        runs: list[float] = []
        gaps: list[float] = []
        lags: list[float] = []
        for time_s in sorted(wave_s, reverse=True):
            away_s = max(0.0, time_s - self._forward_s - self._backward_s)
            for _ in range(self._num_waves):
                runs += [self._forward_s, self._backward_s]
                gaps += self._gaps
                lags += [away_s, 0.0]
        heads = [0.0] * len(wave_s)
        end_s = least_end_s(
            2 * self._num_waves, floats(runs), floats(gaps), floats(lags), floats(heads),
            min(stop_s, 1e299), _MOST_VISITS, *self._scratch,
        )  # fmt: skip
        return float(end_s)

    def caps_s(self, shortest_s: float, step_s: float) -> list[float]:
        """c_1 .. c_K for a step; empty where even its shortest paths are too long."""
        caps = []
        stop_s = step_s + 1e-6
        for k in range(1, self._num_paths + 1):
            low_s, high_s = shortest_s, step_s
            rest = (shortest_s,) * (self._num_paths - k)
            if self.end_s((low_s,) * k + rest, stop_s=stop_s) > step_s:
                return []
            for _ in range(_CAP_STEPS):
                middle_s = (low_s + high_s) / 2
                if self.end_s((middle_s,) * k + rest, stop_s=stop_s) > step_s:
                    high_s = middle_s
                else:
                    low_s = middle_s
            caps.append(high_s)
        return caps


class PathBounds:
    """Bounds of the schedules of one instance, against the step of a known one."""

    def __init__(
        self, instance: PathInstance, *, fixed: Partitions | None, step_s: float
    ) -> None:
        self._instance = instance
        self._fixed = fixed
        self._step_s = step_s
        nodes = [n for n in range(instance.num_nodes) if n not in instance.without]
        self._origins = list(fixed[0]) if fixed else nodes
        self._visited = sorted(n for part in fixed[1:] for n in part) if fixed else nodes
        self._trip_s, self._work_s = self._times()
        self._times_of = {o: OriginTimes(instance, o) for o in self._origins}
        self._columns: list[PathColumn] | None = None

    def quick(self) -> PathBound:
        """The best of those that take no program."""
        found = [self.work(), self.longest_shortest(), self.farthest()]
        return max((one for one in found if one), key=lambda one: one.seconds)

    def work(self) -> PathBound:
        """The forwards, losses and backwards that origins and other nodes cannot escape."""
        instance = self._instance
        factor = 1 + instance.backward_factor
        waves = instance.num_waves
        each = instance.paths_per_origin * waves
        gap_s = min(instance.gap_s, instance.origin_forward_gap_s)
        speeds = sorted(instance.forward_s[o] for o in self._origins)
        origin_s = speeds[instance.partition_sizes[0] - 1]
        seconds = each * (factor + instance.loss_factor) * origin_s + (3 * each - 1) * gap_s
        return PathBound(
            seconds=seconds, reason="the work of the slowest origin that cannot be avoided"
        )

    def longest_shortest(self) -> PathBound:
        """Every origin's paths, and with no memory to spare every node's, at their shortest."""
        shortest_s = {o: self._shortest_s(o) for o in self._origins}
        ends = sorted(
            self._times_of[o].end_s((s,) * self._instance.paths_per_origin)
            for o, s in shortest_s.items()
        )
        return PathBound(
            seconds=min(ends[self._instance.partition_sizes[0] - 1], self._step_s),
            reason="every origin takes its shortest path for all micro-batches",
        )

    def farthest(self) -> PathBound | None:
        """With no memory to spare every node is visited, or an origin, at its best place.

        None where nodes may be left out.
        """
        instance = self._instance
        others = sum(instance.partition_sizes[1:])
        wanted = instance.num_paths * (instance.path_len - 1)
        if len(set(instance.memory)) > 1 or others * instance.memory[0] > wanted:
            return None
        num_paths = instance.paths_per_origin
        seconds = dict.fromkeys(self._visited, math.inf)
        for origin in self._origins:
            shortest_s, via_s = self._shortest_s(origin), self._via_s(origin)
            own_s = self._times_of[origin].end_s((shortest_s,) * num_paths)
            rest = (shortest_s,) * (num_paths - 1)
            for node in seconds:
                if node == origin:
                    end_s = own_s
                elif via_s[node] >= seconds[node]:
                    continue
                else:
                    end_s = self._times_of[origin].end_s((float(via_s[node]), *rest))
                seconds[node] = min(seconds[node], end_s)
        return PathBound(
            seconds=min(max(seconds.values(), default=0.0), self._step_s),
            reason="some path goes through the node that is hardest to reach",
        )

    def _via_s(self, origin: int) -> NDArray[np.float64]:
        """Least wave of a path of the origin through each node.

        Delays there and back count as one, so a way to the node is as long as one from it.
        """
        instance = self._instance
        rest_s = self._rest_s(origin)
        ends_s = instance.forward_s[origin] * instance.loss_factor + self._work_s[origin]
        length = instance.path_len
        ways = [rest_s[a] + rest_s[length - 2 - a] for a in range(length - 1)]
        if not ways:
            return np.full(instance.num_nodes, np.inf)
        found: NDArray[np.float64] = np.min(ways, axis=0) - ends_s + self._work_s
        return found

    def covering(
        self, low_s: float, *, is_whole: bool, is_over: Callable[[], bool], time_limit_s: float
    ) -> PathBound | None:
        """The largest step between `low_s` and that of the known schedule that is refuted."""
        columns = self._all_columns()
        if columns is None:
            return None
        refuted_s, open_s, tried = low_s, self._step_s, False
        for _ in range(_BOUND_STEPS):
            if is_over() or open_s - refuted_s < 1e-3 * open_s:
                break
            middle_s = max(refuted_s, self._step_s / _WANTED) if not tried else 0.0
            if not refuted_s < middle_s < open_s:
                middle_s = (refuted_s + open_s) / 2
            tried = True
            if self._is_refuted(middle_s, columns, is_whole, time_limit_s):
                refuted_s = middle_s
            else:
                open_s = middle_s
        what = "whole" if is_whole else "fractional"
        return PathBound(
            seconds=refuted_s,
            reason=f"no {what} choice of {len(columns)} short paths covers all micro-batches",
        )

    def _is_refuted(
        self, step_s: float, columns: list[PathColumn], is_whole: bool, time_limit_s: float
    ) -> bool:
        instance = self._instance
        caps = {o: self._times_of[o].caps_s(self._shortest_s(o), step_s) for o in self._origins}
        usable = {o: levels for o, levels in caps.items() if levels}
        if len(usable) < instance.partition_sizes[0]:
            return True
        most = most_paths(
            instance, columns, usable, is_whole=is_whole, is_free=self._fixed is None,
            time_limit_s=time_limit_s,
        )  # fmt: skip
        return most < instance.num_paths - 1e-4

    def _all_columns(self) -> list[PathColumn] | None:
        """Every path that may be part of a step shorter than the known one.

        Of each set of nodes the shortest order; None where there are too many.
        """
        if self._columns is not None:
            return self._columns
        instance = self._instance
        length = instance.path_len
        stage_of, jump, back = self._stages()
        trips, work = floats(self._trip_s.ravel()), floats(self._work_s)
        out_nodes, out_s = zero_ints(_MOST_PATHS * length), zero_floats(_MOST_PATHS)
        best: dict[tuple[int, tuple[int, ...]], float] = {}
        for origin in self._origins:
            shortest_s = self._shortest_s(origin)
            caps = self._times_of[origin].caps_s(shortest_s, self._step_s)
            if not caps:
                continue
            count = list_paths(
                trips, work, floats(self._rest_s(origin).ravel()), origin, length,
                min(caps[0], NO_LINK_S / 2), stage_of, jump, back, out_nodes, out_s,
            )  # fmt: skip
            if count < 0:
                return None
            for c in range(count):
                places = range(c * length + 1, (c + 1) * length)
                key = origin, tuple(sorted(int(out_nodes[i]) for i in places))
                best[key] = min(best.get(key, math.inf), float(out_s[c]))
            if len(best) > _MOST_PATHS:
                return None
        self._columns = [PathColumn(o, nodes, s) for (o, nodes), s in best.items()]
        return self._columns

    def _stages(self) -> tuple[Ints, int, int]:
        """Stage of every node, and how far a path may go ahead and back at once.

        Where nodes are free each has a stage of its own, in any order.
        """
        instance = self._instance
        stage_of = [-1] * instance.num_nodes
        for stage, nodes in enumerate(self._fixed or ((), *((n,) for n in self._visited))):
            for node in nodes:
                stage_of[node] = stage
        if self._fixed:
            order = instance.order
            return ints(stage_of), order.max_stage_jump, order.max_swap_distance
        return ints(stage_of), instance.num_nodes, instance.num_nodes

    def _times(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        instance = self._instance
        delay_s = np.minimum(np.array(instance.delay_s), NO_LINK_S)
        work_s = np.array(instance.forward_s) * (1 + instance.backward_factor)
        return delay_s + delay_s.T, work_s

    def _rest_s(self, origin: int) -> NDArray[np.float64]:
        """Least time back to the origin from each node over 0 .. path_len - 1 more nodes."""
        instance = self._instance
        loss_s = instance.forward_s[origin] * instance.loss_factor
        allowed = np.full(instance.num_nodes, np.inf)
        allowed[self._visited] = self._work_s[self._visited]
        allowed[origin] = np.inf
        rows = [self._trip_s[:, origin] + self._work_s[origin] + loss_s]
        for _ in range(instance.path_len - 1):
            rows.append((self._trip_s + (allowed + rows[-1])[None, :]).min(axis=1))
        return np.array(rows)

    def _shortest_s(self, origin: int) -> float:
        return float(self._rest_s(origin)[self._instance.path_len - 1, origin])
