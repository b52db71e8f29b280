"""Micro-batches for a staged layout: packed from the program's shares, ordered, changed."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import InfeasibleError
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.planners.staged.staged_program import Solution
from trimtab.planners.staged.staged_schedule import Draft, Tables, draft_of
from trimtab.planners.steps.packing import BatchCosts, PackingSearch

_Path = tuple[int, ...]
_Group = tuple[int, _Path, list[int]]
"""Degree, path, sequences."""
_Ints = NDArray[np.int64]

_ANOTHER_CHANGE = 0.25
"""How often a change is followed by another before it is simulated."""


class Packer:
    """Packs one batch by the shares of the program's solution, path by path.

    The sequences of a path are packed into waves as the step planner does (`packing`), with the
    path's own costs, all its stages together: groups of a wave take equally long, so that wide
    ones seldom wait for their neighbours.
    """

    def __init__(self, lengths: Sequence[int], tables: Tables, *, solution: Solution) -> None:
        self._lengths, self._tables = lengths, tables
        self._members: dict[_Path, list[int]] = defaultdict(list)
        paths = _dealt(solution, lengths)
        for stage in range(tables.staged.num_stages):
            if tables.staged.skip_fraction(stage):
                _meet_budget(paths, lengths, tables, stage=stage)
        for index, path in enumerate(paths):
            self._members[path].append(index)

    def draft(self, part: float, *, builds: int, trials: int) -> tuple[Draft, _Ints]:
        """Micro-batches in the order of their waves, and the wave of each.

        Args:
            part: Of a rank's tokens, how many one micro-batch may take, where all fit then.
            builds: Plans built for every path, of which the best is taken.
            trials: Changes tried to make it better.
        """
        waves: list[tuple[float, list[_Group]]] = []
        for path, members in sorted(self._members.items()):
            packing = self._packed(path, members, part=part, builds=builds, trials=trials)
            for number, groups in enumerate(packing):
                waves.append(((number + 0.5) / len(packing), groups))
        waves.sort(key=lambda wave: wave[0])
        groups = [group for _, wave in waves for group in wave]
        wave_of = [number for number, (_, wave) in enumerate(waves) for _ in wave]
        return draft_of(groups, self._lengths), np.array(wave_of)

    def _packed(
        self, path: _Path, members: Sequence[int], *, part: float, builds: int, trials: int
    ) -> list[list[_Group]]:
        tables = self._tables
        lengths = [self._lengths[i] for i in members]
        visited = [v for v in path if v >= 0]
        num_ranks = int(min(tables.num_ranks[v] for v in visited))
        profile = path_profile(visited, tables, part=part, longest=max(lengths))
        costs = BatchCosts(lengths, profile=profile, degrees=profile.degrees)
        search = PackingSearch(costs, num_ranks=num_ranks)
        plan = min(search.builds(builds), key=lambda one: one.seconds)
        search.improve(plan, trials=trials)
        left = [iter(indices) for indices in costs.members]
        return [
            [
                (
                    group.degree,
                    path,
                    [members[i] for size, n in group.parts for i in islice(left[size], n)],
                )
                for group in wave
            ]
            for wave in search.groups(plan)
        ]


def path_profile(
    visited: Sequence[int], tables: Tables, *, part: float, longest: int
) -> StepProfile:
    """What a group costs all replicas of a path together, as one profile.

    Args:
        visited: The replicas.
        tables: The layout.
        part: Of the tokens that a rank may hold, those of one group.
        longest: Tokens that the largest degree has to hold in any case.
    """
    at = list(visited)
    linear_s = tables.token_s[at].sum(axis=0)
    usable = [k for k in range(len(tables.degrees)) if np.isfinite(linear_s[k])]
    degrees = [tables.degrees[k] for k in usable]
    cap = float(tables.cap[at].min())
    return StepProfile(
        name="path",
        num_gpus=int(tables.num_ranks[at].min()),
        gpus_per_node=1,
        quadratic_s=float(tables.quadratic_s[at].sum()),
        linear_s=float(linear_s[0]),
        fixed_s=float(tables.fixed_s[at].sum()),
        alltoall_bytes_per_token=1.0,
        bandwidths=tuple(
            DegreeBandwidth(
                degree=tables.degrees[k],
                bytes_per_s=1 / max(1e-15, float(linear_s[k] - linear_s[0])),
            )
            for k in usable[1:]
        ),
        token_cap=max(1, int(part * cap), -(-longest // max(degrees))),
        evidence="analytic",
    )


def _dealt(solution: Solution, lengths: Sequence[int]) -> list[_Path]:
    """A path for every sequence: of its bucket's shares the one that most is left of."""
    shares: dict[int, dict[_Path, float]] = defaultdict(lambda: defaultdict(float))
    for share in solution.shares:
        shares[share.bucket][share.path] += share.amount
    paths: list[_Path] = [()] * len(lengths)
    for bucket, members in enumerate(solution.buckets):
        left = shares[bucket]
        for index in members:
            path = max(left, key=lambda one: left[one])
            left[path] -= 1
            paths[index] = path
    return paths


def _meet_budget(
    paths: list[_Path], lengths: Sequence[int], tables: Tables, *, stage: int
) -> None:
    """Let sequences leave out a stage, or visit it, until their tokens are within its budget.

    Each time the one that brings the tokens nearest; the replica visited is the first that has
    routes and memory for it.

    Raises:
        InfeasibleError: That does not lead there.
    """
    staged = tables.staged
    total = sum(lengths)
    wanted, slack = staged.skip_fraction(stage) * total, staged.skip_tolerance * total
    left_out = sum(lengths[i] for i, path in enumerate(paths) if path[stage] < 0)
    while abs(left_out - wanted) > slack:
        found: list[tuple[float, int, int]] = []
        """How far off then, sequence, replica."""
        for index, path in enumerate(paths):
            if (path[stage] < 0) == (left_out < wanted):
                continue
            change = lengths[index] if left_out < wanted else -lengths[index]
            options = [-1] if left_out < wanted else staged.of_stage(stage)
            found += [
                (abs(left_out + change - wanted), index, v)
                for v in options
                if pass_exists(lengths[index], _at(path, stage, v), tables)
            ]
        off, index, v = min(found, default=(math.inf, 0, 0))
        if off >= abs(left_out - wanted):
            raise InfeasibleError(
                f"stage_paths.skip_fractions[{stage}]: {staged.skip_fraction(stage):g} cannot "
                f"be met within {staged.skip_tolerance:g} by whole sequences of the batch; "
                f"the nearest is {left_out / total:.4f}: set that, or widen skip_tolerance"
            )
        left_out += lengths[index] if v < 0 else -lengths[index]
        paths[index] = _at(paths[index], stage, v)


def _at(path: _Path, stage: int, replica: int) -> _Path:
    return (*path[:stage], replica, *path[stage + 1 :])


def pass_exists(length: int, path: _Path, tables: Tables) -> bool:
    """Whether some degree holds a sequence all along a path, which has routes."""
    visited = [v for v in path if v >= 0]
    has_routes = all(tables.channel[u, v] >= 0 for u, v in itertools.pairwise(visited))
    return has_routes and any(
        length <= degree * tables.cap[visited].min()
        and bool(np.isfinite(tables.token_s[visited, k]).all())
        for k, degree in enumerate(tables.degrees)
    )


def orders(draft: Draft, wave_of: _Ints, tables: Tables) -> Iterator[_Ints]:
    """Orders worth simulating.

    As the waves come; the last, of small ones, before the others, to fill the stages; slowest
    first.
    """
    yield np.arange(len(wave_of))
    last = wave_of == wave_of.max()
    yield np.concatenate([np.flatnonzero(last), np.flatnonzero(~last)])
    work = tables.work(draft)
    seconds = np.asarray(work.forward_s) + np.asarray(work.backward_s)
    at_stages_s = np.where(draft.path >= 0, seconds.reshape(draft.path.shape), 0.0)
    yield np.argsort(-at_stages_s.sum(axis=1), kind="stable")


class Changes:
    """Small random changes of a draft: order, degrees, paths, which sequence is where."""

    def __init__(
        self, lengths: Sequence[int], tables: Tables, *, numbers: random.Random
    ) -> None:
        self._lengths, self._tables, self._numbers = lengths, tables, numbers
        self._skips = any(tables.staged.skip_fractions)

    def changed(self, draft: Draft) -> Draft | None:
        """A neighbour: one change, now and then several; None: those drawn are impossible."""
        found: Draft | None = None
        while found is None or self._numbers.random() < _ANOTHER_CHANGE:
            changed = self._once(draft if found is None else found)
            if changed is None:
                return found
            found = changed
        return found

    def _once(self, draft: Draft) -> Draft | None:
        kinds = (
            self._moved,
            self._moved,
            self._wider,
            self._split,
            self._merged,
            self._rerouted,
        )
        return self._numbers.choice(kinds)(draft)

    def _moved(self, draft: Draft) -> Draft | None:
        """One micro-batch earlier or later."""
        number = len(draft.degree)
        if number < 2:
            return None
        source, target = self._numbers.randrange(number), self._numbers.randrange(number)
        order = np.delete(np.arange(number), source)
        return draft.ordered(np.insert(order, target, source))

    def _wider(self, draft: Draft) -> Draft | None:
        """Another degree for one micro-batch."""
        at = self._numbers.randrange(len(draft.degree))
        degree = self._numbers.choice(self._tables.degrees)
        if degree == draft.degree[at] or not self._fits(draft, at, degree, draft.path[at]):
            return None
        degrees = draft.degree.copy()
        degrees[at] = degree
        return Draft(
            degree=degrees, path=draft.path, tokens=draft.tokens, squares=draft.squares,
            sequences=draft.sequences,
        )  # fmt: skip

    def _rerouted(self, draft: Draft) -> Draft | None:
        """Another replica at one stage for one micro-batch."""
        at = self._numbers.randrange(len(draft.degree))
        staged = self._tables.staged
        stage = self._numbers.randrange(staged.num_stages)
        others = [v for v in staged.of_stage(stage) if v != draft.path[at, stage]]
        if not others or draft.path[at, stage] < 0:
            return None
        path = draft.path.copy()
        path[at, stage] = self._numbers.choice(others)
        if not self._fits(draft, at, int(draft.degree[at]), path[at]):
            return None
        return Draft(
            degree=draft.degree, path=path, tokens=draft.tokens, squares=draft.squares,
            sequences=draft.sequences,
        )  # fmt: skip

    def _split(self, draft: Draft) -> Draft | None:
        """One micro-batch into two, each every other sequence."""
        at = self._numbers.randrange(len(draft.degree))
        members = draft.sequences[at]
        if len(members) < 2:
            return None
        return self._with(draft, {at: members[::2]}, added=(at, members[1::2]))

    def _merged(self, draft: Draft) -> Draft | None:
        """A sequence, or all, of one micro-batch into another of its path."""
        number = len(draft.degree)
        source, target = self._numbers.randrange(number), self._numbers.randrange(number)
        if source == target or (draft.path[source] != draft.path[target]).any():
            return None
        members = list(draft.sequences[source])
        moving = members
        if self._numbers.random() < 0.5:
            moving = [members.pop(self._numbers.randrange(len(members)))]
        else:
            members = []
        changed = self._with(draft, {source: members, target: draft.sequences[target] + moving})
        kept = target - (not members and source < target)
        degree = int(changed.degree[kept])
        return changed if self._fits(changed, kept, degree, changed.path[kept]) else None

    def _with(
        self,
        draft: Draft,
        members: dict[int, list[int]],
        *,
        added: tuple[int, list[int]] | None = None,
    ) -> Draft:
        """The draft with other sequences in some micro-batches; one with none is left out."""
        sequences = list(draft.sequences)
        for at, inside in members.items():
            sequences[at] = inside
        order = list(range(len(sequences)))
        if added is not None:
            order.insert(self._numbers.randrange(len(order) + 1), added[0])
        rows = [at for at in order if sequences[at]]
        kept = [sequences[at] for at in rows]
        if added is not None:
            kept[len(rows) - 1 - rows[::-1].index(added[0])] = added[1]
        lengths = self._lengths
        return Draft(
            degree=draft.degree[rows],
            path=draft.path[rows],
            tokens=np.array([float(sum(lengths[i] for i in inside)) for inside in kept]),
            squares=np.array([float(sum(lengths[i] ** 2 for i in inside)) for inside in kept]),
            sequences=kept,
        )

    def _fits(self, draft: Draft, at: int, degree: int, path: NDArray[np.int64]) -> bool:
        k = self._tables.degrees.index(degree)
        visited = path[path >= 0]
        cap = self._tables.cap[visited].min()
        routes = self._tables.channel[visited[:-1], visited[1:]]
        return bool(
            draft.tokens[at] <= degree * cap
            and np.isfinite(self._tables.token_s[visited, k]).all()
            and (routes >= 0).all()
        )
