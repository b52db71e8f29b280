"""Plans for coming steps, made in a process of their own so that training never waits for one.

`PlanAhead` lives in rank 0 and starts this module as a child. They speak lines of JSON over
pipes: first the `StepPlanner`, then for each step `{"step": 7, "lengths": [...]}` one way and
`{"step": 7, "plan": {...}}` or `{"step": 7, "error": "..."}` the other. Measured groups go as
`{"samples": [{...}]}`; the next plan's line has the coefficients they refined as `refined`.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from trimtab.core import serde
from trimtab.core.errors import TrimtabError
from trimtab.core.plan import StepPlan
from trimtab.core.profile import StepProfile
from trimtab.launch.plans import MeasuredStep, PlanAnswer, Refinement
from trimtab.orchestrator.step_planning import StepPlanner
from trimtab.planners.group_fitting import GroupSample
from trimtab.planners.profile_fitting import (
    median_error,
    refine_profile,
    wave_samples,
)

_NICENESS = 10
"""The child yields to training where they share a core."""

_MOST_SAMPLES = 2_000
"""Measured groups that the coefficients rest on; older ones are forgotten."""


class PlanAhead:
    """The planning process seen from rank 0; a late plan is replaced by the fallback.

    A thread asks one question at a time, so that training waits for the process in `take` only,
    and there no longer than the deadline. Steps that have passed are not asked for any more.
    """

    def __init__(self, planner: StepPlanner, *, deadline_s: float) -> None:
        """Start the process.

        Args:
            planner: What plans.
            deadline_s: How long `take` waits for a plan before it falls back.
        """
        self._planner, self._deadline_s = planner, deadline_s
        self._questions: dict[int, Sequence[int]] = {}
        self._samples: list[GroupSample] = []
        self._in_question: int | None = None
        self._answers: dict[int, dict[str, Any]] = {}
        self._taken_step = 0
        self._is_over = self._end_told = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.orchestrator.plan_ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._asker = threading.Thread(target=self._ask, name="plans", daemon=True)
        self._asker.start()

    def prefetch(self, step: int, lengths: Sequence[int]) -> None:
        """Ask for the plan of a coming step; returns at once."""
        with self._changed:
            self._questions[step] = lengths
            self._changed.notify_all()

    def take(self, step: int, lengths: Sequence[int]) -> PlanAnswer:
        """The plan of a step, or the fallback's with the reason.

        Raises:
            TrimtabError: No plan exists for the batch.
        """
        with self._changed:
            if step not in (*self._questions, *self._answers, self._in_question):
                self._questions[step] = lengths
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: step in self._answers or self._is_over, timeout=self._deadline_s
            )
            answer = self._answers.pop(step, None)
            self._taken_step = step
            self._questions = {s: q for s, q in self._questions.items() if s > step}
            self._answers = {s: a for s, a in self._answers.items() if s > step}
        if answer is None:
            return PlanAnswer(plan=self.fast(lengths), late=self._why_late())
        if "error" in answer:
            raise TrimtabError(answer["error"])
        refined = answer.get("refined")
        return PlanAnswer(
            plan=serde.from_document(StepPlan, answer["plan"]),
            refined=None if refined is None else serde.from_document(Refinement, refined),
        )

    def learn(self, steps: Sequence[MeasuredStep]) -> None:
        """Have the coefficients of the plans that are not made yet refined; returns at once."""
        samples = [
            sample
            for step in steps
            for sample in wave_samples(step.plan, step.lengths, dict(enumerate(step.waves_s)))
        ]
        with self._changed:
            self._samples += samples

    def fast(self, lengths: Sequence[int]) -> StepPlan:
        """A plan at once, in this process."""
        return self._planner.fallback(lengths)

    @property
    def pid(self) -> int:
        """Of the planning process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._end()
        self._process.wait()
        self._asker.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _why_late(self) -> str | None:
        """The reason for a fallback; of a dead process only once."""
        if not self._is_over:
            return f"no plan after {self._deadline_s:g} s; the fallback plan is used"
        if self._end_told:
            return None
        self._end_told = True
        return (
            f"the planning process has died (exit code {self._process.wait()}); the fallback "
            "plan is used from here on"
        )

    def _ask(self) -> None:
        """Put the questions to the process, the nearest step first, until it ends."""
        with contextlib.suppress(BrokenPipeError):
            self._write(serde.to_json(self._planner))
            while (question := self._next_question()) is not None:
                step, lengths, samples = question
                if samples:
                    self._write(json.dumps({"samples": [asdict(each) for each in samples]}))
                self._write(json.dumps({"step": step, "lengths": list(lengths)}))
                assert self._process.stdout is not None
                reply = self._process.stdout.readline()
                if not reply.endswith("\n"):
                    break
                self._keep(json.loads(reply))
        self._end()

    def _next_question(self) -> tuple[int, Sequence[int], list[GroupSample]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._questions or self._is_over)
            if self._is_over:
                return None
            step = min(self._questions)
            self._in_question = step
            samples, self._samples = self._samples, []
            return step, self._questions.pop(step), samples

    def _keep(self, answer: dict[str, Any]) -> None:
        with self._changed:
            self._in_question = None
            if answer["step"] > self._taken_step:
                self._answers[answer["step"]] = answer
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def main() -> None:
    """Answer every line of standard input until it ends."""
    os.nice(_NICENESS)
    planner = serde.from_json(StepPlanner, sys.stdin.readline())
    samples: deque[GroupSample] = deque(maxlen=_MOST_SAMPLES)
    refined: Refinement | None = None
    made: dict[tuple[int, ...], None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "samples" in question:
            samples.extend(GroupSample(**sample) for sample in question["samples"])
            refined = _refined(planner.profile, samples)
            planner = replace(planner, profile=refined.profile)
            continue
        answer: dict[str, Any] = {"step": question["step"]}
        try:
            # With no time limit, a plan depends on its batch alone: a resumed run repeats it.
            existing = tuple(made) if planner.time_limit_s else ()
            plan = planner.plan(question["lengths"], step=question["step"], existing=existing)
            made |= {group.ranks: None for wave in plan.waves for group in wave.groups}
            answer["plan"] = serde.to_document(plan)
            if refined is not None:
                answer["refined"], refined = serde.to_document(refined), None
        except TrimtabError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


def _refined(profile: StepProfile, samples: Sequence[GroupSample]) -> Refinement:
    after = refine_profile(profile, samples)
    return Refinement(
        profile=after,
        num_groups=len(samples),
        error_before=median_error(samples, profile=profile),
        error_after=median_error(samples, profile=after),
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
