"""The linear program behind a step's lower bound, solved over and over in a branch and bound.

Waves are sorted into classes by their time. Within a class, the sequences are spread over the
degrees as a fluid: which group and which wave of the class holds one is forgotten. (A column
for every group, priced by knapsacks, gave no more on real batches and took fifty times as
long.) That alone is little more than the area bound, for it lets every sequence have a small
part of a wave that lasts just as long as suits it. So the number of waves longer than a time,
which is whole, is branched on. The dual prices of every leaf are the certificate
(`bounds.certified_bound_s`); they hold whether or not the program, its buckets or its solver
were exact.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from trimtab.core.certificate import BoundCertificate, BoundLeaf, GroupPrice, WaveSplit
from trimtab.planners.steps.bounds import BoundTerms

_Array = NDArray[np.float64]
_Row = dict[pulp.LpVariable, float]

_MOST_BUCKETS = 24
"""Buckets of lengths by their share of the work, besides those that degrees divide."""

_FIRST_CLASSES = 5
"""Classes between the shortest and the longest wave of a good plan, before any is split."""

_MOST_LEVELS = 6
"""Programs, each with classes finer than the one before: made where whole numbers alone close
no gap."""

_MOST_NODES = 120
_WHOLE = 0.02
"""A number of waves this close to a whole one is not branched on, and one this small none."""


def solve_bound(
    terms: BoundTerms, wave_times_s: Sequence[float], *, is_over: Callable[[], bool]
) -> BoundCertificate:
    """Prices that prove how short a step can be.

    Args:
        terms: The batch, its costs, and a plan's step time that is to be beaten.
        wave_times_s: Times of that plan's waves, fixed time left out; classes are fine there.
        is_over: Asked before every node; True ends the search with what is proven by then.
    """
    search = _Search(terms, wave_times_s)
    search.run(is_over)
    return search.certificate()


@dataclass(frozen=True)
class _Node:
    """One part of all plans: those whose waves are split as `splits` says."""

    bound_s: float
    level: int
    splits: tuple[WaveSplit, ...]
    counts: tuple[float, ...]
    """Waves longer than each edge of the level, in the program's solution."""
    leaf: BoundLeaf


class _Search:
    """Best first: the node with the least bound is split, or its classes are."""

    def __init__(self, terms: BoundTerms, wave_times_s: Sequence[float]) -> None:
        self._terms = terms
        self._buckets = _Buckets(terms)
        first = _Program(terms, self._buckets, _first_edges(terms, wave_times_s))
        self._programs = [first]
        self._order = itertools.count()
        self._open: list[tuple[float, int, _Node]] = []
        self._closed: list[_Node] = []

    def run(self, is_over: Callable[[], bool]) -> None:
        self._add(0, ())
        num_nodes = 1
        while self._open and num_nodes < _MOST_NODES and not is_over():
            _, _, node = heapq.heappop(self._open)
            fractions = [abs(count - round(count)) for count in node.counts]
            at = max(range(len(fractions)), key=fractions.__getitem__)
            if fractions[at] >= _WHOLE:
                most = math.floor(node.counts[at])
                time_s = float(self._programs[node.level].edges[at])
                for split in (
                    WaveSplit(longer_than_s=time_s, at_most=most),
                    WaveSplit(longer_than_s=time_s, at_least=most + 1),
                ):
                    self._add(node.level, (*node.splits, split))
                num_nodes += 2
            elif node.level + 1 < _MOST_LEVELS:
                if node.level + 1 == len(self._programs):
                    self._add_program(node)
                self._add(node.level + 1, node.splits)
                num_nodes += 1
            else:
                self._closed.append(node)

    def certificate(self) -> BoundCertificate:
        nodes = [*self._closed, *(node for _, _, node in self._open)]
        return BoundCertificate(
            leaves=tuple(node.leaf for node in nodes),
            shorter_than_s=self._terms.step_s,
            bucket_edges=tuple(int(edge) for edge in self._buckets.smallest),
        )

    def _add(self, level: int, splits: tuple[WaveSplit, ...]) -> None:
        leaf, counts = self._programs[level].solve(splits)
        bound_s = self._terms.leaf_bound_s(leaf)
        node = _Node(bound_s, level, splits, counts, leaf)
        if bound_s >= self._terms.step_s:
            self._closed.append(node)
        else:
            heapq.heappush(self._open, (bound_s, next(self._order), node))

    def _add_program(self, node: _Node) -> None:
        """A next level, finer where the waves of `node` are; others share it as it is."""
        edges = _split_edges(self._programs[-1].edges, node.counts)
        self._programs.append(_Program(self._terms, self._buckets, edges))


def _first_edges(terms: BoundTerms, wave_times_s: Sequence[float]) -> _Array:
    """Times between classes: fine around `wave_times_s`, from 0 to the longest possible."""
    longest_s, most_s = float(terms.fastest_s.max()), terms.longest_wave_s
    high_s = min(1.1 * max(*wave_times_s, longest_s), 0.99 * most_s)
    low_s = min(0.7 * min(wave_times_s), 0.9 * high_s)
    inner = [edge for edge in (longest_s * (1 - 1e-9),) if edge < most_s]
    fine = np.geomspace(low_s, high_s, _FIRST_CLASSES + 1)
    coarse = np.geomspace(high_s, most_s, 3)
    return np.unique(np.concatenate([[0.0], fine, inner, coarse[1:]]))


def _split_edges(edges: _Array, counts: Sequence[float]) -> _Array:
    """`edges` and one within every class that has waves; `counts` are those over each edge."""
    used = np.flatnonzero(np.array(counts) - np.array([*counts[1:], 0.0]) > _WHOLE)
    middles = np.sqrt(np.maximum(edges[used], 0.36 * edges[used + 1]) * edges[used + 1])
    return np.unique(np.concatenate([edges, middles]))


class _Buckets:
    """The sizes of a batch in a few buckets, none across the capacity of a degree."""

    def __init__(self, terms: BoundTerms) -> None:
        cheapest = np.where(terms.holds, terms.work, np.inf).min(axis=0) * terms.counts
        weight = np.cumsum(cheapest**0.6)
        share = np.minimum(_MOST_BUCKETS * weight / weight[-1], _MOST_BUCKETS - 1e-9)
        narrowest = terms.holds.argmax(axis=0)
        keys = list(zip(share.astype(int), narrowest, strict=True))
        starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
        members = np.add.reduceat(terms.counts, starts)
        ends = [*starts[1:], len(keys)]
        self.count: _Array = members
        self.tokens: _Array = np.add.reduceat(terms.sizes * terms.counts, starts) / members
        self.work: _Array = np.add.reduceat(terms.work * terms.counts, starts, axis=1) / members
        last = [end - 1 for end in ends]
        self.smallest: _Array = terms.sizes[last]
        self.least_work: _Array = terms.work[:, last]


class _Program:
    """The program for given classes, built by PuLP once and solved anew for every node."""

    def __init__(self, terms: BoundTerms, buckets: _Buckets, edges: _Array) -> None:
        self._terms, self.edges = terms, edges
        self._rows: dict[tuple[str, int, int], int] = {}
        """Row of a constraint by its kind, class and degree's index (or bucket)."""
        model = pulp.LpProblem("step", pulp.LpMinimize)
        self._build(model, buckets)
        solver = pulp.HiGHS(msg=False)
        solver.createAndConfigureSolver(model)
        solver.buildSolverModel(model)
        self._highs = model.solverModel

    def solve(self, splits: Iterable[WaveSplit]) -> tuple[BoundLeaf, tuple[float, ...]]:
        """Prices for the plans that keep `splits`, and the waves longer than each edge."""
        splits = tuple(splits)
        for k, edge in enumerate(self.edges[:-1]):
            least, most = self._terms.count_range(float(edge), splits)
            self._highs.changeRowBounds(self._rows["waves", k, 0], least, most)
        self._highs.run()
        solution = self._highs.getSolution()
        longer = solution.row_value
        counts = (longer[self._rows["waves", k, 0]] for k in range(len(self.edges) - 1))
        return self._leaf(splits, solution.row_dual), tuple(counts)

    def _build(self, model: pulp.LpProblem, buckets: _Buckets) -> None:
        terms, num_classes = self._terms, len(self.edges) - 1
        waves: list[_Row] = [{} for _ in range(num_classes)]
        cover: list[_Row] = [{} for _ in buckets.count]
        objective: _Row = {}
        limits: dict[tuple[str, int, int], _Row] = {}
        for k in range(num_classes):
            for j in range(len(terms.degrees)):
                rows = self._add_ranks(model, k, j, objective=objective, waves=waves)
                self._add_sequences(model, k, j, rows, buckets=buckets, cover=cover)
                limits |= {(kind, k, j): row for kind, row in rows.items()}
            excess = model.add_variable(f"excess_{k}", 0)  # keeps every node solvable
            waves[k][excess] = -1.0
            objective[excess] = terms.step_s
        model.setObjective(pulp.LpAffineExpression(objective))
        for k, row in enumerate(waves):
            self._constrain(model, ("waves", k, 0), row, pulp.LpConstraintGE, 0.0)
        for b, row in enumerate(cover):
            count = float(buckets.count[b])
            self._constrain(model, ("cover", b, 0), row, pulp.LpConstraintGE, count)
        for key, row in limits.items():
            if any(weight > 0 for weight in row.values()):
                self._constrain(model, key, row, pulp.LpConstraintLE, 0.0)

    def _add_ranks(
        self, model: pulp.LpProblem, k: int, j: int, *, objective: _Row, waves: list[_Row]
    ) -> dict[str, _Row]:
        """Ranks in groups of one degree, in waves as short and as long as those of class k are.

        Returns:
            Rows with what the ranks can hold, each kind limited to it.
        """
        terms = self._terms
        rows: dict[str, _Row] = {"tokens": {}, "work": {}, "big_tokens": {}, "big_work": {}}
        for end in (k, k + 1):
            time_s = float(self.edges[end])
            ranks = model.add_variable(f"ranks_{k}_{j}_{end}", 0)
            objective[ranks] = (time_s + terms.fixed_s) / terms.num_ranks
            for longer in waves[: k + 1]:
                longer[ranks] = 1 / terms.num_ranks
            rows["tokens"][ranks] = -float(terms.token_cap)
            rows["work"][ranks] = -time_s
            rows["big_tokens"][ranks] = rows["big_work"][ranks] = -1 / terms.degrees[j]
        return rows

    def _add_sequences(
        self,
        model: pulp.LpProblem,
        k: int,
        j: int,
        rows: dict[str, _Row],
        *,
        buckets: _Buckets,
        cover: list[_Row],
    ) -> None:
        """Sequences of every bucket that fits into groups of one degree in waves of class k."""
        degree = self._terms.degrees[j]
        room, longest = degree * self._terms.token_cap, degree * float(self.edges[k + 1])
        for b, smallest in enumerate(buckets.smallest):
            least_work = buckets.least_work[j, b]
            if smallest > room or least_work > longest:
                continue
            spread = model.add_variable(f"sequences_{k}_{j}_{b}", 0)
            cover[b][spread] = 1.0
            rows["tokens"][spread] = float(buckets.tokens[b])
            rows["work"][spread] = float(buckets.work[j, b])
            if 2 * smallest > room:
                rows["big_tokens"][spread] = 1.0
            if 2 * least_work > longest:
                rows["big_work"][spread] = 1.0

    def _constrain(
        self,
        model: pulp.LpProblem,
        key: tuple[str, int, int],
        row: _Row,
        sense: int,
        limit: float,
    ) -> None:
        self._rows[key] = len(self._rows)
        expression = pulp.LpAffineExpression(row)
        model.addConstraint(
            pulp.LpConstraint(expression, sense, "_".join(map(str, key)), limit)
        )

    def _leaf(self, splits: tuple[WaveSplit, ...], duals: Sequence[float]) -> BoundLeaf:
        def price(kind: str, k: int, j: int) -> float:
            row = self._rows.get((kind, k, j))
            return 0.0 if row is None else max(0.0, -duals[row])

        classes = range(len(self.edges) - 1)
        prices = [
            GroupPrice(
                wave_class=k,
                degree=option.degree,
                attention=option.attention,
                token_s=price("tokens", k, j),
                work=price("work", k, j),
                big_tokens_s=price("big_tokens", k, j),
                big_work_s=price("big_work", k, j),
            )
            for k in classes
            for j, option in enumerate(self._terms.options)
        ]
        return BoundLeaf(
            splits=splits,
            edges_s=tuple(float(edge) for edge in self.edges),
            wave_prices_s=tuple(float(duals[self._rows["waves", k, 0]]) for k in classes),
            group_prices=tuple(
                p for p in prices if p.token_s or p.work or p.big_tokens_s or p.big_work_s
            ),
        )
