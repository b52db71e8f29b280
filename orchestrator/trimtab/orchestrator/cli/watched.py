"""What a follower in a terminal knows of an attempt, and how it says it in a line."""

import statistics
from collections.abc import Iterator

from trimtab.core.errors import printable
from trimtab.core.events import (
    AnyEvent,
    AttemptStarted,
    CheckpointSaved,
    EvaluationFinished,
    RankExited,
    RankStarted,
    RunResumed,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.model import mfu
from trimtab.core.plan import StepPlan
from trimtab.core.units import count_text, duration_text


class Watched:
    """A run as its events tell it, in the order they are handled.

    Args:
        num_steps: Of the whole training; None: a script, whose steps are not known.
        num_ranks: Of the first attempt.
    """

    def __init__(self, num_steps: int | None, num_ranks: int) -> None:
        self.num_steps = num_steps
        self._num_ranks = num_ranks
        self._peaks: dict[int, float | None] = {}
        self._step_times_s: list[float] = []
        self._plans: dict[int, StepPlan] = {}
        self._first: StepSummarized | None = None
        self._last: StepSummarized | None = None
        self._resumed_step = 0
        self._evaluation: EvaluationFinished | None = None
        self._checkpoint: CheckpointSaved | None = None
        self.failed_ranks: list[RankExited] = []

    def handle(self, event: AnyEvent) -> None:
        """Take in one event; kinds a follower does not show are passed over."""
        match event:
            case AttemptStarted():
                self._begin(event)
            case RankStarted():
                self._peaks[event.rank] = event.peak_flop_per_s
            case RunResumed():
                self._resumed_step = event.step
            case StepPlanned():
                self._plans[event.step] = event.plan
            case StepSummarized():
                self._note_step(event)
            case EvaluationFinished():
                self._evaluation = event
            case CheckpointSaved():
                self._checkpoint = event
            case RankExited() if event.exit_code != 0:
                self.failed_ranks.append(event)
            case _:
                return

    @property
    def step(self) -> int:
        """The last finished step."""
        return self._last.step if self._last else self._resumed_step

    @property
    def phase(self) -> str:
        """What the attempt is at, in a few words."""
        if self.failed_ranks:
            return "stopping"
        if self.num_steps is None:
            return "running"
        if self._last is not None:
            return "training"
        if len(self._peaks) < self._num_ranks:
            return f"starting ranks ({len(self._peaks)} of {self._num_ranks} are up)"
        return "first step" if self._plans else "planning"

    @property
    def mfu(self) -> float | None:
        """MFU of the last step (`core.model.MFU_FORMULA`), None where a peak is unknown."""
        peaks = [peak for peak in self._peaks.values() if peak is not None]
        if self._last is None or not peaks or len(peaks) < self._num_ranks:
            return None
        return mfu(
            self._last.model_flops, seconds=self._last.step_s, peak_flop_per_s=sum(peaks)
        )

    def progress_line(self) -> str:
        """Phase, step and figures, where there is no bar."""
        if self.num_steps is None:
            return self.phase
        step = f"step {self.step} of {self.num_steps}"
        return f"{self.phase}: {step}  {self.line()}".rstrip()

    def line(self) -> str:
        """The last step's figures."""
        last = self._last
        if last is None:
            return ""
        figures = [
            f"loss {last.loss:.4f}",
            f"{duration_text(last.step_s)}/step",
            f"{count_text(last.num_tokens / last.step_s)} tokens/s",
        ]
        if self.mfu is not None:
            figures.append(f"MFU {self.mfu:.1%}")
        if last.step in self._plans:
            figures.append(self._plans[last.step].groups_text)
        return "  ".join(figures)

    def figures(self) -> Iterator[tuple[str, str]]:
        """What the attempt came to, as pairs of a name and a sentence."""
        if self._first is not None and self._last is not None:
            first, last = self._first, self._last
            yield (
                "loss",
                f"{first.loss:.4f} at step {first.step}, {last.loss:.4f} at {last.step}",
            )
            median_s = statistics.median(self._step_times_s)
            yield "median step", duration_text(median_s)
        if self._evaluation is not None:
            evaluation = self._evaluation
            yield "held-out loss", f"{evaluation.loss:.4f} at step {evaluation.step}"
        if self._checkpoint is not None:
            yield (
                "checkpoint",
                f"step {self._checkpoint.step}, {printable(self._checkpoint.path)}",
            )

    def _begin(self, event: AttemptStarted) -> None:
        """Another attempt: its ranks have yet to come up."""
        self._num_ranks = event.num_ranks
        self._peaks.clear()
        self._plans.clear()
        self.failed_ranks.clear()
        self._last = None

    def _note_step(self, event: StepSummarized) -> None:
        self._first = self._first or event
        self._last = event
        self._step_times_s.append(event.step_s)
        for step in [step for step in self._plans if step < event.step]:
            del self._plans[step]
