"""Latency and quality of the step planner on real lengths.

    python tests/benchmarks/bench_step_planner.py tests/data/seqlen/*.txt

For each file of lengths, one a line: consecutive batches, planned on the given profile; prints
the wall time of a plan (p50, p99), its time over the lower bound, and the speed-up over the
best uniform degree of each batch. Lengths are padded up to a multiple of 128 and those over
`--longest` dropped, as in FlexSP's experiments (arXiv:2412.01523).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from trimtab.core.plan import StepPlan
from trimtab.core.profile import StepProfile
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.sequences import plan_step, uniform_step

PROFILE = Path(__file__).parents[1] / "data" / "profiles" / "flexsp_7b_a100.json"


def main() -> None:
    arguments = _arguments()
    profile = profile_from_document(json.loads(arguments.profile.read_text()))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"profile {profile.name}, {arguments.ranks} ranks, {arguments.sequences} sequences"
    )
    print("file            batches  p50 ms  p99 ms  step/bound  uniform/step  steps (ms)")
    for path in arguments.lengths:
        batches = _batches(path, size=arguments.sequences, longest=arguments.longest)
        _report(path.stem, batches[: arguments.batches], profile, num_ranks=arguments.ranks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("lengths", type=Path, nargs="+", help="files with one length a line")
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=512, help="sequences of a batch")
    parser.add_argument("--batches", type=int, default=20, help="batches of a file at most")
    parser.add_argument("--longest", type=int, default=191_872)
    return parser.parse_args()


def _batches(path: Path, *, size: int, longest: int) -> list[list[int]]:
    lengths = [int(line) for line in path.read_text().split()]
    padded = [-(-length // 128) * 128 for length in lengths if length <= longest]
    return [padded[at : at + size] for at in range(0, len(padded) - size + 1, size)]


def _report(
    name: str, batches: Sequence[Sequence[int]], profile: StepProfile, *, num_ranks: int
) -> None:
    if not batches:
        print(f"{name:15} has no whole batch")
        return
    plans = [
        plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=time.perf_counter)
        for lengths in batches
    ]
    uniform_s = [
        _best_uniform(lengths, profile, num_ranks=num_ranks).step_s for lengths in batches
    ]
    solve_ms = sorted(1e3 * plan.solve_s for plan in plans)
    p99_ms = solve_ms[min(len(solve_ms) - 1, int(0.99 * len(solve_ms)))]
    over_bound = statistics.mean(plan.step_s / plan.lower_bound_s for plan in plans)
    speed_up = statistics.mean(
        uniform / plan.step_s for uniform, plan in zip(uniform_s, plans, strict=True)
    )
    steps = " ".join(f"{1e3 * plan.step_s:.0f}" for plan in plans[:4])
    print(
        f"{name:15} {len(plans):7} {statistics.median(solve_ms):7.1f} {p99_ms:7.1f} "
        f"{over_bound:11.4f} {speed_up:13.3f}  {steps} ..."
    )


def _best_uniform(lengths: Sequence[int], profile: StepProfile, *, num_ranks: int) -> StepPlan:
    plans = [
        uniform_step(
            lengths,
            profile=profile,
            num_ranks=num_ranks,
            degree=degree,
            clock=time.perf_counter,
        )
        for degree in profile.degrees
        if degree <= num_ranks and max(lengths) <= degree * profile.token_cap
    ]
    return min(plans, key=lambda plan: plan.step_s)


if __name__ == "__main__":
    main()
