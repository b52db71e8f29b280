"""Places and layers for the stages of one layout: a fast heuristic on the exact step.

Candidates are pipelines that visit some pools in some order, every stage within one pool;
pipelines that stay in one pool each, so that replicas are spread over pools; and Megatron's own
order. Layers are balanced by the speed of each stage; then single layers and stages move as
long as the step gets shorter.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from trimtab.core.errors import InfeasibleError
from trimtab.planners.islands.island_costs import LayoutCosts, PlacedStep
from trimtab.planners.islands.partition import balanced_layers
from trimtab.planners.islands.pools import Host
from trimtab.planners.placement import stage_layers

_MOST_ORDERED = 4
"""Of more pools than that, not every order is tried."""
_REFINED = 3
"""How many of the best candidates are improved layer by layer."""
_MOST_MOVES = 200
_HOPELESS = 1.15
"""Moves shorten a step by less than that."""
_FEW_STAGES = 8
"""Of more stages only neighbours change places, and fewer layers are moved."""
_EQUAL = 0.01
"""How much longer a steadier step may be: less than forecasts are good for."""


class Placer:
    """Finds places for the stages of one layout."""

    def __init__(
        self, costs: LayoutCosts, room: Sequence[int], *, full_fraction: float
    ) -> None:
        """`room[k]` is how many replicas of a stage pool k holds; see `StageMemory.verdict`."""
        self.costs, self.room, self.full_fraction = costs, list(room), full_fraction
        self.layout = costs.layout
        self._most: dict[tuple[int, int], int] = {}

    def best(self, *, known_s: float = math.inf) -> PlacedStep | None:
        """The shortest step found; None where no candidate fits.

        Args:
            known_s: A step known from elsewhere: candidates far above it are not improved.
        """
        found = [step for hosts in self.candidates() if (step := self.balanced(hosts))]
        found.sort(key=lambda step: step.step_s)
        if found and found[0].step_s > _HOPELESS * known_s:
            return found[0]
        refined = [self.refined(step) for step in found[:_REFINED]]
        return min(refined, key=lambda step: step.step_s, default=None)

    def steadier(self, best: PlacedStep, *, most_s: float) -> PlacedStep:
        """Of steps about as short as `best`, the one whose slowest stage is the fastest.

        Where messages hold the pipeline up, layers can be moved about without a change that a
        forecast could tell; with balanced stages a slower or faster link changes least.

        Args:
            best: The shortest step.
            most_s: No step longer than that is taken.
        """
        allowed_s = min(most_s, best.step_s * (1 + _EQUAL))
        steps = [step for hosts in self.candidates() if (step := self.balanced(hosts))]
        as_short = [step for step in steps if step.step_s <= allowed_s]
        return min([best, *as_short], key=lambda step: (step.slowest_stage_s, step.step_s))

    def candidates(self) -> Iterator[tuple[Host, ...]]:
        """Hosts of all stages, each once."""
        seen = set()
        for hosts in itertools.chain(self._whole_stages(), self._whole_pipelines()):
            if hosts not in seen:
                seen.add(hosts)
                yield hosts
        in_order = self.in_order()
        if in_order is not None and in_order not in seen:
            yield in_order

    def in_order(self) -> tuple[Host, ...] | None:
        """Megatron's order: replicas, then stages, fill the pools as the cluster names them."""
        slots = [pool for pool, number in enumerate(self.room) for _ in range(number)]
        dp, pp = self.layout.dp, self.layout.pp
        if len(slots) < dp * pp:
            return None
        return tuple(_host(slots[stage * dp : (stage + 1) * dp]) for stage in range(pp))

    def _whole_stages(self) -> Iterator[tuple[Host, ...]]:
        """Every stage in one pool: stage counts fill the fastest of the pools in use."""
        dp, pp = self.layout.dp, self.layout.pp
        stages = [number // dp for number in self.room]
        for order in self._orders(pool for pool, number in enumerate(stages) if number):
            if len(order) > pp or sum(stages[pool] for pool in order) < pp:
                continue
            counts = dict.fromkeys(order, 1)
            left = pp - len(order)
            for pool in sorted(order, key=lambda pool: self.costs.pools[pool].layer_s):
                more = min(left, stages[pool] - 1)
                counts[pool] += more
                left -= more
            yield tuple(
                Host(pools=(pool,), replicas=(dp,))
                for pool in order
                for _ in range(counts[pool])
            )

    def _whole_pipelines(self) -> Iterator[tuple[Host, ...]]:
        """Every pipeline in one pool: replicas fill the fastest pools."""
        dp, pp = self.layout.dp, self.layout.pp
        pipelines = [number // pp for number in self.room]
        fastest = sorted(range(len(self.room)), key=lambda k: self.costs.pools[k].layer_s)
        for size in range(2, len(fastest) + 1):
            for chosen in itertools.combinations(fastest, size):
                if sum(pipelines[pool] for pool in chosen) < dp or dp < size:
                    continue
                counts = {pool: min(1, pipelines[pool]) for pool in chosen}
                left = dp - sum(counts.values())
                for pool in chosen:
                    more = max(0, min(left, pipelines[pool] - 1))
                    counts[pool] += more
                    left -= more
                used = sorted(pool for pool in chosen if counts[pool])
                if len(used) == size:
                    host = Host(
                        pools=tuple(used), replicas=tuple(counts[pool] for pool in used)
                    )
                    yield (host,) * pp

    def _orders(self, pools: Iterator[int]) -> Iterator[tuple[int, ...]]:
        """Some pools in some order: all of few, of many the fastest ones in three orders."""
        usable = list(pools)
        if len(usable) <= _MOST_ORDERED:
            for size in range(1, len(usable) + 1):
                yield from itertools.permutations(usable, size)
            return
        fastest = sorted(usable, key=lambda pool: self.costs.pools[pool].layer_s)
        for size in range(1, len(fastest) + 1):
            chosen = fastest[:size]
            yield from dict.fromkeys(
                (tuple(chosen), tuple(chosen[::-1]), tuple(sorted(chosen)))
            )

    def most_layers(self, stage: int, host: Host) -> int:
        """Layers of a stage that the GPUs of its host have room for."""
        return min(self._most_in(stage, pool) for pool in host.pools)

    def _most_in(self, stage: int, pool: int) -> int:
        """Memory grows evenly with the layers, so two numbers of them tell the rest."""
        if (stage, pool) not in self._most:
            most = self.costs.job.model.num_layers - self.layout.pp + 1
            one = self.costs.memory(stage, 1, pool=pool)
            all_ = self.costs.memory(stage, most, pool=pool)
            free = self.full_fraction * one.capacity_bytes - one.total_bytes
            each = (all_.total_bytes - one.total_bytes) / max(1, most - 1)
            fitting = 0 if free < 0 else 1 + (math.floor(free / each) if each else most)
            self._most[stage, pool] = min(most, fitting)
        return self._most[stage, pool]

    def balanced(self, hosts: Sequence[Host]) -> PlacedStep | None:
        """The step with layers balanced by speed; None where memory has no room for them."""
        slowest = [
            max((self.costs.pools[pool] for pool in host.pools), key=lambda cost: cost.layer_s)
            for host in hosts
        ]
        extra = [0.0] * (len(hosts) - 1) + [slowest[-1].head_s]
        try:
            layers = balanced_layers(
                [cost.layer_s for cost in slowest],
                extra,
                num_layers=self.costs.job.model.num_layers,
                most=[self.most_layers(stage, host) for stage, host in enumerate(hosts)],
            )
        except InfeasibleError:
            return None
        return self.costs.step(layers, hosts)

    def fixed(self, layers: Sequence[int], hosts: Sequence[Host]) -> PlacedStep | None:
        """The step with given layers; None where they do not fit."""
        for stage, (number, host) in enumerate(zip(layers, hosts, strict=True)):
            if number > self.most_layers(stage, host):
                return None
        return self.costs.step(layers, hosts)

    def even(self, hosts: Sequence[Host]) -> PlacedStep | None:
        """The step with as many layers in every stage as can be."""
        layers = stage_layers(self.costs.job.model.num_layers, len(hosts))
        return self.fixed(layers, hosts)

    def refined(self, step: PlacedStep) -> PlacedStep:
        """Move layers and stages while the step gets shorter."""
        for _ in range(_MOST_MOVES):
            better = min(self._neighbours(step), key=lambda each: each.step_s, default=step)
            if better.step_s >= step.step_s * (1 - 1e-9):
                return step
            step = better
        return step

    def _neighbours(self, step: PlacedStep) -> Iterator[PlacedStep]:
        """Steps one move away: a layer in another stage, or a stage in another place."""
        layers, hosts = step.stage_layers, step.hosts
        pp = len(hosts)
        sources = range(pp) if pp <= 8 else {0, step.busiest_stage, pp - 1}
        for source in sources:
            for target in range(pp):
                if source != target and layers[source] > 1:
                    moved = list(layers)
                    moved[source] -= 1
                    moved[target] += 1
                    if moved[target] <= self.most_layers(target, hosts[target]):
                        yield self.costs.step(moved, hosts)
        for moved_hosts in self._moved_hosts(hosts):
            if found := self.balanced(moved_hosts):
                yield found

    def _moved_hosts(self, hosts: Sequence[Host]) -> Iterator[tuple[Host, ...]]:
        """Two stages change places, or one goes to another pool with room."""
        pp = len(hosts)
        reach = pp if pp <= _FEW_STAGES else 2
        for first in range(pp):
            for second in range(first + 1, min(pp, first + reach)):
                if hosts[first] != hosts[second]:
                    swapped = list(hosts)
                    swapped[first], swapped[second] = hosts[second], hosts[first]
                    yield tuple(swapped)
        whole = [
            Host(pools=(pool,), replicas=(self.layout.dp,))
            for pool, number in enumerate(self.room)
            if number >= self.layout.dp
        ]
        for stage, host in enumerate(hosts):
            beside = {*hosts[max(0, stage - 1) : stage], *hosts[stage + 1 : stage + 2]}
            for other in whole:
                if other != host and (pp <= _FEW_STAGES or other in beside):
                    changed = (*hosts[:stage], other, *hosts[stage + 1 :])
                    if self._has_room(changed):
                        yield changed

    def _has_room(self, hosts: Sequence[Host]) -> bool:
        used = [0] * len(self.room)
        for host in hosts:
            for pool, count in zip(host.pools, host.replicas, strict=True):
                used[pool] += count
        return all(taken <= room for taken, room in zip(used, self.room, strict=True))


def _host(slots: Sequence[int]) -> Host:
    pools = sorted(set(slots))
    return Host(pools=tuple(pools), replicas=tuple(slots.count(pool) for pool in pools))
