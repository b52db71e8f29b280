"""Random moves of a search for stage paths, and the rules they keep; compiled.

Paths lie as in `path_simulation`: path a has its origin at `nodes[a * L]`, and origin o has
paths o * K .. o * K + K - 1. A move changes `nodes` and `stage_of`; `kept_*` hold the state
before it, and get or give back what it touched. Every move keeps how often each node is used,
or gives a use to a node that has room.
"""

from typing import NamedTuple

from trimtab.planners.compiled import Floats, Ints, compiled
from trimtab.planners.paths.path_simulation import Network
from trimtab.planners.steps.kernels import next_random

_ARRANGEMENT_SHARE = 0.3
"""Share of the moves that change who serves which stage, where nodes are free."""
_NEAR_SHARE = 0.5
"""Share of the exchanges that bring a node's near neighbour beside it."""


class PathRules(NamedTuple):
    """What paths and arrangement must keep; never written."""

    path_len: int
    paths_per_origin: int
    max_total_distance: int
    max_distance: int
    max_swaps: int
    max_jump: int
    capacity: Ints
    """Paths a wave that each node takes where it is no origin."""
    most_in_stage_s: float
    """Largest delay between two nodes of one stage."""
    is_free: int
    """1 where nodes may change their stage."""
    has_room: int
    """1 where nodes hold more paths than there are."""
    round_trip_s: Floats
    """Delays from i to j and back, at `i * N + j`."""
    near: Ints
    """The other nodes by their round trip from i, nearest first, at `i * N`."""
    closing_s: Floats
    """Closing reduction of stage s whose slowest pair is (i, j), at `(s * N + i) * N + j`;
    empty where there is none."""


class Search(NamedTuple):
    """A schedule under change, the one before the last move, the best, and scratch."""

    nodes: Ints
    stage_of: Ints
    """-1 for a node that serves none."""
    uses: Ints
    """Paths through each node, its own as an origin left out."""
    path_s: Floats
    """Release and waves of each path if it had all nodes and links for itself."""
    release_s: Floats
    kept_nodes: Ints
    kept_stage_of: Ints
    kept_uses: Ints
    kept_path_s: Floats
    best_nodes: Ints
    best_stage_of: Ints
    touched: Ints
    """Paths the last move changed."""
    counters: Ints
    """How many of them; and the two nodes whose stages or uses it changed, or -1 twice."""
    state: Ints
    """Of `next_random`."""


@compiled
def draw(state: Ints, number: int) -> int:
    """A whole number from 0 to `number` - 1."""
    return int(number * next_random(state))


@compiled
def exchange(values: Ints, i: int, j: int) -> None:
    """Have two entries change places."""
    kept = values[i]
    values[i] = values[j]
    values[j] = kept


@compiled
def keeps_order(rules: PathRules, nodes: Ints, a: int, stage_of: Ints) -> bool:
    """Whether path a visits different stages in an order that is allowed (`StageOrder`)."""
    first = a * rules.path_len
    furthest = num_swaps = total = 0
    for p in range(first + 1, first + rules.path_len):
        stage = stage_of[nodes[p]]
        for q in range(first, p):
            if stage_of[nodes[q]] == stage:
                return False
        distance = furthest - stage
        if distance < 0:
            if -distance > rules.max_jump:
                return False
            furthest = stage
        else:
            num_swaps += 1
            total += distance
            if distance > rules.max_distance:
                return False
    return num_swaps <= rules.max_swaps and total <= rules.max_total_distance


@compiled
def uncontended_s(rules: PathRules, net: Network, nodes: Ints, a: int) -> float:
    """Release and waves of path a, with all nodes and links for itself."""
    num_nodes = len(net.forward_s)
    first = a * rules.path_len
    wave_s = net.loss_s[nodes[first]]
    before = nodes[first + rules.path_len - 1]
    for p in range(first, first + rules.path_len):
        node = nodes[p]
        wave_s += net.forward_s[node] + net.backward_s[node]
        wave_s += rules.round_trip_s[before * num_nodes + node]
        before = node
    release_s = a % rules.paths_per_origin * net.forward_s[nodes[first]]
    return release_s + net.num_waves * wave_s


@compiled
def touch(rules: PathRules, net: Network, s: Search, a: int) -> bool:
    """Note that a move changed path a; whether it keeps the order of stages."""
    s.touched[s.counters[0]] = a
    s.counters[0] += 1
    if not keeps_order(rules, s.nodes, a, s.stage_of):
        return False
    s.path_s[a] = uncontended_s(rules, net, s.nodes, a)
    return True


@compiled
def fits_stage(rules: PathRules, net: Network, s: Search, node: int) -> bool:
    """Whether no node of its stage is too far from a node."""
    num_nodes = len(s.stage_of)
    for other in range(num_nodes):
        if other != node and s.stage_of[other] == s.stage_of[node]:
            there, back = node * num_nodes + other, other * num_nodes + node
            if max(net.delay_s[there], net.delay_s[back]) > rules.most_in_stage_s:
                return False
    return True


@compiled
def rearrange(  # noqa: C901 - in pieces it would hand around half of its locals
    rules: PathRules, net: Network, s: Search
) -> bool:
    """Have two nodes change places, in their stages alone or in all paths too."""
    num_nodes = len(s.stage_of)
    u, v = draw(s.state, num_nodes), draw(s.state, num_nodes)
    moves_paths = next_random(s.state) < 0.5
    if u == v or s.stage_of[u] < 0 or s.stage_of[v] < 0:
        return False
    if s.stage_of[u] == 0 or s.stage_of[v] == 0:
        moves_paths = True
    if not moves_paths and (s.stage_of[u] == s.stage_of[v] or s.uses[u] != s.uses[v]):
        return False
    s.counters[1], s.counters[2] = u, v
    exchange(s.stage_of, u, v)
    if moves_paths:
        exchange(s.uses, u, v)
        if s.uses[u] > rules.capacity[u] or s.uses[v] > rules.capacity[v]:
            return False
    if not (fits_stage(rules, net, s, u) and fits_stage(rules, net, s, v)):
        return False
    for a in range(len(s.path_s)):
        is_hit = False
        for i in range(a * rules.path_len, (a + 1) * rules.path_len):
            node = s.nodes[i]
            if node in (u, v):
                is_hit = True
                if moves_paths:
                    s.nodes[i] = u + v - node
        if is_hit and not touch(rules, net, s, a):
            return False
    return True


@compiled
def give_use(rules: PathRules, net: Network, s: Search) -> bool:
    """Have a path take another node, one with room, without making stages less equal."""
    num_nodes = len(s.stage_of)
    i = draw(s.state, len(s.nodes))
    node, other = s.nodes[i], draw(s.state, num_nodes)
    if i % rules.path_len == 0 or s.stage_of[other] <= 0 or node == other:
        return False
    if s.uses[other] >= rules.capacity[other]:
        return False
    if s.stage_of[other] != s.stage_of[node]:
        there = here = 0
        for n in range(num_nodes):
            if s.stage_of[n] == s.stage_of[other]:
                there += s.uses[n]
            elif s.stage_of[n] == s.stage_of[node]:
                here += s.uses[n]
        if there >= here:
            return False
    s.counters[1], s.counters[2] = node, other
    s.uses[node] -= 1
    s.uses[other] += 1
    s.nodes[i] = other
    return touch(rules, net, s, i // rules.path_len)


@compiled
def near_place(rules: PathRules, s: Search, i: int) -> int:
    """Where in `nodes` a near neighbour of the node beside place i is; i itself if nowhere."""
    path_len, num_places = rules.path_len, len(s.nodes)
    num_nodes = len(s.stage_of)
    first = i - i % path_len
    side = 1 if next_random(s.state) < 0.5 else path_len - 1
    anchor = s.nodes[first + (i - first + side) % path_len]
    nearness = next_random(s.state)
    wanted = rules.near[anchor * num_nodes + int((num_nodes - 1) * nearness * nearness)]
    if s.stage_of[wanted] <= 0:
        return i
    j = draw(s.state, num_places)
    for _ in range(num_places):
        if s.nodes[j] == wanted:
            return j
        j = j + 1 if j + 1 < num_places else 0
    return i


@compiled
def exchange_nodes(rules: PathRules, net: Network, s: Search) -> bool:
    """Exchange single nodes, ends or all of two paths, or the order of two nodes of one."""
    path_len, num_paths = rules.path_len, len(s.path_s)
    i = draw(s.state, num_paths) * path_len + 1 + draw(s.state, path_len - 1)
    a, p = i // path_len, i % path_len
    kind = next_random(s.state)
    if kind < _NEAR_SHARE:
        j = near_place(rules, s, i)
    else:
        j = draw(s.state, num_paths) * path_len + 1 + draw(s.state, path_len - 1)
    b = j // path_len
    if i == j or s.nodes[i] == s.nodes[j]:
        return False
    if kind < 0.8 or a == b:
        exchange(s.nodes, i, j)
    else:
        start = p if kind < 0.92 else 1
        for r in range(start, path_len):
            exchange(s.nodes, a * path_len + r, b * path_len + r)
    keeps = touch(rules, net, s, a)
    return (a == b or touch(rules, net, s, b)) and keeps


@compiled
def change(rules: PathRules, net: Network, s: Search) -> bool:
    """Make one random move; False where it breaks a rule."""
    s.counters[0] = 0
    s.counters[1] = s.counters[2] = -1
    if rules.is_free and next_random(s.state) < _ARRANGEMENT_SHARE:
        return rearrange(rules, net, s)
    if rules.path_len == 1:
        return False
    if rules.has_room and next_random(s.state) < _ARRANGEMENT_SHARE:
        return give_use(rules, net, s)
    return exchange_nodes(rules, net, s)


@compiled
def settle(rules: PathRules, s: Search, is_kept: bool) -> None:
    """Keep what the last move touched, or put it back."""
    path_len = rules.path_len
    for k in range(s.counters[0]):
        a = s.touched[k]
        if is_kept:
            s.kept_path_s[a] = s.path_s[a]
        else:
            s.path_s[a] = s.kept_path_s[a]
        for i in range(a * path_len, (a + 1) * path_len):
            if is_kept:
                s.kept_nodes[i] = s.nodes[i]
            else:
                s.nodes[i] = s.kept_nodes[i]
    if s.counters[1] >= 0:
        for node in (s.counters[1], s.counters[2]):
            if is_kept:
                s.kept_stage_of[node], s.kept_uses[node] = s.stage_of[node], s.uses[node]
            else:
                s.stage_of[node], s.uses[node] = s.kept_stage_of[node], s.kept_uses[node]
