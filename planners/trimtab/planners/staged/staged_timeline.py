"""A step over uneven stages as spans of time, to be drawn."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from trimtab.core.staged import MicroBatch, StagedLayout
from trimtab.core.timeline import LaneTimeline, Span, SpanKind
from trimtab.core.units import counted
from trimtab.planners.staged.staged_schedule import Tables, pass_s

_SHORTEST_S = 1e-9


def staged_timeline(
    micro_batches: Sequence[MicroBatch], lengths: Sequence[int], *, staged: StagedLayout
) -> LaneTimeline:
    """Who does what when: a lane for every rank of every replica, then one for every channel.

    A transfer is on its channel's lane for as long as it keeps the channel; a skipped stage is
    on the first rank's lane when its micro-batch starts. Where a rank waits nothing is drawn.
    """
    tables = Tables(staged)
    ranks = [
        f"stage {replica.stage} {replica.node} {rank}"
        for replica in staged.replicas
        for rank in range(replica.num_ranks)
    ]
    spans = list(_pass_spans(micro_batches, lengths, tables))
    last_s = [0.0] * staged.num_stages
    stage_of = [r.stage for r in staged.replicas for _ in range(r.num_ranks)]
    for span in spans:
        last_s[stage_of[span.lane]] = max(last_s[stage_of[span.lane]], span.end_s)
    for lane, stage in enumerate(stage_of):
        if staged.closing_s[stage]:
            end_s = last_s[stage] + staged.closing_s[stage]
            spans.append(_span(lane, "reduce", "gradients, optimizer", last_s[stage], end_s))
    spans += _transfer_spans(micro_batches, lengths, tables, first_lane=len(ranks))
    return LaneTimeline(
        title=f"Step of {counted(len(micro_batches), 'micro-batch')} through "
        f"{staged.num_stages} uneven stages",
        lanes=(*ranks, *(channel.name for channel in staged.channels)),
        spans=tuple(sorted(spans, key=lambda span: (span.lane, span.start_s, span.end_s))),
        note="simulated: exact event simulation of the plan's costs, not measured",
    )


def _pass_spans(
    micro_batches: Sequence[MicroBatch], lengths: Sequence[int], tables: Tables
) -> Iterator[Span]:
    staged = tables.staged
    for m, one in enumerate(micro_batches):
        members = [lengths[index] for index in one.sequences]
        label = f"{m}: {counted(len(members), 'sequence')}, degree {one.degree}"
        stages = {staged.replicas[visit.replica].stage for visit in one.visits}
        skipped = sorted(set(range(staged.num_stages)) - stages)
        if skipped:
            first = one.visits[0]
            lane = int(tables.first_rank[first.replica]) + first.first_rank
            what = f"{m} skips stage {', '.join(map(str, skipped))}"
            yield _span(lane, "skip", what, first.forward_start_s, first.forward_start_s)
        for visit in one.visits:
            whole_s = pass_s(members, one.degree, replica=visit.replica, tables=tables)
            forward_s = staged.forward_fraction * whole_s
            begin = int(tables.first_rank[visit.replica]) + visit.first_rank
            for lane in range(begin, begin + one.degree):
                forward_end_s = visit.forward_start_s + forward_s
                backward_end_s = visit.backward_start_s + whole_s - forward_s
                yield _span(lane, "forward", label, visit.forward_start_s, forward_end_s)
                yield _span(lane, "backward", label, visit.backward_start_s, backward_end_s)


def _transfer_spans(
    micro_batches: Sequence[MicroBatch],
    lengths: Sequence[int],
    tables: Tables,
    *,
    first_lane: int,
) -> Iterator[Span]:
    """Messages on their channels, first come first served."""
    staged = tables.staged
    queues: dict[int, list[tuple[float, float, float, str]]] = defaultdict(list)
    for m, one in enumerate(micro_batches):
        members = [lengths[index] for index in one.sequences]
        num_bytes = staged.token_bytes * sum(members)
        for source, target in zip(one.visits, one.visits[1:], strict=False):
            forward_s = staged.forward_fraction * pass_s(
                members, one.degree, replica=source.replica, tables=tables
            )
            back_s = (1 - staged.forward_fraction) * pass_s(
                members, one.degree, replica=target.replica, tables=tables
            )
            there = int(tables.channel[source.replica, target.replica])
            back = int(tables.channel[target.replica, source.replica])
            for channel, ready_s, used_s in (
                (there, source.forward_start_s + forward_s, target.forward_start_s),
                (back, target.backward_start_s + back_s, source.backward_start_s),
            ):
                keep_s = num_bytes / staged.channels[channel].bytes_per_s
                queues[channel].append((ready_s, used_s, keep_s, f"{m}"))
    for channel, queue in queues.items():
        free_s = 0.0
        for ready_s, _, keep_s, label in sorted(queue):
            start_s = max(free_s, ready_s)
            free_s = start_s + keep_s
            if keep_s > _SHORTEST_S:
                yield _span(first_lane + channel, "transfer", label, start_s, free_s)


def _span(lane: int, kind: SpanKind, label: str, start_s: float, end_s: float) -> Span:
    return Span(lane=lane, kind=kind, label=label, start_s=start_s, end_s=end_s)
