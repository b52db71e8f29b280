"""The exact event simulation of micro-batches on stage paths, compiled.

A micro-batch runs forward on the nodes of its path, the first of which is its origin, comes
back to the origin for the loss, and runs backward over the same nodes in reverse: operations
0 .. 2L of a path of L nodes. All waves of a path take the same nodes; a wave starts when the one
before it is done. A node serves the operation that arrived first among those that may start: a
forward may not while its node holds as many micro-batches as its memory allows, and blocks no
other by that. Ties go to what was sent first.

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
    """Shared links of the pair i * N + j are `link_of[first_link[pair]:first_link[pair + 1]]`."""
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
    """Events: arrival of path a is a, waking of node n is A + n, departure of a is A + N + a."""
    counters: Ints
    """Events in the heap, and events ever sent."""


@compiled
def send(out: Simulation, time_s: float, event: int) -> None:
    """Put an event into the heap."""
    k = out.counters[0]
    order = out.counters[1]
    out.counters[0] = k + 1
    out.counters[1] = order + 1
    while k > 0:
        parent = (k - 1) // 2
        if out.heap_s[parent] <= time_s:
            break
        out.heap_s[k] = out.heap_s[parent]
        out.heap_order[k] = out.heap_order[parent]
        out.heap_event[k] = out.heap_event[parent]
        k = parent
    out.heap_s[k] = time_s
    out.heap_order[k] = order
    out.heap_event[k] = event


@compiled
def drop_first(out: Simulation) -> None:
    """Take the earliest event out of the heap; of equal ones, the one sent first."""
    size = out.counters[0] - 1
    out.counters[0] = size
    time_s, order, event = out.heap_s[size], out.heap_order[size], out.heap_event[size]
    k = 0
    while True:
        child = 2 * k + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            out.heap_s[right] < out.heap_s[child]
            or (
                out.heap_s[right] == out.heap_s[child]
                and out.heap_order[right] < out.heap_order[child]
            )
        ):
            child = right
        if out.heap_s[child] > time_s or (
            out.heap_s[child] == time_s and out.heap_order[child] > order
        ):
            break
        out.heap_s[k] = out.heap_s[child]
        out.heap_order[k] = out.heap_order[child]
        out.heap_event[k] = out.heap_event[child]
        k = child
    out.heap_s[k] = time_s
    out.heap_order[k] = order
    out.heap_event[k] = event


@compiled
def place_of(operation: int, path_len: int) -> int:
    """Position in the path of the node that runs an operation of a wave."""
    if operation < path_len:
        return operation
    if operation == path_len:
        return 0
    return 2 * path_len - operation


@compiled
def next_to_start(net: Network, path_len: int, node: int, out: Simulation) -> int:
    """Take the first micro-batch that may start out of a node's queue; -1 where none may."""
    before = -1
    job = out.first_waiting[node]
    while job >= 0:
        operation = out.at[job]
        is_blocked = operation < path_len and out.held[node] >= net.memory[node]
        if operation == 0 and job % net.num_waves > 0 and out.at[job - 1] <= 2 * path_len:
            is_blocked = True
        after = out.next_waiting[job]
        if not is_blocked:
            if before < 0:
                out.first_waiting[node] = after
            else:
                out.next_waiting[before] = after
            if after < 0:
                out.last_waiting[node] = before
            return job
        before = job
        job = after
    return -1


@compiled
def leave(
    net: Network, nodes: Ints, path_len: int, job: int, now_s: float, out: Simulation
) -> None:
    """Send a micro-batch to its next node, over links that transfers share in turn."""
    first = job // net.num_waves * path_len
    operation = out.at[job]
    source = nodes[first + place_of(operation - 1, path_len)]
    target = nodes[first + place_of(operation, path_len)]
    pair = source * len(net.forward_s) + target
    start_s = now_s
    for k in range(net.first_link[pair], net.first_link[pair + 1]):
        start_s = max(start_s, out.link_free_s[net.link_of[k]])
    for k in range(net.first_link[pair], net.first_link[pair + 1]):
        out.link_free_s[net.link_of[k]] = start_s + net.occupied_s[net.link_of[k]]
    send(out, start_s + net.delay_s[pair], job)


@compiled
def start_next(
    net: Network, nodes: Ints, path_len: int, node: int, now_s: float, out: Simulation
) -> None:
    """Have a free node start what has waited longest, and see to what follows."""
    job = next_to_start(net, path_len, node, out)
    if job < 0:
        return
    num_nodes = len(net.forward_s)
    operation = out.at[job]
    out.start_s[job * (2 * path_len + 1) + operation] = now_s
    gap_s = net.gap_s
    if operation < path_len:
        end_s = now_s + net.forward_s[node]
        out.held[node] += 1
        if operation == 0:
            gap_s = net.first_gap_s
    elif operation == path_len:
        end_s = now_s + net.loss_s[node]
    else:
        end_s = now_s + net.backward_s[node]
        out.held[node] -= 1  # nothing starts here before the end
    out.free_s[node] = end_s + gap_s
    out.node_end_s[node] = end_s
    out.at[job] = operation + 1
    if operation < 2 * path_len:
        place = job // net.num_waves * path_len + place_of(operation + 1, path_len)
        pair = node * num_nodes + nodes[place]
        if net.first_link[pair] < net.first_link[pair + 1]:
            send(out, end_s, len(out.at) + num_nodes + job)
        else:
            send(out, end_s + net.delay_s[pair], job)
    else:
        out.end_s[job] = end_s
    if out.first_waiting[node] >= 0:
        out.is_woken[node] = 1
        send(out, out.free_s[node], len(out.at) + node)


@compiled
def prepare(net: Network, release_s: Floats, out: Simulation) -> None:
    """Every micro-batch is about to arrive at its origin."""
    for node in range(len(net.forward_s)):
        out.free_s[node] = out.node_end_s[node] = 0.0
        out.held[node] = out.is_woken[node] = 0
        out.first_waiting[node] = out.last_waiting[node] = -1
    for link in range(len(net.occupied_s)):
        out.link_free_s[link] = 0.0
    out.counters[0] = out.counters[1] = 0
    for path in range(len(release_s)):
        for wave in range(net.num_waves):
            job = path * net.num_waves + wave
            out.at[job] = 0
            out.end_s[job] = 0.0
            send(out, release_s[path] + wave * net.wave_offset_s, job)


@compiled
def simulate(
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
    prepare(net, release_s, out)
    num_jobs, num_nodes = len(out.at), len(net.forward_s)
    while out.counters[0] > 0:
        now_s, event = out.heap_s[0], out.heap_event[0]
        drop_first(out)
        if event >= num_jobs + num_nodes:
            leave(net, nodes, path_len, event - num_jobs - num_nodes, now_s, out)
            continue
        if event >= num_jobs:
            node = event - num_jobs
            out.is_woken[node] = 0
        else:
            first = event // net.num_waves * path_len
            node = nodes[first + place_of(out.at[event], path_len)]
            out.next_waiting[event] = -1
            if out.last_waiting[node] < 0:
                out.first_waiting[node] = event
            else:
                out.next_waiting[out.last_waiting[node]] = event
            out.last_waiting[node] = event
        if out.free_s[node] <= now_s:
            start_next(net, nodes, path_len, node, now_s, out)
        elif out.is_woken[node] == 0:
            out.is_woken[node] = 1
            send(out, out.free_s[node], num_jobs + node)
    total_s = 0.0
    for job in range(num_jobs):
        if out.at[job] <= 2 * path_len:
            return NEVER_S
        total_s = max(total_s, out.end_s[job])
    return total_s
