"""Plans for coming steps, made in a process of their own so that training never waits for one.

`PlanAhead` lives in rank 0 and starts this module as a child. They speak lines of JSON over
pipes: first the `StepPlanner`, then for each step `{"step": 7, "lengths": [...]}` one way and
`{"step": 7, "plan": {...}}` or `{"step": 7, "error": "..."}` the other.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from trimtab.core import serde
from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.plan import StepPlan
from trimtab.launch.plans import PlanAnswer
from trimtab.orchestrator.step_planning import StepPlanner

_NICENESS = 10
"""The child yields to training where they share a core."""


class PlanAhead:
    """The planning process seen from rank 0; a late plan is replaced by the fallback."""

    def __init__(self, planner: StepPlanner, *, deadline_s: float) -> None:
        """Start the process.

        Args:
            planner: What plans.
            deadline_s: How long `take` waits for a plan before it falls back.
        """
        self._planner, self._deadline_s = planner, deadline_s
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked: set[int] = set()
        self._arrived = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.orchestrator.plan_ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write(serde.to_json(planner))
        self._reader = threading.Thread(target=self._read, name="plans", daemon=True)
        self._reader.start()

    def prefetch(self, step: int, lengths: Sequence[int]) -> None:
        """Ask for the plan of a coming step."""
        self._asked.add(step)
        self._write(json.dumps({"step": step, "lengths": list(lengths)}))

    def take(self, step: int, lengths: Sequence[int]) -> PlanAnswer:
        """The plan of a step, or the fallback's with the reason.

        Raises:
            TrimtabError: No plan exists for the batch.
        """
        if step not in self._asked:
            self.prefetch(step, lengths)
        self._asked.discard(step)
        waited_from_s = time.monotonic()
        with self._arrived:
            self._arrived.wait_for(
                lambda: step in self._answers or self._process.poll() is not None,
                timeout=self._deadline_s,
            )
            answer = self._answers.pop(step, None)
            for stale in [old for old in self._answers if old < step]:
                del self._answers[stale]
        if answer is None:
            return PlanAnswer(
                plan=self._planner.fallback(lengths),
                late=self._why_late(time.monotonic() - waited_from_s),
            )
        if "error" in answer:
            raise TrimtabError(answer["error"])
        return PlanAnswer(plan=serde.from_document(StepPlan, answer["plan"]))

    def fast(self, lengths: Sequence[int]) -> StepPlan:
        """A plan at once, in this process."""
        return self._planner.fallback(lengths)

    @property
    def pid(self) -> int:
        """Of the planning process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _why_late(self, waited_s: float) -> str:
        code = self._process.poll()
        if code is not None:
            return (
                f"the planning process has died (exit code {code}); the fallback plan of one "
                "degree is used from here on"
            )
        return f"no plan after {waited_s:.1f} s; the fallback plan of one degree is used"

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `take` sees that the process is gone
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._arrived:
                self._answers[answer["step"]] = answer
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()


def main() -> None:
    """Answer every line of standard input until it ends."""
    os.nice(_NICENESS)
    planner = serde.from_json(StepPlanner, sys.stdin.readline())
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {"step": question["step"]}
        try:
            plan = planner.plan(question["lengths"], step=question["step"])
            answer["plan"] = serde.to_document(plan)
        except TrimtabError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, InputError):
        main()
