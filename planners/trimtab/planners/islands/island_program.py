"""The mixed-integer program that places the stages of one layout and bounds its step.

    y_sh  in {0, 1}   stage s is hosted by the pools h: one, or several that share its replicas
    l_sh  >= 0, whole its layers there; 0 unless y_sh
    x_shk >= 0        replicas of it in pool k of h
    z_bhg >= 0        boundary b is between hosts h and g
f_bkj >= 0        replicas at boundary b that go from pool k to pool j
    T     >= 0        the step without what every step takes

minimise T subject to

    one host      sum_h y_sh = 1,  sum_sh l_sh = L,  y_sh <= l_sh <= most_sh y_sh
    room          sum_k x_shk = dp y_sh,  x_shk >= y_sh,  sum_sh x_shk <= room_k
    flow          sum_g z_bhg = y_bh,  sum_h z_bhg = y_(b+1)g
                  sum_j f_bkj = sum_h x_bhk,  sum_k f_bkj = sum_h x_(b+1)hj
    messages      c_b >= sum of z times the messages of whole stages, and over every link, each
                  way, the messages of the replicas f that take it
    with t_s = sum_h (layer_h l_sh) + [s last] sum_h head_h y_sh,  c_b = there and back over b,
    D_s = sum of t after s + sum of c from s on,  P_s = sum of t and c before s,  w = pp - s
    pipeline      T >= P_s + m t_s + tail_0
                  T >= P_s + (m - w + 1) t_s + 2 D_s + tail_0            where m > w
                  T >= P_s + r f_s + (q + 1) (t_s + D_s) + tail_0     where m - 1 = q w + r
                  T >= P_s + D_s + (1 + max(0, m - w)) f_s + m b_s + tail_0, and the same with
                       forward f and backward b passes the other way round
    wires         T >= m times what all boundaries send over a link, each way
    tails         tail_s >= optimizer + (exchange beyond what hides it), by tangents
                  T >= (forward passes and messages before s) + m t_s + tail_s
                  T >= when stage u < s starts its last forward pass, by the rows above, + the
                       way from u to s, to the end and back to s + tail_s

The pipeline rows hold because a stage has at most w micro-batches in flight and works in a
fixed order: its first backward pass waits for the first micro-batch's way to the end and back,
and the last one's comes after its own last forward pass. Whatever `LayoutCosts.step` says of a
placement obeys all rows, so that the program's bound is one for every placement of the layout,
those that spread a stage over pools included.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pulp

from trimtab.planners.islands.island_costs import LayoutCosts
from trimtab.planners.islands.pools import Host, Way

_MOST_SPREAD = 4
"""Pools of which every subset may share a stage; of more, pairs and all together."""

_BEYOND_WIDTH = 0.1
"""Of `costs.beyond`, which is (d + |(d, width)|) / 2: as a norm, no less than any tangent."""
_TANGENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Angles of the tangents; 0 is the difference itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What the program says of a layout."""

    bound_s: float
    """No placement has a shorter step; infinite where none fits."""
    stage_layers: tuple[int, ...] = ()
    hosts: tuple[Host, ...] = ()
    """Of the solution found in time; empty where none was, or only fractions were asked for."""


def solve_placement(
    costs: LayoutCosts,
    room: Sequence[int],
    most_layers: Sequence[Sequence[int]],
    *,
    whole: bool,
    time_limit_s: float,
) -> Solved:
    """Solve the program of one layout.

    Args:
        costs: The layout's.
        room: Replicas of a stage that each pool holds.
        most_layers: By stage and pool, what memory has room for.
        whole: Solve for whole numbers; else the linear relaxation, which is fast.
        time_limit_s: Of the solver.
    """
    program = _Program(costs, room, most_layers, whole=whole)
    return program.solve(time_limit_s=time_limit_s)


class _Program:
    def __init__(
        self,
        costs: LayoutCosts,
        room: Sequence[int],
        most_layers: Sequence[Sequence[int]],
        *,
        whole: bool,
    ) -> None:
        self.costs, self.room, self.most, self.whole = costs, room, most_layers, whole
        self.layout = costs.layout
        self.stages = range(self.layout.pp)
        self.hosts = self._host_sets()
        self.problem = pulp.LpProblem("placement", pulp.LpMinimize)
        self.step = self.problem.add_variable("T", lowBound=0)
        self.chosen: dict[tuple[int, int], pulp.LpVariable] = {}
        self.layers: dict[tuple[int, int], pulp.LpVariable] = {}
        self.replicas: dict[tuple[int, int, int], pulp.LpVariable] = {}
        self.sent: dict[tuple[int, int, int], pulp.LpVariable] = {}

    def _host_sets(self) -> list[tuple[int, ...]]:
        usable = [pool for pool, number in enumerate(self.room) if number]
        most = min(len(usable), self.layout.dp)
        sizes = range(1, most + 1) if len(usable) <= _MOST_SPREAD else (1, 2, len(usable))
        return [
            pools
            for size in sizes
            for pools in itertools.combinations(usable, size)
            if sum(self.room[pool] for pool in pools) >= self.layout.dp and size <= most
        ]

    def solve(self, *, time_limit_s: float) -> Solved:
        if not self.hosts:
            return Solved(bound_s=math.inf)
        self.problem += self.step
        self._places()
        self._flow()
        self._times()
        solver = pulp.HiGHS(
            msg=False, timeLimit=time_limit_s, gapRel=1e-4, mip=self.whole, threads=1
        )
        self.problem.solve(solver)
        status = self.problem.sol_status
        if status == pulp.LpSolutionInfeasible:
            return Solved(bound_s=math.inf)
        found = status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
        value = self.step.value() if found else 0.0
        if self.whole:
            info = self.problem.solverModel.getInfo()
            value = min(value, info.mip_dual_bound) if found else info.mip_dual_bound
        bound_s = self.costs.with_waiting_s(max(0.0, value) * (1 - 1e-7))
        if not (self.whole and found):
            return Solved(bound_s=bound_s)
        return Solved(bound_s=bound_s, stage_layers=self._layers(), hosts=self._hosts())

    def _places(self) -> None:
        """Hosts, layers and replicas of every stage."""
        kind = pulp.LpBinary if self.whole else pulp.LpContinuous
        number = pulp.LpInteger if self.whole else pulp.LpContinuous
        for s in self.stages:
            for h, pools in enumerate(self.hosts):
                most = min(self.most[s][pool] for pool in pools)
                y = self.problem.add_variable(f"y_{s}_{h}", 0, 1 if most else 0, kind)
                layers = self.problem.add_variable(f"l_{s}_{h}", 0, None, number)
                self.chosen[s, h], self.layers[s, h] = y, layers
                self.problem += layers <= most * y
                self.problem += layers >= y
                for pool in pools:
                    x = self.problem.add_variable(f"x_{s}_{h}_{pool}", 0, None, number)
                    self.replicas[s, h, pool] = x
                    self.problem += x >= y
                self.problem += (
                    pulp.lpSum(self.replicas[s, h, pool] for pool in pools)
                    == self.layout.dp * y
                )
            self.problem += pulp.lpSum(self.chosen[s, h] for h in self._h) == 1
        for pool, room in enumerate(self.room):
            held = [x for (_, _, where), x in self.replicas.items() if where == pool]
            if held:
                self.problem += pulp.lpSum(held) <= room
        self.problem += pulp.lpSum(self.layers.values()) == self.costs.job.model.num_layers

    @property
    def _h(self) -> range:
        return range(len(self.hosts))

    def _flow(self) -> None:
        for b in self.stages[:-1]:
            for h, g in itertools.product(self._h, self._h):
                self.sent[b, h, g] = self.problem.add_variable(f"z_{b}_{h}_{g}", 0, 1)
            for h in self._h:
                self.problem += (
                    pulp.lpSum(self.sent[b, h, g] for g in self._h) == self.chosen[b, h]
                )
                self.problem += (
                    pulp.lpSum(self.sent[b, g, h] for g in self._h) == self.chosen[b + 1, h]
                )

    def _times(self) -> None:
        """The rows for the pipeline, the wires and the tails."""
        pp, micro = self.layout.pp, self.costs.num_micro_batches
        forward = [self._stage_s(s, "forward_s", "head_forward_s") for s in self.stages]
        backward = [self._stage_s(s, "backward_s", "head_backward_s") for s in self.stages]
        both = [f + b for f, b in zip(forward, backward, strict=True)]
        there = [self._boundary_s(b, is_back=False) for b in self.stages[:-1]]
        back = [self._boundary_s(b, is_back=True) for b in self.stages[:-1]]
        loads = [self._loads(b) for b in self.stages[:-1]]
        for b, load in enumerate(loads):
            for (way, is_back), number in load.items():
                self.problem += (back if is_back else there)[b] >= self._wire_s(way) * number
        tails = [self._tail_s(s, backward[s]) for s in self.stages]
        for s in self.stages:
            flight = pp - s
            before = pulp.lpSum(both[:s]) + pulp.lpSum(there[:s]) + pulp.lpSum(back[:s])
            after = pulp.lpSum(both[s + 1 :]) + pulp.lpSum(there[s:]) + pulp.lpSum(back[s:])
            self.problem += self.step >= before + micro * both[s] + tails[0]
            turns, place = divmod(micro - 1, flight)
            held = place * forward[s] + (turns + 1) * (both[s] + after)
            self.problem += self.step >= before + held + tails[0]
            if micro > flight:
                self.problem += (
                    self.step >= before + (micro - flight + 1) * both[s] + 2 * after + tails[0]
                )
            more = max(0, micro - flight)
            self.problem += (
                self.step
                >= before + after + (1 + more) * forward[s] + micro * backward[s] + tails[0]
            )
            self.problem += (
                self.step
                >= before + after + micro * forward[s] + (1 + more) * backward[s] + tails[0]
            )
            first = pulp.lpSum(forward[:s]) + pulp.lpSum(there[:s])
            self.problem += self.step >= first + micro * both[s] + tails[s]
            for u in {0, s - 1} if s else ():
                self._late_rows(u, s, forward, both, there, back, tails[s])
        for way in self.costs.network.links:
            numbers = [
                load[way, is_back]
                for load in loads
                for is_back in (False, True)
                if (way, is_back) in load
            ]
            if numbers:
                self.problem += self.step >= micro * self._wire_s(way) * pulp.lpSum(numbers)

    def _late_rows(
        self,
        u: int,
        s: int,
        forward: Sequence[pulp.LpAffineExpression],
        both: Sequence[pulp.LpAffineExpression],
        there: Sequence[pulp.LpAffineExpression],
        back: Sequence[pulp.LpAffineExpression],
        tail: pulp.LpVariable,
    ) -> None:
        """Stage s has its last micro-batch no earlier than an earlier stage u sends it."""
        micro, flight = self.costs.num_micro_batches, self.layout.pp - u
        first = pulp.lpSum(forward[:u]) + pulp.lpSum(there[:u])
        after_u = pulp.lpSum(both[u + 1 :]) + pulp.lpSum(there[u:]) + pulp.lpSum(back[u:])
        trip = pulp.lpSum(forward[u:s]) + pulp.lpSum(there[u:s])
        after_s = pulp.lpSum(both[s:]) + pulp.lpSum(there[s:]) + pulp.lpSum(back[s:])
        turns, place = divmod(micro - 1, flight)
        waited = place * forward[u] + turns * (both[u] + after_u)
        self.problem += self.step >= first + waited + trip + after_s + tail
        if micro > flight:
            waited = after_u + (micro - flight) * both[u]
            self.problem += self.step >= first + waited + trip + after_s + tail

    def _stage_s(self, s: int, layer: str, head: str) -> pulp.LpAffineExpression:
        """Of a micro-batch in a stage, in the slowest of its pools."""
        costs = self.costs.pools
        terms = []
        for h, pools in enumerate(self.hosts):
            slowest = max((costs[pool] for pool in pools), key=lambda cost: cost.layer_s)
            terms.append(getattr(slowest, layer) * self.layers[s, h])
            if s == self.layout.pp - 1:
                terms.append(getattr(slowest, head) * self.chosen[s, h])
        return pulp.lpSum(terms)

    def _boundary_s(self, b: int, *, is_back: bool) -> pulp.LpVariable:
        """One way over a boundary: at least what whole stages send each other."""
        seconds = self.problem.add_variable(f"{'back' if is_back else 'there'}_{b}", 0)
        self.problem += seconds >= pulp.lpSum(
            self._message_s(g, h) * z if is_back else self._message_s(h, g) * z
            for (boundary, h, g), z in self.sent.items()
            if boundary == b
        )
        return seconds

    def _message_s(self, h: int, g: int) -> float:
        """From hosts to others, if no one else sends: at least a replica of each must."""
        near, far = self.hosts[h], self.hosts[g]
        if len(near) == len(far) == 1 and near == far:
            return self.costs.pools[near[0]].send_s
        if set(near) & set(far):
            return 0.0
        count = self.layout.dp if len(near) == len(far) == 1 else 1
        return min(
            sum(self.costs.alone_s(source, target, count=count))
            for source, target in itertools.product(near, far)
        )

    def _loads(self, b: int) -> dict[tuple[Way, bool], pulp.LpAffineExpression]:
        """Replicas whose messages over a boundary take a way, there (False) and back (True).

        Replicas of a stage go to those of the next as in a transport problem.
        """
        usable = sorted({pool for pools in self.hosts for pool in pools})
        moved = {
            (k, j): self.problem.add_variable(f"moved_{b}_{k}_{j}", 0)
            for k in usable
            for j in usable
        }
        for k in usable:
            out = pulp.lpSum(moved[k, j] for j in usable)
            into = pulp.lpSum(moved[j, k] for j in usable)
            self.problem += out == self._held(b, k)
            self.problem += into == self._held(b + 1, k)
        loads: dict[tuple[Way, bool], list[pulp.LpVariable]] = {}
        for (k, j), number in moved.items():
            for way in self.costs.network.ways(k, j):
                loads.setdefault((way, False), []).append(number)
            for way in self.costs.network.ways(j, k):
                loads.setdefault((way, True), []).append(number)
        return {key: pulp.lpSum(numbers) for key, numbers in loads.items()}

    def _held(self, s: int, pool: int) -> pulp.LpAffineExpression:
        """Replicas of a stage in a pool."""
        return pulp.lpSum(
            self.replicas[s, h, pool] for h, pools in enumerate(self.hosts) if pool in pools
        )

    def _wire_s(self, way: Way) -> float:
        """What the message of one replica takes a link."""
        return self.costs.message_bytes / self.costs.network.links[way].bytes_per_s

    def _tail_s(self, s: int, backward: pulp.LpAffineExpression) -> pulp.LpVariable:
        """Optimizer and exposed exchange of a stage."""
        tail = self.problem.add_variable(f"tail_{s}", lowBound=0)
        exchange, optimizer, hidden = [], [], []
        fixed, per_layer = self.costs.affine_parameters(s)
        for h, pools in enumerate(self.hosts):
            y, layers = self.chosen[s, h], self.layers[s, h]
            rate, latency, update = self.costs.tail_rates(pools)
            parameters = fixed * y + per_layer * layers
            exchange.append(rate * parameters + latency * y)
            optimizer.append(update * parameters)
            hidden.append(max(0.0, min(self.costs.stacks[k].rates.dp_hidden for k in pools)))
        update, moved = pulp.lpSum(optimizer), pulp.lpSum(exchange)
        beyond = moved - max(hidden) * backward
        self.problem += tail >= update
        for angle in _TANGENTS:
            smooth = (1 + math.cos(angle)) / 2 * beyond + _BEYOND_WIDTH * math.sin(
                angle
            ) / 2 * moved
            self.problem += tail >= update + smooth
        return tail

    def _layers(self) -> tuple[int, ...]:
        return tuple(
            round(sum(self.layers[s, h].value() or 0.0 for h in self._h)) for s in self.stages
        )

    def _hosts(self) -> tuple[Host, ...]:
        hosts = []
        for s in self.stages:
            h = max(self._h, key=lambda h: self.chosen[s, h].value() or 0.0)
            pools = self.hosts[h]
            counts = [round(self.replicas[s, h, pool].value() or 0.0) for pool in pools]
            hosts.append(Host(pools=pools, replicas=tuple(counts)))
        return tuple(hosts)
