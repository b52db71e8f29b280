"""Micro-batches for a staged layout: packed from the program's shares, ordered, changed."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.planners.staged_program import Solution
from trimtab.planners.staged_schedule import Draft, Tables, draft_of

_Path = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mould:
    """How large a plan's micro-batches are, as parts of the program's step time."""

    longest: float
    """A sequence gets the least degree at which no stage takes longer for it."""
    fullest: float
    """Sequences are packed together up to this, at any stage."""
    fine: float = 0.0
    """The last sequences of a class, with so much of its work, are packed a quarter as full: small
    micro-batches fill and drain the stages."""
    memory: float = 0.25
    """Part of the tokens that ranks may hold for one micro-batch of several sequences."""


class Packer:
    """Packs one batch, by the shares of one solution."""

    def __init__(
        self, lengths: Sequence[int], tables: Tables, *, solution: Solution, step_s: float
    ) -> None:
        self._lengths, self._tables, self._step_s = lengths, tables, step_s
        self._paths = _dealt(solution, lengths)
        """Path of every sequence."""
        self._degrees: dict[tuple[int, _Path, float], int] = {}

    def draft(self, mould: Mould) -> Draft:
        """Micro-batches of one mould, in no order."""
        classes: dict[tuple[int, _Path], list[int]] = defaultdict(list)
        for index in sorted(range(len(self._lengths)), key=lambda i: (-self._lengths[i], i)):
            path = self._paths[index]
            classes[self._degree(self._lengths[index], path, mould.longest), path].append(index)
        groups: list[tuple[int, _Path, list[int]]] = []
        for (degree, path), members in classes.items():
            groups += [(degree, path, group) for group in self._packed(degree, path, members, mould)]
        return draft_of(groups, self._lengths)

    def _degree(self, length: int, path: _Path, longest: float) -> int:
        """The least degree at which no stage takes over `longest` of the step; else the best."""
        key = (length, path, longest)
        if key not in self._degrees:
            passes = pass_times(length, path, self._tables)
            fast = [d for d, pass_s in passes if pass_s <= longest * self._step_s]
            self._degrees[key] = fast[0] if fast else min(passes, key=lambda one: one[1])[0]
        return self._degrees[key]

    def _packed(
        self, degree: int, path: _Path, members: Sequence[int], mould: Mould
    ) -> list[list[int]]:
        """First fit, longest first, by time at the slowest stage and by tokens."""
        tables = self._tables
        visited = [v for v in path if v >= 0]
        k = tables.degrees.index(degree)
        size = self._lengths[members[0]]
        slow = max(
            visited, key=lambda v: tables.quadratic_s[v] * size + tables.token_s[v, k]
        )
        quadratic_s, token_s = float(tables.quadratic_s[slow]), float(tables.token_s[slow, k])
        room = degree * min(float(tables.cap[v]) for v in visited)
        most_s = mould.fullest * self._step_s - float(tables.fixed_s[slow])
        works = [(quadratic_s * self._lengths[i] + token_s) * self._lengths[i] for i in members]
        fine_work, done = (1 - mould.fine) * sum(works), 0.0
        packed: list[list[int]] = []
        left: list[tuple[float, float]] = []
        first = 0
        for index, work in zip(members, works, strict=True):
            length = self._lengths[index]
            work_s = work / degree
            if done <= fine_work < done + work and mould.fine:
                most_s, first = most_s / 4, len(packed)
            done += work
            for at in range(first, len(packed)):
                tokens, seconds = left[at]
                if tokens >= length and seconds >= work_s:
                    packed[at].append(index)
                    left[at] = (tokens - length, seconds - work_s)
                    break
            else:
                packed.append([index])
                left.append((mould.memory * room - length, most_s - work_s))
            while first < len(packed) and min(left[first]) <= 0:
                first += 1
        return packed


def pass_times(length: int, path: _Path, tables: Tables) -> list[tuple[int, float]]:
    """Degrees that hold a sequence everywhere on a path, ascending, with its slowest stage's
    time, alone."""
    times = []
    for k, degree in enumerate(tables.degrees):
        pass_s = 0.0
        for v in path:
            if v < 0:
                continue
            if length > degree * tables.cap[v]:
                pass_s = np.inf
            work = (tables.quadratic_s[v] * length + tables.token_s[v, k]) * length
            pass_s = max(pass_s, float(tables.fixed_s[v] + work / degree))
        if np.isfinite(pass_s):
            times.append((degree, pass_s))
    return times


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


def lead_orders(
    draft: Draft, tables: Tables, *, leads: Sequence[float]
) -> Iterator[NDArray[np.int64]]:
    """Orders of a draft: slowest first, but small ones that do a part of the work before."""
    work = tables.work(draft)
    seconds = np.asarray(work.forward_s) + np.asarray(work.backward_s)
    latency_s = np.where(draft.path >= 0, seconds.reshape(draft.path.shape), 0.0).sum(axis=1)
    slowest_first = np.argsort(-latency_s, kind="stable")
    area = np.cumsum((latency_s * draft.degree)[slowest_first[::-1]])
    for lead in leads:
        number = int(np.searchsorted(area, lead * area[-1])) if lead else 0
        rest = slowest_first[: len(slowest_first) - number]
        yield np.concatenate([slowest_first[::-1][:number], rest])


class Changes:
    """Small random changes of a draft: its order, degrees, paths and which sequence is where."""

    def __init__(
        self, lengths: Sequence[int], tables: Tables, *, numbers: random.Random
    ) -> None:
        self._lengths, self._tables, self._numbers = lengths, tables, numbers
        self._skips = any(tables.staged.skip_fractions)

    def changed(self, draft: Draft) -> Draft | None:
        """A neighbour; None: the change that was drawn is not possible."""
        kinds = (self._moved, self._moved, self._wider, self._split, self._merged, self._rerouted)
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
        """A sequence, or all, of one micro-batch into another of its degree and path."""
        number = len(draft.degree)
        source, target = self._numbers.randrange(number), self._numbers.randrange(number)
        if source == target or draft.degree[source] != draft.degree[target]:
            return None
        if (draft.path[source] != draft.path[target]).any():
            return None
        members = list(draft.sequences[source])
        moving = members
        if self._numbers.random() < 0.5:
            moving = [members.pop(self._numbers.randrange(len(members)))]
        else:
            members = []
        changed = self._with(
            draft, {source: members, target: draft.sequences[target] + moving}
        )
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
