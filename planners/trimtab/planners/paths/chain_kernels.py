"""How soon one node can be done with the operations of some micro-batches, in any order.

Every path is a chain of operations on the node, with least times between them: what happens
elsewhere, as if it had all else for itself. The node runs one operation at a time and pauses
after each. The least end of all chains, over all orders, is found by branch and bound over
active schedules.

Source of active schedules: Giffler & Thompson (1960).
"""

from trimtab.planners.compiled import Floats, Ints, compiled


@compiled
def least_end_s(  # noqa: C901 - one loop over a stack
    num_ops: int,
    run_s: Floats,
    gap_s: Floats,
    lag_s: Floats,
    head_s: Floats,
    stop_s: float,
    most_visits: int,
    done: Ints,
    ready_s: Floats,
    free_s: Floats,
    choice: Ints,
) -> float:
    """Least possible end of all chains; a lower bound of it where `most_visits` are not enough.

    Args:
        num_ops: Operations of a chain.
        run_s: Time of operation i of chain k at `k * num_ops + i`.
        gap_s: Pause of the node after it.
        lag_s: Least time from its end to the start of the chain's next, or to the chain's end.
        head_s: When each chain may start.
        stop_s: The search ends, and returns it, once the end is known to be no sooner.
        most_visits: Schedules looked at, partial ones included.
        done: Scratch, chains x (depth + 1), as are the others of this size.
        ready_s: Scratch.
        free_s: Scratch, depth + 1.
        choice: Scratch, depth + 1.
    """
    num_chains = len(head_s)
    depth_most = num_chains * num_ops
    best_s = stop_s
    root_s = 0.0
    for k in range(num_chains):
        done[k] = 0
        ready_s[k] = head_s[k]
    free_s[0] = 0.0
    choice[0] = -1
    depth = visits = 0
    while depth >= 0:
        at = depth * num_chains
        if choice[depth] < 0:
            visits += 1
            bound_s = 0.0
            work_s = 0.0
            first_s = 1e300
            shortest_tail_s = 1e300
            for k in range(num_chains):
                i = done[at + k]
                if i == num_ops:
                    bound_s = max(bound_s, ready_s[at + k])
                    continue
                start_s = max(free_s[depth], ready_s[at + k])
                first_s = min(first_s, start_s)
                rest_s = 0.0
                for j in range(i, num_ops):
                    rest_s += run_s[k * num_ops + j] + lag_s[k * num_ops + j]
                    work_s += run_s[k * num_ops + j] + gap_s[k * num_ops + j]
                bound_s = max(bound_s, start_s + rest_s)
                last = k * num_ops + num_ops - 1
                shortest_tail_s = min(shortest_tail_s, lag_s[last] - gap_s[last])
            if first_s < 1e300:
                bound_s = max(bound_s, first_s + work_s + shortest_tail_s)
            if depth == 0:
                root_s = bound_s
            if visits > most_visits:
                return min(root_s, stop_s)
            if depth == depth_most:
                best_s = min(best_s, bound_s)
                depth -= 1
                continue
            if bound_s >= best_s:
                depth -= 1
                continue
        # the next chain to go first; it must not leave room for a whole other operation
        limit_s = 1e300
        for k in range(num_chains):
            i = done[at + k]
            if i < num_ops:
                here = k * num_ops + i
                start_s = max(free_s[depth], ready_s[at + k])
                limit_s = min(limit_s, start_s + run_s[here] + gap_s[here])
        k = choice[depth] + 1
        while k < num_chains and (
            done[at + k] == num_ops or max(free_s[depth], ready_s[at + k]) >= limit_s
        ):
            k += 1
        choice[depth] = k
        if k >= num_chains:
            depth -= 1
            continue
        here = k * num_ops + done[at + k]
        end_s = max(free_s[depth], ready_s[at + k]) + run_s[here]
        below = at + num_chains
        for j in range(num_chains):
            done[below + j] = done[at + j]
            ready_s[below + j] = ready_s[at + j]
        done[below + k] += 1
        ready_s[below + k] = end_s + lag_s[here]
        depth += 1
        free_s[depth] = end_s + gap_s[here]
        choice[depth] = -1
    return best_s
