"""Times the parts of a rank's step, on the host's clock or, with CUDA, on the device's."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.core.events import STEP_PARTS, StepPartName
from trimtab.core.plan import TimePart

_OUTSIDE: StepPartName = "waiting"
"""Whatever is in no part counts as waiting: for the plan, for the other ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long a step took: the parts add up to `step_s`."""

    step_s: float
    parts: tuple[TimePart, ...]
    waves_s: tuple[float, ...]
    """Forward and backward of each wave this rank had a group in, else 0."""


class StepClock:
    """Marks the moments at which a rank passes from one part of its step to another.

    Parts nest: the inner one's time is taken off the outer one's. A mark costs a clock reading,
    or an event record on the CUDA stream; nothing is synchronized before `finish`.
    """

    def __init__(self) -> None:
        self._on_device = torch.cuda.is_available()
        self.start(num_waves=0)

    @property
    def doing(self) -> StepPartName:
        """The part under way."""
        return self._stack[-1]

    def start(self, *, num_waves: int) -> None:
        """Begin a step."""
        self._stack: list[StepPartName] = [_OUTSIDE]
        self._marks: list[tuple[Any, StepPartName]] = [(self._now(), _OUTSIDE)]
        self._waves: list[tuple[Any, Any] | None] = [None] * num_waves

    def expect_waves(self, num_waves: int) -> None:
        """Say how many waves the step has, once its plan is known."""
        self._waves = [None] * num_waves

    @contextlib.contextmanager
    def part(self, name: StepPartName) -> Iterator[None]:
        """Count the time inside as `name`."""
        self._stack.append(name)
        self._marks.append((self._now(), name))
        try:
            yield
        finally:
            self._stack.pop()
            self._marks.append((self._now(), self._stack[-1]))

    @contextlib.contextmanager
    def wave(self, index: int) -> Iterator[None]:
        """Time wave `index` as a whole, over the parts inside it."""
        begin = self._now()
        yield
        self._waves[index] = (begin, self._now())

    def finish(self) -> StepTimes:
        """End the step and add up its parts."""
        end = self._now()
        if self._on_device:
            end.synchronize()
        seconds = dict.fromkeys(STEP_PARTS, 0.0)
        moments = [moment for moment, _ in self._marks] + [end]
        for (begin, name), until in zip(self._marks, moments[1:], strict=True):
            seconds[name] += self._between(begin, until)
        return StepTimes(
            step_s=sum(seconds.values()),
            parts=tuple(TimePart(name=name, seconds=s) for name, s in seconds.items()),
            waves_s=tuple(self._between(*wave) if wave else 0.0 for wave in self._waves),
        )

    def _now(self) -> Any:
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self._on_device:
            return max(0.0, begin.elapsed_time(end) / 1e3)
        return float(end - begin)
