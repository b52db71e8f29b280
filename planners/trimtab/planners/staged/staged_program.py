"""The joint step program: groups, replicas and stage paths of one step in one linear program.

A column is (degree, stage path with a replica for each visited stage, bucket of lengths); its
variable x is the share of the bucket that goes there. With T the step time:

    minimise T subject to
    cover_b:     sum of x over the columns of bucket b = 1
    replica_v:   sum over columns w_v N_b x / |v| <= T - head_v - tail_v
    channel_e:   sum q_e N_b x / B_e <= T - head_e - tail_e
    held_k:      sum over columns s hold_k N_b x / sum_v (|v| cap_v) <= T - head_k - tail_k
    longest:     sum over columns of the longest sequence latency x <= T - closing_0
    most_k, fewest_k:  (f_k - tol) W <= tokens that leave out stage k <= (f_k + tol) W

A micro-batch with a multiset of lengths is the sum of its sequences' columns but for its fixed
time, of which each sequence is charged what it takes in the fullest group (`staged_bounds`). So
pricing, a knapsack of sequences on a shortest path, falls apart into one shortest path for each
bucket and degree, which `staged_bounds.cheapest` finds exactly; columns are generated until
none helps. The duals are re-priced at the true lengths; they prove a bound whether or not the
program, its buckets or its solver were exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from trimtab.core.staged import StagedPrices
from trimtab.planners.staged.staged_bounds import Ends, cheapest
from trimtab.planners.staged.staged_schedule import Tables

_Floats = NDArray[np.float64]
_Key = tuple[int, int, tuple[int, ...]]
"""Bucket, degree, path."""

_MOST_BUCKETS = 20
_MOST_ROUNDS = 60
_GOOD_ENOUGH = 1e-4
"""Columns are generated until the least the program may still fall is this part of T."""
_PENALTY_S = 1e4
"""Of leaving a skip budget unmet, all of it; far above any step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of the batch's sequences that the program sends along one path."""

    bucket: int
    degree: int
    path: tuple[int, ...]
    amount: float
    """How many sequences of the bucket, not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The program's answer."""

    prices: StagedPrices
    shares: tuple[Share, ...]
    buckets: tuple[tuple[int, ...], ...]
    """Indices into the lengths of each bucket's sequences, longest first."""
    step_s: float
    """The program's T: near the bound, before re-pricing."""


def solve(
    lengths: Sequence[int], tables: Tables, *, is_over: Callable[[], bool] = lambda: False
) -> Solution:
    """Solve the program for a batch that `staged_bounds.check_lengths` has passed.

    Args:
        lengths: Tokens of every sequence.
        tables: The staged layout.
        is_over: Asked between rounds of column generation; True ends it with what there is.
    """
    program = _Program(lengths, tables)
    for _ in range(_MOST_ROUNDS):
        program.solve()
        if is_over() or not program.add_columns():
            break
    return program.solution()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOption:
    """Nodes that could serve a stage together, and the most layers they do in a given time."""

    stage: int
    num_nodes: tuple[int, ...]
    """Of every kind."""
    most_layers: int


def assign_nodes(
    options: Sequence[StageOption],
    *,
    num_nodes: Sequence[int],
    time_limit_s: float = 5.0,
) -> tuple[int, tuple[StageOption, ...]]:
    """One option for every stage, with the most layers in all: the job-level program.

    With z in {0, 1} for every option (so that y_ns = 1 where node n is among those of the
    option chosen for stage s): maximise sum layers z, where sum z = 1 for every stage,
    and sum nodes of kind k in z <= how many there are, so that no node serves two stages.

    Returns:
        The layers, and the options by stage; 0 and none where the nodes do not suffice.
    """
    stages = sorted({option.stage for option in options})
    model = pulp.LpProblem("nodes", pulp.LpMaximize)
    chosen = [
        model.add_variable(f"z_{index}", 0, 1, cat=pulp.LpBinary)
        for index in range(len(options))
    ]
    layers = {z: float(o.most_layers) for z, o in zip(chosen, options, strict=True)}
    model.setObjective(pulp.LpAffineExpression(layers))
    for stage in stages:
        row = {z: 1.0 for z, o in zip(chosen, options, strict=True) if o.stage == stage}
        expression = pulp.LpAffineExpression(row)
        model.addConstraint(
            pulp.LpConstraint(expression, pulp.LpConstraintEQ, f"stage_{stage}", 1.0)
        )
    for kind, number in enumerate(num_nodes):
        row = {z: float(o.num_nodes[kind]) for z, o in zip(chosen, options, strict=True)}
        expression = pulp.LpAffineExpression(row)
        model.addConstraint(
            pulp.LpConstraint(expression, pulp.LpConstraintLE, f"nodes_{kind}", float(number))
        )
    model.solve(pulp.HiGHS(msg=False, timeLimit=time_limit_s))
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return 0, ()
    best = tuple(
        option for z, option in zip(chosen, options, strict=True) if (z.varValue or 0.0) > 0.5
    )
    return sum(option.most_layers for option in best), best


def buckets_of(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences in buckets of like work; the first holds the longest alone."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    weight = np.cumsum(np.array([lengths[i] for i in order[1:]], dtype=np.float64) ** 0.7)
    buckets = [[order[0]]]
    last = -1
    for position, index in enumerate(order[1:]):
        key = int(_MOST_BUCKETS * (weight[position] - 1e-9) / weight[-1])
        is_new = key != last and lengths[index] != lengths[buckets[-1][-1]]
        if is_new or len(buckets) == 1:
            buckets.append([])
            last = key
        buckets[-1].append(index)
    return buckets


class _Program:
    """The program with the columns generated so far."""

    def __init__(self, lengths: Sequence[int], tables: Tables) -> None:
        self._tables = tables
        self.buckets = buckets_of(lengths)
        self._counts = np.array([len(bucket) for bucket in self.buckets], dtype=np.float64)
        self._sizes = np.array(
            [sum(lengths[i] for i in bucket) / len(bucket) for bucket in self.buckets]
        )
        self._total = float(sum(lengths))
        staged = tables.staged
        self._skips = [k for k in range(staged.num_stages) if staged.skip_fraction(k)]
        self._holding = [k for k in range(staged.num_stages) if k not in self._skips]
        self._room = [
            float(sum(tables.num_ranks[v] * tables.cap[v] for v in staged.of_stage(k)))
            for k in range(staged.num_stages)
        ]
        self._ends = Ends(float(min(lengths)), tables)
        self._columns: list[_Key] = []
        self._known: set[_Key] = set()
        self._rows: dict[tuple[str, int], int] = {}
        self._highs = self._build()
        for path_price in self._first_prices():
            self._add(path_price)

    def _first_prices(self) -> list[StagedPrices]:
        """Prices whose cheapest columns the program begins with: each replica dear in turn."""
        staged = self._tables.staged
        even = 1 / self._tables.num_ranks
        prices = []
        for dear in range(-1, len(staged.replicas)):
            replicas = even / len(even)
            if dear >= 0:
                replicas = np.where(np.arange(len(even)) == dear, 4 * replicas, replicas)
            prices.append(self._prices(replicas, np.zeros(len(staged.channels)), 0.0))
        return prices

    def _prices(self, replicas: _Floats, channels: _Floats, longest: float) -> StagedPrices:
        nothing = (0.0,) * self._tables.staged.num_stages
        return StagedPrices(
            replicas=tuple(replicas.tolist()), channels=tuple(channels.tolist()),
            longest=longest, held=nothing, skipped_more=nothing, skipped_less=nothing,
        )  # fmt: skip

    def _build(self) -> Any:
        """The rows, and T; PuLP builds them, HiGHS (which has no types) keeps them."""
        staged = self._tables.staged
        model = pulp.LpProblem("joint_step", pulp.LpMinimize)
        step = model.add_variable("step_s", 0)
        model.setObjective(pulp.LpAffineExpression({step: 1.0}))

        def constrain(
            kind: str, index: int, row: dict[object, float], sense: int, limit: float
        ) -> None:
            self._rows[kind, index] = len(self._rows)
            expression = pulp.LpAffineExpression(row)
            model.addConstraint(pulp.LpConstraint(expression, sense, f"{kind}_{index}", limit))

        for v in range(len(staged.replicas)):
            constrain(
                "replica", v, {step: 1.0}, pulp.LpConstraintGE, float(self._ends.replica_s[v])
            )
        for e in range(len(staged.channels)):
            idle_s = float(self._ends.channel_s[e])
            constrain("channel", e, {step: 1.0}, pulp.LpConstraintGE, idle_s)
        for k in self._holding:
            idle_s = float(self._ends.replica_s[staged.of_stage(k)[0]])
            constrain("held", k, {step: 1.0}, pulp.LpConstraintGE, idle_s)
        constrain("longest", 0, {step: 1.0}, pulp.LpConstraintGE, staged.closing_s[0])
        for k in self._skips:
            over = model.add_variable(f"over_{k}", 0)
            under = model.add_variable(f"under_{k}", 0)
            model.setObjective(model.objective + _PENALTY_S * over + _PENALTY_S * under)
            share, slack = staged.skip_fraction(k), staged.skip_tolerance
            constrain("most", k, {over: -1.0}, pulp.LpConstraintLE, share + slack)
            constrain("fewest", k, {under: 1.0}, pulp.LpConstraintGE, share - slack)
        unserved = model.add_variable("unserved", 0)
        model.setObjective(model.objective + 100 * _PENALTY_S * unserved)
        for b in range(len(self.buckets)):
            constrain("cover", b, {unserved: 1.0}, pulp.LpConstraintGE, 1.0)
        solver = pulp.HiGHS(msg=False)
        solver.createAndConfigureSolver(model)
        solver.buildSolverModel(model)
        self._num_fixed = len(model.variables())
        return model.solverModel

    def _add(self, prices: StagedPrices, *, worth: _Floats | None = None) -> int:
        """Add every bucket's cheapest column, where it costs less than it is `worth`."""
        added = 0
        for is_longest, rows in ((True, slice(0, 1)), (False, slice(1, None))):
            sizes = self._sizes[rows]
            if not len(sizes):
                continue
            least = cheapest(prices, sizes, tables=self._tables, is_longest=is_longest)
            for position, bucket in enumerate(range(len(self.buckets))[rows]):
                cost = least.cost[position] * self._counts[bucket]
                if worth is not None and cost >= worth[bucket] - 1e-9:
                    continue
                path = tuple(least.path[position].tolist())
                key = (bucket, int(least.degree[position]), path)
                if key not in self._known:
                    self._known.add(key)
                    self._columns.append(key)
                    self._add_column(key)
                    added += 1
        return added

    def _add_column(self, key: _Key) -> None:
        """The coefficients of one column, of all the bucket's sequences together."""
        bucket, degree, path = key
        tables, staged = self._tables, self._tables.staged
        size, count = self._sizes[bucket], self._counts[bucket]
        num_bytes = staged.token_bytes * size
        row = {self._rows["cover", bucket]: 1.0}
        k = tables.degrees.index(degree)
        visited = [v for v in path if v >= 0]
        away_s = 0.0
        """From a stage's forward to the end of its backward, for the stage looked at last."""
        for position in range(len(visited) - 1, -1, -1):
            v = visited[position]
            work = (tables.quadratic_s[v] * size + tables.token_s[v, k]) * size
            share = work + tables.fixed_s[v] * size / tables.cap[v]
            row[self._rows["replica", v]] = -share * count / tables.num_ranks[v]
            away_s += tables.fixed_s[v] + work / degree
            stage = staged.replicas[v].stage
            if stage in self._holding:
                row[self._rows["held", stage]] = -size * away_s * count / self._room[stage]
            if position == 0:
                break
            u = visited[position - 1]
            for source, target in ((u, v), (v, u)):
                at = self._rows["channel", int(tables.channel[source, target])]
                keeps_s = num_bytes * count / tables.bytes_per_s[tables.channel[source, target]]
                row[at] = row.get(at, 0.0) - keeps_s
                away_s += float(
                    tables.away_s(
                        np.array(source), np.array(target), num_bytes, np.array(degree)
                    )
                )
        if bucket == 0:
            row[self._rows["longest", 0]] = -away_s
        for stage in self._skips:
            if path[stage] < 0:
                for kind in ("most", "fewest"):
                    row[self._rows[kind, stage]] = size * count / self._total
        indices = np.array(list(row), dtype=np.int32)
        values = np.array(list(row.values()))
        self._highs.addCol(0.0, 0.0, np.inf, len(indices), indices, values)

    def solve(self) -> None:
        self._highs.run()
        solution = self._highs.getSolution()
        self._values, self._duals = solution.col_value, solution.row_dual
        self._step_s = self._highs.getInfo().objective_function_value

    def prices(self) -> StagedPrices:
        """The duals, each of the program's rows as `staged_bounds` writes them."""
        tables, staged = self._tables, self._tables.staged

        def dual(kind: str, index: int) -> float:
            return float(self._duals[self._rows[kind, index]])

        stages = range(staged.num_stages)
        return StagedPrices(
            replicas=tuple(
                max(0.0, dual("replica", v)) / float(tables.num_ranks[v])
                for v in range(len(staged.replicas))
            ),
            channels=tuple(
                max(0.0, dual("channel", e)) / float(tables.bytes_per_s[e])
                for e in range(len(staged.channels))
            ),
            longest=max(0.0, dual("longest", 0)),
            held=tuple(
                max(0.0, dual("held", k)) / self._room[k] if k in self._holding else 0.0
                for k in stages
            ),
            skipped_more=tuple(
                max(0.0, -dual("most", k)) / self._total if k in self._skips else 0.0
                for k in stages
            ),
            skipped_less=tuple(
                max(0.0, dual("fewest", k)) / self._total if k in self._skips else 0.0
                for k in stages
            ),
        )

    def add_columns(self) -> bool:
        """Price: add the columns that would shorten the step; False: none does."""
        worth = np.array(
            [self._duals[self._rows["cover", b]] for b in range(len(self.buckets))]
        )
        slack = _GOOD_ENOUGH * self._step_s / len(self.buckets)
        return self._add(self.prices(), worth=worth - slack) > 0

    def solution(self) -> Solution:
        values = np.array(self._values[self._num_fixed : self._num_fixed + len(self._columns)])
        shares = tuple(
            Share(
                bucket=bucket, degree=degree, path=path,
                amount=float(value * self._counts[bucket]),
            )
            for (bucket, degree, path), value in zip(self._columns, values, strict=False)
            if value > 1e-9
        )  # fmt: skip
        return Solution(
            prices=self.prices(),
            shares=shares,
            buckets=tuple(tuple(bucket) for bucket in self.buckets),
            step_s=float(self._step_s),
        )
