"""The exact event simulation of micro-batches on a staged layout.

A *visit* is a micro-batch at a stage, number `micro_batch * num_stages + stage`. Every event is
the arrival or the end of a visit's forward or backward pass; whatever may start then starts, by
the rules that `staged_schedule.simulate` states. Arrays are flat, made by `compiled`.
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled

_ARRIVES_F, _ENDS_F, _ARRIVES_B, _ENDS_B = 0, 1, 2, 3
_NOT_YET, _READY, _STARTED = 0, 1, 2
_SLACK = 1e-9
"""Relative tolerance of memory sums, and of what fits before a time."""
_NEVER_S = 1e300
_MOST_FAILED = 6
"""Forwards that find no block, for want of idle neighbours, before no more are tried."""


class Work(NamedTuple):
    """What is simulated; never written. Shapes: [M] micro-batches, [M * S] visits."""

    num_stages: int
    degree: Ints
    held: Floats
    """Tokens that each rank holds of a micro-batch; [M]."""
    replica: Ints
    """Of each visit; -1: the stage is left out."""
    forward_s: Floats
    backward_s: Floats
    next_stage: Ints
    """The next stage on the path, -1 after the last; `previous_stage` likewise."""
    previous_stage: Ints
    forward_channel: Ints
    """What the message to the next stage goes through; how long it keeps that and is away."""
    forward_keep_s: Floats
    forward_away_s: Floats
    backward_channel: Ints
    backward_keep_s: Floats
    backward_away_s: Floats
    first_visitor: Ints
    """[V + 1]: replica v is visited by `visitors[first_visitor[v] : first_visitor[v + 1]]`."""
    visitors: Ints
    first_rank: Ints
    """[V + 1]: ranks are numbered replica by replica."""
    cap: Floats
    """Tokens a rank of each replica may hold."""
    forward_first: Ints
    """Whether forwards come before backwards at each replica; [V]."""


class Times(NamedTuple):
    """What the simulation writes, by visit."""

    forward_start_s: Floats
    backward_start_s: Floats
    block: Ints
    """First rank, within the replica."""
    sent_forward_s: Floats
    """When the channel begins with the message to the next stage."""
    sent_backward_s: Floats


class State(NamedTuple):
    """What the simulation needs while it runs; zeros at first."""

    free_s: Floats
    """From when on each rank is free."""
    held: Floats
    """Tokens each rank holds."""
    kept_s: Floats
    """From when on each rank is kept free for an operation that waits for others beside it."""
    channel_free_s: Floats
    forward: Ints
    """Whether a visit's pass has arrived or started."""
    backward: Ints
    num_ready: Ints
    """[2 * V]: arrived forwards, then backwards."""
    head: Ints
    """[V]: how many of the first visitors have started all that they have to do."""
    dirty: Ints
    """[V]: whether something has changed at a replica."""
    heap_s: Floats
    heap_code: Ints
    """Four events a visit at most."""


@compiled
def _push(state: State, size: int, at_s: float, code: int) -> int:
    """Put an event into the heap of `size`, in order of time, then code."""
    times, codes = state.heap_s, state.heap_code
    i = size
    while i > 0:
        parent = (i - 1) // 2
        if times[parent] < at_s or (times[parent] == at_s and codes[parent] <= code):
            break
        times[i] = times[parent]
        codes[i] = codes[parent]
        i = parent
    times[i] = at_s
    codes[i] = code
    return size + 1


@compiled
def _pop(state: State, size: int) -> int:
    """Take the first event, at the root, out; the caller has read it."""
    times, codes = state.heap_s, state.heap_code
    size -= 1
    at_s, code = times[size], codes[size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        right = child + 1
        if right < size and (
            times[right] < times[child]
            or (times[right] == times[child] and codes[right] < codes[child])
        ):
            child = right
        if at_s < times[child] or (at_s == times[child] and code <= codes[child]):
            break
        times[i] = times[child]
        codes[i] = codes[child]
        i = child
    times[i] = at_s
    codes[i] = code
    return size


@compiled
def run(work: Work, times: Times, state: State, end_s: Floats) -> int:
    """Simulate; `end_s` [S] gets the end of each stage's last backward.

    Returns:
        How many visits were not finished: 0 unless a micro-batch fits no rank's memory.
    """
    stages = work.num_stages
    num_visits = len(work.replica)
    size = 0
    left = 0
    for visit in range(num_visits):
        if work.replica[visit] < 0:
            continue
        left += 1
        if work.previous_stage[visit] < 0:
            size = _push(state, size, 0.0, _ARRIVES_F * num_visits + visit)
    while size > 0:
        now = state.heap_s[0]
        while size > 0 and state.heap_s[0] <= now:
            code = state.heap_code[0]
            size = _pop(state, size)
            kind = code // num_visits
            visit = code - kind * num_visits
            size = _happen(work, times, state, size, now, kind, visit)
            if kind == _ENDS_B:
                left -= 1
                end_s[visit % stages] = now
        for v in range(len(work.cap)):
            if state.dirty[v]:
                state.dirty[v] = 0
                size = _start_what_may(work, times, state, size, now, v)
    return left


@compiled
def _happen(
    work: Work, times: Times, state: State, size: int, now: float, kind: int, visit: int
) -> int:
    """Note one event and send what follows from it on its way."""
    v = work.replica[visit]
    num_visits = len(work.replica)
    state.dirty[v] = 1
    if kind == _ARRIVES_F:
        state.forward[visit] = _READY
        state.num_ready[v] += 1
    elif kind == _ARRIVES_B or (kind == _ENDS_F and work.next_stage[visit] < 0):
        state.backward[visit] = _READY
        state.num_ready[len(work.cap) + v] += 1
    elif kind == _ENDS_F:
        channel = work.forward_channel[visit]
        sent_s = max(now, state.channel_free_s[channel])
        times.sent_forward_s[visit] = sent_s
        state.channel_free_s[channel] = sent_s + work.forward_keep_s[visit]
        target = visit + work.next_stage[visit] - visit % work.num_stages
        code = _ARRIVES_F * num_visits + target
        size = _push(state, size, sent_s + work.forward_away_s[visit], code)
    else:
        micro_batch = visit // work.num_stages
        rank = work.first_rank[v] + times.block[visit]
        for each in range(rank, rank + work.degree[micro_batch]):
            state.held[each] -= work.held[micro_batch]
        if work.previous_stage[visit] >= 0:
            channel = work.backward_channel[visit]
            sent_s = max(now, state.channel_free_s[channel])
            times.sent_backward_s[visit] = sent_s
            state.channel_free_s[channel] = sent_s + work.backward_keep_s[visit]
            target = visit + work.previous_stage[visit] - visit % work.num_stages
            code = _ARRIVES_B * num_visits + target
            size = _push(state, size, sent_s + work.backward_away_s[visit], code)
    return size


@compiled
def _start_what_may(
    work: Work, times: Times, state: State, size: int, now: float, v: int
) -> int:
    """Start arrived passes on the idle ranks of a replica: in the order of its kind."""
    for rank in range(work.first_rank[v], work.first_rank[v + 1]):
        state.kept_s[rank] = _NEVER_S
    if _most_room(work, state, now, v) < 0.0:
        return size
    end = work.first_visitor[v + 1]
    head = work.first_visitor[v] + state.head[v]
    stage = -1
    while head < end:
        micro_batch = work.visitors[head]
        stage = _stage_at(work, micro_batch, v)
        if state.backward[micro_batch * work.num_stages + stage] != _STARTED:
            break
        head += 1
    state.head[v] = head - work.first_visitor[v]
    if head == end:
        return size
    if work.forward_first[v]:
        size = _start_forwards(work, times, state, size, now, v, head, stage)
        return _start_backwards(work, times, state, size, now, v, head, stage)
    size = _start_backwards(work, times, state, size, now, v, head, stage)
    return _start_forwards(work, times, state, size, now, v, head, stage)


@compiled
def _start_backwards(
    work: Work, times: Times, state: State, size: int, now: float, v: int, head: int, stage: int
) -> int:
    """Start the arrived backwards that may, in the order of the visitors from `head` on."""
    todo = state.num_ready[len(work.cap) + v]
    i = head
    while todo > 0:
        visit = work.visitors[i] * work.num_stages + stage
        i += 1
        if state.backward[visit] == _READY:
            todo -= 1
            is_alone = work.degree[work.visitors[i - 1]] == 1
            if is_alone and state.free_s[work.first_rank[v] + times.block[visit]] > now:
                continue
            size = _start_backward(work, times, state, size, now, visit)
    return size


@compiled
def _start_forwards(
    work: Work, times: Times, state: State, size: int, now: float, v: int, head: int, stage: int
) -> int:
    """Start the arrived forwards that may; the first that waits keeps a block."""
    todo = state.num_ready[v]
    may_keep = True
    room = _most_room(work, state, now, v)
    any_room = 0.0
    for rank in range(work.first_rank[v], work.first_rank[v + 1]):
        any_room = max(any_room, work.cap[v] * (1 + _SLACK) - state.held[rank])
    i = head
    num_failed = 0
    while todo > 0 and room >= 0.0 and num_failed < _MOST_FAILED:
        micro_batch = work.visitors[i]
        visit = micro_batch * work.num_stages + stage
        i += 1
        if state.forward[visit] != _READY:
            continue
        todo -= 1
        held = work.held[micro_batch]
        may_wait = may_keep and work.degree[micro_batch] > 1 and held <= any_room
        block = -1
        if held <= room:
            block = _best_block(work, state, now, visit)
            num_failed += block < 0
        if block >= 0:
            size = _start_forward(work, times, state, size, now, visit, block)
            room = _most_room(work, state, now, v)
        elif may_wait and _keep_block(work, state, visit):
            may_keep = False
            room = _most_room(work, state, now, v)
    return size


@compiled
def _stage_at(work: Work, micro_batch: int, v: int) -> int:
    """The stage of replica `v`, looked up at one of its visitors."""
    for stage in range(work.num_stages):
        if work.replica[micro_batch * work.num_stages + stage] == v:
            return stage
    return -1


@compiled
def _most_room(work: Work, state: State, now: float, v: int) -> float:
    """Tokens that the emptiest idle rank still holds; below 0: no rank is idle."""
    cap = work.cap[v] * (1 + _SLACK)
    room = -1.0
    for rank in range(work.first_rank[v], work.first_rank[v + 1]):
        if state.free_s[rank] <= now and state.kept_s[rank] > now:
            room = max(room, cap - state.held[rank])
    return room


@compiled
def _start_backward(
    work: Work, times: Times, state: State, size: int, now: float, visit: int
) -> int:
    """Start a backward on the block of its forward, or keep the block free for it."""
    v = work.replica[visit]
    first = work.first_rank[v] + times.block[visit]
    degree = work.degree[visit // work.num_stages]
    done_s = now + work.backward_s[visit]
    is_idle = True
    all_free_s = 0.0
    for rank in range(first, first + degree):
        all_free_s = max(all_free_s, state.free_s[rank])
        if state.kept_s[rank] * (1 + _SLACK) < done_s:
            is_idle = False
    if all_free_s > now or not is_idle:
        for rank in range(first, first + degree):
            state.kept_s[rank] = min(state.kept_s[rank], all_free_s)
        return size
    state.backward[visit] = _STARTED
    state.num_ready[len(work.cap) + v] -= 1
    times.backward_start_s[visit] = now
    for rank in range(first, first + degree):
        state.free_s[rank] = done_s
    return _push(state, size, done_s, _ENDS_B * len(work.replica) + visit)


@compiled
def _start_forward(
    work: Work, times: Times, state: State, size: int, now: float, visit: int, block: int
) -> int:
    v = work.replica[visit]
    micro_batch = visit // work.num_stages
    first = work.first_rank[v] + block
    state.forward[visit] = _STARTED
    state.num_ready[v] -= 1
    times.forward_start_s[visit] = now
    times.block[visit] = block
    done_s = now + work.forward_s[visit]
    for rank in range(first, first + work.degree[micro_batch]):
        state.free_s[rank] = done_s
        state.held[rank] += work.held[micro_batch]
    return _push(state, size, done_s, _ENDS_F * len(work.replica) + visit)


@compiled
def _best_block(work: Work, state: State, now: float, visit: int) -> int:
    """The idle block with memory for a forward whose ranks hold least; -1: none."""
    v = work.replica[visit]
    micro_batch = visit // work.num_stages
    degree = work.degree[micro_batch]
    first, last = work.first_rank[v], work.first_rank[v + 1]
    room = work.cap[v] * (1 + _SLACK) - work.held[micro_batch]
    best, least = -1, room
    done_s = now + work.forward_s[visit]
    block = first
    while block + degree <= last:
        most = 0.0
        for rank in range(block, block + degree):
            if state.free_s[rank] > now or state.kept_s[rank] * (1 + _SLACK) < done_s:
                most = room + 1.0
                break
            most = max(most, state.held[rank])
        if most < least or (most <= least and best < 0):
            best, least = block - first, most
        block += degree
    return best


@compiled
def _keep_block(work: Work, state: State, visit: int) -> bool:
    """Keep the block free that a forward of several ranks can have first; False: no memory."""
    v = work.replica[visit]
    micro_batch = visit // work.num_stages
    degree = work.degree[micro_batch]
    first, last = work.first_rank[v], work.first_rank[v + 1]
    room = work.cap[v] * (1 + _SLACK) - work.held[micro_batch]
    best, soonest_s = -1, 0.0
    block = first
    while degree > 1 and block + degree <= last:
        free_s = 0.0
        has_room = True
        for rank in range(block, block + degree):
            free_s = max(free_s, state.free_s[rank])
            if state.held[rank] > room:
                has_room = False
        if has_room and (best < 0 or free_s < soonest_s):
            best, soonest_s = block, free_s
        block += degree
    if best < 0:
        return False
    for rank in range(best, best + degree):
        state.kept_s[rank] = min(state.kept_s[rank], soonest_s)
    return True
