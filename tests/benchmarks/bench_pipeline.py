"""Step plans of a pipeline beside one-stage waves and uniform degrees, on one exact timeline.

    python tests/benchmarks/bench_pipeline.py tests/data/seqlen/*.txt
    python tests/benchmarks/bench_pipeline.py --in-all --batches 1 tests/data/seqlen/github.txt

For each file of lengths, one a line: consecutive batches, padded up to a multiple of 128, those
over `--longest` dropped. All columns are simulated: the exact timeline of 1F1B under one
profile. "as for one stage" are the waves of `plan_step` for pp = 1 in the order it gives them,
"ordered" the same waves in the best order found, "uniform" the best degree of each batch in its
best number of micro-batches and order. The limit is in CPU seconds of this process, so that
other work on the machine does not matter. Prints a Markdown table.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.core.pipeline import Pipeline
from trimtab.core.profile import StepProfile
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.pipelines.ordering import better_order, first_order, operations_of
from trimtab.planners.pipelines.pipelined import best_uniform_pipelined_step, pipelined_step
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.steps.sequences import plan_step

PROFILE = Path(__file__).parents[1] / "data" / "profiles" / "flexsp_7b_a100.json"
_ORDER_TRIALS = 5_000


@dataclass(frozen=True)
class Row:
    """One batch on one pipeline; times of steps in milliseconds."""

    name: str
    pp: int
    vpp: int
    ranks: int
    given_ms: float
    ordered_ms: float
    uniform_ms: float | None
    first_ms: float
    first_s: float
    step_ms: float
    bound_ms: float
    solve_s: float


def main() -> None:
    arguments = _arguments()
    profile = profile_from_document(json.loads(arguments.profile.read_text()))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(
        f"{machine}, Python {platform.python_version()}; "
        f"profile {profile.name}, {arguments.sequences} sequences, "
        f"{arguments.time_limit:g} CPU seconds a plan; step times in ms\n\n"
        "| batch | pp | ranks a stage | as for one stage | ordered | uniform | first plan "
        "| plan | bound | gap |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for path in arguments.lengths:
        for number, lengths in enumerate(_batches(path, arguments)):
            for shape in arguments.shapes:
                rows.append(_row(f"{path.stem} {number}", lengths, shape, profile, arguments))
                _print_row(rows[-1])
    _print_means(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("lengths", type=Path, nargs="+", help="files with one length a line")
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--ranks", type=int, default=64, help="of a stage")
    parser.add_argument("--in-all", action="store_true", help="--ranks are of all stages")
    parser.add_argument(
        "--shapes", nargs="+", default=["2", "4", "8", "4x2"], help="pp, or pp x vpp: 4x2"
    )
    parser.add_argument("--sequences", type=int, default=512, help="sequences of a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches of a file at most")
    parser.add_argument("--longest", type=int, default=191_872)
    parser.add_argument("--time-limit", type=float, default=1.0)
    return parser.parse_args()


def _batches(path: Path, arguments: argparse.Namespace) -> list[list[int]]:
    lengths = [int(line) for line in path.read_text().split()]
    padded = [-(-length // 128) * 128 for length in lengths if length <= arguments.longest]
    size = arguments.sequences
    starts = range(0, len(padded) - size + 1, size)
    return [padded[at : at + size] for at in starts][: arguments.batches]


def _row(
    name: str,
    lengths: Sequence[int],
    shape: str,
    profile: StepProfile,
    arguments: argparse.Namespace,
) -> Row:
    pp, _, vpp = shape.partition("x")
    pipeline = Pipeline(pp=int(pp), vpp=int(vpp or 1))
    ranks = arguments.ranks // pipeline.pp if arguments.in_all else arguments.ranks
    given_s, ordered_s = _as_for_one_stage(
        lengths, profile, pipeline, num_ranks=ranks, time_limit_s=arguments.time_limit
    )
    uniform = best_uniform_pipelined_step(
        lengths, profile=profile, pipeline=pipeline, num_ranks=ranks, clock=time.process_time
    )
    plan = pipelined_step(
        lengths, profile=profile, pipeline=pipeline, num_ranks=ranks, clock=time.process_time,
        time_limit_s=arguments.time_limit,
    )  # fmt: skip
    return Row(
        name=name,
        pp=pipeline.pp,
        vpp=pipeline.vpp,
        ranks=ranks,
        given_ms=1e3 * given_s,
        ordered_ms=1e3 * ordered_s,
        uniform_ms=None if uniform is None else 1e3 * uniform.step_s,
        first_ms=1e3 * (plan.first_step_s or plan.step_s),
        first_s=plan.first_plan_s or plan.solve_s,
        step_ms=1e3 * plan.step_s,
        bound_ms=1e3 * plan.lower_bound_s,
        solve_s=plan.solve_s,
    )


def _as_for_one_stage(
    lengths: Sequence[int],
    profile: StepProfile,
    pipeline: Pipeline,
    *,
    num_ranks: int,
    time_limit_s: float,
) -> tuple[float, float]:
    """The waves of one stage's plan through the pipeline, as given and in the best order.

    Their token cap is what every wave may hold alike, or what the longest sequence needs. With
    vpp > 1 their number suits no schedule, and they go through one without chunks.
    """
    costs = StageCosts(profile, replace(pipeline, vpp=1))
    degrees = [degree for degree in profile.degrees if degree <= num_ranks]
    token_cap = max(costs.even_cap, -(-max(lengths) // max(degrees)))
    capped = replace(profile, token_cap=token_cap)
    plan = plan_step(
        lengths, profile=capped, num_ranks=num_ranks, clock=time.process_time,
        time_limit_s=time_limit_s,
    )  # fmt: skip
    times = [costs.placed_times(wave, lengths) for wave in plan.waves]
    given_s = max(
        operation.end_s
        for operation in operations_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    )
    order, _ = first_order(times, costs)
    _, ordered_s = better_order(times, costs, order=order, trials=_ORDER_TRIALS)
    return given_s + profile.step_fixed_s, ordered_s + profile.step_fixed_s


def _print_row(row: Row) -> None:
    uniform = "" if row.uniform_ms is None else f"{row.uniform_ms:.0f}"
    chunks = f" x {row.vpp}" if row.vpp > 1 else ""
    print(
        f"| {row.name} | {row.pp}{chunks} | {row.ranks} | {row.given_ms:.0f} "
        f"| {row.ordered_ms:.0f} | {uniform} | {row.first_ms:.0f} ({1e3 * row.first_s:.0f} ms) "
        f"| {row.step_ms:.0f} | {row.bound_ms:.0f} | {row.step_ms / row.bound_ms - 1:.1%} |",
        flush=True,
    )


def _print_means(rows: Sequence[Row]) -> None:
    print("\ntimes as long as the plan, mean (least to most):")
    for field in ("given_ms", "ordered_ms", "uniform_ms"):
        ratios = [
            getattr(row, field) / row.step_ms for row in rows if getattr(row, field) is not None
        ]
        print(
            f"- {field.removesuffix('_ms')}: {statistics.mean(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rows)"
        )
    print(
        f"- mean gap {statistics.mean(row.step_ms / row.bound_ms - 1 for row in rows):.1%}; "
        f"median first plan {1e3 * statistics.median(row.first_s for row in rows):.0f} ms CPU"
    )


if __name__ == "__main__":
    main()
