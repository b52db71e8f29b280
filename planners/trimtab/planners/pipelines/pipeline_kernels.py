"""The inner loops of pipelined step plans: the exact time of a step, and better orders.

Micro-batch m takes `forward[m * pp + s]` and `backward[m * pp + s]` seconds in stage s; `order`
holds the micro-batches by position. All arrays are flat and made by `compiled.floats` and
`compiled.ints`.
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled
from trimtab.planners.steps.kernels import next_random

_ROUNDING = 1 + 1e-9


class Flow(NamedTuple):
    """What passes through the pipeline."""

    forward: Floats
    backward: Floats
    send: Floats
    tokens: Floats
    """Most tokens of one rank, by micro-batch."""
    limits: Floats
    """Tokens that a rank of each stage holds; shape (pp,)."""
    vpp: int
    operations: Ints
    """With vpp > 1 alone, what `interleaved_s` follows: five numbers an operation."""


class Scratch(NamedTuple):
    """What `step_s` writes; shapes (pp,), (pp,), (pp,), (pp,), and twice (pp * positions,)."""

    free: Floats
    held: Floats
    done: Ints
    wanted: Ints
    forward_end: Floats
    backward_end: Floats
    """With vpp > 1: of every operation, in their order."""


@compiled
def step_s(flow: Flow, order: Ints, num: int, out: Scratch) -> float:
    """The time of a step whose micro-batches enter in `order`."""
    if flow.vpp > 1:
        return interleaved_s(flow, order, out)
    return one_forward_one_backward_s(flow, order, num, out)


@compiled
def one_forward_one_backward_s(flow: Flow, order: Ints, num: int, out: Scratch) -> float:
    """1F1B that never holds more tokens than fit.

    Before the forward pass of position k, stage s has done the backward passes of so many
    positions that at most pp - s are in flight, position k included, and that their tokens are
    within its limit; and of no fewer than the stage before has, else both would wait for each
    other. Without limits this is plain 1F1B.
    """
    pp = len(flow.limits)
    for s in range(pp):
        out.free[s] = 0.0
        out.held[s] = 0.0
        out.done[s] = 0
    for k in range(num):
        m = order[k]
        wanted = 0
        for s in range(pp):
            wanted = max(wanted, out.done[s], k - (pp - s) + 1)
            held = out.held[s] + flow.tokens[m]
            for j in range(out.done[s], wanted):
                held -= flow.tokens[order[j]]
            while wanted < k and held > flow.limits[s] * _ROUNDING:
                held -= flow.tokens[order[wanted]]
                wanted += 1
            out.held[s] = held
            out.wanted[s] = wanted
        run_backward(flow, order, num, out)
        arrived = 0.0
        for s in range(pp):
            start = max(out.free[s], arrived)
            out.free[s] = start + flow.forward[m * pp + s]
            out.forward_end[s * num + k] = out.free[s]
            arrived = out.free[s] + flow.send[m]
    for s in range(pp):
        out.wanted[s] = num
    run_backward(flow, order, num, out)
    return out.free[0]


@compiled
def run_backward(flow: Flow, order: Ints, num: int, out: Scratch) -> None:
    """The backward passes of every stage until as many are done as wanted."""
    pp = len(flow.limits)
    for s in range(pp - 1, -1, -1):
        for j in range(out.done[s], out.wanted[s]):
            m = order[j]
            arrived = out.forward_end[s * num + j]
            if s < pp - 1:
                arrived = out.backward_end[(s + 1) * num + j] + flow.send[m]
            out.free[s] = max(out.free[s], arrived) + flow.backward[m * pp + s]
            out.backward_end[s * num + j] = out.free[s]
        out.done[s] = out.wanted[s]


@compiled
def interleaved_s(flow: Flow, order: Ints, out: Scratch) -> float:
    """The interleaved schedule, operation by operation.

    An operation is: position of its micro-batch, rank, 1 for backward, the operation before it
    on its rank, and the one it gets its input from (-1: none), negative twice over where that
    is not sent.
    """
    pp = len(flow.limits)
    most = 0.0
    for at in range(len(flow.operations) // 5):
        m = order[flow.operations[5 * at]]
        s = flow.operations[5 * at + 1]
        start = 0.0
        before, source = flow.operations[5 * at + 3], flow.operations[5 * at + 4]
        if before >= 0:
            start = out.backward_end[before]
        if source >= 0:
            start = max(start, out.backward_end[source] + flow.send[m])
        elif source < -1:
            start = max(start, out.backward_end[-2 - source])
        seconds = flow.forward[m * pp + s]
        if flow.operations[5 * at + 2]:
            seconds = flow.backward[m * pp + s]
        out.backward_end[at] = start + seconds / flow.vpp
        most = max(most, out.backward_end[at])
    return most


@compiled
def improve_order(
    flow: Flow, order: Ints, num: int, trials: int, state: Ints, new: Ints, out: Scratch
) -> float:
    """Move or swap micro-batches where that takes no longer; `trials` times.

    `new` is scratch; `state` is that of `next_random`.

    Returns:
        The time of the step.
    """
    best_s = step_s(flow, order, num, out)
    for _ in range(trials):
        changed_order(order, num, state, new)
        new_s = step_s(flow, new, num, out)
        if new_s <= best_s:
            best_s = new_s
            for k in range(num):
                order[k] = new[k]
    return best_s


@compiled
def changed_order(order: Ints, num: int, state: Ints, new: Ints) -> None:
    """`order` with one micro-batch moved elsewhere, or two swapped."""
    for k in range(num):
        new[k] = order[k]
    i, j = int(num * next_random(state)), int(num * next_random(state))
    if next_random(state) < 0.5:
        new[i], new[j] = new[j], new[i]
        return
    step = 1 if j > i else -1
    for k in range(i, j, step):
        new[k] = new[k + step]
    new[j] = order[i]
