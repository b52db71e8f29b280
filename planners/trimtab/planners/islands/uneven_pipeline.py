"""One-forward-one-backward over unequal stages whose messages take unequal times.

As `timeline` of the schedule 1f1b, and besides: every boundary has its own time to send, each
way, and messages that leave one after the other wait for each other on the wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.planners.compiled import Floats, compiled, floats, zero_floats, zero_ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Between two stages: how long a message holds the wire, and how long it flies."""

    forward_s: float
    forward_latency_s: float
    backward_s: float
    backward_latency_s: float

    @property
    def there_and_back_s(self) -> float:
        return (
            self.forward_s + self.forward_latency_s + self.backward_s + self.backward_latency_s
        )


def stage_ends(
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    boundaries: Sequence[Boundary],
    *,
    num_micro_batches: int,
) -> list[float]:
    """When every stage has done its last backward pass, counted from the step's beginning.

    Args:
        forward_s: Of a micro-batch in every stage, shape (pp,).
        backward_s: The same, gradients of weights included.
        boundaries: What lies between the stages, shape (pp - 1,).
        num_micro_batches: Of a step.
    """
    pp = len(forward_s)
    sends = [
        value
        for boundary in boundaries
        for value in (
            boundary.forward_s,
            boundary.forward_latency_s,
            boundary.backward_s,
            boundary.backward_latency_s,
        )
    ]
    ends = zero_floats(pp)
    _run(
        floats(forward_s),
        floats(backward_s),
        floats([*sends, 0.0]),
        pp,
        num_micro_batches,
        ends,
        zero_floats(pp * num_micro_batches),
        zero_floats(pp * num_micro_batches),
        zero_floats(2 * pp),
        zero_ints(2 * pp),
    )
    return [float(end) for end in ends]


@compiled
def _run(  # type: ignore[no-untyped-def]  # what numba compiles
    forward_s: Floats, backward_s: Floats, sends: Floats, pp: int, num_micro: int,
    ends: Floats, there: Floats, back: Floats, wire: Floats, done,
) -> None:  # fmt: skip
    """Follow every stage's order until all is done; `ends` is written.

    `there[s * m + j]` and `back[s * m + j]` are when the input of micro-batch j's forward and
    of its backward pass in stage s has arrived. `wire[s]` and `wire[pp + s]` are when the wire
    behind and before stage s is free, `done[s]` and `done[pp + s]` count passes.
    """
    left = 2 * pp * num_micro
    while left > 0:
        for stage in range(pp):
            warm = min(num_micro, pp - stage)
            while True:
                num_forward, num_backward = done[stage], done[pp + stage]
                is_forward = num_forward < num_micro and num_forward - num_backward < warm
                if is_forward:
                    if stage > 0 and done[stage - 1] <= num_forward:
                        break
                    start = max(ends[stage], there[stage * num_micro + num_forward])
                    end = start + forward_s[stage]
                    if stage < pp - 1:
                        leaves = max(end, wire[stage]) + sends[4 * stage]
                        wire[stage] = leaves
                        place = (stage + 1) * num_micro + num_forward
                        there[place] = leaves + sends[4 * stage + 1]
                    else:
                        back[stage * num_micro + num_forward] = end
                    done[stage] += 1
                else:
                    if num_backward >= num_micro:
                        break
                    if stage < pp - 1 and done[pp + stage + 1] <= num_backward:
                        break
                    start = max(ends[stage], back[stage * num_micro + num_backward])
                    end = start + backward_s[stage]
                    if stage > 0:
                        leaves = max(end, wire[pp + stage]) + sends[4 * stage - 2]
                        wire[pp + stage] = leaves
                        place = (stage - 1) * num_micro + num_backward
                        back[place] = leaves + sends[4 * stage - 1]
                    done[pp + stage] += 1
                ends[stage] = end
                left -= 1
