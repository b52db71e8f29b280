"""One run as the page shows it, kept up to date by absorbing its events as they are stored."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trimtab.core.model import MFU_FORMULA
from trimtab.core.units import counted, flop_rate_text
from trimtab.monitor.store import StoredRow
from trimtab.orchestrator.web.steps import MAX_POINTS, Column, Fields, StepTable, columns

MAX_NOTES: Final = 300
"""The newest events that the page lists."""
MAX_LIVE_ROWS: Final = 300
"""A page that missed more steps than this loads the whole run again."""


@dataclass(slots=True)
class Numbered:
    """Something the page lists, and the id of the event that last changed it."""

    id: int
    value: dict[str, Any]


@dataclass(slots=True)
class RunView:
    """What the events of a run add up to."""

    last_id: int = 0
    steps: StepTable = field(default_factory=StepTable)
    num_ranks: int = 0
    attempt_began_at_id: int = 0
    first_time_s: float | None = None
    last_time_s: float | None = None
    ranks: dict[int, Numbered] = field(default_factory=dict)
    evaluations: list[Numbered] = field(default_factory=list)
    checkpoints: list[Numbered] = field(default_factory=list)
    gpus: dict[tuple[str, int], Numbered] = field(default_factory=dict)
    notes: list[Numbered] = field(default_factory=list)

    def absorb(self, rows: Iterable[StoredRow]) -> None:
        """Take in events that come after `last_id`, in their order."""
        for row in rows:
            handler = _HANDLERS.get(row.kind)
            if handler is not None:
                handler(self, row.fields, row.id)
            if self.first_time_s is None:
                self.first_time_s = row.time_s
            self.last_time_s = row.time_s
            self.last_id = row.id

    def snapshot(self, *, rank_parts: Mapping[int, Column] | None = None) -> dict[str, Any]:
        """Everything the page draws except plans, at most `MAX_POINTS` points a curve."""
        series = columns(
            self.steps.finished(),
            rank_parts=rank_parts,
            max_points=MAX_POINTS,
        )
        return {"id": self.last_id, "series": series, **self._lists(0)}

    def changes(
        self, after_id: int, *, rank_parts: Mapping[int, Column] | None = None
    ) -> dict[str, Any]:
        """What a page that knows everything up to `after_id` lacks.

        `{"reset": true}` asks it to take a new snapshot: steps it draws have become void, or
        it lacks more than `MAX_LIVE_ROWS`.
        """
        rows = self.steps.finished(after_id=after_id)
        void_at_id = max(self.attempt_began_at_id, self.steps.dropped_at_id)
        if after_id > self.last_id or after_id < void_at_id or len(rows) > MAX_LIVE_ROWS:
            return {"id": self.last_id, "reset": True}
        series = columns(rows, rank_parts=rank_parts)
        return {"id": self.last_id, "series": series, **self._lists(after_id)}

    @property
    def peak_flop_per_s(self) -> float | None:
        """Of all ranks together; None unless every rank has told a known one."""
        peaks = [rank.value["peak_flop_per_s"] for rank in self.ranks.values()]
        if not self.num_ranks or len(peaks) < self.num_ranks or None in peaks:
            return None
        return float(sum(peaks))

    def mfu_note(self, precision: str | None) -> dict[str, Any]:
        """The formula, precision and peak behind the MFU, or why it is blank."""
        peak = self.peak_flop_per_s
        note: dict[str, Any] = {"formula": MFU_FORMULA, "precision": precision or "unknown"}
        if precision is None:
            reason = "Trimtab does not know the steps of a script"
            return note | {"peak_flop_per_s": None, "peak": None, "reason": reason}
        if peak is not None:
            mean = flop_rate_text(peak / self.num_ranks)
            source = self.ranks[min(self.ranks)].value["peak_note"]
            return note | {
                "peak_flop_per_s": peak,
                "peak": f"{self.num_ranks} x {mean} dense {precision} ({source})",
                "reason": None,
            }
        reasons = [
            rank.value["peak_note"]
            for rank in self.ranks.values()
            if rank.value["host"] and rank.value["peak_flop_per_s"] is None
        ]
        reason = reasons[0] if reasons else "the ranks have not told their devices yet"
        return note | {"peak_flop_per_s": None, "peak": None, "reason": reason}

    def _lists(self, after_id: int) -> dict[str, Any]:
        listed: dict[str, Iterable[Numbered]] = {
            "ranks": [self.ranks[rank] for rank in sorted(self.ranks)],
            "evaluations": self.evaluations,
            "checkpoints": self.checkpoints,
            "gpus": self.gpus.values(),
            "notes": self.notes,
        }
        return {
            name: [item.value for item in items if item.id > after_id]
            for name, items in listed.items()
        }

    def _rank(self, rank: int, event_id: int) -> dict[str, Any]:
        blank = {
            "rank": rank,
            "host": "",
            "pid": None,
            "device": "",
            "peak_flop_per_s": None,
            "peak_note": "",
            "state": "starting",
            "step": None,
            "doing": "starting",
            "seen_s": None,
        }
        item = self.ranks.setdefault(rank, Numbered(event_id, blank))
        item.id = event_id
        return item.value

    def _note(self, fields: Fields, event_id: int, *, severity: str, text: str) -> None:
        value = {
            "id": event_id,
            "time_s": fields["time_s"],
            "kind": fields["type"],
            "severity": severity,
            "text": text,
            "step": fields.get("step"),
            "rank": fields.get("rank"),
        }
        self.notes.append(Numbered(event_id, value))
        del self.notes[:-MAX_NOTES]


def _attempt_started(view: RunView, fields: Fields, event_id: int) -> None:
    view.num_ranks = fields["num_ranks"]
    view.attempt_began_at_id = event_id
    view.ranks = {}
    view.gpus = {}
    view.steps.begin_attempt(view.num_ranks)
    for rank in range(view.num_ranks):
        view._rank(rank, event_id)
    text = f"attempt {fields['attempt']}: {counted(view.num_ranks, 'rank')}"
    text += f", layout {fields['layout']}" if fields["layout"] else ""
    text += f", on {', '.join(fields['nodes'])}" if fields["nodes"] else ""
    view._note(fields, event_id, severity="info", text=text)


def _attempt_ended(view: RunView, fields: Fields, event_id: int) -> None:
    text = f"attempt {fields['attempt']} ended: {fields['reason']}; {fields['decision']}"
    view._note(fields, event_id, severity="info", text=text)


def _node_lost(view: RunView, fields: Fields, event_id: int) -> None:
    text = f"node {fields['node']} is lost: {fields['reason']}"
    view._note(fields, event_id, severity="critical", text=text)


def _rank_frozen(view: RunView, fields: Fields, event_id: int) -> None:
    view._rank(fields["rank"], event_id)["doing"] = "stopped"
    text = f"rank {fields['rank']} is frozen: {fields['reason']}"
    view._note(fields, event_id, severity="critical", text=text)


def _rank_started(view: RunView, fields: Fields, event_id: int) -> None:
    rank = view._rank(fields["rank"], event_id)
    for name in ("host", "pid", "device", "peak_flop_per_s", "peak_note"):
        rank[name] = fields[name]
    rank |= {"state": "running", "doing": "ready", "seen_s": fields["time_s"]}


def _rank_progressed(view: RunView, fields: Fields, event_id: int) -> None:
    rank = view._rank(fields["rank"], event_id)
    state = "starting" if fields["doing"] == "starting" else "running"
    rank |= {"state": state, "seen_s": fields["time_s"]}
    rank |= {"step": fields["step"], "doing": fields["doing"]}


def _step_planned(view: RunView, fields: Fields, event_id: int) -> None:
    view.steps.add_plan(fields, event_id)


def _step_finished(view: RunView, fields: Fields, event_id: int) -> None:
    view.steps.add_rank(fields, event_id)
    rank = view._rank(fields["rank"], event_id)
    rank |= {"state": "running", "step": fields["step"], "seen_s": fields["time_s"]}


def _step_summarized(view: RunView, fields: Fields, event_id: int) -> None:
    view.steps.add_summary(fields, event_id, peak_flop_per_s=view.peak_flop_per_s)


def _evaluated(view: RunView, fields: Fields, event_id: int) -> None:
    value = {"step": fields["step"], "loss": fields["loss"], "time_s": fields["time_s"]}
    view.evaluations.append(Numbered(event_id, value))


def _checkpointed(view: RunView, fields: Fields, event_id: int) -> None:
    names = ("step", "path", "seconds", "num_bytes", "time_s")
    view.checkpoints.append(Numbered(event_id, {name: fields[name] for name in names}))


def _resumed(view: RunView, fields: Fields, event_id: int) -> None:
    text = f"went on from the checkpoint of step {fields['step']}"
    view._note(fields, event_id, severity="info", text=text)


def _refined(view: RunView, fields: Fields, event_id: int) -> None:
    text = (
        f"costs refined from step {fields['step']} on, by {fields['num_groups']} measured "
        f"groups: predictions were off by {fields['error_before']:.0%}, now by "
        f"{fields['error_after']:.0%}"
    )
    view._note(fields, event_id, severity="info", text=text)


def _gpu_sampled(view: RunView, fields: Fields, event_id: int) -> None:
    names = (
        "host",
        "index",
        "name",
        "utilization_fraction",
        "memory_used_bytes",
        "power_w",
        "temperature_c",
    )
    value = {name: fields[name] for name in names}
    view.gpus[fields["host"], fields["index"]] = Numbered(event_id, value)


def _alerted(view: RunView, fields: Fields, event_id: int) -> None:
    view._note(fields, event_id, severity=fields["severity"], text=fields["message"])


def _rank_exited(view: RunView, fields: Fields, event_id: int) -> None:
    rank = view._rank(fields["rank"], event_id)
    signal, code = fields["signal"], fields["exit_code"]
    how = f"killed by {signal}" if signal else f"exited {code}"
    rank |= {"state": "finished" if code == 0 else "failed", "doing": how}
    if code != 0:
        words = fields["last_words"].strip()
        text = f"rank {fields['rank']} was {how}" if signal else f"rank {fields['rank']} {how}"
        text = f"{text}\n{words}" if words else text
        view._note(fields, event_id, severity="critical", text=text)


def _job_finished(view: RunView, fields: Fields, event_id: int) -> None:
    severity = "critical" if fields["state"] == "failed" else "info"
    text = f"job {fields['state']}: {fields['reason']}"
    view._note(fields, event_id, severity=severity, text=text)


_HANDLERS: Mapping[str, Callable[[RunView, Fields, int], None]] = {
    "AttemptStarted": _attempt_started,
    "AttemptEnded": _attempt_ended,
    "NodeLost": _node_lost,
    "RankFrozen": _rank_frozen,
    "RankStarted": _rank_started,
    "RankProgressed": _rank_progressed,
    "StepPlanned": _step_planned,
    "CoefficientsRefined": _refined,
    "StepFinished": _step_finished,
    "StepSummarized": _step_summarized,
    "EvaluationFinished": _evaluated,
    "CheckpointSaved": _checkpointed,
    "RunResumed": _resumed,
    "GpuSampled": _gpu_sampled,
    "Alert": _alerted,
    "RankExited": _rank_exited,
    "JobFinished": _job_finished,
}
