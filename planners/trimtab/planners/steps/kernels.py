"""The inner loops of step planning: fill a wave, build a plan wave by wave, improve a plan.

Sizes are the different lengths of a batch, longest first, and `left[i]` says how many of size i
are still to be placed. `work[k * S + i]` is the rank-seconds of one sequence of size i (of S)
in a group of option k, of `degrees[k]` ranks; degrees ascend, and repeat where a degree has
another attention kind. Groups of option k lie at `first_group[k]`, one after the other. All
arrays are flat and made by `compiled.floats` and `compiled.ints`.
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled

_TIME_SLACK = 1e-12
"""Relative tolerance on a target time, so that a target met exactly is met."""

_MODULUS = 2_147_483_647
_MULTIPLIER = 48_271
"""Park and Miller's generator (1993): the same numbers with and without numba."""


class Batch(NamedTuple):
    """What is packed, and what it costs; never written."""

    sizes: Ints
    counts: Ints
    degrees: Ints
    work: Floats
    opening: Floats
    """Work of a group of each option besides its sequences."""
    order: Ints
    """Options by degree, then by work: `order[i * K + j]` is the j-th for size i; its degree is
    `degrees[j]` whatever i."""
    ordered_work: Floats
    """Work of size i at its j-th option: `ordered_work[i * K + j]`."""
    cheapest: Floats
    """Work of a sequence of each size at its cheapest degree."""
    fastest_s: Floats
    """Time of a sequence of each size alone at its fastest degree."""
    first_group: Ints
    num_ranks: int
    token_cap: int
    fixed_s: float
    is_plain: bool
    """Whether no degree repeats and no group has work besides its sequences."""


class Filling(NamedTuple):
    """What `fill_wave` writes; `log_*` has one entry for each run of equal sequences placed."""

    taken: Ints
    open_groups: Ints
    """How many groups of each degree are open."""
    group_work: Floats
    group_tokens: Ints
    log_group: Ints
    log_size: Ints
    log_count: Ints


class Waves(NamedTuple):
    """A plan: the sequences of each wave, and the target time they were packed for."""

    counts: Ints
    """Wave w has `counts[w * S + i]` sequences of size i."""
    target_s: Floats
    wave_s: Floats
    """Time of the slowest group, without the fixed time."""


@compiled
def next_random(state: Ints) -> float:
    """Uniform in (0, 1)."""
    state[0] = state[0] * _MULTIPLIER % _MODULUS
    return state[0] / _MODULUS


@compiled
def fill_wave(  # noqa: C901 - one loop: calls from within make it ten times as slow
    batch: Batch, left: Ints, first: int, target_s: float, out: Filling
) -> tuple[float, int]:
    """Fill one wave with sequences of size index >= `first`, longest first.

    Each takes the narrowest degree that holds it and meets the target: an open group before a
    new one, and a wider group's slack only when no rank is free.

    Returns:
        The time of the slowest group, and how many entries of the log are in use.
    """
    num_sizes, num_degrees = len(batch.sizes), len(batch.degrees)
    limit_s = target_s * (1 + _TIME_SLACK)
    free = batch.num_ranks
    wave_s = 0.0
    num_logged = 0
    for i in range(num_sizes):
        out.taken[i] = 0
    for k in range(num_degrees):
        out.open_groups[k] = 0
    for i in range(first, num_sizes):
        count = left[i]
        if count == 0:
            continue
        tokens = batch.sizes[i]
        is_narrowest = True
        for j in range(num_degrees):
            degree = batch.degrees[j]
            work = batch.ordered_work[i * num_degrees + j]
            most_work, most_tokens = degree * limit_s, degree * batch.token_cap
            if tokens > most_tokens or work > most_work:
                continue
            k = j
            if not batch.is_plain:
                k = batch.order[i * num_degrees + j]
                if batch.opening[k] + work > most_work:
                    continue
            g = batch.first_group[k]
            end = g + out.open_groups[k]
            while count > 0:
                while g < end and (
                    out.group_tokens[g] + tokens > most_tokens
                    or out.group_work[g] + work > most_work
                ):
                    g += 1
                if g == end:
                    if not is_narrowest or degree > free:
                        break
                    free -= degree
                    end += 1
                    out.open_groups[k] += 1
                    out.group_work[g] = batch.opening[k]
                    out.group_tokens[g] = 0
                fitting = min(count, (most_tokens - out.group_tokens[g]) // tokens)
                by_time = (most_work - out.group_work[g]) / work
                if by_time < fitting:
                    fitting = max(1, int(by_time))
                out.group_work[g] += fitting * work
                out.group_tokens[g] += fitting * tokens
                out.taken[i] += fitting
                out.log_group[num_logged] = g
                out.log_size[num_logged] = i
                out.log_count[num_logged] = fitting
                num_logged += 1
                count -= fitting
                wave_s = max(wave_s, out.group_work[g] / degree)
            if count == 0:
                break
            is_narrowest = False
    return wave_s, num_logged


@compiled
def area_of(batch: Batch, left: Ints) -> tuple[float, int, int]:
    """Cheapest work over the ranks, fewest waves by tokens, and the longest size (or S)."""
    work = 0.0
    tokens = 0
    longest = len(batch.sizes)
    for i in range(len(batch.sizes) - 1, -1, -1):
        if left[i] > 0:
            work += left[i] * batch.cheapest[i]
            tokens += left[i] * batch.sizes[i]
            longest = i
    wave_tokens = batch.num_ranks * batch.token_cap
    return work / batch.num_ranks, (tokens + wave_tokens - 1) // wave_tokens, longest


@compiled
def rest_s(batch: Batch, left: Ints, out: Filling) -> float:
    """The area bound of what a filled wave leaves over, fixed times included."""
    for i in range(len(batch.sizes)):
        left[i] -= out.taken[i]
    area_s, num_waves, longest = area_of(batch, left)
    for i in range(len(batch.sizes)):
        left[i] += out.taken[i]
    if longest == len(batch.sizes):
        return 0.0
    return max(area_s, batch.fastest_s[longest]) + num_waves * batch.fixed_s


@compiled
def target_of(batch: Batch, c: int, left: Ints, stretches: Floats) -> float:
    """Target time number `c` of a wave; 0 where it is not worth a try.

    Targets are shares of the work left times `stretches`, and the times of the longest sequence
    alone at each degree.
    """
    area_s, num_waves, longest = area_of(batch, left)
    shortest_s = batch.fastest_s[longest]
    if c < len(stretches):
        return max(shortest_s, stretches[c] * area_s / num_waves)
    k = c - len(stretches)
    alone = batch.opening[k] + batch.work[k * len(batch.sizes) + longest]
    target_s = alone / batch.degrees[k]
    if batch.sizes[longest] > batch.degrees[k] * batch.token_cap:
        return 0.0
    if target_s > max(shortest_s, 1.5 * area_s):
        return 0.0
    return target_s


@compiled
def build(
    batch: Batch,
    stretches: Floats,
    doubt: float,
    out: Filling,
    left: Ints,
    best: Ints,
    waves: Waves,
) -> int:
    """Fill wave after wave, until nothing is left.

    Each wave gets the target that makes its own time plus `doubt` times the area bound of what
    is left smallest. `left` and `best` are scratch.

    Returns:
        The number of waves; 0 where `waves` has too little room for them.
    """
    num_sizes = len(batch.sizes)
    for i in range(num_sizes):
        left[i] = batch.counts[i]
    w = 0
    while area_of(batch, left)[2] < num_sizes:
        if w == len(waves.wave_s):
            return 0
        best_s = -1.0
        last_s = 0.0
        for c in range(len(stretches) + len(batch.degrees)):
            target_s = target_of(batch, c, left, stretches)
            if target_s in (0.0, last_s):
                continue
            last_s = target_s
            wave_s, _ = fill_wave(batch, left, 0, target_s, out)
            total_s = wave_s + doubt * rest_s(batch, left, out)
            if best_s < 0.0 or total_s < best_s:
                best_s = total_s
                waves.target_s[w] = target_s
                waves.wave_s[w] = wave_s
                for i in range(num_sizes):
                    best[i] = out.taken[i]
        for i in range(num_sizes):
            left[i] -= best[i]
            waves.counts[w * num_sizes + i] = best[i]
        w += 1
    return w


@compiled
def improve(
    batch: Batch,
    num_waves: int,
    trials: int,
    state: Ints,
    out: Filling,
    left: Ints,
    order: Ints,
    new: Waves,
    waves: Waves,
) -> int:
    """Take some waves apart and fill them anew, where that takes no longer; `trials` times.

    Two to four waves are chosen at random, sometimes to become one more or one less.
    `left`, `order` and `new` are scratch; `state` is that of `next_random`.

    Returns:
        The number of waves.
    """
    num_sizes = len(batch.sizes)
    for _ in range(trials):
        chosen = min(num_waves, 2 + int(3 * next_random(state)))
        total_s = take_apart(
            num_sizes, num_waves, chosen, batch.fixed_s, state, left, order, waves
        )
        wanted = chosen
        draw = next_random(state)
        if draw < 0.05 and num_waves < len(waves.wave_s):
            wanted = chosen + 1
        elif draw > 0.93 and chosen > 1:
            wanted = chosen - 1
        used = refill(batch, chosen, wanted, total_s, state, out, left, order, new, waves)
        for j in range(used):
            w = order[j]
            if j >= chosen:
                w = num_waves
                num_waves += 1
            copy_wave(new, j, waves, w, num_sizes)
        if 0 < used < chosen:
            num_waves = drop_waves(waves, num_waves, order, used, chosen, num_sizes)
    return num_waves


@compiled
def take_apart(
    num_sizes: int,
    num_waves: int,
    chosen: int,
    fixed_s: float,
    state: Ints,
    left: Ints,
    order: Ints,
    waves: Waves,
) -> float:
    """Choose waves `order[:chosen]`, put what they hold into `left`; return their time."""
    for j in range(num_waves):
        order[j] = j
    for i in range(num_sizes):
        left[i] = 0
    total_s = 0.0
    for j in range(chosen):
        other = j + int((num_waves - j) * next_random(state))
        order[j], order[other] = order[other], order[j]
        w = order[j]
        total_s += waves.wave_s[w] + fixed_s
        for i in range(num_sizes):
            left[i] += waves.counts[w * num_sizes + i]
    return total_s


@compiled
def refill(
    batch: Batch,
    chosen: int,
    wanted: int,
    total_s: float,
    state: Ints,
    out: Filling,
    left: Ints,
    order: Ints,
    new: Waves,
    waves: Waves,
) -> int:
    """Fill `wanted` waves with what is left, in no more than `total_s`.

    All but the last get a target near the time of a chosen wave, or at random, and now and then
    nothing of the longest sizes; the last gets the time that is left.

    Returns:
        The number of waves filled; 0 where something is left over.
    """
    num_sizes = len(batch.sizes)
    spent_s = 0.0
    for j in range(wanted):
        longest = area_of(batch, left)[2]
        if longest == num_sizes:
            return j
        target_s = total_s - spent_s - (wanted - j) * batch.fixed_s
        first = longest
        if j < wanted - 1:
            wish_s = target_s * next_random(state)
            if j < chosen and next_random(state) < 0.5:
                wish_s = waves.wave_s[order[j]] * (0.9 + 0.2 * next_random(state))
            target_s = min(target_s, wish_s)
            if next_random(state) < 0.3:
                first += int((num_sizes - first) * next_random(state))
        if target_s <= 0.0:
            return 0
        wave_s, _ = fill_wave(batch, left, first, target_s, out)
        if wave_s == 0.0:
            return 0
        for i in range(num_sizes):
            left[i] -= out.taken[i]
            new.counts[j * num_sizes + i] = out.taken[i]
        new.target_s[j] = target_s
        new.wave_s[j] = wave_s
        spent_s += wave_s + batch.fixed_s
    is_whole = spent_s <= total_s and area_of(batch, left)[2] == num_sizes
    return wanted if is_whole else 0


@compiled
def copy_wave(source: Waves, s: int, target: Waves, t: int, num_sizes: int) -> None:
    """Wave `t` of `target` becomes wave `s` of `source`."""
    target.target_s[t] = source.target_s[s]
    target.wave_s[t] = source.wave_s[s]
    for i in range(num_sizes):
        target.counts[t * num_sizes + i] = source.counts[s * num_sizes + i]


@compiled
def drop_waves(
    waves: Waves, num_waves: int, order: Ints, used: int, chosen: int, num_sizes: int
) -> int:
    """Remove waves `order[used:chosen]`; return how many are left."""
    for j in range(used, chosen):
        waves.wave_s[order[j]] = -1.0
    w = 0
    while w < num_waves:
        if waves.wave_s[w] < 0.0:
            num_waves -= 1
            if w < num_waves:
                copy_wave(waves, num_waves, waves, w, num_sizes)
        else:
            w += 1
    return num_waves
