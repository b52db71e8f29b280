"""The step planner beside static degrees, FlexSP's MILP and megatron-core's greedy, in one run.

    python tests/benchmarks/bench_step_planner.py tests/data/seqlen/*.txt
    python tests/benchmarks/bench_step_planner.py --milp-seconds 5 --batches 2 --svg out.svg ...

For each file of lengths, one a line: consecutive batches, all priced by the given profile.
Lengths are padded up to a multiple of 128 and those over `--longest` dropped, as in FlexSP's
experiments (arXiv:2412.01523). "static" is the one degree that is best for all batches of a
file together, "uniform" the best one of each batch; both are what our own planner makes of it.
Prints a Markdown table; `--json` one line a batch. The first plan of a process is not timed.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from step_planner_peers import flexsp_step_s, megatron_step_s

from trimtab.core.errors import InfeasibleError
from trimtab.core.profile import StepProfile
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.steps.sequences import plan_step, uniform_step

PROFILE = Path(__file__).parents[1] / "data" / "profiles" / "flexsp_7b_a100.json"
_WARM_RUNS = 5
_BARS = {
    "uniform_ms": ("best uniform degree of each batch", "#b9c3cf"),
    "megatron_ms": ("megatron-core, hybrid context parallel", "#d9a05b"),
    "flexsp_ms": ("FlexSP's MILP (own implementation)", "#7f9fbf"),
    "step_ms": ("Trimtab", "#2f7d5b"),
}


@dataclass(frozen=True)
class Row:
    """One batch; times of steps in milliseconds, those of solvers in seconds."""

    file: str
    batch: int
    static_ms: float | None
    uniform_ms: float
    megatron_ms: float | None
    flexsp_ms: float | None
    flexsp_s: float | None
    first_ms: float
    first_s: float
    step_ms: float
    bound_ms: float
    solve_s: float

    @property
    def gap(self) -> float:
        return self.step_ms / self.bound_ms - 1


def main() -> None:
    arguments = _arguments()
    profile = profile_from_document(json.loads(arguments.profile.read_text()))
    files = {
        path.stem: _batches(path, arguments)[: arguments.batches] for path in arguments.lengths
    }
    rows: list[Row] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("batches", total=sum(map(len, files.values())))
        for name, batches in files.items():
            static_ms = _static_ms(batches, profile, num_ranks=arguments.ranks)
            for number, lengths in enumerate(batches):
                static = None if static_ms is None else static_ms[number]
                rows.append(_row(name, number, lengths, profile, arguments, static_ms=static))
                progress.advance(task)
    if not rows:
        sys.exit(f"no file has a whole batch of {arguments.sequences} sequences")
    if arguments.json:
        print("\n".join(json.dumps(asdict(row)) for row in rows))
    else:
        _print_table(rows, profile, arguments)
    if arguments.svg:
        arguments.svg.write_text(_chart(rows), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("lengths", type=Path, nargs="+", help="files with one length a line")
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=512, help="sequences of a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches of a file at most")
    parser.add_argument("--longest", type=int, default=191_872)
    parser.add_argument("--time-limit", type=float, default=1.0)
    parser.add_argument("--megatron", action="store_true", help="needs the extra `train`")
    parser.add_argument("--milp-seconds", type=float, help="limit of each MILP of FlexSP")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path, help="write a bar chart there")
    return parser.parse_args()


def _batches(path: Path, arguments: argparse.Namespace) -> list[list[int]]:
    lengths = [int(line) for line in path.read_text().split()]
    padded = [-(-length // 128) * 128 for length in lengths if length <= arguments.longest]
    size = arguments.sequences
    return [padded[at : at + size] for at in range(0, len(padded) - size + 1, size)]


def _row(
    name: str,
    number: int,
    lengths: Sequence[int],
    profile: StepProfile,
    arguments: argparse.Namespace,
    *,
    static_ms: float | None,
) -> Row:
    ranks = arguments.ranks
    first = [
        plan_step(lengths, profile=profile, num_ranks=ranks, clock=time.perf_counter)
        for _ in range(_WARM_RUNS)
    ]
    plan = plan_step(
        lengths, profile=profile, num_ranks=ranks, clock=time.perf_counter,
        time_limit_s=arguments.time_limit,
    )  # fmt: skip
    megatron_s = flexsp_s = solver_s = None
    if arguments.megatron:
        megatron_s = megatron_step_s(lengths, profile=profile, num_ranks=ranks)
    if arguments.milp_seconds:
        started_s = time.perf_counter()
        flexsp_s = flexsp_step_s(
            lengths, profile=profile, num_ranks=ranks, seconds_a_milp=arguments.milp_seconds
        )
        solver_s = time.perf_counter() - started_s
    uniform = _uniform_ms(lengths, profile, num_ranks=ranks)
    return Row(
        file=name,
        batch=number,
        static_ms=static_ms,
        uniform_ms=min(step_ms for step_ms in uniform.values() if step_ms is not None),
        megatron_ms=None if megatron_s is None else 1e3 * megatron_s,
        flexsp_ms=None if flexsp_s is None else 1e3 * flexsp_s,
        flexsp_s=solver_s,
        first_ms=1e3 * first[0].step_s,
        first_s=statistics.median(each.solve_s for each in first),
        step_ms=1e3 * plan.step_s,
        bound_ms=1e3 * plan.lower_bound_s,
        solve_s=plan.solve_s,
    )


def _static_ms(
    batches: Sequence[Sequence[int]], profile: StepProfile, *, num_ranks: int
) -> list[float] | None:
    """Steps of the batches at the one degree that is best for all of them together."""
    by_batch = [_uniform_ms(lengths, profile, num_ranks=num_ranks) for lengths in batches]
    best: list[float] | None = None
    for degree in profile.degrees:
        steps = [each[degree] for each in by_batch if each.get(degree) is not None]
        steps_ms = [step for step in steps if step is not None]
        if len(steps_ms) == len(batches) and (best is None or sum(steps_ms) < sum(best)):
            best = steps_ms
    return best


def _uniform_ms(
    lengths: Sequence[int], profile: StepProfile, *, num_ranks: int
) -> dict[int, float | None]:
    steps_ms: dict[int, float | None] = {}
    for degree in profile.degrees:
        if degree > num_ranks:
            continue
        try:
            step = uniform_step(
                lengths, profile=profile, num_ranks=num_ranks, degree=degree,
                clock=time.perf_counter,
            )  # fmt: skip
        except InfeasibleError:
            steps_ms[degree] = None
        else:
            steps_ms[degree] = 1e3 * step.step_s
    return steps_ms


def _print_table(
    rows: Sequence[Row], profile: StepProfile, arguments: argparse.Namespace
) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"profile {profile.name}, {arguments.ranks} ranks, {arguments.sequences} sequences, "
        f"--time-limit {arguments.time_limit:g}\n"
    )
    print(
        "| batch | static | uniform | megatron-core | FlexSP's MILP | first plan | plan "
        "| bound | gap | solver |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        milp = "" if row.flexsp_s is None else f"{_ms(row.flexsp_ms)} ({row.flexsp_s:.0f} s)"
        print(
            f"| {row.file} {row.batch} | {_ms(row.static_ms)} | {row.uniform_ms:.0f} "
            f"| {_ms(row.megatron_ms)} | {milp} | {row.first_ms:.0f} "
            f"({1e3 * row.first_s:.1f} ms) "
            f"| {row.step_ms:.0f} | {row.bound_ms:.0f} | {row.gap:.1%} | {row.solve_s:.2f} s |"
        )
    print(
        f"\nmean gap {statistics.mean(row.gap for row in rows):.2%}; median first plan "
        f"{1e3 * statistics.median(row.first_s for row in rows):.1f} ms; "
        "times as long as the plan:"
    )
    for field in ("static_ms", "uniform_ms", "megatron_ms", "flexsp_ms"):
        for name in sorted({row.file for row in rows}):
            ratios = [
                getattr(row, field) / row.step_ms
                for row in rows
                if row.file == name and getattr(row, field) is not None
            ]
            if ratios:
                print(
                    f"- {field.removesuffix('_ms')}, {name}: {statistics.mean(ratios):.3f} "
                    f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} batches)"
                )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _chart(rows: Sequence[Row]) -> str:
    """Bars of each batch's steps over its certified bound, as an SVG picture."""
    left, width, bar, most = 150, 460, 13, 0.0
    groups = []
    for row in rows:
        values = {
            field: getattr(row, field) / row.bound_ms
            for field in _BARS
            if getattr(row, field) is not None
        }
        most = max(most, *values.values())
        groups.append((f"{row.file} {row.batch}", values))
    shown = [field for field in _BARS if any(field in values for _, values in groups)]
    lines, y = [], 22 + 18 * len(shown)
    for index, field in enumerate(shown):
        label, colour = _BARS[field]
        lines.append(
            f'<rect x="{left}" y="{12 + 18 * index}" width="12" height="12" fill="{colour}"/>'
        )
        lines.append(f'<text x="{left + 18}" y="{22 + 18 * index}">{label}</text>')
    for title, values in groups:
        lines.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{title}</text>')
        for field in shown:
            if field in values:
                long = width * values[field] / most
                colour = _BARS[field][1]
                lines.append(
                    f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{bar - 2}" '
                    f'fill="{colour}"/>'
                )
                lines.append(
                    f'<text x="{left + long + 4:.1f}" y="{y + 9}" font-size="10">'
                    f"{values[field]:.3f}</text>"
                )
            y += bar
        y += 10
    lines.append(
        f'<text x="{left}" y="{y + 8}" font-size="11">step time over the certified lower bound '
        "(1 = nothing can be shorter)</text>"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{left + width + 60}" height="{y + 20}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(lines) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
