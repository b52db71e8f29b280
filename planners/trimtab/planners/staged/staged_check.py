"""Whether a step on a staged layout is one: looked at anew, from its values alone."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

from trimtab.core.staged import MicroBatch, StagedLayout
from trimtab.planners.staged.staged_schedule import Tables, pass_s

_SLACK = 1e-6
"""Relative tolerance of times and of tokens held."""


def checked_step_s(
    micro_batches: Sequence[MicroBatch], lengths: Sequence[int], *, staged: StagedLayout
) -> float:
    """The time of a step, after every rule of `staged_schedule.simulate` was found kept.

    Every sequence is in one micro-batch, every path begins at the first stage and ends at the
    last and leaves out only what may be left out, about as often as it should; blocks lie
    within their replica, at a multiple of their degree; no rank does two things at once or
    holds too many tokens; and nothing begins before its message is there, messages queueing for
    their channel.

    Raises:
        AssertionError: A rule is broken, which is our bug; says which.
    """
    tables = Tables(staged)
    placed = sorted(index for one in micro_batches for index in one.sequences)
    _require(placed == list(range(len(lengths))), "every sequence once")
    _check_paths(micro_batches, lengths, staged=staged)
    busy: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    held: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    messages: dict[int, list[tuple[float, float, float, float]]] = defaultdict(list)
    end_s = [0.0] * staged.num_stages
    for one in micro_batches:
        members = [lengths[index] for index in one.sequences]
        ready_s = 0.0
        spans = []
        for visit in one.visits:
            whole_s = pass_s(members, one.degree, replica=visit.replica, tables=tables)
            forward_s = staged.forward_fraction * whole_s
            spans.append((visit.forward_start_s, visit.forward_start_s + forward_s))
            spans.append((visit.backward_start_s, visit.backward_start_s + whole_s - forward_s))
            stage = staged.replicas[visit.replica].stage
            end_s[stage] = max(end_s[stage], spans[-1][1])
            for rank in range(visit.first_rank, visit.first_rank + one.degree):
                busy[visit.replica, rank] += spans[-2:]
                share = sum(members) / one.degree
                held[visit.replica, rank] += [
                    (spans[-2][0], share),
                    (spans[-1][1] * (1 - _SLACK), -share),
                ]
        order = [*spans[::2], *spans[::-2]]
        replicas = [visit.replica for visit in one.visits]
        replicas += replicas[::-1]
        num_bytes = staged.token_bytes * sum(members)
        for at, (start_s, done_s) in enumerate(order):
            _require(start_s >= ready_s * (1 - _SLACK), "in order")
            ready_s = done_s
            if at + 1 < len(order) and replicas[at] != replicas[at + 1]:
                hop = (replicas[at], replicas[at + 1])
                channel = int(tables.channel[hop])
                keeps_s = num_bytes / staged.channels[channel].bytes_per_s
                rate = min(
                    staged.channels[channel].bytes_per_s,
                    one.degree * float(tables.rank_bytes_per_s[hop]),
                )
                away_s = float(tables.latency_s[hop]) + num_bytes / rate
                messages[channel].append((done_s, keeps_s, away_s, order[at + 1][0]))
    _check_ranks(busy, held, staged=staged)
    _check_channels(messages)
    return max(end + closing for end, closing in zip(end_s, staged.closing_s, strict=True))


def _check_paths(
    micro_batches: Sequence[MicroBatch], lengths: Sequence[int], *, staged: StagedLayout
) -> None:
    total = sum(lengths)
    visited_tokens: Counter[int] = Counter()
    for one in micro_batches:
        stages = [staged.replicas[visit.replica].stage for visit in one.visits]
        _require(stages == sorted(set(stages)), "stages in their order")
        _require(stages[0] == 0 and stages[-1] == staged.num_stages - 1, "first and last stage")
        for stage in stages:
            visited_tokens[stage] += sum(lengths[index] for index in one.sequences)
        for visit in one.visits:
            replica = staged.replicas[visit.replica]
            degrees = [cost.degree for cost in replica.degree_costs]
            _require(one.degree in degrees, "a degree of the replica")
            _require(visit.first_rank % one.degree == 0, "an aligned block")
            _require(visit.first_rank + one.degree <= replica.num_ranks, "ranks of the replica")
    for stage in range(staged.num_stages):
        skipped = 1 - visited_tokens[stage] / total
        share = staged.skip_fraction(stage)
        allowed = staged.skip_tolerance * (1 + _SLACK) if share else _SLACK
        _require(
            abs(skipped - share) <= allowed, f"stage {stage} left out as often as it should"
        )


def _check_ranks(
    busy: dict[tuple[int, int], list[tuple[float, float]]],
    held: dict[tuple[int, int], list[tuple[float, float]]],
    *,
    staged: StagedLayout,
) -> None:
    for spans in busy.values():
        spans.sort()
        for (_, end_s), (start_s, _) in itertools.pairwise(spans):
            _require(start_s >= end_s * (1 - _SLACK), "one thing at a time on a rank")
    for (replica, _), changes in held.items():
        tokens = 0.0
        cap = staged.replicas[replica].token_cap * (1 + _SLACK)
        for _, change in sorted(changes):  # at a tie, what is freed comes first
            tokens += change
            _require(tokens <= cap, "tokens within the memory of a rank")


def _check_channels(
    messages: dict[int, list[tuple[float, float, float, float]]],
) -> None:
    """Each of (ready, keeps the channel, under way, used at), first come first served."""
    for queue in messages.values():
        free_s = last_s = 0.0
        alike: list[list[tuple[float, float, float, float]]] = []
        for message in sorted(queue):
            if not alike or message[0] > last_s * (1 + _SLACK):
                alike.append([])
            alike[-1].append(message)
            last_s = message[0]
        for together in alike:  # ready at once: any order will do
            for ready_s, keeps_s, away_s, used_s in sorted(together, key=lambda one: one[3]):
                sent_s = max(free_s, ready_s)
                free_s = sent_s + keeps_s
                is_there = used_s >= (sent_s + away_s) * (1 - _SLACK)
                _require(is_there, "a message before it is used")


def _require(holds: bool, rule: str) -> None:
    assert holds, f"the plan breaks a rule: {rule}"
