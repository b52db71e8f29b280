"""Groups, placement and paths planned together, against the same decided one after the other.

    python tests/benchmarks/bench_joint_program.py configs/gpt-7b-staged.yaml \
        --clusters clusters/holmes-ib-roce.yaml ... --lengths tests/data/seqlen/*.txt

Both are simulated by the same event simulation of the same layout costs; times are process CPU
seconds after kernels are compiled. The peer is `trimtab.planners.staged.staged_apart` on
Megatron's placement with Holmes's layers, the best of its plans at four sizes of micro-batches
in three orders; `here` is the same on the layout that was chosen.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

from trimtab.core.staged import StagedLayout
from trimtab.orchestrator import load_job
from trimtab.orchestrator.api import as_sequences, load_lengths
from trimtab.orchestrator.joint_planning import plan_joint_step
from trimtab.planners.staged.staged_apart import apart_drafts
from trimtab.planners.staged.staged_planning import plan_staged_step
from trimtab.planners.staged.staged_schedule import Tables, simulate

_HEAD = (
    "cluster", "lengths", "nodes of each stage", "layers", "apart", "apart, here", "plan",
    "apart/plan", "bound", "gap", "first plan", "layout",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--clusters", type=Path, nargs="+", required=True)
    parser.add_argument("--lengths", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=int, default=0, help="First line of each file.")
    parser.add_argument("--lines", type=int, default=512, help="Documents of a step.")
    parser.add_argument("--time-limit", type=float, default=2.0)
    parser.add_argument("--set", nargs="*", default=[], help="a.b=c changes of the job.")
    options = parser.parse_args()
    print("| " + " | ".join(_HEAD) + " |")
    print("|" + "---|" * len(_HEAD))
    ratios, gaps = [], []
    for cluster in options.clusters:
        for lengths in options.lengths:
            ratio, gap, row = _row(cluster, lengths, options)
            ratios.append(ratio)
            gaps.append(gap)
            print("| " + " | ".join(row) + " |", flush=True)
    print()
    print(
        f"{sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} no worse than apart, "
        f"{sum(ratio >= 1 / 0.95 for ratio in ratios)} at least 5 % shorter; "
        f"{sum(gap <= 0.08 for gap in gaps)} gaps of at most 8 %, median "
        f"{statistics.median(gaps):.1%}"
    )


def _row(
    cluster: Path, lengths: Path, options: argparse.Namespace
) -> tuple[float, float, list[str]]:
    job = load_job(options.job, [f"cluster={cluster}", "num_ranks=null", *options.set])
    documents = load_lengths(lengths, start=options.start, end=options.start + options.lines)
    batch = as_sequences(documents, data=job.data)
    plan_joint_step(job, batch, time_limit_s=0.0)  # compiles
    joint = plan_joint_step(
        job, batch, time_limit_s=options.time_limit, clock=time.process_time
    )
    staged, plan = joint.staged, joint.plan
    apart_s = math.inf if joint.apart_s is None else joint.apart_s
    firsts = [
        plan_staged_step(batch, staged=staged, clock=time.process_time, time_limit_s=0.0)
        for _ in range(5)
    ]
    first_s = statistics.median(first.first_plan_s for first in firsts)
    first_longer = firsts[0].first_step_s / plan.step_s - 1
    gap = plan.gap_fraction
    nodes = " / ".join(
        "+".join(
            f"{staged.replicas[v].num_nodes} {staged.replicas[v].node}"
            for v in staged.of_stage(stage)
        )
        for stage in range(staged.num_stages)
    )
    row = [
        cluster.stem, lengths.stem, nodes, "/".join(map(str, staged.stage_layers)),
        f"{apart_s:.3f}", f"{_apart_s(batch, staged):.3f}", f"{plan.step_s:.3f}",
        f"{apart_s / plan.step_s:.2f}", f"{plan.lower_bound_s:.3f}", f"{gap:.1%}",
        f"{1e3 * first_s:.0f} ms, +{first_longer:.1%}", f"{joint.layout_s:.1f} s",
    ]  # fmt: skip
    return apart_s / plan.step_s, gap, row


def _apart_s(batch: tuple[int, ...], staged: StagedLayout) -> float:
    drafts = apart_drafts(batch, staged, clock=time.process_time)
    tables = Tables(staged)
    return min((simulate(draft, tables)[0] for draft in drafts), default=float("inf"))


if __name__ == "__main__":
    main()
