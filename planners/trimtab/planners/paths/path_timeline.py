"""A schedule of stage paths as spans of time, to be drawn."""

import itertools
from collections.abc import Iterator

from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.core.timeline import LaneTimeline, Span, SpanKind
from trimtab.planners.paths.path_times import PathTimes, path_times

_SHORTEST_S = 1e-9


def schedule_timeline(instance: PathInstance, schedule: PathSchedule) -> LaneTimeline:
    """Who does what when: one lane for each node, stage by stage.

    A transfer is on the lane of the node that sends, and a wait, from arrival to start, on that
    of the node waited for. Skipped stages are on the origin's lane when its micro-batch starts.
    """
    lanes = [node for nodes in schedule.partitions for node in nodes]
    lane_of = {node: lane for lane, node in enumerate(lanes)}
    stage_of = schedule.stage_of
    times = path_times(instance, schedule)
    spans = [
        span
        for a in range(len(schedule.paths))
        for wave in range(instance.num_waves)
        for span in _micro_batch_spans(instance, schedule, times, a, wave, lane_of)
    ]
    spans += _closing_spans(instance, schedule, times, lane_of)
    return LaneTimeline(
        title=f"Stage paths of {instance.name}",
        lanes=tuple(f"node {node} (stage {stage_of[node]})" for node in lanes),
        spans=tuple(sorted(spans, key=lambda span: (span.lane, span.start_s, span.end_s))),
        note="simulated: exact event simulation",
    )


def _micro_batch_spans(
    instance: PathInstance,
    schedule: PathSchedule,
    times: PathTimes,
    a: int,
    wave: int,
    lane_of: dict[int, int],
) -> Iterator[Span]:
    path = schedule.paths[a]
    label = f"{a}.{wave}"
    starts_s = times.starts_s[a][wave]
    nodes = [*path, path[0], *reversed(path)]
    kinds: list[SpanKind] = ["forward"] * len(path)
    kinds += ["loss", *["backward"] * len(path)]  # type: ignore[list-item]  # literals widen
    skipped = sorted(set(range(instance.num_stages)) - {schedule.stage_of[n] for n in path})
    if skipped:
        what = f"{label} skips {', '.join(map(str, skipped))}"
        yield _span(lane_of[path[0]], "skip", what, starts_s[0], starts_s[0])
    for node, kind, start_s in zip(nodes, kinds, starts_s, strict=True):
        end_s = start_s + _run_s(instance, node, kind)
        yield _span(lane_of[node], kind, label, start_s, end_s)
    hops = itertools.pairwise(zip(nodes, kinds, starts_s, strict=True))
    for (node, kind, start_s), (target, _, next_s) in hops:
        end_s = start_s + _run_s(instance, node, kind)
        arrival_s = min(next_s, end_s + instance.delay_s[node][target])
        if node != target and arrival_s > end_s + _SHORTEST_S:
            what = f"{label} to node {target}"
            yield _span(lane_of[node], "transfer", what, end_s, arrival_s)
        if next_s > arrival_s + _SHORTEST_S:
            yield _span(lane_of[target], "wait", label, arrival_s, next_s)


def _closing_spans(
    instance: PathInstance, schedule: PathSchedule, times: PathTimes, lane_of: dict[int, int]
) -> Iterator[Span]:
    for stage, nodes in enumerate(schedule.partitions):
        closing_s = instance.closing_s(nodes)
        start_s = max(times.node_ends_s[node] for node in nodes)
        for node in nodes if closing_s else ():
            yield _span(lane_of[node], "reduce", f"stage {stage}", start_s, start_s + closing_s)


def _run_s(instance: PathInstance, node: int, kind: SpanKind) -> float:
    factors = {"loss": instance.loss_factor, "backward": instance.backward_factor}
    return instance.forward_s[node] * factors.get(kind, 1.0)


def _span(lane: int, kind: SpanKind, label: str, start_s: float, end_s: float) -> Span:
    return Span(lane=lane, kind=kind, label=label, start_s=start_s, end_s=end_s)
