"""The inner loops that make micro-batches for a pipeline, and improve them on its timeline.

Waves are those of `kernels`, flows and orders those of `pipeline_kernels`: micro-batch m is
wave m.
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled
from trimtab.planners.pipelines.pipeline_kernels import Flow, Scratch, improve_order, step_s
from trimtab.planners.steps.kernels import (
    Batch,
    Filling,
    Waves,
    area_of,
    copy_wave,
    fill_wave,
    next_random,
    take_apart,
)


class Shares(NamedTuple):
    """How a wave's time divides over stages; shapes (pp,)."""

    forward: Floats
    backward: Floats
    send_s: float
    """Per token of a rank."""


@compiled
def set_times(flow: Flow, m: int, wave_s: float, tokens: float, shares: Shares) -> None:
    """Micro-batch `m` takes `wave_s`, its fixed time included, and holds `tokens` a rank."""
    pp = len(flow.limits)
    for s in range(pp):
        flow.forward[m * pp + s] = shares.forward[s] * wave_s
        flow.backward[m * pp + s] = shares.backward[s] * wave_s
    flow.send[m] = shares.send_s * tokens
    flow.tokens[m] = tokens


@compiled
def set_all_times(
    flow: Flow, num: int, waves: Waves, tokens: Floats, fixed_s: float, shares: Shares
) -> None:
    """Every micro-batch takes what its wave of `waves` does."""
    for m in range(num):
        set_times(flow, m, waves.wave_s[m] + fixed_s, tokens[m], shares)


@compiled
def fill_at(
    batch: Batch, target_s: float, filled: Filling, left: Ints, tokens: Floats, waves: Waves
) -> int:
    """Waves of `target_s` each, or longer where a sequence is; `left` is scratch.

    Returns:
        The number of waves; 0 where `waves` has too little room for them.
    """
    num_sizes = len(batch.sizes)
    for i in range(num_sizes):
        left[i] = batch.counts[i]
    w = 0
    while True:
        longest = area_of(batch, left)[2]
        if longest == num_sizes:
            return w
        if w == len(waves.wave_s):
            return 0
        waves.target_s[w] = max(target_s, batch.fastest_s[longest])
        waves.wave_s[w], _ = fill_wave(batch, left, 0, waves.target_s[w], filled)
        tokens[w] = rank_tokens(batch, filled)
        for i in range(num_sizes):
            waves.counts[w * num_sizes + i] = filled.taken[i]
            left[i] -= filled.taken[i]
        w += 1


@compiled
def tokens_of(
    batch: Batch, num: int, filled: Filling, left: Ints, tokens: Floats, waves: Waves
) -> None:
    """Most tokens a rank holds of every wave."""
    num_sizes = len(batch.sizes)
    for w in range(num):
        for i in range(num_sizes):
            left[i] = waves.counts[w * num_sizes + i]
        fill_wave(batch, left, 0, waves.target_s[w], filled)
        tokens[w] = rank_tokens(batch, filled)


@compiled
def cut_wave(
    batch: Batch, num: int, filled: Filling, left: Ints, tokens: Floats, waves: Waves
) -> bool:
    """Cut the longest wave that can be into two with half of the sequences each.

    Returns:
        Whether there is one more wave.
    """
    num_sizes = len(batch.sizes)
    if num == len(waves.wave_s):
        return False
    limit_s = 1e300
    while True:
        w = -1
        for j in range(num):
            if waves.wave_s[j] < limit_s and (w < 0 or waves.wave_s[j] > waves.wave_s[w]):
                w = j
        if w < 0:
            return False
        limit_s = waves.wave_s[w]
        is_up = True
        for i in range(num_sizes):
            count = waves.counts[w * num_sizes + i]
            left[i] = (count + 1) // 2 if is_up else count // 2
            is_up = is_up != (count % 2 == 1)
        if not keep_wave(batch, num, waves.target_s[w], filled, left, tokens, waves):
            continue
        for i in range(num_sizes):
            left[i] = waves.counts[w * num_sizes + i] - left[i]
        if keep_wave(batch, w, waves.target_s[w], filled, left, tokens, waves):
            return True


@compiled
def keep_wave(
    batch: Batch,
    w: int,
    target_s: float,
    filled: Filling,
    left: Ints,
    tokens: Floats,
    waves: Waves,
) -> bool:
    """Wave `w` becomes all of `left`, if there is some and it fits."""
    wave_s, _ = fill_wave(batch, left, 0, target_s, filled)
    if wave_s == 0.0:
        return False
    for i in range(len(batch.sizes)):
        if filled.taken[i] != left[i]:
            return False
    waves.target_s[w], waves.wave_s[w] = target_s, wave_s
    tokens[w] = rank_tokens(batch, filled)
    for i in range(len(batch.sizes)):
        waves.counts[w * len(batch.sizes) + i] = left[i]
    return True


@compiled
def rank_tokens(batch: Batch, filled: Filling) -> float:
    """Most tokens a rank holds of the wave that was filled last."""
    most = 0.0
    for k in range(len(batch.degrees)):
        first = batch.first_group[k]
        for g in range(first, first + filled.open_groups[k]):
            most = max(most, filled.group_tokens[g] / batch.degrees[k])
    return most


@compiled
def improve_waves(
    batch: Batch,
    flow: Flow,
    shares: Shares,
    order: Ints,
    num: int,
    trials: int,
    state: Ints,
    filled: Filling,
    left: Ints,
    picks: Ints,
    new_order: Ints,
    new: Waves,
    kept: Flow,
    waves: Waves,
    out: Scratch,
) -> float:
    """Fill some waves anew, or change the order, where the step takes no longer.

    The number of waves stays. `left`, `picks`, `new_order`, `new` and `kept` are scratch.

    Returns:
        The time of the step.
    """
    best_s = step_s(flow, order, num, out)
    for _ in range(trials):
        if next_random(state) < 0.35:
            best_s = improve_order(flow, order, num, 1, state, new_order, out)
            continue
        chosen = min(num, 1 + int(3 * next_random(state)))
        if not refill(batch, num, chosen, state, filled, left, picks, new, kept, waves):
            continue
        pp = len(flow.limits)
        for j in range(chosen):
            m = picks[j]
            tokens, wave_s = kept.tokens[j], new.wave_s[j] + batch.fixed_s
            kept.send[j], kept.tokens[j] = flow.send[m], flow.tokens[m]
            for s in range(pp):
                kept.forward[j * pp + s] = flow.forward[m * pp + s]
                kept.backward[j * pp + s] = flow.backward[m * pp + s]
            set_times(flow, m, wave_s, tokens, shares)
        new_s = step_s(flow, order, num, out)
        is_better = new_s <= best_s
        for j in range(chosen):
            if is_better:
                copy_wave(new, j, waves, picks[j], len(batch.sizes))
            else:
                restore(flow, kept, j, picks[j])
        if is_better:
            best_s = new_s
    return best_s


@compiled
def restore(flow: Flow, kept: Flow, j: int, m: int) -> None:
    """Micro-batch `m` gets back what `kept` holds at `j`."""
    pp = len(flow.limits)
    flow.send[m], flow.tokens[m] = kept.send[j], kept.tokens[j]
    for s in range(pp):
        flow.forward[m * pp + s] = kept.forward[j * pp + s]
        flow.backward[m * pp + s] = kept.backward[j * pp + s]


@compiled
def refill(
    batch: Batch,
    num: int,
    chosen: int,
    state: Ints,
    filled: Filling,
    left: Ints,
    picks: Ints,
    new: Waves,
    kept: Flow,
    waves: Waves,
) -> bool:
    """Choose waves `picks[:chosen]`, and share what they hold out anew over as many.

    All but the last get half to one and a half even shares of the time that is left, and now
    and then nothing of the longest sizes; the last gets what is left, or less of it. All
    together may take up to a tenth longer.

    Returns:
        Whether all found a place; then `new` holds the waves and `kept.tokens` their tokens.
    """
    num_sizes = len(batch.sizes)
    total_s = take_apart(num_sizes, num, chosen, 0.0, state, left, picks, waves)
    rest_s = total_s * (1 + 0.1 * next_random(state) ** 2)
    for j in range(chosen):
        target_s, first = rest_s, 0
        if j < chosen - 1:
            target_s = rest_s / (chosen - j) * (0.5 + next_random(state))
            if next_random(state) < 0.3:
                first = int(num_sizes * next_random(state))
        elif next_random(state) < 0.4:
            target_s *= next_random(state)
        if target_s <= 0.0:
            return False
        wave_s, _ = fill_wave(batch, left, first, target_s, filled)
        if wave_s == 0.0:
            return False
        new.target_s[j], new.wave_s[j] = target_s, wave_s
        kept.tokens[j] = rank_tokens(batch, filled)
        for i in range(num_sizes):
            left[i] -= filled.taken[i]
            new.counts[j * num_sizes + i] = filled.taken[i]
        rest_s -= wave_s
    return area_of(batch, left)[2] == num_sizes
