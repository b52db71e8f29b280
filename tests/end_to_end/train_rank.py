"""The ranks of real training runs with plans given beforehand: what the parity tests start.

    python train_rank.py    (paths of CONFIG.json on standard input, a line each)

Answers every line with whether the run went well. Writes its losses of all steps, gradient
norms, and the gradients of the first step to `OUT/rank-N.json` and `OUT/gradients-N.pt`.
`fault` breaks one thing on purpose, so that the tests can show that they would notice.
"""

import functools
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else every rank imports it in its first step
from forked import run_ranks

from trimtab.core import serde
from trimtab.core.events import AnyEvent, EvaluationFinished, StepFinished, StepSummarized
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout, StepPlan
from trimtab.launch.plans import MeasuredStep, PlanAnswer
from trimtab.launch.runtime import attention, engine_megatron, worker
from trimtab.launch.runtime.context import RankContext

ENGINE: Any = engine_megatron.MegatronEngine
ATTENTION: Any = attention
WORKER: Any = worker


class GivenPlans:
    """Plans read from the configuration."""

    def __init__(self, plans: Sequence[StepPlan]) -> None:
        self._plans = plans

    def prefetch(self, _step: int, _lengths: Sequence[int]) -> None: ...

    def take(self, step: int, _lengths: Sequence[int]) -> PlanAnswer:
        return PlanAnswer(plan=self._plans[step - 1])

    def learn(self, _steps: Sequence[MeasuredStep]) -> None: ...

    def fast(self, _lengths: Sequence[int]) -> StepPlan:
        return self._plans[-1]


class Recorder:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []

    def emit(self, event: AnyEvent) -> None:
        self.events.append(event)

    def progress(self, _step: int, _doing: Callable[[], str]) -> None: ...


def train(config: dict[str, Any], rank: int, store: socket.socket) -> None:
    world_size = config["num_ranks"]
    out = Path(config["out"])
    torch.set_num_threads(1)
    _break(config.get("fault"))
    recorder = Recorder()
    plans = [serde.from_document(StepPlan, plan) for plan in config["plans"]]
    _record_first_gradients(out / f"gradients-{rank}.pt")
    worker.run_rank(
        serde.from_document(JobSpec, config["job"]),
        Layout(dp=world_size),
        context=RankContext(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            rendezvous=f"tcp://127.0.0.1:{store.getsockname()[1]}",
            store_fd=store.fileno() if rank == 0 else None,
        ),
        run_dir=out,
        plans=GivenPlans(plans) if rank == 0 else None,
        telemetry=recorder,
        stop_asked=lambda: False,
    )
    (out / f"rank-{rank}.json").write_text(json.dumps(_results(recorder.events)))


def _results(events: Sequence[AnyEvent]) -> dict[str, Any]:
    summaries = [event for event in events if isinstance(event, StepSummarized)]
    finished = [event for event in events if isinstance(event, StepFinished)]
    return {
        "losses": [event.loss for event in summaries],
        "gradient_norms": [event.gradient_norm for event in summaries],
        "num_tokens": [event.num_tokens for event in finished],
        "evaluations": [e.loss for e in events if isinstance(e, EvaluationFinished)],
        "steps": [
            {
                "step_s": event.step_s,
                "parts": {part.name: part.seconds for part in event.parts},
                "waves_s": event.waves_s,
            }
            for event in finished
        ],
    }


def _record_first_gradients(path: Path) -> None:
    """Save the summed gradients of the first step, gathered from the shards of all ranks."""
    original = ENGINE.sync_gradients

    def sync_gradients(engine: Any) -> None:
        if not path.exists():
            gradients = {
                name: parameter.main_grad.clone()
                for name, parameter in engine.module.named_parameters()
            }
            for gradient in gradients.values():
                torch.distributed.all_reduce(gradient)
            torch.save(gradients, path)
        original(engine)

    ENGINE.sync_gradients = sync_gradients


def _break(fault: str | None) -> None:
    if fault == "mask":  # attention sees the documents packed before
        attend = ATTENTION.attend_documents
        ATTENTION.attend_documents = lambda q, k, v, lengths: attend(q, k, v, (sum(lengths),))
    elif fault == "position":  # positions do not start anew in each document
        original = WORKER.pack_share

        def shifted(*args: Any, **options: Any) -> Any:
            share = original(*args, **options)
            return replace(share, positions_t=torch.arange(len(share.positions_t)))

        WORKER.pack_share = shifted
    elif fault == "weighting":  # a mean over sequences instead of tokens
        loss_sum = ENGINE.loss_sum

        def weighted(engine: Any, share: Any) -> Any:
            return loss_sum(engine, share) * (1 + 1 / len(share.document_lengths))

        ENGINE.loss_sum = weighted


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # ranks speak there
    for line in sys.stdin:
        config = json.loads(Path(line.rstrip("\n")).read_text())
        with socket.create_server(("127.0.0.1", 0)) as store:
            went_well = run_ranks(
                config["num_ranks"], functools.partial(train, config, store=store)
            )
        print(went_well, file=answers)


if __name__ == "__main__":
    main()
