"""The finished steps of a run as columns that a chart can draw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trimtab.core.events import STEP_PARTS
from trimtab.core.model import mfu

MAX_POINTS: Final = 600
"""More points than this are merged, so that 10,000 steps draw as fast as 100."""
RECENT_STEPS: Final = 100
"""The newest steps are never merged."""

Column = list[float | None]
Fields = Mapping[str, Any]
"""The fields of a stored event, as plain JSON values."""


@dataclass(slots=True, kw_only=True)
class StepRow:
    """What is known of one step; it grows as the ranks report."""

    step: int
    num_ranks: int
    """Of the attempt it ran in: a restart may have fewer."""
    peak_flop_per_s: float | None = None
    """Of those ranks together; None leaves the MFU blank."""
    last_id: int = 0
    """Id of the newest event that changed it."""
    summary: Fields | None = None
    predicted_s: float | None = None
    part_sums_s: list[float] = field(default_factory=lambda: [0.0] * len(STEP_PARTS))
    num_ranks_finished: int = 0

    @property
    def step_s(self) -> float | None:
        """Measured time, or None where it has not finished."""
        return None if self.summary is None else self.summary["step_s"]

    @property
    def mean_parts_s(self) -> Column:
        """Seconds of each of `STEP_PARTS`, mean over the ranks that have reported."""
        if not self.num_ranks_finished:
            return [None] * len(STEP_PARTS)
        return [total / self.num_ranks_finished for total in self.part_sums_s]


class StepTable:
    """The steps of a run as they ran last: a resumed run runs some of them again."""

    def __init__(self) -> None:
        self._rows: dict[int, StepRow] = {}
        self._attempt_is_new = False
        self._num_ranks = 0
        self.dropped_at_id = 0
        """Id of the event that last made steps of an earlier attempt void."""
        self.last_planned_step = 0

    def begin_attempt(self, num_ranks: int) -> None:
        """From the first step that the ranks report now, everything runs again."""
        self._attempt_is_new = True
        self._num_ranks = num_ranks

    def add_plan(self, fields: Fields, event_id: int) -> None:
        """A `StepPlanned`."""
        self._touch(fields["step"], event_id).predicted_s = fields["plan"]["step_s"]
        self.last_planned_step = max(self.last_planned_step, fields["step"])

    def add_rank(self, fields: Fields, event_id: int) -> None:
        """A `StepFinished`."""
        row = self._touch(fields["step"], event_id)
        row.num_ranks_finished += 1
        for index, seconds in enumerate(part_seconds(fields)):
            row.part_sums_s[index] += seconds

    def add_summary(
        self, fields: Fields, event_id: int, *, peak_flop_per_s: float | None
    ) -> None:
        """A `StepSummarized`, of ranks with this peak together."""
        row = self._touch(fields["step"], event_id)
        row.summary, row.peak_flop_per_s = fields, peak_flop_per_s

    def finished(self, *, after_id: int = 0) -> list[StepRow]:
        """Summarized steps in order, of those that changed after an event."""
        rows = self._rows.values()
        changed = [row for row in rows if row.summary is not None and row.last_id > after_id]
        return sorted(changed, key=lambda row: row.step)

    @property
    def last_finished(self) -> StepRow | None:
        finished = (row for row in self._rows.values() if row.summary is not None)
        return max(finished, key=lambda row: row.step, default=None)

    def row(self, step: int) -> StepRow | None:
        """What is known of a step, or None."""
        return self._rows.get(step)

    def _touch(self, step: int, event_id: int) -> StepRow:
        if self._attempt_is_new:
            self._attempt_is_new = False
            if self._rows:
                self._rows = {s: row for s, row in self._rows.items() if s < step}
                self.last_planned_step = max(self._rows, default=0)
                self.dropped_at_id = event_id
        row = self._rows.setdefault(step, StepRow(step=step, num_ranks=self._num_ranks))
        row.last_id = event_id
        return row


def part_seconds(fields: Fields) -> list[float]:
    """Seconds of each of `STEP_PARTS` in a `StepFinished`; 0 where it has no such part."""
    seconds = dict.fromkeys(STEP_PARTS, 0.0)
    for part in fields["parts"]:
        seconds[part["name"]] = seconds.get(part["name"], 0.0) + part["seconds"]
    return [seconds[name] for name in STEP_PARTS]


def columns(
    rows: Sequence[StepRow],
    *,
    rank_parts: Mapping[int, Column] | None = None,
    max_points: int | None = None,
) -> dict[str, Any]:
    """Columns of equal length, one entry a step.

    The first `num_merged` entries are means over `bucket` steps each.

    Args:
        rows: Summarized steps, in order.
        rank_parts: Parts of one rank by step, in place of the mean over ranks.
        max_points: Merge older steps until there are at most so many; None: never.
    """
    figures = [_figures(row) for row in rows]
    names = list(figures[0]) if figures else list(_NO_FIGURES)
    parts = [_parts(row, rank_parts) for row in rows]
    spans = _spans(len(rows), max_points)
    table: dict[str, Any] = {"step": [rows[last - 1].step for _, last in spans]}
    for name in names:
        table[name] = _merged([figure[name] for figure in figures], spans)
    table["parts"] = [
        _merged([part[index] for part in parts], spans) for index in range(len(STEP_PARTS))
    ]
    num_merged = sum(last - first > 1 for first, last in spans)
    bucket = spans[0][1] - spans[0][0] if spans else 1
    return table | {"bucket": bucket, "num_merged": num_merged}


def _spans(num_rows: int, max_points: int | None) -> list[tuple[int, int]]:
    """First row and the one past the last of every point."""
    num_old = num_rows - RECENT_STEPS
    if max_points is None or num_rows <= max_points:
        return [(row, row + 1) for row in range(num_rows)]
    size = math.ceil(num_old / (max_points - RECENT_STEPS))
    old = [(row, min(row + size, num_old)) for row in range(0, num_old, size)]
    return old + [(row, row + 1) for row in range(num_old, num_rows)]


def _figures(row: StepRow) -> dict[str, float | None]:
    summary = row.summary
    assert summary is not None
    step_s = summary["step_s"]
    return {
        "loss": summary["loss"],
        "step_s": step_s,
        "predicted_s": row.predicted_s,
        "tokens_per_s": summary["num_tokens"] / step_s if step_s else None,
        "mfu": mfu(summary["model_flops"], seconds=step_s, peak_flop_per_s=row.peak_flop_per_s),
        "gradient_norm": summary["gradient_norm"],
        "learning_rate": summary["learning_rate"],
    }


_NO_FIGURES = (
    "loss",
    "step_s",
    "predicted_s",
    "tokens_per_s",
    "mfu",
    "gradient_norm",
    "learning_rate",
)


def _parts(row: StepRow, rank_parts: Mapping[int, Column] | None) -> Column:
    if rank_parts is None:
        return row.mean_parts_s
    return rank_parts.get(row.step, [None] * len(STEP_PARTS))


def _merged(values: Column, spans: Sequence[tuple[int, int]]) -> Column:
    return [_mean(values[first:last]) for first, last in spans]


def _mean(values: Column) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
