"""The inner loops of the search for stage paths: annealing on exact simulations."""

import math

from trimtab.planners.compiled import compiled
from trimtab.planners.paths.path_moves import PathRules, Search, change, settle, uncontended_s
from trimtab.planners.paths.path_simulation import NEVER_S, Network, Simulation, simulate
from trimtab.planners.steps.kernels import next_random


@compiled
def closed_s(rules: PathRules, s: Search, out: Simulation, end_s: float) -> float:
    """End of the last closing reduction; each starts when all nodes of its stage are done."""
    num_nodes = len(s.stage_of)
    if len(rules.closing_s) == 0:
        return end_s
    for i in range(num_nodes):
        stage = s.stage_of[i]
        if stage < 0:
            continue
        done_s = slowest_s = 0.0
        for j in range(num_nodes):
            if s.stage_of[j] == stage:
                done_s = max(done_s, out.node_end_s[j])
                slowest_s = max(
                    slowest_s, rules.closing_s[(stage * num_nodes + i) * num_nodes + j]
                )
        end_s = max(end_s, done_s + slowest_s)
    return end_s


@compiled
def step_s(rules: PathRules, net: Network, s: Search, out: Simulation) -> float:
    """Time of the schedule by exact simulation, closing reductions included."""
    for a in range(len(s.path_s)):
        forward_s = net.forward_s[s.nodes[a * rules.path_len]]
        s.release_s[a] = a % rules.paths_per_origin * forward_s
    end_s = simulate(net, s.nodes, rules.path_len, s.release_s, out)
    return closed_s(rules, s, out, end_s)


@compiled
def rough_cost(s: Search, mean_weight: float) -> float:
    """A bound of the annealing's cost: the longest path and some of the mean, uncontended."""
    longest_s = total_s = 0.0
    for a in range(len(s.path_s)):
        longest_s = max(longest_s, s.path_s[a])
        total_s += s.path_s[a]
    return longest_s + mean_weight * total_s / len(s.path_s)


@compiled
def start(rules: PathRules, net: Network, s: Search) -> None:
    """Take `nodes` and `stage_of` as they are."""
    for i in range(len(s.nodes)):
        s.kept_nodes[i] = s.nodes[i]
    for node in range(len(s.stage_of)):
        s.uses[node] = 0
        s.kept_stage_of[node] = s.stage_of[node]
    for i in range(len(s.nodes)):
        if i % rules.path_len > 0:
            s.uses[s.nodes[i]] += 1
    for node in range(len(s.stage_of)):
        s.kept_uses[node] = s.uses[node]
    for a in range(len(s.path_s)):
        s.path_s[a] = s.kept_path_s[a] = uncontended_s(rules, net, s.nodes, a)


@compiled
def keep_best(s: Search) -> None:
    """Remember the schedule as the best."""
    for i in range(len(s.nodes)):
        s.best_nodes[i] = s.nodes[i]
    for node in range(len(s.stage_of)):
        s.best_stage_of[node] = s.stage_of[node]


@compiled
def anneal(
    rules: PathRules,
    net: Network,
    s: Search,
    out: Simulation,
    best_s: float,
    is_rough: bool,
    trials: int,
    hot_s: float,
    cold_s: float,
    mean_weight: float,
) -> float:
    """Random moves, of which longer schedules are kept ever more rarely.

    The cost is the step's time and `mean_weight` times the mean end of the paths, by which
    schedules of equal time differ. A move whose uncontended paths cost too much already is not
    simulated.

    Args:
        rules: What a move must keep.
        net: Nodes, links and times.
        s: The schedule to go on from; `best_*` get a better one where it is found.
        out: Scratch.
        best_s: Time of the best schedule so far, which is to be beaten.
        is_rough: Take the longest uncontended path for the step's time: twenty times as fast.
        trials: Moves to try.
        hot_s: Temperature at first.
        cold_s: Temperature at last.
        mean_weight: Of the mean end of the paths.

    Returns:
        The time of the best schedule so far.
    """
    num_paths, num_waves = len(s.path_s), net.num_waves
    current_s = NEVER_S
    s.counters[0] = 0
    s.counters[1] = -1
    for trial in range(-1, trials):
        is_legal = trial < 0 or change(rules, net, s)
        heat_s = hot_s * (cold_s / hot_s) ** (max(0, trial) / trials)
        limit_s = current_s - heat_s * math.log(next_random(s.state))
        cost_s = time_s = NEVER_S
        if is_legal:
            cost_s = rough_cost(s, mean_weight)
            time_s = cost_s
            if cost_s <= limit_s and not is_rough:
                time_s = step_s(rules, net, s, out)
                total_s = 0.0
                for a in range(num_paths):
                    total_s += out.end_s[a * num_waves + num_waves - 1]
                cost_s = time_s + mean_weight * total_s / num_paths
        is_kept = is_legal and cost_s <= limit_s
        settle(rules, s, is_kept)
        if is_kept:
            current_s = cost_s
            if time_s < best_s:
                best_s = time_s
                keep_best(s)
    return best_s
