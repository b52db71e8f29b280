"""The program behind the bound of stage paths: how many paths nodes can carry at once.

Variables: x_c >= 0, how often path c is taken, and y_o in 0..1, whether node o is an origin.
Maximise sum x subject to

- `origins`: sum of y_o = number of origins;
- `level_{o}_{k}`: sum of x_c over paths c of origin o longer than its cap k + 1 <= k y_o, and
  over all of its paths <= K y_o;
- `memory_{v}`: sum of x_c over paths c through v <= memory_v (1 - y_v).

Fewer than all paths, or a bound of it that is less, means that they cannot be chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulp

from trimtab.core.stage_paths import PathInstance

_Row = dict[pulp.LpVariable, float]


@dataclass(frozen=True, slots=True)
class PathColumn:
    """A path as the program sees it."""

    origin: int
    visited: tuple[int, ...]
    wave_s: float


def most_paths(  # noqa: C901 - one program, row by row
    instance: PathInstance,
    columns: Sequence[PathColumn],
    caps_s: Mapping[int, Sequence[float]],
    *,
    is_whole: bool,
    is_free: bool,
    time_limit_s: float,
) -> float:
    """An upper bound on how many paths can be taken.

    Args:
        instance: Memory of nodes, and numbers of origins and paths.
        columns: What may be taken; those longer than their origin's first cap are left out.
        caps_s: Of every node that may be an origin, longest wave of k of its paths, k = 1 .. K.
        is_whole: Whether variables are whole numbers.
        is_free: Whether other nodes than those of `caps_s` take paths; else all of them are
            origins.
        time_limit_s: Of the solver.
    """
    model = pulp.LpProblem("paths", pulp.LpMaximize)
    category = pulp.LpInteger if is_whole else pulp.LpContinuous
    least = 0 if is_free else 1
    y = {o: model.add_variable(f"y_{o}", least, 1, category) for o in sorted(caps_s)}
    num_paths = instance.paths_per_origin
    levels: dict[tuple[int, int], _Row] = {
        (o, k): {y[o]: -float(k)} for o in y for k in range(1, num_paths + 1)
    }
    memory: dict[int, _Row] = {}
    taken: _Row = {}
    for number, column in enumerate(columns):
        caps = caps_s.get(column.origin)
        if not caps or column.wave_s > caps[0]:
            continue
        x = model.add_variable(f"x_{number}", 0, None, category)
        taken[x] = 1.0
        for k in range(1, num_paths + 1):
            if k == num_paths or column.wave_s > caps[k]:
                levels[column.origin, k][x] = 1.0
        for node in column.visited:
            memory.setdefault(node, {})[x] = 1.0
    if not taken:
        return 0.0
    model.setObjective(pulp.LpAffineExpression(taken))
    for (o, k), row in levels.items():
        _at_most(model, f"level_{o}_{k}", row, 0.0)
    for node, row in memory.items():
        held = float(instance.memory[node])
        if node in y:
            row[y[node]] = held
        _at_most(model, f"memory_{node}", row, held)
    origins = pulp.LpAffineExpression(dict.fromkeys(y.values(), 1.0))
    count = float(instance.partition_sizes[0])
    model.addConstraint(pulp.LpConstraint(origins, pulp.LpConstraintEQ, "origins", count))
    model.solve(pulp.HiGHS(msg=False, threads=1, timeLimit=time_limit_s))
    if model.sol_status == pulp.LpSolutionInfeasible:
        return 0.0
    if is_whole:
        return -float(model.solverModel.getInfo().mip_dual_bound)  # PuLP minimises -x
    if model.sol_status != pulp.LpSolutionOptimal:
        return float(instance.num_paths)
    return float(pulp.value(model.objective))


def _at_most(model: pulp.LpProblem, name: str, row: _Row, limit: float) -> None:
    expression = pulp.LpAffineExpression(row)
    model.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintLE, name, limit))
