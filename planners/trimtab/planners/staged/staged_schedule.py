"""The execution model of a step on a staged layout: simulated exactly, and checked.

A *draft* is a plan without times: micro-batches in the order of their priority, each with a
degree, its sequences, and a replica for every stage that it visits. `simulate` runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core.staged import MicroBatch, StagedLayout, StageVisit
from trimtab.planners.compiled import IS_COMPILED, Floats, Ints, zero_floats, zero_ints
from trimtab.planners.staged import staged_kernels

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

_SLACK = 1e-9
"""Relative tolerance of sums and times in `check_schedule`."""


@dataclass(slots=True)
class Draft:
    """Micro-batches in the order of their priority; M of them, S stages."""

    degree: _Ints
    """Shape [M]."""
    path: _Ints
    """Replica at every stage, -1 where it is left out; shape [M, S]."""
    tokens: _Floats
    squares: _Floats
    sequences: list[list[int]]

    def ordered(self, order: _Ints) -> "Draft":
        """The same micro-batches, taken in another order."""
        return Draft(
            degree=self.degree[order],
            path=self.path[order],
            tokens=self.tokens[order],
            squares=self.squares[order],
            sequences=[self.sequences[i] for i in order],
        )


def draft_of(
    groups: Sequence[tuple[int, Sequence[int], Sequence[int]]], lengths: Sequence[int]
) -> Draft:
    """A draft of (degree, path, sequences) in the order given."""
    tokens = [float(sum(lengths[i] for i in members)) for _, _, members in groups]
    squares = [float(sum(lengths[i] ** 2 for i in members)) for _, _, members in groups]
    return Draft(
        degree=np.array([degree for degree, _, _ in groups], dtype=np.int64),
        path=np.array([list(path) for _, path, _ in groups], dtype=np.int64),
        tokens=np.array(tokens),
        squares=np.array(squares),
        sequences=[list(members) for _, _, members in groups],
    )


class Tables:
    """A staged layout as arrays: V replicas, S stages, D degrees of any of them."""

    def __init__(self, staged: StagedLayout) -> None:
        self.staged = staged
        replicas = staged.replicas
        self.degrees = sorted({c.degree for replica in replicas for c in replica.degree_costs})
        self.index_of_degree = np.full(max(self.degrees) + 1, -1)
        self.index_of_degree[self.degrees] = np.arange(len(self.degrees))
        self.quadratic_s = np.array([replica.quadratic_s for replica in replicas])
        self.fixed_s = np.array([replica.fixed_s for replica in replicas])
        self.cap = np.array([float(replica.token_cap) for replica in replicas])
        self.num_ranks = np.array([replica.num_ranks for replica in replicas])
        self.token_s = np.full((len(replicas), len(self.degrees)), np.inf)
        """Infinite where a replica has no such degree."""
        for v, replica in enumerate(replicas):
            for cost in replica.degree_costs:
                self.token_s[v, self.degrees.index(cost.degree)] = cost.token_s
        shape = (len(replicas), len(replicas))
        self.channel = np.full(shape, -1)
        self.latency_s, self.rank_bytes_per_s = np.zeros(shape), np.full(shape, np.nan)
        for route in staged.routes:
            at = route.source, route.target
            self.channel[at], self.latency_s[at] = route.channel, route.latency_s
            self.rank_bytes_per_s[at] = route.rank_bytes_per_s
        self.bytes_per_s = np.array([channel.bytes_per_s for channel in staged.channels])
        last = staged.num_stages - 1
        self.is_not_last = np.array([replica.stage != last for replica in replicas], dtype=int)
        self.first_rank = np.concatenate([[0], np.cumsum(self.num_ranks)])

    def away_s(
        self, source: _Ints, target: _Ints, num_bytes: _Floats, degree: _Ints
    ) -> _Floats:
        """How long messages of groups are under way, once their channel is theirs."""
        rate = np.minimum(
            self.bytes_per_s[self.channel[source, target]],
            degree * self.rank_bytes_per_s[source, target],
        )
        away_s: _Floats = self.latency_s[source, target] + num_bytes / rate
        return away_s

    def work(self, draft: Draft) -> staged_kernels.Work:
        """What the kernel reads."""
        num_stages = self.staged.num_stages
        path, degree = draft.path, draft.degree[:, None]
        visited = path >= 0
        at = np.where(visited, path, 0)
        token_s = self.token_s[at, self.index_of_degree[draft.degree][:, None]]
        busy_s = draft.squares[:, None] * self.quadratic_s[at] + draft.tokens[:, None] * token_s
        pass_s = self.fixed_s[at] + busy_s / degree
        forward_s = self.staged.forward_fraction * pass_s
        following = _next_visited(visited)
        before = num_stages - 1 - _next_visited(visited[:, ::-1])[:, ::-1]
        before[before == num_stages] = -1
        num_bytes = (self.staged.token_bytes * draft.tokens)[:, None] + np.zeros(path.shape)
        degrees = degree + np.zeros(path.shape, dtype=np.int64)

        def hops(stage: _Ints) -> tuple[_Ints, _Floats, _Floats]:
            """Channel, and seconds of it and until there, of the way to another stage."""
            goes = visited & (stage >= 0)
            target = np.take_along_axis(at, np.where(goes, stage, 0), axis=1)
            channel = np.where(goes, self.channel[at, target], -1)
            keep_s, away_s = np.zeros(path.shape), np.zeros(path.shape)
            keep_s[goes] = num_bytes[goes] / self.bytes_per_s[channel[goes]]
            away_s[goes] = self.away_s(at[goes], target[goes], num_bytes[goes], degrees[goes])
            return channel, keep_s, away_s

        forward, backward = hops(following), hops(before)
        flat = path.ravel()
        by_replica = np.argsort(flat, kind="stable")
        by_replica = by_replica[np.searchsorted(flat[by_replica], 0) :]
        counts = np.bincount(flat[by_replica], minlength=len(self.cap))
        return staged_kernels.Work(
            num_stages=num_stages,
            degree=_ints(draft.degree),
            held=_floats(draft.tokens / draft.degree),
            replica=_ints(flat),
            forward_s=_floats(forward_s),
            backward_s=_floats(pass_s - forward_s),
            next_stage=_ints(following),
            previous_stage=_ints(before),
            forward_channel=_ints(forward[0]),
            forward_keep_s=_floats(forward[1]),
            forward_away_s=_floats(forward[2]),
            backward_channel=_ints(backward[0]),
            backward_keep_s=_floats(backward[1]),
            backward_away_s=_floats(backward[2]),
            first_visitor=_ints(np.concatenate([[0], np.cumsum(counts)])),
            visitors=_ints(by_replica // num_stages),
            first_rank=_ints(self.first_rank),
            cap=_floats(self.cap),
            forward_first=_ints(self.is_not_last),
        )


def simulate(draft: Draft, tables: Tables) -> tuple[float, staged_kernels.Times]:
    """The step of a draft: its seconds (infinite: a micro-batch fits no memory), and when.

    1. A rank does one thing at a time, a whole forward or backward pass of a micro-batch at its
       stage, on a block of as many ranks as the degree, which begins at a multiple of it.
    2. A forward takes any block whose ranks are idle and have memory for it, of those the one
       that holds least; its tokens are held until the end of its backward, on the same block.
    3. What has arrived starts as soon as it may. Forwards come before backwards, so that later
       stages have work, until memory is full; at the last stage backwards come first. Among
       equals the order of the draft decides. An operation of several ranks that waits keeps a
       block from the time on when all its ranks will be idle: only what ends before may still
       start there. That is said of every backward, and of the first forward, which takes the
       block with memory that is idle first; one without memory keeps none and stops no other.
    4. Messages queue for their channel in the order they are ready in (`core.staged.Route`).
       Computing and sending do not disturb each other.
    5. After the last backward of a stage, in whichever replica, comes its `closing_s`; the step
       ends with the last of these.
    """
    work = tables.work(draft)
    num_visits, num_ranks = len(work.replica), int(tables.first_rank[-1])
    num_replicas, num_stages = len(tables.cap), tables.staged.num_stages
    times = staged_kernels.Times(
        forward_start_s=zero_floats(num_visits), backward_start_s=zero_floats(num_visits),
        block=zero_ints(num_visits), sent_forward_s=zero_floats(num_visits),
        sent_backward_s=zero_floats(num_visits),
    )  # fmt: skip
    state = staged_kernels.State(
        free_s=zero_floats(num_ranks), held=zero_floats(num_ranks),
        kept_s=zero_floats(num_ranks), channel_free_s=zero_floats(len(tables.bytes_per_s) + 1),
        forward=zero_ints(num_visits), backward=zero_ints(num_visits),
        num_ready=zero_ints(2 * num_replicas), head=zero_ints(num_replicas),
        dirty=zero_ints(num_replicas), heap_s=zero_floats(4 * num_visits + 1),
        heap_code=zero_ints(4 * num_visits + 1),
    )  # fmt: skip
    end_s = zero_floats(num_stages)
    if staged_kernels.run(work, times, state, end_s):
        return float("inf"), times
    closing_s = tables.staged.closing_s
    return max(float(end) + s for end, s in zip(end_s, closing_s, strict=True)), times


def pass_s(lengths: Sequence[int], degree: int, *, replica: int, tables: Tables) -> float:
    """Forward and backward of a micro-batch at a replica."""
    k = int(tables.index_of_degree[degree])
    squares = sum(length * length for length in lengths)
    work = tables.quadratic_s[replica] * squares + tables.token_s[replica, k] * sum(lengths)
    return float(tables.fixed_s[replica] + work / degree)


def micro_batches(draft: Draft, times: staged_kernels.Times) -> tuple[MicroBatch, ...]:
    """A simulated draft as values."""
    num_stages = draft.path.shape[1]
    return tuple(
        MicroBatch(
            degree=int(draft.degree[m]),
            sequences=tuple(draft.sequences[m]),
            visits=tuple(
                StageVisit(
                    replica=int(draft.path[m, s]),
                    first_rank=int(times.block[m * num_stages + s]),
                    forward_start_s=float(times.forward_start_s[m * num_stages + s]),
                    backward_start_s=float(times.backward_start_s[m * num_stages + s]),
                )
                for s in range(num_stages)
                if draft.path[m, s] >= 0
            ),
        )
        for m in range(len(draft.degree))
    )


def _next_visited(visited: NDArray[np.bool_]) -> _Ints:
    """Of every micro-batch and stage the next stage that it visits, -1: none; shape [M, S]."""
    following = np.full(visited.shape, -1)
    for stage in range(visited.shape[1] - 2, -1, -1):
        following[:, stage] = np.where(
            visited[:, stage + 1], stage + 1, following[:, stage + 1]
        )
    return following


def _floats(values: _Floats) -> Floats:
    flat = np.ascontiguousarray(values, dtype=np.float64).ravel()
    return flat if IS_COMPILED else flat.tolist()  # type: ignore[return-value]


def _ints(values: _Ints) -> Ints:
    flat = np.ascontiguousarray(values, dtype=np.int64).ravel()
    return flat if IS_COMPILED else flat.tolist()  # type: ignore[return-value]
