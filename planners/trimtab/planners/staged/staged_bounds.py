"""What prices prove about a step on a staged layout: re-priced from them and lengths alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.staged import StagedLayout, StagedPrices
from trimtab.planners.staged.staged_schedule import Tables

_Floats = NDArray[np.float64]

_ROUNDING = 1e-9
"""Relative error that sums of doubles may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """For every length the cheapest degree and path; shapes [n]."""

    cost: _Floats
    degree: NDArray[np.int64]
    path: NDArray[np.int64]
    """Replica at every stage, -1 where it is left out; shape [n, S]."""


def priced_bound_s(
    prices: StagedPrices, lengths: Sequence[int], *, staged: StagedLayout
) -> float:
    """What `prices` prove: no plan of `lengths` on `staged` is shorter. In seconds.

    Take any plan that `staged_schedule.simulate` could run, of T seconds. Let a micro-batch of
    degree d with sequences s visit replica v: it takes d of its ranks for
    fixed_v + sum (quadratic_v s^2 + token_v(d) s) / d, and holds sum s <= d cap_v tokens. So
    with  w_v(s, d) = quadratic_v s^2 + token_v(d) s + fixed_v s / cap_v  rank-seconds for each
    of its sequences at least that is taken.

    1. Replica v (|v| ranks) does nothing before a first micro-batch can be there, `head_v`, nor
       after its last backward while that goes back to the first stage, and each stage's
       `closing_s` follows its last backward. With `tail_v` the longer of v's own closing and of
       that way and the first stage's closing:  sum w_v <= |v| (T - head_v - tail_v).
       Head and tail are the least over all degrees, paths and lengths, of one short sequence,
       and their sum the least of the replicas of its stage, so that the row also holds of a
       replica that nothing visits: some other of its stage is visited.
    2. Channel e carries q_e bytes, messages one at a time, none before some forward has ended
       and none so late that what follows it does not end in time: q_e <= B_e (T - head - tail),
       which together are no more than a whole path takes, so that it holds unused, too.
    3. The longest sequence takes at least its latency alone on some path, with nothing in its
       way, and the first stage closes after it: latency + closing_0 <= T.
    4. A rank of stage k holds at most cap_v tokens at a time, and a micro-batch's tokens / d on
       each of its ranks from its forward there to the end of its backward: as long as its
       passes there and at later stages and the messages between them take, `hold_k`, at least
       as long as each of its sequences alone. Summed over the stage's replicas, of tokens s:
       sum s hold_k(s, d) <= sum_v |v| cap_v (T - head - tail). Of stages nobody leaves out.
    5. Stage k is left out by tokens U_k: (f_k - tolerance) W <= U_k <= (f_k + tolerance) W
       where f_k is the skip fraction and W all tokens; where f_k = 0 it never is.

    Multiply the rows by prices >= 0 (p_v, m_e, l, h_k, and a_k, b_k for the most and the fewest
    of 5) and add them up. Each sequence then pays, on its path, at least
    c(s) = min over d and paths of sum p_v w_v + sum m_e q_e + sum_k h_k s hold_k + sum over
    stages left out (a_k - b_k) s; the longest one also l x latency. With R_v = p_v |v| +
    h_k |v| cap_v for v of stage k, and Z = sum R_v + sum m_e B_e + l:

        T Z >= sum c(s) + sum R_v (head_v + tail_v) + sum m_e B_e (head_e + tail_e)
               + l closing_0
               + sum_k [b_k (f_k - tolerance) - a_k (f_k + tolerance)] W

    That is weak linear-programming duality: it holds for any prices, whichever program they
    come from. As costs add up over the stages, the minimum over all paths is a shortest path,
    found exactly here, at every true length and every degree that holds it.

    Raises:
        InputError: A price is missing or there is none, or a length is not >= 1.
        InfeasibleError: A sequence fits no degree on any path.
    """
    _check(prices, staged)
    tables = Tables(staged)
    check_lengths(lengths, tables)
    sizes, counts = np.unique(np.asarray(lengths, dtype=np.float64), return_counts=True)
    total = float(sizes @ counts)
    least = cheapest(prices, sizes, tables=tables)
    longest_s = prices.longest * staged.closing_s[0]
    counts[-1] -= 1
    longest_s += float(cheapest(prices, sizes[-1:], tables=tables, is_longest=True).cost[0])
    held = np.array(prices.held)[[replica.stage for replica in staged.replicas]]
    ranks = tables.num_ranks * (np.array(prices.replicas) + held * tables.cap)
    channels = tables.bytes_per_s * np.array(prices.channels)
    scale = float(ranks.sum()) + float(channels.sum())
    scale += prices.longest
    if scale <= 0:
        raise InputError("prices: expected one above 0, every replica and channel has none")
    ends = Ends(float(sizes[0]), tables)
    proven = float(least.cost @ counts) + longest_s
    proven += float(ranks @ ends.replica_s) + float(channels @ ends.channel_s)
    for stage in range(staged.num_stages):
        share, slack = staged.skip_fraction(stage), staged.skip_tolerance
        if share:
            proven += prices.skipped_less[stage] * (share - slack) * total
            proven -= prices.skipped_more[stage] * (share + slack) * total
    return max(0.0, proven / scale * (1 - _ROUNDING))


def cheapest(
    prices: StagedPrices, sizes: _Floats, *, tables: Tables, is_longest: bool = False
) -> Least:
    """The least that a sequence of each size could pay, by a shortest path for each degree.

    Args:
        prices: The prices.
        sizes: Tokens; shape [n].
        tables: The layout.
        is_longest: Whether `prices.longest` is paid for the latency, too.
    """
    staged = tables.staged
    num_replicas, num_stages = len(staged.replicas), staged.num_stages
    best = np.full(len(sizes), np.inf)
    degrees = np.zeros(len(sizes), dtype=np.int64)
    paths = np.full((len(sizes), num_stages), -1)
    waiting = np.outer(np.cumsum(prices.held), sizes)
    waiting += prices.longest if is_longest else 0.0
    for k, degree in enumerate(tables.degrees):
        reached = np.full((num_replicas, len(sizes)), np.inf)
        before = np.full((num_replicas, len(sizes)), -1)
        for v, replica in enumerate(staged.replicas):
            here = _at_replica(
                prices, sizes, tables, v=v, k=k, second_price=waiting[replica.stage]
            )
            if replica.stage == 0:
                reached[v] = here
                continue
            for u in range(num_replicas):
                stage = staged.replicas[u].stage
                if stage >= replica.stage or tables.channel[u, v] < 0:
                    continue
                way = reached[u] + _way(
                    prices, sizes, tables, u=u, v=v, degree=degree,
                    second_price=waiting[stage],
                )  # fmt: skip
                shorter = way < reached[v]
                reached[v] = np.where(shorter, way, reached[v])
                before[v] = np.where(shorter, u, before[v])
            reached[v] += here
        ends = staged.of_stage(num_stages - 1)
        last = np.array(ends)[reached[list(ends)].argmin(axis=0)]
        cost = reached[last, np.arange(len(sizes))]
        better = cost < best
        best, degrees = np.where(better, cost, best), np.where(better, degree, degrees)
        _trace(paths, before, np.where(better, last, -1), tables)
    return Least(cost=best, degree=degrees, path=paths)


def _trace(
    paths: NDArray[np.int64], before: NDArray[np.int64], at: NDArray[np.int64], tables: Tables
) -> None:
    """Write the paths that end `at` a replica; -1: leave it as it is."""
    stage_of = np.array([replica.stage for replica in tables.staged.replicas])
    rows = np.flatnonzero(at >= 0)
    paths[rows] = -1
    while len(rows):
        paths[rows, stage_of[at[rows]]] = at[rows]
        at = at.copy()
        at[rows] = before[at[rows], rows]
        rows = rows[at[rows] >= 0]


def _at_replica(
    prices: StagedPrices,
    sizes: _Floats,
    tables: Tables,
    *,
    v: int,
    k: int,
    second_price: _Floats,
) -> _Floats:
    """What a sequence of each size pays a replica at a degree; infinite where it cannot be."""
    degree = tables.degrees[k]
    if not np.isfinite(tables.token_s[v, k]):
        return np.full(len(sizes), np.inf)
    work = (tables.quadratic_s[v] * sizes + tables.token_s[v, k]) * sizes
    fits = sizes <= degree * tables.cap[v]
    paid = prices.replicas[v] * (work + tables.fixed_s[v] * sizes / tables.cap[v])
    paid = paid + second_price * (tables.fixed_s[v] + work / degree)
    return np.asarray(np.where(fits, paid, np.inf))


def _way(
    prices: StagedPrices,
    sizes: _Floats,
    tables: Tables,
    *,
    u: int,
    v: int,
    degree: int,
    second_price: _Floats,
) -> _Floats:
    """What it pays from replica `u` to `v` and back, and for the stages left out between."""
    staged = tables.staged
    there, back = tables.channel[u, v], tables.channel[v, u]
    num_bytes = staged.token_bytes * sizes
    paid: _Floats = (prices.channels[there] + prices.channels[back]) * num_bytes
    if second_price.any():
        for source, target in ((u, v), (v, u)):
            away_s = tables.away_s(
                np.array(source), np.array(target), num_bytes, np.array(degree)
            )
            paid += second_price * away_s
    for stage in range(staged.replicas[u].stage + 1, staged.replicas[v].stage):
        if not staged.skip_fraction(stage):
            return np.full(len(sizes), np.inf)
        paid += (prices.skipped_more[stage] - prices.skipped_less[stage]) * sizes
    return paid


class Ends:
    """How long replicas and channels do nothing at both ends of a step, at least.

    All by the way of one sequence of the shortest length over the other stages, at its fastest
    degree of each replica and by the fastest of messages, whether or not one path could have
    them all.

    Attributes:
        replica_s: Head and tail together of each replica, as `priced_bound_s` says; shape [V].
        channel_s: The same of each channel; shape [E].
    """

    def __init__(self, shortest: float, tables: Tables) -> None:
        self._tables, self._staged = tables, tables.staged
        staged, share = tables.staged, tables.staged.forward_fraction
        self._num_bytes = staged.token_bytes * shortest
        busy = tables.quadratic_s[:, None] * shortest**2 + tables.token_s * shortest
        self._pass_s = tables.fixed_s + (busy / np.array(tables.degrees)).min(axis=1)
        self._forward = np.full(len(staged.replicas), np.inf)
        self._backward = np.full(len(staged.replicas), np.inf)
        for v, replica in enumerate(staged.replicas):
            if replica.stage == 0:
                self._forward[v] = self._backward[v] = 0.0
            for u in self._before(v):
                there = self._forward[u] + share * self._pass_s[u] + self._away_s(u, v)
                back = self._backward[u] + (1 - share) * self._pass_s[u] + self._away_s(v, u)
                self._forward[v] = min(self._forward[v], there)
                self._backward[v] = min(self._backward[v], back)
        stages = [replica.stage for replica in staged.replicas]
        closing_s = np.array(staged.closing_s)[stages]
        self._tail_s = np.maximum(closing_s, self._backward + staged.closing_s[0])
        idle_s = self._forward + self._tail_s
        least_s = [idle_s[list(staged.of_stage(k))].min() for k in range(staged.num_stages)]
        self.replica_s: _Floats = np.array(least_s)[stages]
        self.channel_s: _Floats = self._channels()

    def _before(self, v: int) -> list[int]:
        """Replicas from which a path may come to `v` at once."""
        staged, stage = self._staged, self._staged.replicas[v].stage
        return [
            u
            for u, replica in enumerate(staged.replicas)
            if replica.stage < stage
            and all(staged.skip_fraction(k) for k in range(replica.stage + 1, stage))
            and self._tables.channel[u, v] >= 0
        ]

    def _away_s(self, source: int, target: int) -> float:
        way = (source, target)
        bytes_per_s = self._tables.bytes_per_s[self._tables.channel[way]]
        return float(self._tables.latency_s[way] + self._num_bytes / bytes_per_s)

    def _channels(self) -> _Floats:
        """Before the first message and after the last, of all that may use the channel.

        At most what the fastest micro-batch of any path takes in all, so that it also holds of
        a channel that is not used.
        """
        staged, share = self._staged, self._staged.forward_fraction
        last = list(staged.of_stage(staged.num_stages - 1))
        whole_s = (self._forward + self._pass_s + self._tail_s)[last].min()
        heads = np.full(len(staged.channels), np.inf)
        tails = np.full(len(staged.channels), np.inf)
        for route in staged.routes:
            u, v, e = route.source, route.target, route.channel
            is_forward = staged.replicas[u].stage < staged.replicas[v].stage
            head = self._forward[u] + (share if is_forward else 1.0) * self._pass_s[u]
            rest = (1.0 if is_forward else 1 - share) * self._pass_s[v] + self._tail_s[v]
            heads[e] = min(heads[e], head)
            tails[e] = min(tails[e], route.latency_s + rest)
        return np.asarray(np.minimum(heads + tails, whole_s))


def check_lengths(lengths: Sequence[int], tables: Tables) -> None:
    """Raise unless every sequence is at least one token and fits a degree on some path.

    Raises:
        InputError: The batch is empty, or a length is no whole number >= 1.
        InfeasibleError: A sequence is too long for the memory of every path.
    """
    if len(lengths) == 0:
        raise InputError("lengths: expected at least one sequence, the batch is empty")
    for index, length in enumerate(lengths):
        checks.whole_number(f"lengths[{index}]", length)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    staged = tables.staged
    nothing = StagedPrices(
        replicas=(0.0,) * len(staged.replicas), channels=(0.0,) * len(staged.channels),
        longest=0.0, held=(0.0,) * staged.num_stages,
        skipped_more=(0.0,) * staged.num_stages, skipped_less=(0.0,) * staged.num_stages,
    )  # fmt: skip
    if np.isfinite(cheapest(nothing, np.array([float(lengths[longest])]), tables=tables).cost):
        return
    held = [
        max(
            degree * replica.token_cap
            for replica in (staged.replicas[v] for v in staged.of_stage(stage))
            for degree in (cost.degree for cost in replica.degree_costs)
        )
        for stage in range(staged.num_stages)
    ]
    raise InfeasibleError(
        f"lengths[{longest}]: a sequence of {lengths[longest]} tokens fits in no group that "
        f"goes through all stages: the stages hold {held} tokens at the largest degree; use "
        "more nodes, stages or tp, or drop the sequence"
    )


def _check(prices: StagedPrices, staged: StagedLayout) -> None:
    for field, number in (
        ("replicas", len(staged.replicas)),
        ("channels", len(staged.channels)),
        ("skipped_more", staged.num_stages),
        ("skipped_less", staged.num_stages),
        ("held", staged.num_stages),
    ):
        if len(getattr(prices, field)) != number:
            raise InputError(
                f"prices.{field}: expected {number} numbers, one for each of the layout's, got "
                f"{len(getattr(prices, field))}"
            )
    for stage, price in enumerate(prices.held):
        if price and staged.skip_fraction(stage):
            raise InputError(
                f"prices.held[{stage}]: expected 0, as some tokens leave out the stage, got "
                f"{price:g}"
            )
