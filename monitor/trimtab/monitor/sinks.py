"""Where events go besides the run directory."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from trimtab.core.errors import InputError, MissingExtraError
from trimtab.core.events import (
    Alert,
    AnyEvent,
    EvaluationFinished,
    JobFinished,
    StepSummarized,
)
from trimtab.core.job import JobState

INIT_TIMEOUT_S: Final = 30.0
"""How long a job's start waits for W&B to answer."""


class EventSink(Protocol):
    """Takes events as they come; its troubles never stop the run."""

    def write(self, events: Iterable[AnyEvent]) -> tuple[Alert, ...]:
        """Pass `events` on; what comes back says what went wrong, for the run's store."""
        ...

    def close(self) -> tuple[Alert, ...]:
        """Pass on what is left and end."""
        ...


class WandbSink:
    """Logs steps, evaluations and alerts to Weights & Biases; `WANDB_MODE` is honoured.

    The API key stays in the environment (`WANDB_API_KEY`), and out of every message.

    Args:
        project: The W&B project.
        name: The run's name; the job id.
        folder: Where W&B keeps its local files.

    Raises:
        MissingExtraError: The package `wandb` is not installed.
        InputError: W&B refuses to start (no key, no network).
    """

    def __init__(self, project: str, name: str, *, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError(
                "telemetry.wandb_project: needs the package wandb; "
                "pip install 'trimtab[monitor]'"
            ) from error
        self._failed = False
        try:
            self._run: Any = wandb.init(
                project=project,
                name=name,
                dir=folder,
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=INIT_TIMEOUT_S
                ),
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            raise InputError(
                f"telemetry.wandb_project: W&B does not start: {_without_key(error)}; "
                "set WANDB_API_KEY, or WANDB_MODE=offline to keep its files here"
            ) from error

    def write(self, events: Iterable[AnyEvent]) -> tuple[Alert, ...]:
        """Log `events`; after a failure W&B is left alone for the rest of the run."""
        if self._failed:
            return ()
        try:
            for event in events:
                self._log(event)
        except Exception as error:  # whatever it is, it is W&B's and must not stop the run
            return self._fail(error)
        return ()

    def close(self) -> tuple[Alert, ...]:
        """Upload what is left and mark the W&B run as finished."""
        if self._failed:
            return ()
        try:
            self._run.finish()
        except Exception as error:  # as in `write`
            return self._fail(error)
        return ()

    def _log(self, event: AnyEvent) -> None:
        if isinstance(event, StepSummarized):
            self._run.log(_step_figures(event))
        elif isinstance(event, EvaluationFinished):
            self._run.log({"step": event.step, "evaluation/loss": event.loss})
        elif isinstance(event, Alert) and event.severity != "info":
            level = "ERROR" if event.severity == "critical" else "WARN"
            self._run.alert(title=f"Trimtab: {event.severity}", text=event.message, level=level)
        elif isinstance(event, JobFinished):
            self._run.summary["state"] = event.state.value
            if event.state is JobState.FAILED:
                self._run.alert(title="Trimtab: job failed", text=event.reason, level="ERROR")

    def _fail(self, error: Exception) -> tuple[Alert, ...]:
        self._failed = True
        message = f"W&B failed and gets no more of this run: {_without_key(error)}"
        return (Alert(time_s=time.time(), severity="warning", message=message),)


def _step_figures(event: StepSummarized) -> dict[str, float]:
    return {
        "step": event.step,
        "train/loss": event.loss,
        "train/gradient_norm": event.gradient_norm,
        "train/learning_rate": event.learning_rate,
        "speed/step_s": event.step_s,
        "speed/tokens_per_s": event.num_tokens / event.step_s,
        "speed/model_flop_per_s": event.model_flops / event.step_s,
    }


def _without_key(error: Exception) -> str:
    """The error in one line, the API key blotted out wherever it occurs."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY", "")
    return text.replace(key, "***") if key else text
