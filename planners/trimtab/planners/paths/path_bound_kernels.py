"""All paths of an origin that are short enough, for the program behind the bound."""

from trimtab.planners.compiled import Floats, Ints, compiled


@compiled
def list_paths(  # noqa: C901 - one loop over a stack
    round_trip_s: Floats,
    work_s: Floats,
    rest_s: Floats,
    origin: int,
    path_len: int,
    most_s: float,
    stage_of: Ints,
    max_jump: int,
    max_back: int,
    out_nodes: Ints,
    out_s: Floats,
) -> int:
    """List every path whose wave takes at most `most_s` with all nodes and links for itself.

    Args:
        round_trip_s: Delays from i to j and back, at `i * N + j`.
        work_s: Forward and backward of each node; the loss of an origin comes with `rest_s`.
        rest_s: Least time to come back to `origin` from node i over r more nodes, at
            `r * N + i`; infinite where there is no way.
        origin: Where paths start.
        path_len: Nodes of a path.
        most_s: Longest wave that is listed.
        stage_of: Of each node, -1 for one that is not to be visited. Nodes of one stage exclude
            each other; each alone in its stage means that stages are free.
        max_jump: Stages a path may advance at once.
        max_back: Stages it may go back at once; how often is forgotten.
        out_nodes: Gets the nodes, `path_len` a path, origin first.
        out_s: Gets the time of a wave of each path.

    Returns:
        How many there are; -1 where `out_s` has too little room.
    """
    num_nodes = len(work_s)
    num_found = 0
    path = [origin] * path_len
    tried = [-1] * path_len
    spent_s = [0.0] * path_len
    furthest = [0] * path_len
    depth = 1
    if path_len == 1:
        out_nodes[0] = origin
        out_s[0] = rest_s[origin]
        return 1
    while depth > 0:
        node = tried[depth] + 1
        tried[depth] = node
        if node == num_nodes:
            tried[depth] = -1
            depth -= 1
            continue
        stage = stage_of[node]
        ahead = stage - furthest[depth - 1]
        if stage <= 0 or ahead > max_jump or -ahead > max_back:
            continue
        is_new = node != origin
        for p in range(1, depth):
            if stage_of[path[p]] == stage:
                is_new = False
        if not is_new:
            continue
        here_s = (
            spent_s[depth - 1] + round_trip_s[path[depth - 1] * num_nodes + node] + work_s[node]
        )
        if here_s + rest_s[(path_len - 1 - depth) * num_nodes + node] > most_s:
            continue
        path[depth] = node
        if depth < path_len - 1:
            spent_s[depth] = here_s
            furthest[depth] = max(furthest[depth - 1], stage)
            depth += 1
            continue
        if num_found == len(out_s):
            return -1
        for p in range(path_len):
            out_nodes[num_found * path_len + p] = path[p]
        out_s[num_found] = here_s + rest_s[node]
        num_found += 1
    return num_found
