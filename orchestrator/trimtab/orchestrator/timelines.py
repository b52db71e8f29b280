"""Timelines of the plans that `plan-step --json` and `plan-paths --json` print.

A step plan with one stage has a lane for every rank: forward and backward pass of its group in
every wave, and the wait for the slowest group. With pp > 1 it has a lane for every stage, by
the exact timeline of its schedule. Any other document may carry a `LaneTimeline` of its own,
under `timeline` or as a whole.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from trimtab.core import serde
from trimtab.core.errors import InputError, shown
from trimtab.core.pipeline import MicroBatchTimes
from trimtab.core.timeline import LaneTimeline, Span
from trimtab.core.units import MS, counted
from trimtab.planners.pipelines.ordering import operations_of
from trimtab.planners.pipelines.stages import FORWARD_FRACTION

_MOST_LANES = 16_384
_MOST_SPANS = 2_000_000
_LEAST_WAIT = 1e-9
"""Share of the whole below which a gap is rounding."""


def timeline_from_json(text: str) -> LaneTimeline:
    """The timeline of a plan's JSON document.

    Raises:
        InputError: It is no JSON, or nothing that has a timeline, or a field is wrong.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected the JSON of a plan, but {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object, got {shown(document)}")
    if document.get("type") == LaneTimeline.__name__:
        return serde.from_document(LaneTimeline, document)
    if document.get("timeline") is not None:
        return serde.from_document(LaneTimeline, document["timeline"])
    if "waves" in document and "step_ms" in document:
        plan = _Fields(document)
        pipeline = document.get("pipeline")
        if pipeline is None:
            return _waves_timeline(plan)
        return _pipeline_timeline(plan, _Fields(pipeline, path="pipeline"))
    raise InputError(
        "expected what `trimtab plan-step --json` or `trimtab plan-paths --json` prints, got "
        f"an object with {', '.join(sorted(map(str, document))[:8]) or 'nothing in it'}"
    )


class _Fields:
    """Fields of an object of a document, checked as they are read."""

    def __init__(self, value: Any, *, path: str = "") -> None:
        if not isinstance(value, dict):
            raise InputError(f"{path}: expected an object, got {shown(value)}")
        self._value, self._path = value, path

    def number(self, name: str) -> float:
        return _number(self._get(name), self.path_of(name))

    def whole(self, name: str, *, at_least: int = 0) -> int:
        return _whole(self._get(name), self.path_of(name), at_least=at_least)

    def items(self, name: str) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list) or not value:
            raise InputError(f"{self.path_of(name)}: expected a list, got {shown(value)}")
        return value

    def objects(self, name: str) -> "list[_Fields]":
        return [
            _Fields(item, path=f"{self.path_of(name)}[{index}]")
            for index, item in enumerate(self.items(name))
        ]

    def numbers(self, name: str, *, length: int) -> tuple[float, ...]:
        items = self.items(name)
        if len(items) != length:
            raise InputError(
                f"{self.path_of(name)}: expected {length} numbers, got {len(items)}"
            )
        return tuple(_number(item, self.path_of(name)) for item in items)

    def path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise InputError(f"{self.path_of(name)}: missing from the document")
        return self._value[name]


def _number(value: Any, path: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise InputError(f"{path}: expected a finite number >= 0, got {shown(value)}")
    return float(value)


def _whole(value: Any, path: str, *, at_least: int) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not at_least <= value < 2**31:
        raise InputError(f"{path}: expected a whole number >= {at_least}, got {shown(value)}")
    return int(value)


def _waves_timeline(plan: _Fields) -> LaneTimeline:
    """One lane a rank, wave after wave."""
    num_ranks = plan.whole("num_gpus", at_least=1)
    _check_size("num_gpus", num_ranks)
    waves = plan.objects("waves")
    spans: list[Span] = []
    start_s = 0.0
    for number, wave in enumerate(waves, start=1):
        end_s = start_s + wave.number("time_ms") * MS
        idle = set(range(num_ranks))
        for place, group in enumerate(wave.objects("groups"), start=1):
            ranks = [
                _rank(rank, group.path_of("ranks"), num_ranks=num_ranks)
                for rank in group.items("ranks")
            ]
            label = _group_label(group, f"wave {number} group {place}", degree=len(ranks))
            own_s = group.number("time_ms") * MS
            times = (start_s, start_s + FORWARD_FRACTION * own_s, start_s + own_s)
            for rank in ranks:
                spans.append(_span(rank, "forward", label, times[0], times[1]))
                spans.append(_span(rank, "backward", label, times[1], times[2]))
                if end_s - times[2] > _LEAST_WAIT * end_s:
                    spans.append(
                        _span(rank, "wait", f"wave {number}: slowest group", times[2], end_s)
                    )
            idle -= set(ranks)
            _check_size("waves", len(spans), most=_MOST_SPANS)
        spans += [_span(rank, "wait", f"wave {number}: idle", start_s, end_s) for rank in idle]
        start_s = end_s
    spans += _step_end(plan, num_lanes=num_ranks, start_s=start_s)
    return LaneTimeline(
        title=f"Step of {counted(len(waves), 'wave')} on {counted(num_ranks, 'rank')}",
        lanes=tuple(f"rank {rank}" for rank in range(num_ranks)),
        spans=tuple(spans),
        note="Predicted by the plan's profile, not measured; a third of a group's time is "
        "drawn as its forward pass.",
    )


def _rank(value: Any, path: str, *, num_ranks: int) -> int:
    rank = _whole(value, path, at_least=0)
    if rank >= num_ranks:
        raise InputError(f"{path}: expected ranks below num_gpus = {num_ranks}, got {rank}")
    return rank


def _group_label(group: _Fields, name: str, *, degree: int) -> str:
    sequences = counted(len(group.items("sequences")), "sequence")
    return f"{name}: degree {degree}, {sequences}, {group.whole('tokens'):,} tokens"


def _pipeline_timeline(plan: _Fields, pipeline: _Fields) -> LaneTimeline:
    """One lane a stage, and one for what it sends where that takes time."""
    pp, vpp = pipeline.whole("pp", at_least=2), pipeline.whole("vpp", at_least=1)
    times = _micro_batches(pipeline, pp=pp)
    waves = plan.objects("waves")
    if len(times) != len(waves):
        raise InputError(
            f"pipeline.micro_batches: expected one for each of the {len(waves)} waves, got "
            f"{len(times)}"
        )
    _check_size("pipeline.pp", pp * vpp)
    _check_size("waves", 2 * len(times) * pp * vpp, most=_MOST_SPANS)
    if vpp > 1 and len(times) % pp:
        raise InputError(
            f"pipeline.micro_batches: interleaving needs a multiple of pp = {pp}, got "
            f"{len(times)}"
        )
    limits = pipeline.numbers("token_limits", length=pp)
    if max(each.tokens for each in times) > min(limits) * (1 + 1e-6):
        raise InputError(
            "pipeline.micro_batches: expected none with more tokens than token_limits"
        )
    labels = [_micro_label(wave, number=m + 1) for m, wave in enumerate(waves)]
    spans: list[Span] = []
    for step in operations_of(times, limits=limits, vpp=vpp):
        label = labels[step.micro_batch]
        if vpp > 1:
            label = f"{label}; chunk {step.stage // pp}"
        kind = "forward" if step.kind == "F" else "backward"
        spans.append(_span(step.rank, kind, label, step.start_s, step.end_s))
        send_s = times[step.micro_batch].send_s
        is_last = step.stage == (pp * vpp - 1 if step.kind == "F" else 0)
        if send_s and not is_last:
            sent_s = step.end_s + send_s
            spans.append(_span(pp + step.rank, "transfer", label, step.end_s, sent_s))
    end_s = max(span.end_s for span in spans)
    spans += _waits(spans, num_lanes=pp, end_s=end_s)
    spans += _step_end(plan, num_lanes=pp, start_s=end_s)
    lanes = [f"stage {stage}" for stage in range(pp)]
    if any(each.send_s for each in times):
        lanes += [f"stage {stage} sends" for stage in range(pp)]
    chunks = f" of {vpp} chunks" if vpp > 1 else ""
    return LaneTimeline(
        title=f"Step of {counted(len(times), 'micro-batch')} through {pp} stages{chunks}, 1F1B",
        lanes=tuple(lanes),
        spans=tuple(spans),
        note="Predicted by the plan's profile, not measured; every stage has "
        f"{plan.whole('num_gpus', at_least=1) // pp} ranks, and a wave's slowest group counts.",
    )


def _micro_batches(pipeline: _Fields, *, pp: int) -> list[MicroBatchTimes]:
    return [
        MicroBatchTimes(
            forward_s=tuple(ms * MS for ms in each.numbers("forward_ms", length=pp)),
            backward_s=tuple(ms * MS for ms in each.numbers("backward_ms", length=pp)),
            send_s=each.number("send_ms") * MS,
            tokens=each.number("tokens"),
        )
        for each in pipeline.objects("micro_batches")
    ]


def _micro_label(wave: _Fields, *, number: int) -> str:
    groups = wave.objects("groups")
    sequences = sum(len(group.items("sequences")) for group in groups)
    degrees = sorted({len(group.items("ranks")) for group in groups}, reverse=True)
    return (
        f"micro-batch {number}: {counted(sequences, 'sequence')} in "
        f"{counted(len(groups), 'group')} of {', '.join(map(str, degrees))}"
    )


def _waits(spans: Sequence[Span], *, num_lanes: int, end_s: float) -> Iterator[Span]:
    """Gaps between the spans of each of the first lanes."""
    free = [0.0] * num_lanes
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.lane < num_lanes:
            if span.start_s - free[span.lane] > _LEAST_WAIT * end_s:
                yield _span(span.lane, "wait", "no input yet", free[span.lane], span.start_s)
            free[span.lane] = max(free[span.lane], span.end_s)
    for lane, until_s in enumerate(free):
        if end_s - until_s > _LEAST_WAIT * end_s:
            yield _span(lane, "wait", "all done", until_s, end_s)


def _step_end(plan: _Fields, *, num_lanes: int, start_s: float) -> list[Span]:
    """What every step takes besides: the exchange of gradients, and the optimizer."""
    fixed_s = plan.number("step_fixed_ms") * MS
    if not fixed_s:
        return []
    label = "gradient sync and optimizer"
    return [
        _span(lane, "reduce", label, start_s, start_s + fixed_s) for lane in range(num_lanes)
    ]


def _span(lane: int, kind: Any, label: str, start_s: float, end_s: float) -> Span:
    return Span(lane=lane, kind=kind, label=label, start_s=start_s, end_s=end_s)


def _check_size(field: str, number: int, *, most: int = _MOST_LANES) -> None:
    if number > most:
        raise InputError(
            f"{field}: at most {most:,} lanes or spans can be drawn, got {number:,}"
        )
