"""The exact event simulation of micro-batches on stage paths, compiled.

A micro-batch runs forward on the nodes of its path, the first of which is its origin, comes
back to the origin for the loss, and runs backward over the same nodes in reverse: operations
0 .. 2L of a path of L nodes. All waves of a path take the same nodes. The forward of a wave is
in its origin's queue from its release on, and may start when the wave before is done. A node
serves the operation that arrived first among those that may start: a forward may not while its
node holds as many micro-batches as its memory allows, and blocks no other by that. Ties go to
what was sent first.

Source of the rules: gensyn-ai/skippipe at 7f20d8a, read in its scheduler (arXiv:2502.19913).
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled

NEVER_S = 1e300
"""Time of a schedule that does not end: micro-batches wait for one another's memory."""


class Network(NamedTuple):
    """Nodes, links and times, by node number; never written."""

    forward_s: Floats
    backward_s: Floats
    loss_s: Floats
    memory: Ints
    """Micro-batches a node holds at most, from the start of a forward to the backward's end."""
    delay_s: Floats
    """From node i to node j at `i * N + j`; 0 from a node to itself."""
    gap_s: float
    first_gap_s: float
    """Pause after an origin's forward; `gap_s` after every other operation."""
    num_waves: int
    wave_offset_s: float
    first_link: Ints
    """Shared links of pair i * N + j: `link_of[first_link[pair]:first_link[pair + 1]]`."""
    link_of: Ints
    occupied_s: Floats
    """How long one transfer occupies a shared link."""


class Simulation(NamedTuple):
    """What a simulation writes: its result, and scratch."""

    start_s: Floats
    """Of operation i of wave w of path a at `(a * waves + w) * (2L + 1) + i`."""
    end_s: Floats
    """When each micro-batch is back for good."""
    node_end_s: Floats
    """End of the last operation of each node; 0 for a node without any."""
    free_s: Floats
    held: Ints
    first_waiting: Ints
    """Path at the head of a node's queue; -1: none."""
    last_waiting: Ints
    next_waiting: Ints
    is_woken: Ints
    """1 where an event is to come that looks at the node's queue."""
    at: Ints
    """Operation each micro-batch is at."""
    link_free_s: Floats
    heap_s: Floats
    heap_order: Ints
    heap_event: Ints
    """Of J micro-batches on N nodes: arrival of j is j, waking of node n is J + n, departure of
    j over shared links is J + N + j."""


@compiled
def push(
    heap_s: Floats, heap_order: Ints, heap_event: Ints, size: int, time_s: float, order: int,
    event: int,
) -> None:  # fmt: skip
    """Put an event into a heap of `size` events."""
    k = size
    while k > 0:
        parent = (k - 1) // 2
        if heap_s[parent] <= time_s:
            break
        heap_s[k] = heap_s[parent]
        heap_order[k] = heap_order[parent]
        heap_event[k] = heap_event[parent]
        k = parent
    heap_s[k] = time_s
    heap_order[k] = order
    heap_event[k] = event


@compiled
def drop_first(heap_s: Floats, heap_order: Ints, heap_event: Ints, size: int) -> None:
    """Take the earliest event, of equal ones the one sent first, out; `size` are left."""
    time_s, order, event = heap_s[size], heap_order[size], heap_event[size]
    k = 0
    while True:
        child = 2 * k + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            heap_s[right] < heap_s[child]
            or (heap_s[right] == heap_s[child] and heap_order[right] < heap_order[child])
        ):
            child = right
        if heap_s[child] > time_s or (heap_s[child] == time_s and heap_order[child] > order):
            break
        heap_s[k] = heap_s[child]
        heap_order[k] = heap_order[child]
        heap_event[k] = heap_event[child]
        k = child
    heap_s[k] = time_s
    heap_order[k] = order
    heap_event[k] = event


@compiled
def place_of(operation: int, path_len: int) -> int:
    """Position in the path of the node that runs an operation of a wave."""
    if operation < path_len:
        return operation
    if operation == path_len:
        return 0
    return 2 * path_len - operation


@compiled
def next_to_start(
    at: Ints, first_waiting: Ints, last_waiting: Ints, next_waiting: Ints, node: int,
    is_full: bool, path_len: int, num_waves: int,
) -> int:  # fmt: skip
    """Take the first micro-batch that may start out of a node's queue; -1 where none may."""
    before = -1
    job = first_waiting[node]
    while job >= 0:
        operation = at[job]
        is_blocked = is_full and operation < path_len
        if operation == 0 and job % num_waves > 0 and at[job - 1] <= 2 * path_len:
            is_blocked = True
        after = next_waiting[job]
        if not is_blocked:
            if before < 0:
                first_waiting[node] = after
            else:
                next_waiting[before] = after
            if after < 0:
                last_waiting[node] = before
            return job
        before = job
        job = after
    return -1


@compiled
def depart(net: Network, link_free_s: Floats, pair: int, now_s: float) -> float:
    """When a transfer may start over links that transfers share in turn, which it takes."""
    start_s = now_s
    for k in range(net.first_link[pair], net.first_link[pair + 1]):
        start_s = max(start_s, link_free_s[net.link_of[k]])
    for k in range(net.first_link[pair], net.first_link[pair + 1]):
        link_free_s[net.link_of[k]] = start_s + net.occupied_s[net.link_of[k]]
    return start_s


@compiled
def clear(net: Network, out: Simulation) -> None:
    """Nothing has arrived anywhere."""
    for node in range(len(net.forward_s)):
        out.free_s[node] = out.node_end_s[node] = 0.0
        out.held[node] = out.is_woken[node] = 0
        out.first_waiting[node] = out.last_waiting[node] = -1
    for link in range(len(net.occupied_s)):
        out.link_free_s[link] = 0.0
    for job in range(len(out.at)):
        out.at[job] = 0
        out.end_s[job] = NEVER_S


@compiled
def simulate(  # noqa: C901 - one loop: calls with whole tuples make it four times as slow
    net: Network, nodes: Ints, path_len: int, release_s: Floats, out: Simulation
) -> float:
    """Time from 0 to the end of the last operation; `NEVER_S` where some never start.

    Args:
        net: Nodes, links and times.
        nodes: Those of path a at `a * path_len`, origin first.
        path_len: Nodes of a path.
        release_s: When the first wave of each path may start.
        out: Gets the result.
    """
    clear(net, out)
    heap_s, heap_order, heap_event = out.heap_s, out.heap_order, out.heap_event
    at, held, free_s = out.at, out.held, out.free_s
    first_waiting, last_waiting = out.first_waiting, out.last_waiting
    next_waiting, is_woken = out.next_waiting, out.is_woken
    first_link, delay_s = net.first_link, net.delay_s
    num_nodes, num_waves, num_jobs = len(net.forward_s), net.num_waves, len(at)
    size = order = 0
    for job in range(num_jobs):
        arrival_s = release_s[job // num_waves] + job % num_waves * net.wave_offset_s
        push(heap_s, heap_order, heap_event, size, arrival_s, order, job)
        size += 1
        order += 1
    while size > 0:
        now_s, event = heap_s[0], heap_event[0]
        size -= 1
        drop_first(heap_s, heap_order, heap_event, size)
        if event >= num_jobs + num_nodes:
            job = event - num_jobs - num_nodes
            first = job // num_waves * path_len
            source = nodes[first + place_of(at[job] - 1, path_len)]
            pair = source * num_nodes + nodes[first + place_of(at[job], path_len)]
            start_s = depart(net, out.link_free_s, pair, now_s)
            push(heap_s, heap_order, heap_event, size, start_s + delay_s[pair], order, job)
            size += 1
            order += 1
            continue
        if event >= num_jobs:
            node = event - num_jobs
            is_woken[node] = 0
        else:
            node = nodes[event // num_waves * path_len + place_of(at[event], path_len)]
            next_waiting[event] = -1
            if last_waiting[node] < 0:
                first_waiting[node] = event
            else:
                next_waiting[last_waiting[node]] = event
            last_waiting[node] = event
        if free_s[node] <= now_s:
            job = next_to_start(
                at, first_waiting, last_waiting, next_waiting, node,
                held[node] >= net.memory[node], path_len, num_waves,
            )  # fmt: skip
            if job < 0:
                continue
            operation = at[job]
            out.start_s[job * (2 * path_len + 1) + operation] = now_s
            gap_s = net.gap_s
            if operation < path_len:
                end_s = now_s + net.forward_s[node]
                held[node] += 1
                if operation == 0:
                    gap_s = net.first_gap_s
            elif operation == path_len:
                end_s = now_s + net.loss_s[node]
            else:
                end_s = now_s + net.backward_s[node]
                held[node] -= 1  # nothing starts here before the end
            free_s[node] = end_s + gap_s
            out.node_end_s[node] = end_s
            at[job] = operation + 1
            if operation < 2 * path_len:
                place = place_of(operation + 1, path_len)
                pair = node * num_nodes + nodes[job // num_waves * path_len + place]
                arrival_s, what = end_s + delay_s[pair], job
                if first_link[pair] < first_link[pair + 1]:
                    arrival_s, what = end_s, num_jobs + num_nodes + job
                push(heap_s, heap_order, heap_event, size, arrival_s, order, what)
                size += 1
                order += 1
            else:
                out.end_s[job] = end_s
        if first_waiting[node] >= 0 and is_woken[node] == 0 and free_s[node] > now_s:
            is_woken[node] = 1
            push(heap_s, heap_order, heap_event, size, free_s[node], order, num_jobs + node)
            size += 1
            order += 1
    total_s = 0.0
    for job in range(num_jobs):
        total_s = max(total_s, out.end_s[job])
    return total_s
