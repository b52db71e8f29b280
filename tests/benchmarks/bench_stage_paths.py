"""Stage paths: against published cases, on instances held out, at equal work, and losing nodes.

    python tests/benchmarks/bench_stage_paths.py cases tests/data/skippipe --limits 1 20
    python tests/benchmarks/bench_stage_paths.py held-out --limits 1 5
    python tests/benchmarks/bench_stage_paths.py equal-work --limits 5
    python tests/benchmarks/bench_stage_paths.py loss tests/data/skippipe

All times of schedules are simulated, in seconds an iteration, by the exact event simulator;
solve times are CPU seconds of this process after imports and compilation. Held-out instances
draw their nodes and links from the 42-node case's places by other seeds, sizes and skip ratios.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.stage_paths import PathInstance, PathPlan, PathSchedule
from trimtab.planners.paths.path_instance import (
    instance_from_document,
    partitions_from_document,
)
from trimtab.planners.paths.path_replan import replan
from trimtab.planners.paths.path_search import warm_up
from trimtab.planners.paths.path_times import path_times
from trimtab.planners.paths.paths import plan_paths

CASES = Path(__file__).parents[1] / "data" / "skippipe"
# seed, nodes, stages, stages visited, micro-batches in flight, samples, unevenness of speed
_SHAPES = (
    (101, 8, 3, 2, 3, 8, 0.0), (102, 12, 4, 4, 3, 8, 0.0), (103, 12, 4, 2, 3, 4, 0.0),
    (104, 15, 6, 3, 3, 8, 0.0), (105, 18, 7, 3, 3, 8, 0.0), (106, 18, 5, 3, 3, 4, 0.0),
    (107, 20, 6, 4, 3, 8, 0.0), (108, 16, 5, 4, 3, 8, 0.0), (110, 20, 6, 4, 2, 8, 0.6),
)  # fmt: skip
_EQUAL_WORK = ((4, 4, (4, 3, 2)), (4, 6, (6, 4, 3)))
"""Nodes of a stage, stages, and stages visited by the rows of a table."""
_STRAIGHT_SWAPS = 3_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cases", "held-out", "equal-work", "loss"))
    parser.add_argument("folder", nargs="?", type=Path, default=CASES)
    parser.add_argument("--limits", nargs="+", type=float, default=[1.0, 20.0])
    options = parser.parse_args()
    warm_up()
    if options.what == "cases":
        _cases(options.folder, options.limits)
    elif options.what == "held-out":
        _held_out(options.limits)
    elif options.what == "equal-work":
        _equal_work(options.limits[-1])
    else:
        _loss(options.folder)


def _planned(instance: PathInstance, limit_s: float, **options: Any) -> PathPlan:
    return plan_paths(instance, clock=time.process_time, time_limit_s=limit_s, **options)


def _row(*cells: object) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def _header(*cells: str) -> None:
    _row(*cells)
    _row(*("---" for _ in cells))


def _cases(folder: Path, limits: Sequence[float]) -> None:
    times = [f"plan in {limit:g} s" for limit in limits]
    _header("case", "stages", "SkipPipe", "best known", *times, "bound", "gap")
    for path in sorted(folder.glob("n*.instance.json")):
        instance = instance_from_document(json.loads(path.read_text()))
        stored = {kind: _stored(path, kind) for kind in ("upstream", "reference")}
        for kind in ("fixed", "free"):
            options: dict[str, Any] = {}
            if stored["upstream"]:
                arranged = partitions_from_document(stored["upstream"], instance)
                most_s = instance.in_stage_delay_s(arranged)
                fixed = {"fixed": arranged}
                options = (
                    fixed if kind == "fixed" else {"first": arranged, "most_in_stage_s": most_s}
                )
            elif kind == "fixed":
                continue
            plans = [_planned(instance, limit, **options) for limit in limits]
            own = stored["upstream"].get("collision_aware", {}).get("event_sim_s")
            name = "fixed_partition" if kind == "fixed" else "joint"
            best = stored["reference"].get(f"best_known_{name}_event_sim_s")
            _row(
                instance.name, kind, _text(own), _text(best),
                *(f"{plan.step_s:.2f}" for plan in plans), f"{plans[-1].lower_bound_s:.2f}",
                f"{plans[-1].gap_fraction:.1%}",
            )  # fmt: skip


def _stored(path: Path, kind: str) -> dict[str, Any]:
    other = path.with_name(path.name.replace("instance", kind))
    document: dict[str, Any] = json.loads(other.read_text()) if other.exists() else {}
    return document


def _text(time_s: float | None) -> str:
    return "-" if time_s is None else f"{time_s:.2f}"


def _held_out(limits: Sequence[float]) -> None:
    _header("instance", *(f"plan in {limit:g} s" for limit in limits), "bound", "gap")
    for instance in held_out():
        plans = [_planned(instance, limit) for limit in limits]
        _row(
            instance.name, *(f"{plan.step_s:.2f}" for plan in plans),
            f"{plans[-1].lower_bound_s:.2f}", f"{plans[-1].gap_fraction:.1%}",
        )  # fmt: skip


def held_out() -> Iterator[PathInstance]:
    """Instances that nothing was tuned on."""
    for seed, num_nodes, num_stages, path_len, memory, samples, uneven in _SHAPES:
        origins = num_nodes // path_len
        others = (num_nodes - origins) // (num_stages - 1)
        sizes = [origins, *[others] * (num_stages - 1)]
        yield _instance(seed, sizes, path_len, memory=memory, samples=samples, uneven=uneven)


def _instance(
    seed: int, sizes: list[int], path_len: int, *, memory: int, samples: int, uneven: float
) -> PathInstance:
    source = json.loads((CASES / "n42_s8_skip25.instance.json").read_text())
    places, num_nodes = source["locations"], sum(sizes)
    generator = random.Random(seed)
    drawn = generator.sample(range(len(places)), num_nodes)
    return instance_from_document(
        {
            "name": f"seed {seed}: {num_nodes} nodes, {path_len} of {len(sizes)} stages",
            "n_nodes": num_nodes, "n_stages": len(sizes), "partition_sizes": sizes,
            "path_len": path_len, "memory": memory, "microbatches_per_origin": 2 * memory,
            "waves": 2, "samples_per_microbatch": samples,
            "activation_bytes_per_sample": 4_194_304, "fixed_overhead_s": 0.35,
            "forward_s": [
                0.22 * samples * (1 + uneven * generator.random()) for _ in drawn
            ],
            "latency_ms": [[source["latency_ms"][i][j] for j in drawn] for i in drawn],
            "bandwidth_GiBps": [
                [source["bandwidth_GiBps"][i][j] for j in drawn] for i in drawn
            ],
        }
    )  # fmt: skip


def _equal_work(limit_s: float) -> None:
    _header("nodes", "stages", "micro-batches", "how", "iteration", "bound", "to straight")
    for size, num_stages, path_lens in _EQUAL_WORK:
        sizes = [size] * num_stages
        straight_s = 0.0
        for path_len in path_lens:
            instance = _instance(7, sizes, path_len, memory=3, samples=8, uneven=0.0)
            plan = _planned(instance, limit_s)
            shape = (instance.num_nodes, num_stages, instance.num_micro_batches)
            if path_len == num_stages:
                straight_s = _straight_s(instance, plan.schedule.partitions)
                _row(*shape, "straight pipelines", f"{straight_s:.2f}", "-", "1.00")
            _row(
                *shape, f"{instance.skip_fraction:.0%} skip, routed", f"{plan.step_s:.2f}",
                f"{plan.lower_bound_s:.2f}", f"{plan.step_s / straight_s:.2f}",
            )  # fmt: skip


def _straight_s(instance: PathInstance, partitions: Sequence[Sequence[int]]) -> float:
    """Every origin with a pipeline of its own, after many exchanges of nodes that helped."""
    generator = random.Random(1)
    stages = [list(nodes) for nodes in partitions]

    def time_s() -> float:
        chains = list(zip(*stages, strict=True))
        paths = tuple(chain for chain in chains for _ in range(instance.paths_per_origin))
        kept = tuple(map(tuple, stages))
        schedule = PathSchedule(
            partitions=kept, paths=paths, release_s=instance.release_s(paths)
        )
        return path_times(instance, schedule).iteration_s

    best_s = time_s()
    places = [(s, k) for s, nodes in enumerate(stages) for k in range(len(nodes))]
    for _ in range(_STRAIGHT_SWAPS):
        (s, i), (t, j) = generator.sample(places, 2)
        stages[s][i], stages[t][j] = stages[t][j], stages[s][i]
        now_s = time_s()
        if now_s <= best_s:
            best_s = now_s
        else:
            stages[s][i], stages[t][j] = stages[t][j], stages[s][i]
    return best_s


def _loss(folder: Path) -> None:
    instance = instance_from_document(
        json.loads((folder / "n20_s6_skip33.instance.json").read_text())
    )
    schedule = _planned(instance, 5.0).schedule
    replan(instance, schedule, without=0)
    spent_ms = []
    _header("lost node", "stage", "rung", "micro-batches", "iteration", "paths kept", "CPU ms")
    for node in range(instance.num_nodes):
        started_s = time.process_time()
        found = replan(instance, schedule, without=node)
        spent_ms.append((time.process_time() - started_s) * 1e3)
        _row(
            node, schedule.stage_of[node], found.rungs[-1].name,
            found.instance.num_micro_batches, f"{found.iteration_s:.2f}", found.kept_paths,
            f"{spent_ms[-1]:.1f}",
        )  # fmt: skip
    print(f"\nmedian {statistics.median(spent_ms):.1f} ms, most {max(spent_ms):.1f} ms")


if __name__ == "__main__":
    main()
