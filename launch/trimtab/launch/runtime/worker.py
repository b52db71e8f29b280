"""A rank's training run: receive each step's plan, execute exactly it, report.

    receive plan -> for each wave with a group of mine: pack, forward, backward
                 -> sum loss over ranks -> sync gradients -> optimizer -> events

The loss is the mean over all tokens of the global batch, whoever computed them: each rank
scales the sum of its token losses by one over the batch's tokens, and gradients are summed.
"""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from trimtab.core.errors import InputError, JobFailedError, NoRestartError
from trimtab.core.events import (
    Alert,
    CheckpointSaved,
    CoefficientsRefined,
    EvaluationFinished,
    RankStarted,
    RunResumed,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout, SequenceGroup, StepPlan
from trimtab.launch.plans import MeasuredStep, StepPlans
from trimtab.launch.runtime.batches import BatchSampler, SequenceSet, open_corpus
from trimtab.launch.runtime.checkpoint import checkpoints_of
from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.context import RankContext, check_device, device_peak, join
from trimtab.launch.runtime.documents import Int64Array
from trimtab.launch.runtime.engine_megatron import GroupShare, MegatronEngine, device
from trimtab.launch.runtime.failures import memory_failures_told
from trimtab.launch.runtime.groups import GroupCache
from trimtab.launch.runtime.packing import pack_share
from trimtab.launch.runtime.telemetry import Telemetry


def run_rank(
    job: JobSpec,
    layout: Layout,
    *,
    context: RankContext,
    run_dir: Path,
    plans: StepPlans | None,
    telemetry: Telemetry,
    stop_asked: Callable[[], bool],
) -> None:
    """Train until the last step, or until any rank is asked to stop; then save.

    Args:
        job: What to train.
        layout: The degrees.
        context: This rank among the others.
        run_dir: Holds `checkpoints/`, where training resumes from if there are any.
        plans: Rank 0's source of plans; None on the other ranks.
        telemetry: Where events go.
        stop_asked: Whether this rank was asked to stop; looked at between steps.

    Raises:
        InputError: The job cannot be run: devices, data, model or checkpoint do not fit.
        NoRestartError: Training has diverged, or memory has run out; so it would again.
    """
    check_device(job, context)
    join(context)
    try:
        with memory_failures_told(rank=context.rank):
            trainer = Trainer(
                job, layout, context=context, run_dir=run_dir, plans=plans, telemetry=telemetry
            )
            trainer.train(stop_asked)
    finally:
        dist.destroy_process_group()


class Trainer:
    """One rank's model, data and communicators."""

    def __init__(
        self,
        job: JobSpec,
        layout: Layout,
        *,
        context: RankContext,
        run_dir: Path,
        plans: StepPlans | None,
        telemetry: Telemetry,
    ) -> None:
        """Open the data, build the model, load the newest checkpoint; collective."""
        self._job, self._rank, self._plans = job, context.rank, plans
        self._telemetry = telemetry
        self._checkpoints = checkpoints_of(
            job, run_dir, first_on_node=context.rank - context.local_rank
        )
        self._checkpoints.check_usable()
        self._clock = StepClock()
        self._corpus = open_corpus(
            job.data,
            seed=job.training.seed,
            model_vocab=job.model.vocab,
            cache_dir=run_dir / "tokens",
        )
        self._check_same_documents()
        self._sampler = BatchSampler(
            self._corpus,
            seed=job.training.seed,
            global_batch_seqs=job.training.global_batch_seqs,
        )
        self.engine = MegatronEngine(
            job.model, layout, training=job.training, clock=self._clock
        )
        self._groups = GroupCache(range(layout.group_ranks), networks=context.networks)
        self._measured: list[tuple[StepPlan, tuple[int, ...], tuple[float, ...]]] = []
        self._report_start(context)
        self.finished_steps = self._restore()
        self._saved_step = self.finished_steps

    def train(self, stop_asked: Callable[[], bool]) -> None:
        """Run the steps that are left, evaluating and saving as the job says."""
        training, every = self._job.training, self._job.checkpoint.every_steps
        self._prefetch(range(self.finished_steps + 1, self._last_prefetch_step + 1))
        stopping = self._any_rank(stop_asked())
        while self.finished_steps < training.num_steps and not stopping:
            stopping = self._train_step(self.finished_steps + 1, stop_asked)
            if every and self.finished_steps % every == 0:
                self._save()
            evaluate_every = training.evaluate_every_steps
            if evaluate_every and self.finished_steps % evaluate_every == 0:
                self._evaluate()
        if self._saved_step < self.finished_steps:
            self._save(is_last=True)
        _say(f"ends after step {self.finished_steps} of {training.num_steps}")

    def _train_step(self, step: int, stop_asked: Callable[[], bool]) -> bool:
        """One step; returns whether any rank was asked to stop."""
        self._telemetry.progress(step, lambda: self._clock.doing)
        self._clock.start(num_waves=0)
        batch = self._sampler.batch(step - 1)
        lengths = self._corpus.train.lengths[batch].tolist()
        plan = self._receive_plan(step, lengths)
        num_tokens = sum(lengths)
        my_loss, my_tokens = self._run_waves(plan, batch, num_tokens=num_tokens)
        sums = torch.tensor([my_loss, float(stop_asked())], dtype=torch.float64)
        dist.all_reduce(sums)  # the slowest rank's arrival: whatever it takes is waiting
        with self._clock.part("gradient sync"):
            self.engine.sync_gradients()
        with self._clock.part("optimizer"):
            gradient_norm = self._update(step)
        self.finished_steps = step
        times = self._clock.finish()
        now_s = time.time()
        self._telemetry.emit(
            StepFinished(
                time_s=now_s,
                step=step,
                rank=self._rank,
                step_s=times.step_s,
                parts=times.parts,
                num_tokens=my_tokens,
                waves_s=times.waves_s,
            )
        )
        self._learn(plan, lengths, times.waves_s)
        if self._rank == 0:
            self._telemetry.emit(
                StepSummarized(
                    time_s=now_s,
                    step=step,
                    loss=float(sums[0]) / num_tokens,
                    num_tokens=num_tokens,
                    model_flops=self._job.model.training_flops(lengths),
                    step_s=times.step_s,
                    gradient_norm=gradient_norm,
                    learning_rate=self.engine.learning_rate,
                )
            )
        return bool(sums[1])

    def _run_waves(
        self, plan: StepPlan, batch: Int64Array, *, num_tokens: int
    ) -> tuple[float, int]:
        """Forward and backward of this rank's groups; the sum of its losses, and its tokens."""
        self._clock.expect_waves(len(plan.waves))
        self._groups.prepare(plan)
        self.engine.zero_gradients()
        my_loss = torch.zeros((), dtype=torch.float64, device=device())
        my_tokens = 0
        for index, group in self._my_groups(plan):
            with self._clock.wave(index):
                share, loss_sum = self._forward(group, self._corpus.train, batch)
                with self._clock.part("backward"):
                    (loss_sum / num_tokens).backward()
            my_loss += loss_sum.detach()
            my_tokens += share.num_tokens
        return float(my_loss), my_tokens

    def _forward(
        self, group: SequenceGroup, sequences: SequenceSet, batch: Int64Array
    ) -> tuple[GroupShare, torch.Tensor]:
        with self._clock.part("data"):
            share = pack_share(
                group,
                self._groups.get(group.ranks),
                rank=self._rank,
                sequences=sequences,
                batch=batch,
            )
        with self._clock.part("forward"):
            return share, self.engine.loss_sum(share)

    def _update(self, step: int) -> float:
        try:
            return self.engine.step()
        except FloatingPointError as error:
            raise NoRestartError(
                f"step {step}: {error}: training has diverged; lower training.learning_rate, "
                "lengthen training.warmup_steps or set training.gradient_clip"
            ) from error

    def _receive_plan(self, step: int, lengths: Sequence[int]) -> StepPlan:
        message: list[StepPlan | None] = [None]
        if self._plans is not None:
            self._prefetch([step + self._job.step_planning.lookahead_steps])
            answer = self._plans.take(step, lengths)
            if answer.late is not None:
                self._alert(f"step {step}: {answer.late}", step=step)
            if answer.refined is not None:
                self._telemetry.emit(
                    CoefficientsRefined(
                        time_s=time.time(),
                        step=step,
                        profile=answer.refined.profile,
                        num_groups=answer.refined.num_groups,
                        error_before=answer.refined.error_before,
                        error_after=answer.refined.error_after,
                    )
                )
            message = [answer.plan]
        dist.broadcast_object_list(message)
        (plan,) = message
        assert plan is not None
        if self._rank == 0:
            self._telemetry.emit(
                StepPlanned(time_s=time.time(), step=step, plan=plan, lengths=tuple(lengths))
            )
        return plan

    def _learn(self, plan: StepPlan, lengths: list[int], waves_s: tuple[float, ...]) -> None:
        """Now and then, send what the last steps' waves took to whoever plans; collective."""
        every = self._job.step_planning.refine_every_steps
        if not every:
            return
        self._measured.append((plan, tuple(lengths), waves_s))
        if len(self._measured) < every:
            return
        mine = [waves for _, _, waves in self._measured]
        by_rank: list[list[tuple[float, ...]]] = [mine] * dist.get_world_size()
        dist.gather_object(mine, by_rank if self._rank == 0 else None)
        if self._plans is not None:
            self._plans.learn([
                MeasuredStep(
                    plan=plan, lengths=lengths, waves_s=tuple(waves[at] for waves in by_rank)
                )
                for at, (plan, lengths, _) in enumerate(self._measured)
            ])  # fmt: skip
        self._measured.clear()

    @property
    def _last_prefetch_step(self) -> int:
        return self.finished_steps + self._job.step_planning.lookahead_steps

    def _prefetch(self, steps: Sequence[int]) -> None:
        if self._plans is None:
            return
        for step in steps:
            if step <= self._job.training.num_steps:
                self._plans.prefetch(step, self._sampler.batch_lengths(step - 1))

    def _my_groups(self, plan: StepPlan) -> Iterator[tuple[int, SequenceGroup]]:
        for index, wave in enumerate(plan.waves):
            for group in wave.groups:
                if self._rank in group.ranks:
                    yield index, group

    def _evaluate(self) -> None:
        """The mean loss over the tokens of the held-out batch."""
        self._telemetry.progress(self.finished_steps, lambda: "evaluation")
        batch = self._sampler.evaluation_batch(self._job.training.evaluation_seqs)
        lengths = [int(self._corpus.held_out.lengths[index]) for index in batch]
        message = [self._plans.fast(lengths) if self._plans is not None else None]
        dist.broadcast_object_list(message)
        (plan,) = message
        assert plan is not None
        self._groups.prepare(plan)
        loss = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            for _, group in self._my_groups(plan):
                _, loss_sum = self._forward(group, self._corpus.held_out, batch)
                loss += loss_sum.double().cpu()
        dist.all_reduce(loss)
        if not math.isfinite(loss):
            raise NoRestartError(
                f"step {self.finished_steps}: the held-out loss is {float(loss)}: training has "
                "diverged; lower training.learning_rate"
            )
        if self._rank == 0:
            self._telemetry.emit(
                EvaluationFinished(
                    time_s=time.time(),
                    step=self.finished_steps,
                    loss=float(loss) / sum(lengths),
                    num_tokens=sum(lengths),
                )
            )

    def _save(self, *, is_last: bool = False) -> None:
        self._telemetry.progress(self.finished_steps, lambda: "checkpoint")
        began_s = time.monotonic()
        saved = self._checkpoints.save(
            self.engine,
            step=self.finished_steps,
            keep=self._job.checkpoint.keep,
            data=self._corpus.fingerprint,
        )
        if saved.problem is not None:
            self._alert(f"checkpoint.address: {saved.problem}", step=saved.step)
        if not saved.is_whole:
            if is_last:
                raise JobFailedError(f"step {saved.step} could not be saved: {saved.problem}")
            return
        self._saved_step = self.finished_steps
        if self._rank == 0:
            _say(f"step {saved.step}: checkpoint written to {saved.path}")
            self._telemetry.emit(
                CheckpointSaved(
                    time_s=time.time(),
                    step=saved.step,
                    path=str(saved.path),
                    seconds=time.monotonic() - began_s,
                    num_bytes=saved.num_bytes,
                )
            )

    def _restore(self) -> int:
        loaded = self._checkpoints.load_latest(self.engine)
        for reason in loaded.passed_over:
            self._alert(f"checkpoint passed over: {reason}", step=loaded.step)
        if loaded.path is None:
            if self._job.checkpoint.start_from is not None:
                from trimtab.launch.runtime import huggingface

                folder = Path(self._job.checkpoint.start_from)
                huggingface.load_hugging_face(folder, self.engine.module, self._job.model)
                self.engine.optimizer.reload_model_params()
            return 0
        if loaded.data != self._corpus.fingerprint:
            self._alert(
                "the documents have changed since the checkpoint was written: batches differ",
                step=loaded.step,
            )
        _say(f"goes on after step {loaded.step}, from {loaded.path}")
        if self._rank == 0:
            self._telemetry.emit(
                RunResumed(time_s=time.time(), step=loaded.step, path=str(loaded.path))
            )
        return loaded.step

    def _check_same_documents(self) -> None:
        first = [self._corpus.fingerprint]
        dist.broadcast_object_list(first)
        if first[0] != self._corpus.fingerprint:
            raise InputError(
                f"data: rank {self._rank} on {socket.gethostname()} finds other documents than "
                "rank 0; give all nodes the same files"
            )

    def _report_start(self, context: RankContext) -> None:
        name, peak, note = device_peak(self._job, context)
        _say(f"rank {context.rank} of {context.world_size} on {socket.gethostname()}: {name}")
        self._telemetry.emit(
            RankStarted(
                time_s=time.time(),
                rank=context.rank,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=name,
                peak_flop_per_s=peak,
                peak_note=note,
            )
        )

    def _alert(self, message: str, *, step: int) -> None:
        if self._rank == 0:
            self._telemetry.emit(
                Alert(time_s=time.time(), severity="warning", message=message, step=step)
            )

    def _any_rank(self, flag: bool) -> bool:
        votes = torch.tensor(float(flag), dtype=torch.float64)
        dist.all_reduce(votes)
        return bool(votes)


def _say(line: str) -> None:
    """A line for the rank's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)
