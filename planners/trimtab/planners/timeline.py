"""Who does what when in a pipeline: exact timelines of schedules, and their closed forms.

Every micro-batch goes through the stages forward (F), and back for the gradients of its
activations (B) and of the weights (W). A schedule says what a rank does first; a timeline
follows it operation by operation, with unequal stages and unequal micro-batches.
"""

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.core import checks
from trimtab.core.errors import InputError
from trimtab.core.plan import PipelineSchedule

OperationKind = Literal["F", "B", "W"]
"""With 1F1B, B is the whole backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineWork:
    """Seconds of one micro-batch of scale 1 in every stage, shapes (pp,)."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    """Gradients of the activations."""
    weight_s: tuple[float, ...]
    """Gradients of the weights, which nothing waits for but the end of the step."""
    send_s: float = 0.0
    """From a stage to the next, beside the computing."""

    def __post_init__(self) -> None:
        checks.not_empty("pipeline.forward_s", self.forward_s)
        for name in ("backward_s", "weight_s"):
            if len(getattr(self, name)) != len(self.forward_s):
                raise InputError(
                    f"pipeline.{name}: expected {len(self.forward_s)} stages as in forward_s, "
                    f"got {len(getattr(self, name))}"
                )
        for name in ("forward_s", "backward_s", "weight_s"):
            for seconds in getattr(self, name):
                checks.not_negative(f"pipeline.{name}", seconds)
        checks.not_negative("pipeline.send_s", self.send_s)

    @property
    def num_stages(self) -> int:
        return len(self.forward_s)

    @property
    def stage_s(self) -> tuple[float, ...]:
        """All of a micro-batch, by stage."""
        columns = zip(self.forward_s, self.backward_s, self.weight_s, strict=True)
        return tuple(sum(column) for column in columns)


@dataclass(frozen=True, slots=True)
class Operation:
    """A piece of a rank's time."""

    rank: int
    kind: OperationKind
    micro_batch: int
    stage: int
    """Position on the micro-batch's way, chunks counted: 0 to pp vpp - 1."""
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All operations of a step's pipeline."""

    operations: tuple[Operation, ...]
    """In the order in which they start."""
    busy_s: tuple[float, ...]
    """By rank."""
    peaks: tuple[int, ...]
    """Most chunks' activations that a rank holds at once."""

    @property
    def step_s(self) -> float:
        """The longest time from a rank's first operation to its last.

        The step takes no more, although the ranks' ends differ, where none waits for the others
        before its next step. Source: arXiv:2401.10241, section 4, which rolls the optimizer
        back where the norm of all gradients asks for it; 1F1B's first rank ends last anyway.
        """
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        for operation in self.operations:
            first.setdefault(operation.rank, operation.start_s)
            last[operation.rank] = operation.end_s
        return max(last[rank] - start for rank, start in first.items())

    @property
    def bubble_fraction(self) -> float:
        """Share of the ranks' steps in which they wait."""
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.step_s)


def timeline(
    schedule: PipelineSchedule,
    work: PipelineWork,
    *,
    num_micro_batches: int,
    vpp: int = 1,
    scales: Sequence[float] | None = None,
) -> Timeline:
    """The timeline of a step.

    - `1f1b`: forward passes until the pipeline is full, then one backward, one forward; with
      vpp > 1 interleaved, chunk c of rank r being stage c pp + r (arXiv:2104.04473).
    - `zb-h1`, `zb-h2`: W apart from B, and later, so that every rank holds pp, or 2 pp - 1,
      micro-batches (arXiv:2401.10241, sections 2.1 and 2.2).
    - `dualpipe`: micro-batches enter at both ends in turn, every rank holding two stages and at
      most pp + 1 micro-batches (DeepSeek-V3, arXiv:2412.19437, section 3.2.1). Where a rank
      could do several things it does B before F before W, not the authors' order: the bubble
      is near theirs, not equal.

    Args:
        schedule: The order.
        work: Seconds by stage; with vpp > 1 a chunk takes a share 1 / vpp of its rank's.
        num_micro_batches: Of a step.
        vpp: Chunks of a rank, with `1f1b` alone.
        scales: How many times the seconds of `work` each micro-batch takes, shape
            (num_micro_batches,); None: 1.

    Raises:
        InputError: The schedule cannot do this.
    """
    checks.whole_number("num_micro_batches", num_micro_batches)
    pp = work.num_stages
    factors = [1.0] * num_micro_batches if scales is None else list(scales)
    if len(factors) != num_micro_batches:
        raise InputError(f"scales: expected {num_micro_batches} numbers, got {len(factors)}")
    check_schedule(schedule, pp=pp, vpp=vpp, num_micro_batches=num_micro_batches)
    if schedule == "dualpipe":
        return _both_ends(work, factors)
    orders = [
        _order(schedule, rank, pp=pp, vpp=vpp, num_micro=num_micro_batches)
        for rank in range(pp)
    ]
    return _in_order(work, factors, orders=orders, vpp=vpp, is_split=schedule != "1f1b")


def check_schedule(
    schedule: PipelineSchedule, *, pp: int, vpp: int, num_micro_batches: int | None = None
) -> None:
    """Raise where a schedule cannot run.

    Raises:
        InputError: vpp > 1 with another schedule than 1F1B, or with micro-batches that pp does
            not divide; `dualpipe` with an odd pp or fewer than 2 pp micro-batches.
    """
    if vpp > 1 and schedule != "1f1b":
        raise InputError(f"layout.vpp: only the schedule 1f1b interleaves, got {schedule!r}")
    if vpp > 1 and num_micro_batches is not None and num_micro_batches % pp:
        raise InputError(
            f"layout.vpp: interleaving needs pp = {pp} to divide the micro-batches, "
            f"got {num_micro_batches}"
        )
    if schedule != "dualpipe":
        return
    if pp % 2:
        raise InputError(f"layout.schedule: dualpipe needs an even pp, got {pp}")
    if num_micro_batches is not None and num_micro_batches < 2 * pp:
        raise InputError(
            f"layout.schedule: dualpipe needs at least 2 pp = {2 * pp} micro-batches, "
            f"got {num_micro_batches}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What a pipeline of equal stages waits: `stages` stages less some F and W of a stage."""

    stages: float
    forwards: float
    weights: float


def fill(schedule: PipelineSchedule, *, pp: int, vpp: int) -> Fill:
    """The time a step takes beyond its micro-batches, with equal stages and no send times.

    - 1F1B: (pp - 1) (F + B + W) / vpp. Source: arXiv:2104.04473, section 2.2.
    - ZB-H1: (pp - 1) (F + B - W); ZB-H2: (pp - 1) (F + B - 2 W).
      Source: arXiv:2401.10241, table 2.
    - DualPipe: (pp / 2 - 1) (F&B + B + W - 3 W), F&B = F + B + W where nothing but
      communication is overlapped. Source: DeepSeek-V3, arXiv:2412.19437, table 2.
    """
    if schedule == "dualpipe":
        half = pp / 2 - 1
        return Fill(stages=2 * half, forwards=half, weights=3 * half)
    less = {"1f1b": 0, "zb-h1": 2, "zb-h2": 3}[schedule]
    return Fill(stages=(pp - 1) / vpp, forwards=0, weights=less * (pp - 1))


def most_held(schedule: PipelineSchedule, *, pp: int, stage: int, vpp: int) -> float:
    """Micro-batches whose activations a rank holds at most, chunks counted as shares.

    Source: arXiv:2205.05198, section 4.2.3 (interleaving); the papers named in `timeline`.
    """
    if schedule == "1f1b":
        return (pp - stage) * (1 + (pp - 1) / (pp * vpp) if vpp > 1 else 1)
    return {"zb-h1": pp, "zb-h2": 2 * pp - 1, "dualpipe": pp + 1}[schedule]


_Step = tuple[OperationKind, int, int]
"""Kind, micro-batch, stage."""


def _in_order(
    work: PipelineWork,
    factors: Sequence[float],
    *,
    orders: Sequence[Sequence[_Step]],
    vpp: int,
    is_split: bool,
) -> Timeline:
    """Every rank's order is known beforehand; an operation waits for its input."""
    pp = work.num_stages
    backward_s = work.backward_s
    if not is_split:
        backward_s = tuple(map(sum, zip(work.backward_s, work.weight_s, strict=True)))
    seconds = {"F": work.forward_s, "B": backward_s, "W": work.weight_s}
    released = "W" if is_split else "B"
    ends: dict[_Step, float] = {}
    free, position, held, peaks = [0.0] * pp, [0] * pp, [0] * pp, [0] * pp
    operations: list[Operation] = []
    last = pp * vpp - 1
    waiting = list(range(pp))
    while waiting:
        rank = waiting.pop()
        order = orders[rank]
        before = position[rank]
        while position[rank] < len(order):
            kind, micro, stage = order[position[rank]]
            arrived = _arrived(ends, kind, micro, stage, last=last, send_s=work.send_s)
            if arrived is None:
                break
            start = max(free[rank], arrived)
            end = start + seconds[kind][rank] * factors[micro] / vpp
            ends[kind, micro, stage] = free[rank] = end
            operations.append(Operation(rank, kind, micro, stage, start, end))
            held[rank] += (kind == "F") - (kind == released)
            peaks[rank] = max(peaks[rank], held[rank])
            position[rank] += 1
        if position[rank] > before:
            waiting += [(rank + 1) % pp, (rank - 1) % pp]
    return _timeline(operations, peaks=peaks, num_ranks=pp)


def _arrived(
    ends: dict[_Step, float],
    kind: OperationKind,
    micro: int,
    stage: int,
    *,
    last: int,
    send_s: float,
) -> float | None:
    """When what an operation needs is there; None: not yet known."""
    if kind == "F" and stage == 0:
        return 0.0
    if kind == "F":
        end, is_sent = ends.get(("F", micro, stage - 1)), True
    elif kind == "W":
        end, is_sent = ends.get(("B", micro, stage)), False
    elif stage == last:
        end, is_sent = ends.get(("F", micro, stage)), False
    else:
        end, is_sent = ends.get(("B", micro, stage + 1)), True
    return end if end is None or not is_sent else end + send_s


def _order(
    schedule: PipelineSchedule, rank: int, *, pp: int, vpp: int, num_micro: int
) -> list[_Step]:
    """What a rank does, in turn: forward passes to warm up, then one backward, one forward.

    W of a micro-batch comes `late` backward passes after its B.

    Source: Megatron-core 0.14, pipeline_parallel/schedules.py; arXiv:2401.10241, figures 2, 3.
    """
    total = num_micro * vpp
    warm, late = {
        "1f1b": (pp - rank, 0) if vpp == 1 else (2 * (pp - rank - 1) + (vpp - 1) * pp + 1, 0),
        "zb-h1": (pp - rank, rank),
        "zb-h2": (2 * (pp - rank) - 1, 2 * rank),
    }[schedule]
    warm = min(total, warm)
    order: list[_Step] = [
        ("F", *_chunk(index, pp=pp, vpp=vpp, rank=rank)) for index in range(warm)
    ]
    for index in range(total):
        micro, stage = _chunk(index, pp=pp, vpp=vpp, rank=rank)
        order.append(("B", micro, (vpp - 1) * pp + 2 * rank - stage))
        if schedule != "1f1b" and index >= late:
            order.append(("W", index - late, rank))
        if warm + index < total:
            order.append(("F", *_chunk(warm + index, pp=pp, vpp=vpp, rank=rank)))
    if schedule != "1f1b":
        order += [("W", index, rank) for index in range(max(0, total - late), total)]
    return order


def _chunk(index: int, *, pp: int, vpp: int, rank: int) -> tuple[int, int]:
    """Micro-batch and stage of the index-th forward pass: pp micro-batches chunk by chunk."""
    if vpp == 1:
        return index, rank
    round_, rest = divmod(index, pp * vpp)
    return round_ * pp + rest % pp, rest // pp * pp + rank


def _both_ends(work: PipelineWork, factors: Sequence[float]) -> Timeline:
    """DualPipe: even micro-batches enter at rank 0, odd ones at the last.

    A rank does B before F before W among what it could start; it starts the F of a stage only
    while it holds fewer than pp - stage of its micro-batches, as in 1F1B.
    """
    pp = work.num_stages
    seconds = {"F": work.forward_s, "B": work.backward_s, "W": work.weight_s}
    arrivals = _Arrivals(pp)
    for micro in range(len(factors)):
        arrivals.add(("F", micro, 0), 0.0)
    free, peaks = [0.0] * pp, [0] * pp
    operations: list[Operation] = []
    while arrivals.events:
        now, rank = heapq.heappop(arrivals.events)
        if now < free[rank] or (step := arrivals.take(rank, now)) is None:
            continue
        kind, micro, stage = step
        end = now + seconds[kind][stage] * factors[micro]
        operations.append(Operation(rank, kind, micro, stage, now, end))
        free[rank] = end
        heapq.heappush(arrivals.events, (end, rank))
        peaks[rank] = max(peaks[rank], sum(arrivals.held[rank]))
        for follower in _followers(step, pp=pp):
            is_sent = follower[2] != stage
            arrivals.add(follower, end + (work.send_s if is_sent else 0.0))
    return _timeline(operations, peaks=peaks, num_ranks=pp)


def _followers(step: _Step, *, pp: int) -> list[_Step]:
    """What an operation makes possible."""
    kind, micro, stage = step
    if kind == "F":
        return [("F", micro, stage + 1) if stage < pp - 1 else ("B", micro, stage)]
    if kind == "W":
        return []
    following: list[_Step] = [("W", micro, stage)]
    return [*following, ("B", micro, stage - 1)] if stage else following


class _Arrivals:
    """What each rank of a DualPipe could do, from when on."""

    def __init__(self, pp: int) -> None:
        self.pp = pp
        self.events: list[tuple[float, int]] = []
        """When a rank should look what there is to do: time, rank."""
        self.held = [[0] * pp for _ in range(pp)]
        """Micro-batches between F and W, by rank and stage."""
        self._ready: list[dict[OperationKind, list[tuple[float, int, int]]]] = [
            {"B": [], "F": [], "W": []} for _ in range(pp)
        ]

    def add(self, step: _Step, at_s: float) -> None:
        kind, micro, stage = step
        rank = stage if micro % 2 == 0 else self.pp - 1 - stage
        bisect.insort(self._ready[rank][kind], (at_s, micro, stage))
        heapq.heappush(self.events, (at_s, rank))

    def take(self, rank: int, now: float) -> _Step | None:
        """The first that has arrived and may start; None: nothing."""
        held = self.held[rank]
        for kind, arrived in self._ready[rank].items():
            for index, (at_s, micro, stage) in enumerate(arrived):
                if at_s > now:
                    break
                if kind != "F" or held[stage] < self.pp - stage:
                    arrived.pop(index)
                    held[stage] += (kind == "F") - (kind == "W")
                    return kind, micro, stage
        return None


def _timeline(operations: list[Operation], *, peaks: Sequence[int], num_ranks: int) -> Timeline:
    operations.sort(key=lambda operation: (operation.start_s, operation.rank))
    busy = [0.0] * num_ranks
    for operation in operations:
        busy[operation.rank] += operation.end_s - operation.start_s
    return Timeline(operations=tuple(operations), busy_s=tuple(busy), peaks=tuple(peaks))
